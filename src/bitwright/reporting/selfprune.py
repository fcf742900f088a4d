"""connections.csv, sweep.json and sweep.csv -> the Connections section of nets with 0/1 weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.analysis.sweep_result import NORMS, SweepPoint, WeightSweep
from bitwright.errors import InputError
from bitwright.reporting.tables import Cells, rows
from bitwright.runs.folder import Run


@dataclass(frozen=True)
class Connected:
    """A row of connections.csv: one 0/1 layer after one epoch."""

    stage: int
    epoch: int
    layer: str
    weights: int
    on: int
    units: int
    no_input: int | None = None
    live: int | None = None
    fan_in_mean: float | None = None
    fan_in_max: int | None = None

    @property
    def share(self) -> float:
        return self.on / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class SelfPrune:
    """rows of every epoch; sweeps: up to one per norm mode; batch: images at a time in them, if known."""

    rows: tuple[Connected, ...] = ()
    sweeps: tuple[WeightSweep, ...] = ()
    batch: int | None = None
    analyzed: bool = False  # by `bitwright analyze`, not in training

    @property
    def last(self) -> tuple[Connected, ...]:
        """Of the last epoch."""
        end = max(((r.stage, r.epoch) for r in self.rows), default=(0, 0))
        return tuple(r for r in self.rows if (r.stage, r.epoch) == end)


def selfprune_of(run: Run) -> SelfPrune | None:
    """None where the run has no layer of 0/1 weights. What `analyze` measured goes before what training wrote."""
    table = tuple(_connected(row) for row in rows(run.read_csv("connections.csv"), "connections.csv"))
    analyzed = run.read_json("sweep.json")
    sweeps: tuple[WeightSweep, ...] = ()
    if analyzed:
        cells = Cells(analyzed, "sweep.json")
        sweeps = tuple(_sweep(s, [_json_point(p) for p in s.items("rows")]) for s in cells.items("sweeps"))
        return SelfPrune(table, sweeps, cells.integer("batch"), True)
    swept = rows(run.read_csv("sweep.csv"), "sweep.csv")
    if swept:
        last = max((_whole(row, "stage"), _whole(row, "epoch")) for row in swept)
        now = [row for row in swept if (_whole(row, "stage"), _whole(row, "epoch")) == last]
        for norm in dict.fromkeys(row.text("norm") for row in now):
            mine = [row for row in now if row.text("norm") == norm]
            sweeps += (_sweep(mine[0], [_csv_point(row) for row in mine]),)
    return SelfPrune(table, sweeps) if table or sweeps else None


def _connected(row: Cells) -> Connected:
    stage, epoch, weights, on, units = (_whole(row, key) for key in ("stage", "epoch", "weights", "on", "units"))
    no_input, live, most = (row.integer(key) for key in ("no_input", "live", "fan_in_max"))
    return Connected(
        stage, epoch, row.text("layer"), weights, on, units, no_input, live, row.number("fan_in_mean"), most
    )


def _sweep(facts: Cells, points: list[SweepPoint]) -> WeightSweep:
    norm, images = facts.text("norm"), _whole(facts, "images")
    if norm not in NORMS or not images:
        raise InputError(
            f"report: {facts.where}: norm is {norm[:40]!r} of {images} images; possible: {', '.join(NORMS)}, at least 1",
            code="run-damaged",
        )
    if facts.text("ranking") not in ("", "largest", "smallest", "mixed"):
        raise InputError(f"report: {facts.where}: ranking is {facts.text('ranking')[:40]!r}", code="run-damaged")
    limit = facts.number("limit")
    return WeightSweep(
        norm, images, tuple(points), facts.number("trained_on"), facts.text("output"), facts.text("ranking"),
        WeightSweep.limit if limit is None else limit, facts.number("digital"), facts.integer("train_images"),
        facts.integer("norms") or 0,
    )  # fmt: skip


def _json_point(row: Cells) -> SweepPoint:
    right, agree, tied = (_whole(row, f"{key}_images") for key in ("right", "agree", "tied"))
    return SweepPoint(_value(row), right, row.integer("preactivation_images"), agree, tied)


def _csv_point(row: Cells) -> SweepPoint:
    """The table has shares: times the images they are the counts again."""
    images = _whole(row, "images")
    counts: Mapping[str, Any] = {
        key: None if (share := row.number(key)) is None else round(share * images)
        for key in ("accuracy", "preactivation", "agreement", "tied")
    }
    for key in ("accuracy", "agreement", "tied"):
        if counts[key] is None:
            raise InputError(f"report: {row.where}: {key} is missing", code="run-damaged")
    return SweepPoint(_value(row), counts["accuracy"], counts["preactivation"], counts["agreement"], counts["tied"])


def _value(row: Cells) -> float:
    value = row.number("on")
    if value is None:
        raise InputError(f"report: {row.where}: on is missing or no finite number", code="run-damaged")
    return value


def _whole(row: Cells, key: str) -> int:
    value = row.integer(key)
    if value is None or value < 0:
        raise InputError(f"report: {row.where}: {key} is missing or negative", code="run-damaged")
    return value
