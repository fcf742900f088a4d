"""The charts of the Gates section: for which classes gates fire, how thresholds drift, what images cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.svg.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axes,
    ChartTable,
    ScatterPlot,
    axes,
    epochs_scatter,
    short,
)
from bitwright.reporting.svg.curves import Curves, layer_curves
from bitwright.reporting.svg.heatmap import HeatMap, heat_map
from bitwright.reporting.svg.scales import Scale

if TYPE_CHECKING:
    from bitwright.reporting.sections.gates import Gates

LAYERS_SHOWN, CLASSES_SHOWN, BINS = 16, 20, 24
NAMES = {"macs": "MACs", "bops": "BOPs"}


@dataclass(frozen=True)
class WorkHistogram:
    """Histogram of the work per image: bars as (x, y, width, height, tip), marks as (x, label, anchor)."""

    title: str
    axes: Axes
    bars: tuple[tuple[float, float, float, float, str], ...]
    marks: tuple[tuple[float, str, str], ...]
    table: ChartTable


def class_map(gates: Gates) -> HeatMap | None:
    """Layers by classes. Strength is the rate within the layer's own range: what fires equally for all is pale."""
    if not gates.by_class or len(gates.classes) < 2:
        return None
    known = {name: [v for v in rates if v is not None] for name, rates in gates.by_class.items()}
    known = {name: values for name, values in known.items() if values}
    if not known:
        return None
    apart = {name: max(values) - min(values) for name, values in known.items()}
    if not any(apart.values()):
        return None  # fbs keeps the same number of channels for all
    shown = set(sorted(known, key=lambda name: -apart[name])[:LAYERS_SHOWN])
    size = -(-len(gates.classes) // CLASSES_SHOWN)
    groups = [range(i, min(i + size, len(gates.classes))) for i in range(0, len(gates.classes), size)]
    rows = []
    for name in (n for n in known if n in shown):
        rates, low = gates.by_class[name], min(known[name])
        cells: list[tuple[float, str] | None] = []
        for group in groups:
            values = [v for k in group if (v := rates[k]) is not None]
            rate = sum(values) / max(1, len(values))
            who = gates.classes[group[0]] + (f" to {gates.classes[group[-1]]}" if len(group) > 1 else "")
            strength = round((rate - low) / apart[name], 3) if apart[name] else 0.0
            cells.append((strength, f"{name}\n{who}: on for {filters.percent_unit(rate)}") if values else None)
        label = f"{name}: from {filters.percent_unit(low)} to {filters.percent_unit(max(known[name]))} over the classes"
        rows.append((name, label, cells))
    table = ChartTable(
        "Gate rates by class", ("layer", "least", "class", "most", "class"),
        tuple((name, *_extremes(gates, name, known[name])) for name in known),
    )  # fmt: skip
    return heat_map(
        "Gate rate by layer and class", rows, lambda left, width: _class_ticks(gates.classes, groups, left, width), table,
        hidden=len(known) - len(rows), legend="share on, within each layer's range (stronger = more)", x_title="class",
        less="differ less between classes",
    )  # fmt: skip


def _class_ticks(
    classes: Sequence[str], groups: list[range], left: float, width: float
) -> tuple[tuple[float, str], ...]:
    """Short names where all fit below their cells, else the first and the last class."""
    if all(len(name) * 6.4 < width for name in classes) and len(groups) == len(classes):
        return tuple((round(left + (i + 0.5) * width, 1), name) for i, name in enumerate(classes))
    first, last = (short(classes[0]), short(classes[-1]))
    return ((round(left + 3.2 * len(first), 1), first), (round(386 - 3.2 * len(last), 1), last))


def _extremes(gates: Gates, name: str, known: list[float]) -> tuple[str, str, str, str]:
    assert gates.by_class is not None
    rates = gates.by_class[name]
    found = []
    for value in (min(known), max(known)):
        found += [filters.percent_unit(value), gates.classes[rates.index(value)]]
    return found[0], found[1], found[2], found[3]


def drifts(run: RunData, gates: Gates) -> tuple[Curves | None, Curves | None]:
    """(mean threshold by epoch, mean saliency of fbs by epoch): the layers that moved most."""
    titles = {"threshold_mean": "mean threshold", "saliency": "mean saliency"}
    names = {"threshold_mean": "Mean threshold by epoch", "saliency": "Mean saliency of fbs by epoch"}
    first, second = (
        layer_curves(
            names[key], gates.rows, lambda g, key=key: getattr(g, key), run.epochs, write=filters.general, y_title=titles[key],
            least=0.1, bounds=None,
        )
        for key in titles
    )  # fmt: skip
    return first, second


def work_histogram(gates: Gates) -> WorkHistogram | None:
    """None where every image costs the same."""
    values = gates.macs if gates.key == "macs" else gates.bops
    if not values or values[0] == values[-1]:
        return None
    low, high = values[0], values[-1]
    counts = [0] * BINS
    for v in values:
        counts[min(BINS - 1, (v - low) * BINS // (high - low))] += 1
    room = (high - low) * 0.04
    x = Scale((low - room) / 1e6, (high + room) / 1e6, LEFT, RIGHT)
    y = Scale(0, max(counts) * 1.1, BOTTOM, TOP)
    step = (high - low) / BINS / 1e6
    bars = []
    for i, n in enumerate(counts):
        a, b = x(low / 1e6 + i * step), x(low / 1e6 + (i + 1) * step)
        if n:
            tip = f"{_range(low / 1e6 + i * step, step)}\n{n:,} images"
            bars.append((a, y(n), round(max(b - a - 1, 0.5), 1), round(BOTTOM - y(n), 1), tip))
    at = {f"p{p}": values[round(p / 100 * (len(values) - 1))] for p in (5, 50, 95)}
    marks = tuple((x(v / 1e6), name, "end" if name == "p5" else "start") for name, v in at.items())
    unit = NAMES[gates.key]
    named = {"least": low, **at, "most": high}
    rows = tuple((name, price(v), f"{v:,}") for name, v in named.items())
    table = ChartTable(f"{unit} per image", ("percentile", unit, "exact"), rows)
    return WorkHistogram(
        f"{unit} per test image", axes(x, y, f"{unit} per image (millions)", "images"), tuple(bars), marks, table
    )


def _range(start: float, step: float) -> str:
    return f"{start:.4g} M to {start + step:.4g} M"


def work_scatter(run: RunData) -> ScatterPlot | None:
    """Accuracy against the work per image, epoch by epoch."""
    key = "macs" if run.work is not None and run.work.macs != run.work.dense_macs else "bops"
    work = [(i, e.test_top1, getattr(e, key)) for i, e in enumerate(run.epochs, 1)]
    known = [(i, top1, value / 1e6, price(round(value))) for i, top1, value in work if value and top1 is not None]
    unit = NAMES[key]
    x_title = f"{unit} per image (millions, log; left is better)"
    return epochs_scatter(f"Accuracy against {unit}", x_title, known, f"{unit} per image", " per image", unit)


def price(work: int) -> str:
    """Exact below a million: images differ by less than what two decimals of a million show."""
    return f"{work:,}" if work < 1_000_000 else numbers.macs(work)
