"""Where do time and bytes go? Shares of the layers, the table of them, and what convert saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import REPORT, Gap, Section
from bitwright.runs.result_tables import Conversion, Layer


class Layers(Section):
    name, title, place = "layers", "Layers", 30
    tables = (Layer, Conversion)

    def view(self, run: RunData) -> dict[str, Any]:
        names = [layer.runs_as for layer in run.layers if layer.runs_as]
        kinds = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))  # "7 bits, 2 int8, 1 float"
        more = {"facts": facts(run.conversion), "doubts": doubts(run.conversion)}
        return {"strips": strips(run), "keys": bit_keys(run), "kinds": kinds, **more}

    def json(self, run: RunData) -> dict[str, Any]:
        rows = [layer.model_dump() for layer in run.layers]
        found = run.conversion
        return {
            "layers": {"columns": list(Layer.model_fields), "rows": [list(row.values()) for row in rows]},
            "conversion": None if found is None else found.model_dump(exclude={"rows"}),
        }

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if not run.layers:
            why = "No layer has been packed, so there is nothing to share out."
            yield "layers", Gap(why, "bitwright convert {run}", REPORT)


def facts(found: Conversion | None) -> list[str]:
    """How the net was packed and compared, one sentence each; a run of an older version says less."""
    if found is None:
        return []
    said = []
    if found.form == "graph":
        said.append("The packed net is one graph; none of the model's own code is needed to run it.")
    elif found.form:
        lost = (
            f" At most {found.lost} fusion{'s are' if found.lost != 1 else ' is'} lost by that." if found.lost else ""
        )
        why = f": {found.form_why}" if found.form_why else ""
        said.append(f"The packed layers stand in the model's own code, which is needed to run it{why}.{lost}")
    if found.classes:
        many = f"{found.classes} different classes" if found.classes > 1 else "one class"
        said.append(f"The trained net gives {many} for the {found.images:,} images that were compared.")
    if found.untimed:
        said.append(f"Layers were not timed: {found.untimed}.")
    return said


def doubts(found: Conversion | None) -> list[str]:
    """Why the packed net may differ from the trained one although answers are the same."""
    if found is None:
        return []
    said = [f"Equal answers prove little here: {found.blind}."] if found.blind else []
    return said + [
        f"{b.where}, image {b.image}: off by {filters.general(b.difference)}, and rounding explains {filters.general(b.bound)}."
        for b in found.beyond
    ]


@dataclass(frozen=True)
class Piece:
    """One layer's part of a strip; `share` of the sum of all."""

    index: int
    layer: Layer
    share: float
    style: str
    label: str
    tip: str


@dataclass(frozen=True)
class Strip:
    title: str
    total: str
    pieces: tuple[Piece, ...]
    missing: int  # layers without a value


def strips(run: RunData) -> list[Strip]:
    """Packed time, packed bytes, float time; one is left out where no layer has a value."""
    made = (
        _strip(run, "Packed: time, layers alone", "ms_after", filters.ms_unit, True),
        _strip(run, "Packed: bytes", "bytes_after", numbers.kb_unit, True),
        _strip(run, "Float: time, layers alone, for comparison", "ms_before", filters.ms_unit, False),
    )
    return [strip for strip in made if strip is not None]


def _strip(run: RunData, title: str, column: str, write: Callable[[float | None], str], colored: bool) -> Strip | None:
    total = run.total(column)
    if not total:
        return None
    pieces, missing = [], 0
    for i, layer in enumerate(run.layers):
        value = getattr(layer, column)
        if value is None:
            missing += 1
            continue
        share = value / total
        runs = f", {layer.runs_as}" if colored and layer.runs_as else ""
        bits = f"\nw {filters.bits(layer.w_bits)}, x {filters.bits(layer.x_bits)}{runs}" if colored else ""
        tip = f"{layer.name}\n{write(value)} ({numbers.percent(share)} %){bits}"
        style = filters.bits_class(layer.w_bits) if colored else "c32"
        pieces.append(Piece(i, layer, share, style, _label(layer.name, share), tip))
    return Strip(title, write(total), tuple(pieces), missing)


def _label(name: str, share: float) -> str:
    """What fits: about 150 characters of small type on the whole width."""
    room = int(share * 150) - 2
    if len(name) <= room:
        return name
    last = name.rpartition(".")[2]
    first = name.partition(".")[0]
    return next((text for text in (first, last) if 3 <= len(text) <= room), "")


def bit_keys(run: RunData) -> list[tuple[str, str]]:
    """(class, text) of the weight bits that occur."""
    found = {filters.bits_class(layer.w_bits): layer.w_bits for layer in run.layers}
    order = ("c1", "c2", "c4", "c8", "c16", "c32")
    texts = {"c1": "1 bit", "c2": "2-3 bits", "c4": "4-7 bits", "c8": "8 bits", "c16": "9-31 bits", "c32": "float"}
    keys = [(key, texts[key]) for key in order if key in found]
    if any(layer.w_bits is None for layer in run.layers):
        keys = [(k, "float or unknown" if k == "c32" else t) for k, t in keys]
    return keys
