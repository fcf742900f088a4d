"""The charts of the Connections section: weights on and live units by epoch, accuracy against both, and the sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.analysis.connections import share_text
from bitwright.analysis.sweep_result import WeightSweep, side_by_side
from bitwright.analysis.sweep_words import findings
from bitwright.measure import numbers
from bitwright.reporting import words
from bitwright.reporting.charts import BOTTOM, LEFT, RIGHT, TOP, Axes, Point, Scatter, Table, axes, scatter
from bitwright.reporting.curves import DASHES, Curves, Line, Series, curves
from bitwright.reporting.gate_charts import short
from bitwright.reporting.scales import Scale
from bitwright.reporting.sections import Epoch, RunData
from bitwright.reporting.selfprune import Connected, SelfPrune

POINTS_SHOWN, STOPS = 40, 30
COLORS = ("ours", "int8", "fp32", "bf16")
OF_MODE = {"running": "ours", "recalibrate": "int8", "batch": "fp32"}
STRAIGHT = 4.0  # up to here the axis of weight values is linear; larger ones follow at equal distances
DASH, RANKED = {"running": "", "recalibrate": "9 3", "batch": "5 3"}, "2 3"
NAMES = {"accuracy": "largest output", "preactivation": "ranked", "agreement": "same class"}  # where no norm has modes


@dataclass(frozen=True)
class Sweep:
    """Lines over the weight value; `cut`: where the axis stops being linear; `own`: the value that the net has."""

    title: str
    axes: Axes
    lines: tuple[Line, ...]
    cut: float | None
    own: tuple[float, str] | None
    table: Table


def view(run: RunData) -> dict[str, object]:
    """What selfprune.html.j2 reads; {} for other nets."""
    found = run.selfprune
    if found is None:
        return {}
    return {
        "summary": summary(found),
        "on": by_epoch(run, found, "Weights on by epoch", "weights on (%)", lambda r: 100 * r.share, _on),
        "live": by_epoch(run, found, "Live units by epoch", "live units (%)", _live, lambda v: f"{v:.1f} %"),
        "against": against_share(run, found),
        "table": layers(found),
        "right": sweep_chart(found.sweeps, "Right answers over the weight value", ("accuracy", "preactivation")),
        "circuit": sweep_chart(found.sweeps, "Same class as the circuit", ("agreement",)),
        "ranked": any(s.preactivation != s.accuracy for s in found.sweeps if s.preactivation),
        "findings": findings(found.sweeps),
        "sweep": found.sweeps[0] if found.sweeps else None,
    }


def summary(found: SelfPrune) -> str:
    """ "827 of 8,832 weights are on (9.36 %), 111 of 138 units live"."""
    last = found.last
    if not last:
        return ""
    on, weights = sum(r.on for r in last), sum(r.weights for r in last)
    text = f"{on:,} of {weights:,} weights are on ({_on(100 * on / weights if weights else 0.0)})"
    if all(r.live is not None for r in last):
        text += f", {sum(r.live or 0 for r in last):,} of {sum(r.units for r in last):,} units live"
    return text


def _on(percent: float) -> str:
    return f"{share_text(percent / 100)} %"


def _live(row: Connected) -> float | None:
    return None if row.live is None or not row.units else 100 * row.live / row.units


def by_epoch(
    run: RunData,
    found: SelfPrune,
    title: str,
    y_title: str,
    value: Callable[[Connected], float | None],
    write: Callable[[float], str],
) -> Curves | None:
    """A line per layer, those that moved most; epochs before the 0/1 stage stay empty."""
    epochs = run.training.epochs if run.training else ()
    moments = [(e.stage, e.epoch) for e in epochs] or sorted({(r.stage, r.epoch) for r in found.rows})
    by_layer: dict[str, dict[tuple[int, int], float | None]] = {}
    for row in found.rows:
        by_layer.setdefault(row.layer, {})[row.stage, row.epoch] = value(row)
    lines = {name: tuple(at.get(m) for m in moments) for name, at in by_layer.items()}
    known = {name: [v for v in line if v is not None] for name, line in lines.items()}
    known = {name: line for name, line in known.items() if line}
    moved = sorted(known, key=lambda name: min(known[name]) - max(known[name]))[: len(DASHES)]
    shown = [name for name in known if name in moved]
    series = [Series(short(name), COLORS[i % len(COLORS)], DASHES[i], lines[name]) for i, name in enumerate(shown)]
    table = Table(
        f"{title}, every layer", ("layer", "first epoch", "last epoch", "least", "largest"),
        tuple((n, *(write(v) for v in (line[0], line[-1], min(line), max(line)))) for n, line in known.items()),
    )  # fmt: skip
    return curves(title, series, [stage for stage, _ in moments], table, y_title=y_title, least=0.2, write=write)


def against_share(run: RunData, found: SelfPrune) -> Scatter | None:
    """Test accuracy against the share of weights on, epoch by epoch; the last one is the net."""
    shares: dict[tuple[int, int], list[int]] = {}
    for r in found.rows:
        pair = shares.setdefault((r.stage, r.epoch), [0, 0])
        pair[0], pair[1] = pair[0] + r.on, pair[1] + r.weights
    epochs = run.training.epochs if run.training else ()
    known = [
        (i, e, 100 * pair[0] / pair[1])
        for i, e in enumerate(epochs, 1)
        if (pair := shares.get((e.stage, e.epoch))) and pair[0] and e.test_top1 is not None
    ]
    if not known:
        return None
    every = -(-len(known) // POINTS_SHOWN)
    points = [_point(i, e, share, i == known[-1][0], i == known[0][0]) for i, e, share in known[::-1][::every][::-1]]
    table = Table(
        "Accuracy and weights on", ("epoch", "test accuracy", "weights on"),
        tuple((f"epoch {i}", words.percent_unit(e.test_top1), _on(share)) for i, e, share in known),
    )  # fmt: skip
    return scatter(
        "Accuracy against the share of weights on", "weights on (%, log; left is sparser)", points, (), table
    )


def _point(i: int, epoch: Epoch, share: float, last: bool, first: bool) -> Point:
    tip = f"epoch {i}\naccuracy {numbers.percent(epoch.test_top1)} %\n{_on(share)} of the weights on"
    shape, color = ("diamond", "ours") if last else ("circle", "fp32")
    return Point(f"epoch {i}" if last or first else "", share, epoch.test_top1 or 0.0, shape, color, tip, last, last)


def layers(found: SelfPrune) -> Table | None:
    if not found.last:
        return None
    headers = ("layer", "on", "on %", "fan-in, most", "no input", "live")
    rows = tuple(
        (
            r.layer, f"{r.on:,} of {r.weights:,}", share_text(r.share),
            f"{words.general(r.fan_in_mean)}, {words.count(r.fan_in_max)}", words.count(r.no_input),
            f"{words.count(r.live)} of {r.units:,}",
        )
        for r in found.last
    )  # fmt: skip
    return Table("Layers of 0/1 weights after the last epoch", headers, rows)


# -- the sweep ------------------------------------------------------------------------------------------------------------
def sweep_chart(sweeps: Sequence[WeightSweep], title: str, columns: tuple[str, ...]) -> Sweep | None:
    """Solid: by the largest output, or the circuit's class; dotted: ranked by the pre-activation, where that differs."""
    values = sorted({p.on for s in sweeps for p in s.points})
    if len(values) < 2:
        return None
    place, ticks, cut = _places(values)
    lines = []
    for sweep in sweeps:
        for column in columns:
            shares: dict[float, float] = getattr(sweep, column)
            if shares and (column != "preactivation" or shares != sweep.accuracy):
                name, ranked = NAMES[column] if not sweep.norms else sweep.norm, column == "preactivation"
                name += ", ranked" if ranked and sweep.norms else ""
                lines.append(_line(name, OF_MODE[sweep.norm], RANKED if ranked else DASH[sweep.norm], shares, place))
    y = Scale(0, 104, BOTTOM, TOP)
    plain = axes(y, y, "weight value", "images (%)")
    own = sweeps[0].trained_on
    mark = None if own not in place else (place[own], f"{own:g}")
    head, *body = side_by_side(sweeps)
    table = Table("Sweep", tuple(head), tuple(tuple(row) for row in body))
    return Sweep(title, Axes(plain.y_title, plain.x_title, ticks, plain.y_ticks), tuple(lines), cut, mark, table)


