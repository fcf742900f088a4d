"""The charts of the Gates section: how often gates fire, for which classes, how thresholds drift, what images cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.measure import numbers
from bitwright.reporting import words
from bitwright.reporting.charts import BOTTOM, LEFT, RIGHT, TOP, Axes, Point, Scatter, Table, axes, scatter
from bitwright.reporting.curves import DASHES, Curves, HeatMap, HeatRow, Series, curves
from bitwright.reporting.gates import Gate, Gates
from bitwright.reporting.scales import Scale
from bitwright.reporting.sections import Epoch, RunData

BARS_SHOWN, LAYERS_SHOWN, CLASSES_SHOWN, POINTS_SHOWN, BINS = 24, 16, 20, 40, 24
COLORS = ("ours", "int8", "fp32", "bf16")
NAMES = {"macs": "MACs", "bops": "BOPs"}


@dataclass(frozen=True)
class Bar:
    name: str
    part: str
    rate: float
    tip: str


@dataclass(frozen=True)
class Work:
    """Histogram of the work per image: bars as (x, y, width, height, tip), marks as (x, label, anchor)."""

    title: str
    axes: Axes
    bars: tuple[tuple[float, float, float, float, str], ...]
    marks: tuple[tuple[float, str, str], ...]
    table: Table


def view(run: RunData) -> dict[str, object]:
    """What gates.html.j2 reads; {} without gates."""
    if run.gates is None:
        return {}
    drift, saliency = drifts(run, run.gates)
    return {
        "bars": rate_bars(run.gates)[:BARS_SHOWN],
        "more": max(0, len(run.gates.last) - BARS_SHOWN),
        "rates": rate_table(run.gates),
        "counted": counted_table(run.gates),
        "classes": class_map(run.gates),
        "drift": drift,
        "saliency": saliency,
        "work": work_histogram(run.gates),
        "scatter": work_scatter(run),
        "summary": summary(run),
        "unit": NAMES[run.gates.key],
        "key": run.gates.key,
        "price": price,
    }


def summary(run: RunData) -> str:
    """ "MACs 0.51x, 1.96x fewer": of the last epoch."""
    last = run.work
    if last is None or not last.dense_macs or not last.macs:
        return ""
    texts: dict[str, str] = {}
    for key, done, dense in (("macs", last.macs, last.dense_macs), ("bops", last.bops, last.dense_bops)):
        if done and dense:
            share = f"{done / dense:.2f}"
            if share == texts.get("macs"):
                return f"{share} of the dense net's MACs and BOPs ({dense / done:.2f}x fewer)"
            texts[key] = share
    return ", ".join(f"{share} of the dense net's {NAMES[key]}" + _fewer(run, key) for key, share in texts.items())


def _fewer(run: RunData, key: str) -> str:
    done, dense = getattr(run.work, key), getattr(run.work, f"dense_{key}")
    return f" ({dense / done:.2f}x fewer)" if done < dense else ""


def rate_bars(gates: Gates) -> list[Bar]:
    found = []
    for g in gates.last:
        if g.rate is not None:
            tip = f"{g.layer}\n{g.gate}: on for {words.percent_unit(g.rate)} of its decisions"
            found.append(Bar(g.layer, g.gate, g.rate, tip))
    return found


def rate_table(gates: Gates) -> Table:
    rows = tuple(
        (
            g.layer, g.gate, words.percent_unit(g.rate), words.general(g.threshold_min), words.general(g.threshold_mean),
            words.general(g.threshold_max), words.general(g.target), words.general(g.keep), words.general(g.saliency),
            words.general(g.mean_bits),
        )
        for g in gates.last
    )  # fmt: skip
    headers = (
        "layer", "gate", "on", "least threshold", "mean", "largest", "target", "keep", "mean saliency",
        "mean input bits",
    )  # fmt: skip
    return Table("Every gate in the last epoch", headers, rows)


def counted_table(gates: Gates) -> Table | None:
    """What the count is made of, and the figures of the papers and their codes, named as theirs. None without work.json."""
    found = gates.counted
    if found is None:
        return None
    rows: list[tuple[str, str, str]] = []

    def add(name: str, value: str, note: str) -> None:
        if value != words.UNKNOWN:
            rows.append((name, value, note))

    def whole(value: float | None) -> str:
        return words.macs(None if value is None else round(value))

    def bits(value: float | None) -> str:
        return words.UNKNOWN if value is None else f"{value:.2f}"

    add("predictors and scaling, MACs", whole(found.overhead_macs), "part of the MACs above")
    add("comparisons", whole(found.comparisons), "of the decisions; no multiply, not in the MACs")
    if found.gated_bits is not None:
        add("mean input bits, gated layers", bits(found.gated_bits), "over the products of layers gated by precision")
        add("mean input bits, whole net", bits(found.net_bits), "over all products; a float counts 32")
    if found.quadratic_reduction is not None:
        text = f"{whole(found.quadratic_macs)}, {found.quadratic_reduction:.2f}x fewer"
        add("all-quadratic MACs", text, "as papers count fbs: an upper bound, for sums of maps are denser")
    sparsity = words.percent_unit(found.unweighted_sparsity)
    add("unweighted sparsity", sparsity, "as the public codes print it: every decision the same; no reduction of work")
    return Table("What is counted, per image", ("", "per image", "which is"), tuple(rows))


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
    left = round(16 + 6.9 * max(len(short(name)) for name in shown), 1)
    width = (386.0 - left) / len(groups)
    high = 22.0 if len(shown) <= 10 else 15.0
    rows = []
    for name in (n for n in known if n in shown):
        rates, low = gates.by_class[name], min(known[name])
        cells = []
        for i, group in enumerate(groups):
            values = [v for k in group if (v := rates[k]) is not None]
            if values:
                rate = sum(values) / len(values)
                who = gates.classes[group[0]] + (f" to {gates.classes[group[-1]]}" if len(group) > 1 else "")
                strength = round((rate - low) / apart[name], 3) if apart[name] else 0.0
                tip = f"{name}\n{who}: on for {words.percent_unit(rate)}"
                cells.append((round(left + i * width, 1), round(width * 0.94, 1), strength, tip))
        label = f"{name}: from {words.percent_unit(low)} to {words.percent_unit(max(known[name]))} over the classes"
        rows.append(HeatRow(name, short(name), 24 + len(rows) * high, label, tuple(cells)))
    ticks = _class_ticks(gates.classes, groups, left, width)
    table = Table(
        "Gate rates by class", ("layer", "least", "class", "most", "class"),
        tuple((name, *_extremes(gates, name, known[name])) for name in known),
    )  # fmt: skip
    return HeatMap(
        "Gate rate by layer and class", 24 + len(rows) * high, high, left, tuple(rows), ticks, table,
        len(known) - len(rows), "share on, within each layer's range (stronger = more)", "class",
        "differ less between classes",
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
        found += [words.percent_unit(value), gates.classes[rates.index(value)]]
    return found[0], found[1], found[2], found[3]


def drifts(run: RunData, gates: Gates) -> tuple[Curves | None, Curves | None]:
    """(mean threshold by epoch, mean saliency of fbs by epoch): the layers that moved most."""
    epochs = run.training.epochs if run.training else ()
    moments = [(e.stage, e.epoch) for e in epochs] or sorted({(g.stage, g.epoch) for g in gates.rows})
    stages = [stage for stage, _ in moments]
    by_layer: dict[str, dict[tuple[int, int], Gate]] = {}
    for g in gates.rows:
        by_layer.setdefault(g.layer, {})[g.stage, g.epoch] = g
    return (
        _drift(by_layer, moments, stages, "threshold_mean", "Mean threshold by epoch", "mean threshold"),
        _drift(by_layer, moments, stages, "saliency", "Mean saliency of fbs by epoch", "mean saliency"),
    )


def _drift(
    by_layer: dict[str, dict[tuple[int, int], Gate]],
    moments: list[tuple[int, int]],
    stages: list[int],
    column: str,
    title: str,
    y_title: str,
) -> Curves | None:
    values = {
        name: tuple(getattr(at[m], column) if m in at else None for m in moments) for name, at in by_layer.items()
    }
    known = {name: [v for v in line if v is not None] for name, line in values.items()}
    known = {name: line for name, line in known.items() if line}
    if not known:
        return None
    moved = sorted(known, key=lambda name: -(max(known[name]) - min(known[name])))[: len(DASHES)]
    shown = [name for name in known if name in moved]
    series = [Series(short(name), COLORS[i % len(COLORS)], DASHES[i], values[name]) for i, name in enumerate(shown)]
    rows = tuple(
        (name, *(words.general(v) for v in (line[0], line[-1], min(line), max(line)))) for name, line in known.items()
    )
    table = Table(f"{title}, every layer", ("layer", "first epoch", "last epoch", "least", "largest"), rows)
    return curves(title, series, stages, table, y_title=y_title, least=0.1, bounds=None, write=words.general)


def short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"


def work_histogram(gates: Gates) -> Work | None:
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
    table = Table(f"{unit} per image", ("percentile", unit, "exact"), rows)
    return Work(
        f"{unit} per test image", axes(x, y, f"{unit} per image (millions)", "images"), tuple(bars), marks, table
    )


def _range(start: float, step: float) -> str:
    return f"{start:.4g} M to {start + step:.4g} M"


def work_scatter(run: RunData) -> Scatter | None:
    """Accuracy against the work per image, epoch by epoch: the last one is ours, the others are smaller marks."""
    assert run.gates is not None
    key = "macs" if run.work is not None and run.work.macs != run.work.dense_macs else "bops"
    epochs = run.training.epochs if run.training else ()
    known = [(i, e) for i, e in enumerate(epochs, 1) if getattr(e, key) and e.test_top1 is not None]
    if not known:
        return None
    every = -(-len(known) // POINTS_SHOWN)
    points = []
    for i, e in known[::-1][::every][::-1]:
        last = i == known[-1][0]
        tip = f"epoch {i}\naccuracy {numbers.percent(e.test_top1)} %\n{_cost(e, key)} per image"
        name = f"epoch {i}" if last or (i == known[0][0]) else ""
        points.append(
            Point(
                name, getattr(e, key) / 1e6, e.test_top1 or 0.0, "diamond" if last else "circle",
                "ours" if last else "fp32", tip, last, last,
            )
        )  # fmt: skip
    rows = tuple((f"epoch {i}", words.percent_unit(e.test_top1), _cost(e, key)) for i, e in known)
    unit = NAMES[key]
    table = Table(f"Accuracy and {unit}", ("epoch", "test accuracy", f"{unit} per image"), rows)
    x_title = f"{unit} per image (millions, log; left is better)"
    return scatter(f"Accuracy against {unit}", x_title, points, (), table)


def _cost(epoch: Epoch, key: str) -> str:
    return price(round(getattr(epoch, key)))


def price(work: int) -> str:
    """Exact below a million: images differ by less than what two decimals of a million show."""
    return f"{work:,}" if work < 1_000_000 else numbers.macs(work)
