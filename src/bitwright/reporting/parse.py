"""Rows and objects -> sections; used for files of a run and for objects alike, so that both say the same."""

from __future__ import annotations

from bitwright.reporting.sections import (
    Bits,
    Candidate,
    Choice,
    Conversion,
    Dimension,
    Disagreement,
    Epoch,
    Health,
    Layer,
    Net,
    Speed,
    Training,
)
from bitwright.reporting.tables import Cells


def layer(row: Cells) -> Layer:
    return Layer(
        name=row.text("layer"),
        kind=row.text("kind"),
        w=row.text("w"),
        x=row.text("x"),
        w_bits=row.integer("w_bits"),
        x_bits=row.integer("x_bits"),
        macs=row.integer("macs"),
        runs_as=row.text("runs_as"),
        bytes_before=row.number("bytes_before"),
        bytes_after=row.number("bytes_after"),
        ms_before=row.number("ms_before"),
        ms_after=row.number("ms_after"),
        max_abs_diff=row.number("max_abs_diff"),
        why=row.text("why"),
    )


def report_layer(row: Cells) -> Layer:
    """A row of `ConvertReport`: bits are written as "1/2", or "float"."""
    w, _, x = row.text("bits").partition("/")
    bits = {"w_bits": w, "x_bits": x} if w.isdecimal() and x.isdecimal() else {"w_bits": "32", "x_bits": "32"}
    return layer(Cells({**row.values, **bits}, row.where))


def conversion(found: Cells) -> Conversion:
    return Conversion(
        status=found.text("status"),
        verdict=found.text("verdict"),
        images=found.integer("images") or 0,
        same=found.integer("same") or 0,
        layers_exact=found.flag("layers_exact"),
        codes_checked=found.integer("codes_checked") or 0,
        largest_difference=found.number("largest_difference"),
        file_bytes=found.number("file_bytes"),
        float_bytes=found.number("float_bytes"),
        ms_before=found.number("ms_before"),
        ms_after=found.number("ms_after"),
        accuracy=found.number("accuracy"),
        trained_accuracy=found.number("trained_accuracy"),
        disagreements=tuple(_disagreement(item) for item in found.items("disagreements")),
    )


def _disagreement(item: Cells) -> Disagreement:
    numbers = [item.integer(key) for key in ("index", "trained", "packed")]
    index, trained, packed = (-1 if n is None else n for n in numbers)
    return Disagreement(index, trained, packed, item.number("margin"), item.text("first_layer"))


def speed(found: Cells) -> Speed:
    shape = found.values.get("input") or []
    return Speed(
        rows=tuple(candidate(row) for row in found.items("rows")),
        machine=found.table("machine"),
        batch=found.integer("batch") or 1,
        input=tuple(int(n) for n in shape) if isinstance(shape, (list, tuple)) else (),
        rounds=found.integer("rounds"),
        clock=found.text("clock"),
        quality=found.text("quality"),
        why=found.texts("why"),
    )


def candidate(row: Cells) -> Candidate:
    return Candidate(
        name=row.text("name"),
        precision=row.text("precision"),
        ms=row.number("latency_ms"),
        q1=row.number("latency_q1_ms"),
        q3=row.number("latency_q3_ms"),
        runs=row.integer("runs"),
        per_second=row.number("per_second"),
        ratio=row.number("ratio"),
        best=row.flag("best_of_precision"),
        note=row.text("note"),
    )


def net(row: Cells) -> Net:
    return Net(
        name=row.text("net"),
        precision=row.text("precision"),
        accuracy=row.number("accuracy"),
        images=row.integer("images"),
        bytes=row.number("bytes"),
        ms=row.number("latency_ms"),
    )


def training(metrics: list[Cells], health: list[Cells], state: Cells) -> Training | None:
    """None where none of the three files has anything."""
    if not metrics and not health and not state.values:
        return None
    return Training(
        epochs=tuple(epoch(row) for row in metrics),
        health=tuple(health_row(row) for row in health),
        status=state.text("status"),
        test_top1=state.number("test_top1"),
        test_images=state.integer("test_images"),
        float_top1=state.number("float_top1"),
        seconds=state.number("seconds"),
        warnings=state.texts("warnings"),
    )


def epoch(row: Cells) -> Epoch:
    keys = ("loss", "top1", "test_top1", "val_top1", "lr", "seconds", "macs", "dense_macs", "bops", "dense_bops")
    numbers = {key: row.number(key) for key in keys}
    return Epoch(row.integer("stage") or 0, row.integer("epoch") or 0, **numbers)


def health_row(row: Cells) -> Health:
    numbers = {key: row.number(key) for key in ("flips", "dead", "scale", "saturation", "positive")}
    return Health(row.integer("stage") or 0, row.integer("epoch") or 0, row.text("layer"), **numbers)


def bits(found: Cells) -> Bits:
    """pca.json."""
    rows = found.items("layers")
    counts = {row.text("name"): row.integer("components") or 0 for row in rows}
    before = {str(k): str(v) for k, v in found.table("before").items()}
    chosen = set(found.texts("significant"))
    layers = []
    for row in rows:
        name = row.text("name")
        shares = row.values.get("shares")
        curve = [Cells({"share": v}, row.where).number("share") for v in shares] if isinstance(shares, list) else []
        layers.append(
            Dimension(
                name, row.integer("channels") or len(curve), counts[name], name in chosen, before.get(name, ""),
                counts.get(before.get(name, "")), tuple(round(v, 6) for v in curve if v is not None),
            )
        )  # fmt: skip
    plain = found.number("relative") is None and found.number("budget") is None
    pair = found.values.get("bits")
    return Bits(
        tuple(layers),
        found.number("threshold") or 0.0,
        found.number("delta") if plain else None,
        found.integer("images"),
        "/".join(map(str, pair)) if isinstance(pair, list) else "",
        found.flag("stable") if found.values.get("stable") is not None else None,
        tuple(choice(row) for row in found.items("compared")),
    )


def choice(row: Cells) -> Choice:
    numbers = {key: row.number(key) for key in ("share", "storage_bytes", "compression", "energy_efficiency")}
    return Choice(row.text("choice"), row.texts("layers"), **numbers)
