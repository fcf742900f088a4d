"""Curves over epochs: a few series, or a line for each layer of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.reporting.svg.charts import BOTTOM, LEFT, RIGHT, TOP, Axes, ChartTable, axes, short
from bitwright.reporting.svg.scales import Scale, linear_scale, tick_text

COLORS = ("ours", "int8", "fp32", "bf16")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 4", "12 4")


@dataclass(frozen=True)
class Line:
    """One curve: its path, and the marks on it as (x, y, tip)."""

    name: str
    color: str
    dash: str
    path: str
    marks: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Curves:
    """Lines over epochs or weight values.

    bands   stages: (x of the start, x of the middle, label)
    cut     where the axis stops being linear;   own   the net's own value: (x, text)
    """

    title: str
    axes: Axes
    lines: tuple[Line, ...]
    bands: tuple[tuple[float, float, str], ...]
    table: ChartTable
    cut: float | None = None
    own: tuple[float, str] | None = None


@dataclass(frozen=True)
class Series:
    """A curve to draw: values by overall epoch (accuracy in per cent), None where unknown."""

    name: str
    color: str
    dash: str
    values: tuple[float | None, ...]


def curves(
    title: str,
    series: Sequence[Series],
    stages: Sequence[int],
    table: ChartTable,
    *,
    y_title: str = "accuracy (%)",
    least: float = 4.0,
    bounds: tuple[float, float] | None = (0.0, 100.0),
    write: Callable[[float], str] = lambda v: f"{v:.1f} %",
) -> Curves | None:
    """Lines by overall epoch, counted from 1; `stages` holds the stage of each epoch. The y axis spans at least `least`."""
    known = [v for s in series for v in s.values if v is not None]
    if not known:
        return None
    epochs = max(len(s.values) for s in series)
    x = Scale(0.5, max(epochs, 2) + 0.5, LEFT, RIGHT)
    y = linear_scale(known, BOTTOM, TOP, least=least)
    if bounds is not None:
        y = Scale(max(bounds[0], y.low), min(bounds[1], y.high), BOTTOM, TOP)
    ticks = tuple((x(v), tick_text(v)) for v in x.ticks(7) if v == int(v) and v >= 1)
    plain = axes(x, y, "epoch", y_title, x_ticks=ticks)
    return Curves(
        title,
        plain,
        tuple(_line(s, x, y, write) for s in series if any(v is not None for v in s.values)),
        tuple(_bands(stages, x)),
        table,
    )


def _line(series: Series, x: Scale, y: Scale, write: Callable[[float], str]) -> Line:
    path, pen = "", "M"
    known = [(i, v) for i, v in enumerate(series.values, 1) if v is not None]
    for i, v in enumerate(series.values, 1):
        path += "" if v is None else f"{pen}{x(i)} {y(v)}"
        pen = "M" if v is None else "L"
    every = -(-len(known) // 30)  # so many stops for the keyboard, and the last epoch always
    marks = tuple((x(i), y(v), f"{series.name}\nepoch {i}: {write(v)}") for i, v in known[::-1][::every][::-1])
    return Line(series.name, series.color, series.dash, path, marks)


def _bands(stages: Sequence[int], x: Scale) -> Iterable[tuple[float, float, str]]:
    for stage in dict.fromkeys(stages):
        at = [i for i, s in enumerate(stages, 1) if s == stage]
        yield x(at[0] - 0.5), x((at[0] + at[-1]) / 2), f"stage {stage}"


def layer_curves(
    title: str,
    rows: Iterable[Any],
    value: Callable[[Any], float | None],
    epochs: Sequence[Any],
    *,
    write: Callable[[float], str],
    **options: Any,
) -> Curves | None:
    """A line for each layer of a table with `stage`, `epoch` and `layer`: those that moved most; its own table has all.

    epochs    of the whole training, so that those without a row stay empty
    options   as for `curves`
    """
    rows = list(rows)
    moments = [(e.stage, e.epoch) for e in epochs] or sorted({(r.stage, r.epoch) for r in rows})
    by_layer: dict[str, dict[tuple[int, int], float | None]] = {}
    for r in rows:
        by_layer.setdefault(r.layer, {})[r.stage, r.epoch] = value(r)
    lines = {name: tuple(at.get(m) for m in moments) for name, at in by_layer.items()}
    known = {name: [v for v in line if v is not None] for name, line in lines.items()}
    known = {name: line for name, line in known.items() if line}
    moved = sorted(known, key=lambda name: min(known[name]) - max(known[name]))[: len(DASHES)]
    shown = [name for name in known if name in moved]
    series = [Series(short(name), COLORS[i % len(COLORS)], DASHES[i], lines[name]) for i, name in enumerate(shown)]
    table = ChartTable(
        f"{title}, every layer", ("layer", "first epoch", "last epoch", "least", "largest"),
        tuple((n, *(write(v) for v in (line[0], line[-1], min(line), max(line)))) for n, line in known.items()),
    )  # fmt: skip
    return curves(title, series, [stage for stage, _ in moments], table, write=write, **options)
