"""Did training go well? Accuracy by epoch, and how often the signs of weights still flip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section, columns, rounded
from bitwright.reporting.svg.charts import ChartTable, table_of
from bitwright.reporting.svg.curves import Curves, Series, curves
from bitwright.reporting.svg.heatmap import HeatMap, heat_map
from bitwright.reporting.verdict import restless
from bitwright.runs.cells import last_epoch
from bitwright.runs.tables import Epoch, Health, Status

LAYERS_SHOWN, EPOCHS_SHOWN = 24, 40
KEPT_ROWS = 1500  # of health.csv, in the page's JSON
RESUME = "bitwright train {experiment} --out {run} --resume"
MEASURES = ("stage", "epoch", "flips", "dead", "scale", "saturation", "positive")


class Training(Section):
    name, title, place = "training", "Training", 50
    key, tables = "training", (Epoch, Health, Status)

    def read(self, run: RunData) -> Status | None:
        return run.one(Status)

    def view(self, run: RunData) -> dict[str, Any]:
        return {"curves": accuracy_curves(run), "flips": flip_map(run), "restless": restless(run)}

    def json(self, run: RunData) -> dict[str, Any]:
        if not any(run.rows(table) for table in self.tables):
            return {"training": None}
        keys = {"status", "test_top1", "test_images", "float_top1", "seconds", "warnings"}
        status = (run.one(Status) or Status()).model_dump(include=keys)
        epochs = [epoch.model_dump() for epoch in run.epochs]
        return {"training": {**status, "epochs": columns(epochs), "health": _by_layer(run.rows(Health))}}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if not run.epochs:
            yield "curves", Gap("No epoch of training is recorded.", RESUME)
        if not any(h.flips is not None for h in run.rows(Health)):
            why = "Sign flips were not recorded, or no layer has low-bit weights."
            yield "flips", Gap(why, "bitwright train {experiment} log.health_every=25 --out {watched}")


def _by_layer(health: tuple[Health, ...]) -> dict[str, Any]:
    """{"columns": ..., "layers": {name: rows}}."""
    layers: dict[str, list[list[Any]]] = {}
    whole = len(health) <= KEPT_ROWS
    for h in health if whole else last_epoch(health):
        layers.setdefault(h.layer, []).append([rounded(getattr(h, key)) for key in MEASURES])
    return {"columns": MEASURES, "epochs": "all" if whole else "last; all are in health.csv", "layers": layers}


def accuracy_curves(run: RunData) -> Curves | None:
    """Training, validation and test accuracy by epoch."""
    columns = {
        "test_top1": ("test", "ours", ""),
        "val_top1": ("validation", "int8", "7 4"),
        "top1": ("train", "fp32", "2 3"),
    }
    series = [Series(*style, _shares(run.epochs, column)) for column, style in columns.items()]
    return curves("Accuracy by epoch", series, [e.stage for e in run.epochs], _epoch_table(run.epochs))


def _shares(epochs: Sequence[Epoch], column: str) -> tuple[float | None, ...]:
    return tuple(None if (v := getattr(e, column)) is None else v * 100 for e in epochs)


def _epoch_table(epochs: Sequence[Epoch]) -> ChartTable:
    share = numbers.percent
    table = table_of("Every epoch", epochs, {
        "stage": ("stage", str), "of stage": ("epoch", str), "loss": ("loss", filters.loss), "train %": ("top1", share),
        "validation %": ("val_top1", share), "test %": ("test_top1", share), "learning rate": ("lr", filters.general),
        "time": ("seconds", filters.duration),
    })  # fmt: skip
    rows = tuple((str(i), *row) for i, row in enumerate(table.rows, 1))
    return ChartTable(table.title, ("epoch", *table.headers), rows)


def flip_map(run: RunData) -> HeatMap | None:
    """Sign flips by layer and epoch; strength is the share relative to the highest one."""
    health = [h for h in run.rows(Health) if h.flips is not None]
    if not health:
        return None
    moments = sorted({(h.stage, h.epoch) for h in health})
    recorded = [(e.stage, e.epoch) for e in run.epochs]
    number = {m: i for i, m in enumerate(recorded if set(moments) <= set(recorded) else moments, 1)}
    layers = list(dict.fromkeys(h.layer for h in health))
    rates = {(h.layer, h.stage, h.epoch): h.flips or 0.0 for h in health}
    shown = set(sorted(layers, key=lambda name: -rates.get((name, *moments[-1]), 0.0))[:LAYERS_SHOWN])
    groups = _groups(moments, EPOCHS_SHOWN)
    most = max(rates.values()) or 1.0
    rows = []
    for name in (n for n in layers if n in shown):
        cells: list[tuple[float, str] | None] = []
        for group in groups:
            found = [rates[name, *m] for m in group if (name, *m) in rates]
            rate = sum(found) / max(1, len(found))
            tip = f"{name}\n{_span(group, number)}: {_rate(rate)} flip"
            cells.append((round(rate / most, 3), tip) if found else None)
        rows.append((name, _row_label(name, [rates.get((name, *m)) for m in moments]), cells))
    worst = restless(run)

    def ticks(left: float, width: float) -> tuple[tuple[float, str], ...]:
        ends = sorted({0, len(groups) - 1})
        return tuple((round(left + (i + 0.5) * width, 1), str(number[groups[i][0]])) for i in ends)

    return heat_map(
        "Sign flips per step, by layer and epoch", rows, ticks, health_table(last_epoch(health)),
        worst=worst[0] if worst else None, hidden=len(layers) - len(rows), x_title="epoch", less="flip less",
        legend="sign flips per step (stronger color = more)",
    )  # fmt: skip


def _groups(moments: list[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    size = -(-len(moments) // most)
    return [moments[i : i + size] for i in range(0, len(moments), size)]


def _span(group: list[tuple[int, int]], number: dict[tuple[int, int], int]) -> str:
    """Epochs counted from 1 over all stages, as in the curves."""
    first, last = number[group[0]], number[group[-1]]
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _rate(share: float | None) -> str:
    """Flips are small: three digits, not one decimal."""
    return "-" if share is None else f"{numbers.significant(share * 100)} %"


def _row_label(name: str, values: list[float | None]) -> str:
    return f"{name}: {_rate(values[0])} of the signs flip per step in the first epoch, {_rate(values[-1])} in the last"


def health_table(last: Iterable[Health]) -> ChartTable:
    share = filters.percent_unit
    return table_of("Every layer in its last epoch", last, {
        "layer": ("layer", str), "flips per step": ("flips", _rate), "dead": ("dead", share),
        "scale against start": ("scale", filters.general), "saturated inputs": ("saturation", share),
        "positive inputs": ("positive", share),
    })  # fmt: skip
