"""Charts of a comparison: both trade-offs with all groups, and the curves over each other."""

from __future__ import annotations

from collections.abc import Callable

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.groups import Group
from bitwright.reporting.svg.charts import SHAPES, ChartTable, Point, ScatterPlot, scatter
from bitwright.reporting.svg.curves import COLORS, DASHES, Curves, Series, curves


def charts(groups: list[Group]) -> tuple[ScatterPlot | None, ScatterPlot | None, Curves | None]:
    """(accuracy and size, accuracy and time on the first machine, test accuracy by epoch)."""
    return _size(groups), _time(groups), _curves(groups)


def _points(
    groups: list[Group],
    cost: Callable[[Group], float | None],
    write: Callable[[float | None], str],
    unit: float,
    said: str = "",
) -> list[Point]:
    """Shape and color go together, so that neither is alone."""
    shapes = list(SHAPES)
    return [
        Point(
            g.name, (cost(g) or 0.0) / unit, g.accuracy.mean, write(cost(g)), shapes[i % len(SHAPES)],
            COLORS[i % len(COLORS)], i == 0, i < len(SHAPES), said=said,
        )
        for i, g in enumerate(groups)
    ]  # fmt: skip


def _size(groups: list[Group]) -> ScatterPlot | None:
    points = _points(groups, lambda g: g.size.mean, numbers.kb_unit, 1e3)
    return scatter("Accuracy against size", "size (kB, log; left is better)", points, "size", first="run")


def _time(groups: list[Group]) -> ScatterPlot | None:
    """Only times of one machine share an axis: the first one that has any."""
    place = next((place for group in groups for place in group.places), None)
    if place is None:
        return None
    points = _points(groups, lambda g: g.places[place].mean if place in g.places else None, filters.ms_unit, 1.0)
    title, what = "latency (ms, log; left is better)", f"latency on {place}"
    return scatter("Accuracy against latency", title, points, "latency", first="run", what=what)


def work_chart(groups: list[Group]) -> ScatterPlot | None:
    """Accuracy against the work per image, if any net here has gates: MACs, or BOPs where gates save only those."""
    gated = [run.work for group in groups for run in group.runs if run.work is not None]
    if not gated:
        return None
    key, unit = ("bops", "BOPs") if all(e.macs == e.dense_macs for e in gated) else ("macs", "MACs")
    points = _points(groups, lambda g: getattr(g, key).mean, numbers.macs, 1e6, f" {unit} per image")
    x_title = f"{unit} per image (millions, log; left is better)"
    return scatter(f"Accuracy against {unit}", x_title, points, f"{unit} per image", first="run", what=unit)


def _curves(groups: list[Group]) -> Curves | None:
    """A line per group: the mean of its runs where all of them have the epoch."""
    series = []
    for i, group in enumerate(groups[: len(DASHES)]):
        runs = [[e.test_top1 for e in run.epochs] for run in group.runs]
        values: list[float | None] = []
        for epoch in zip(*runs, strict=False):
            known = [v for v in epoch if v is not None]
            values.append(100 * sum(known) / len(known) if known and len(known) == len(epoch) else None)
        if values:
            series.append(Series(group.name, COLORS[i % len(COLORS)], DASHES[i], tuple(values)))
    if not series:
        return None
    long = max(len(s.values) for s in series)
    rows = tuple(
        (str(e + 1), *(_cell(s.values[e] if e < len(s.values) else None) for s in series)) for e in range(long)
    )
    table = ChartTable("Test accuracy by epoch, %", ("epoch", *(s.name for s in series)), rows)
    return curves("Test accuracy by epoch", series, (), table)


def _cell(value: float | None) -> str:
    return numbers.percent(None if value is None else value / 100)