def _places(values: list[float]) -> tuple[dict[float, float], tuple[tuple[float, str], ...], float | None]:
    """(value -> x, ticks, x of the cut): linear up to `STRAIGHT`, then one step per value."""
    near = [v for v in values if v <= STRAIGHT]
    far = [v for v in values if v > STRAIGHT]
    if len(near) < 2:  # all beside each other
        near, far = [], values
    room = min(0.5, 0.13 * len(far)) if near else 1.0
    end = RIGHT - 8 - room * (RIGHT - LEFT)
    place: dict[float, float] = {}
    ticks: list[tuple[float, str]] = []
    if near:
        x = Scale(min(near), max(near), LEFT + 4, end)
        place = {v: x(v) for v in near}
        ticks = [(x(v), f"{v:g}") for v in x.ticks(5)]
    start, step = (end if near else LEFT), (RIGHT - 8 - (end if near else LEFT)) / max(1, len(far))
    for i, v in enumerate(far, 1):
        place[v] = round(start + i * step, 1)
        ticks.append((place[v], f"{v:g}"))
    return place, tuple(ticks), round(end + step / 2, 1) if near and far else None


def _line(name: str, color: str, dash: str, shares: dict[float, float], place: dict[float, float]) -> Line:
    y = Scale(0, 104, BOTTOM, TOP)
    known = sorted(shares.items())
    path = "".join(f"{'L' if i else 'M'}{place[v]} {y(100 * s)}" for i, (v, s) in enumerate(known))
    every = -(-len(known) // STOPS)
    marks = tuple(
        (place[v], y(100 * s), f"{name}\nweights {v:g}: {numbers.percent(s)} %")
        for i, (v, s) in enumerate(known)
        if i % every == 0 or v > STRAIGHT or i == len(known) - 1
    )
    return Line(name, color, dash, path, marks)
