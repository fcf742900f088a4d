"""The cells of a comparison: one row per figure, one column per group; text, and what to highlight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.groups import Group, Spread
from bitwright.runs.tables import Gate


@dataclass(frozen=True)
class Cell:
    """`value` with its spread, `note` against the reference; best of its row, or within the spread of seeds."""

    value: str
    note: str = ""
    best: bool = False

    def __str__(self) -> str:
        return f"{self.value} ({self.note})" if self.note else self.value


@dataclass(frozen=True)
class MatrixRow:
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Matrix:
    names: tuple[str, ...]
    rows: tuple[MatrixRow, ...]
    places: int  # machines with times


def matrix(groups: list[Group]) -> Matrix:
    """Accuracy, size, time per machine, verdict, same answers, warnings, seeds."""
    points = _nothing if groups[0].guesses else _points
    rows = [
        _figures("accuracy, %", [g.accuracy for g in groups], numbers.percent, numbers.percent, points, "max"),
        _figures("size, kB", [g.size for g in groups], numbers.kb, numbers.kb, _smaller, "min"),
    ]
    places = list(dict.fromkeys(place for group in groups for place in group.places))
    for place in places:
        spreads = [g.places.get(place, Spread(())) for g in groups]
        rows.append(_figures(f"ms on {place}", spreads, numbers.ms, numbers.significant, _times, "min"))
    if not places:
        rows.append(MatrixRow("latency, ms", tuple(Cell("-") for _ in groups)))
    if any(run.rows(Gate) for group in groups for run in group.runs):
        rows.append(_figures("MACs per image", [g.macs for g in groups], numbers.macs, numbers.macs, _fewer, "min"))
        rows.append(_figures("BOPs per image", [g.bops for g in groups], numbers.macs, numbers.macs, _fewer, "min"))
    rows.append(MatrixRow("verdict", tuple(Cell(g.verdicts) for g in groups)))
    rows.append(MatrixRow("same answers as trained", tuple(Cell(_same(g)) for g in groups)))
    rows.append(MatrixRow("warnings", tuple(Cell(filters.count(g.warnings)) for g in groups)))
    rows.append(MatrixRow("seeds", tuple(Cell(g.seeds) for g in groups)))
    return Matrix(tuple(g.name for g in groups), tuple(rows), len(places))


def _same(group: Group) -> str:
    return f"{group.same[0]:,} of {group.same[1]:,}" if group.same else "-"


def _figures(
    name: str,
    spreads: list[Spread],
    write: Callable[[float | None], str],
    write_spread: Callable[[float], str],
    against: Callable[[float, float], str],
    better: str,
) -> MatrixRow:
    means = [spread.mean for spread in spreads]
    known = [m for m in means if m is not None]
    best = (max if better == "max" else min)(known) if len(set(known)) > 1 else None
    reference = spreads[0]
    cells = []
    for i, (spread, mean) in enumerate(zip(spreads, means, strict=True)):
        text = write(mean)
        if spread.std is not None:
            text += f" \u00b1 {write_spread(spread.std)} (n = {len(spread.values)})"
        note = "" if i == 0 or mean is None or not reference.mean else _note(spread, reference, against)
        cells.append(Cell(text, note, best is not None and mean == best))
    return MatrixRow(name, tuple(cells))


def _note(spread: Spread, reference: Spread, against: Callable[[float, float], str]) -> str:
    """The difference, or \u2248 where it is within the spread of the seeds; without seeds there is no spread."""
    assert spread.mean is not None and reference.mean is not None
    spreads = [s.std for s in (spread, reference) if s.std is not None]
    if spreads and abs(spread.mean - reference.mean) <= max(spreads):
        return "\u2248"
    return against(spread.mean, reference.mean)


def _points(value: float, reference: float) -> str:
    return numbers.points(value - reference)


def _nothing(value: float, reference: float) -> str:
    return ""


def _smaller(value: float, reference: float) -> str:
    return numbers.smaller(reference, value) if value else "-"


def _fewer(value: float, reference: float) -> str:
    ratio = reference / value if value else None
    return "-" if ratio is None else f"{ratio:.2f}x fewer" if ratio >= 1 else f"{1 / ratio:.2f}x more"


def _times(value: float, reference: float) -> str:
    return numbers.ratio(reference / value if value else None)
