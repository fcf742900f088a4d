"""Charts of a comparison: both trade-offs with all groups, and the curves over each other."""

from __future__ import annotations

from bitwright.measure import numbers
from bitwright.reporting import words
from bitwright.reporting.groups import Group
from bitwright.reporting.svg.charts import SHAPES, Point, Scatter, Table, scatter
from bitwright.reporting.svg.curves import COLORS, DASHES, Curves, Series, curves


def charts(groups: list[Group]) -> tuple[Scatter | None, Scatter | None, Curves | None]:
    """(accuracy and size, accuracy and time on the first machine, test accuracy by epoch)."""
    return _size(groups), _time(groups), _curves(groups)


def _point(i: int, group: Group, x: float, cost: str) -> Point:
    """Shape and color go together, so that neither is alone."""
    assert group.accuracy.mean is not None
    tip = f"{group.name}\naccuracy {numbers.percent(group.accuracy.mean)} %\n{cost}"
    shape = list(SHAPES)[i % len(SHAPES)]
    filled = i < len(SHAPES)
    return Point(group.name, x, group.accuracy.mean, shape, COLORS[i % len(COLORS)], tip, i == 0, filled)


def _size(groups: list[Group]) -> Scatter | None:
    points, rows = [], []
    for i, group in enumerate(groups):
        size = group.size.mean
        rows.append((group.name, words.percent_unit(group.accuracy.mean), words.kb_unit(size)))
        if size and group.accuracy.mean is not None:
            points.append(_point(i, group, size / 1e3, words.kb_unit(size)))
    table = Table("Accuracy and size", ("run", "test accuracy", "size"), tuple(rows))
    return scatter("Accuracy against size", "size (kB, log; left is better)", points, (), table)


def _time(groups: list[Group]) -> Scatter | None:
    """Only times of one machine share an axis: the first one that has any."""
    place = next((place for group in groups for place in group.places), None)
    if place is None:
        return None
    points, rows = [], []
    for i, group in enumerate(groups):
        ms = group.places[place].mean if place in group.places else None
        rows.append((group.name, words.percent_unit(group.accuracy.mean), words.ms_unit(ms)))
        if ms and group.accuracy.mean is not None:
            points.append(_point(i, group, ms, words.ms_unit(ms)))
    table = Table(f"Accuracy and latency on {place}", ("run", "test accuracy", "latency"), tuple(rows))
    return scatter("Accuracy against latency", "latency (ms, log; left is better)", points, (), table)


def work_chart(groups: list[Group]) -> Scatter | None:
    """Accuracy against the work per image, if any net here has gates: MACs, or BOPs where gates save only those."""
    gated = [run.work for group in groups for run in group.runs if run.work is not None]
    if not gated:
        return None
    key, unit = ("bops", "BOPs") if all(e.macs == e.dense_macs for e in gated) else ("macs", "MACs")
    points, rows = [], []
    for i, group in enumerate(groups):
        work = getattr(group, key).mean
        text = words.macs(None if work is None else round(work))
        rows.append((group.name, words.percent_unit(group.accuracy.mean), text))
        if work and group.accuracy.mean is not None:
            points.append(_point(i, group, work / 1e6, f"{text} {unit} per image"))
    table = Table(f"Accuracy and {unit}", ("run", "test accuracy", f"{unit} per image"), tuple(rows))
    return scatter(f"Accuracy against {unit}", f"{unit} per image (millions, log; left is better)", points, (), table)


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
    table = Table("Test accuracy by epoch, %", ("epoch", *(s.name for s in series)), rows)
    return curves("Test accuracy by epoch", series, (), table)


def _cell(value: float | None) -> str:
    return numbers.percent(None if value is None else value / 100)
