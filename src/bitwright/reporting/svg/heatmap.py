"""A heat map: a row for each layer, cells over epochs or classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.reporting.svg.charts import RIGHT, ChartTable, short

Cells = Sequence[tuple[float, str] | None]  # (strength 0..1, tip) by column; None stays empty


@dataclass(frozen=True)
class HeatRow:
    """A layer: cells as (x, width, strength 0..1, tip)."""

    layer: str
    short: str
    y: float
    label: str
    cells: tuple[tuple[float, float, float, str], ...]
    worst: bool = False


@dataclass(frozen=True)
class HeatMap:
    title: str
    height: float
    row_height: float
    left: float
    rows: tuple[HeatRow, ...]
    x_ticks: tuple[tuple[float, str], ...]
    table: ChartTable
    hidden: int = 0
    legend: str = ""
    x_title: str = ""
    less: str = ""  # what the hidden layers do


def heat_map(
    title: str,
    rows: Sequence[tuple[str, str, Cells]],
    ticks: Callable[[float, float], tuple[tuple[float, str], ...]],
    table: ChartTable,
    *,
    worst: str | None = None,
    **texts: Any,
) -> HeatMap:
    """rows: (layer, what it says as a whole, cells); ticks: from the left edge and the width of a column; texts: of `HeatMap`."""
    left = round(16 + 6.9 * max(len(short(name)) for name, _, _ in rows), 1)
    width, high = (RIGHT - left) / len(rows[0][2]), 22.0 if len(rows) <= 10 else 15.0
    made = tuple(
        HeatRow(
            name, short(name), 24 + k * high, label,
            tuple((round(left + i * width, 1), round(width * 0.94, 1), *c) for i, c in enumerate(cells) if c is not None),
            name == worst,
        )
        for k, (name, label, cells) in enumerate(rows)
    )  # fmt: skip
    return HeatMap(title, 24 + len(rows) * high, high, left, made, ticks(left, width), table, **texts)
