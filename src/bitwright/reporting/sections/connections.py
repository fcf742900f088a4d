"""Which connections are left, and what are they worth? Weights on and live units by epoch, and the sweep of their value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright import numbers
from bitwright.analysis.connections import share_text
from bitwright.analysis.sweep_result import NORMS, SweepPoint, WeightSweep, side_by_side
from bitwright.analysis.sweep_words import findings
from bitwright.errors import InputError
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section, columns, epochs_json, rounded
from bitwright.reporting.svg.charts import BOTTOM, LEFT, RIGHT, TOP, ChartTable, ScatterPlot, axes, epochs_scatter
from bitwright.reporting.svg.curves import Curves, Line, layer_curves
from bitwright.reporting.svg.scales import Scale
from bitwright.runs.cells import last_epoch
from bitwright.runs.result_tables import Sweep, Sweeps, WeightValue
from bitwright.runs.tables import Connected, Swept

STOPS = 30
OF_MODE = {"running": "ours", "recalibrate": "int8", "batch": "fp32"}
STRAIGHT = 4.0  # up to here the axis of weight values is linear; larger ones follow at equal distances
DASH, RANKED = {"running": "", "recalibrate": "9 3", "batch": "5 3"}, "2 3"
NAMES = {"accuracy": "largest output", "preactivation": "ranked", "agreement": "same class"}  # where no norm has modes


@dataclass(frozen=True)
class SelfPrune:
    """rows of every epoch; sweeps: up to one per norm mode; batch: images at a time in them, if known."""

    rows: tuple[Connected, ...] = ()
    sweeps: tuple[WeightSweep, ...] = ()
    batch: int | None = None
    analyzed: bool = False  # by `bitwright analyze`, not in training

    @property
    def last(self) -> tuple[Connected, ...]:
        """The rows of the last epoch."""
        return last_epoch(self.rows)


class ConnectionsSection(Section):
    name, title, place = "connections", "Connections", 90
    key, tables = "selfprune", (Connected, Sweeps, Swept)

    def read(self, run: RunData) -> SelfPrune | None:
        """What `analyze` measured goes before what training wrote."""
        rows, analyzed, swept = run.rows(Connected), run.one(Sweeps), last_epoch(run.rows(Swept))
        if analyzed is not None:
            sweeps = tuple(_sweep(s, [_point_of(p) for p in s.rows], "sweep.json") for s in analyzed.sweeps)
            return SelfPrune(rows, sweeps, analyzed.batch, True)
        by_norm = [[row for row in swept if row.norm == norm] for norm in dict.fromkeys(row.norm for row in swept)]
        sweeps = tuple(_sweep(mine[0], [_counted(row) for row in mine], "sweep.csv") for mine in by_norm)
        return SelfPrune(rows, sweeps) if rows or sweeps else None

    def shown(self, run: RunData) -> bool:
        return run["selfprune"] is not None

    def view(self, run: RunData) -> dict[str, Any]:
        found: SelfPrune = run["selfprune"]
        over: dict[str, Any] = {"rows": found.rows, "epochs": run.epochs, "least": 0.2}
        live = {"y_title": "live units (%)", "write": "{:.1f} %".format, **over}
        both = ("accuracy", "preactivation")
        shown = {
            "summary": summary(found), "against": against_share(run, found), "table": layers(found),
            "on": layer_curves(
                "Weights on by epoch", value=lambda r: 100 * _share(r), y_title="weights on (%)", write=_on, **over
            ),
            "live": layer_curves("Live units by epoch", value=_live, **live),
            "right": sweep_chart(found.sweeps, "Right answers over the weight value", both),
            "circuit": sweep_chart(found.sweeps, "Same class as the circuit", ("agreement",)),
            "ranked": any(s.preactivation != s.accuracy for s in found.sweeps if s.preactivation),
            "findings": findings(found.sweeps), "sweep": found.sweeps[0] if found.sweeps else None,
        }  # fmt: skip
        return {"selfprune_view": shown}

    def json(self, run: RunData) -> dict[str, Any]:
        """Every epoch where that is not too much; sweeps as in sweep.json, but without repeated keys."""
        found: SelfPrune = run["selfprune"]
        sweeps = [
            {**plain, **columns([rounded(row) for row in plain["rows"]])}
            for plain in (sweep.to_dict() for sweep in found.sweeps)
        ]
        return {"selfprune": {**epochs_json(found.rows, Connected), "batch": found.batch, "sweeps": sweeps}}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if run["selfprune"] is not None and not run["selfprune"].sweeps:
            why = "Accuracy over the weight value was not measured."
            yield "sweep", Gap(why, "bitwright analyze sweep {run}")


# -- reading -----------------------------------------------------------------------------------------------------------
def _sweep(facts: Sweep | Swept, points: list[SweepPoint], file: str) -> WeightSweep:
    if facts.norm not in NORMS or not facts.images:
        raise _damaged(
            file, f"norm is {facts.norm[:40]!r} of {facts.images} images; possible: {', '.join(NORMS)}, at least 1"
        )
    if facts.ranking not in ("", "largest", "smallest", "mixed"):
        raise _damaged(file, f"ranking is {facts.ranking[:40]!r}")
    limit = WeightSweep.limit if facts.limit is None else facts.limit
    return WeightSweep(
        facts.norm, facts.images, tuple(points), facts.trained_on, facts.output, facts.ranking, limit, facts.digital,
        facts.train_images, facts.norms or 0,
    )  # fmt: skip


def _point_of(row: WeightValue) -> SweepPoint:
    return SweepPoint(row.on, row.right_images, row.preactivation_images, row.agree_images, row.tied_images)


def _counted(row: Swept) -> SweepPoint:
    """The table has shares: times the images they are the counts again."""
    ranked = None if row.preactivation is None else round(row.preactivation * row.images)
    right, agree, tied = (round(share * row.images) for share in (row.accuracy, row.agreement, row.tied))
    return SweepPoint(row.on, right, ranked, agree, tied)


def _damaged(file: str, what: str) -> InputError:
    return InputError(f"report: {file}: {what}", code="run-damaged")


# -- weights on --------------------------------------------------------------------------------------------------------
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


def _share(row: Connected) -> float:
    return row.on / row.weights if row.weights else 0.0


def against_share(run: RunData, found: SelfPrune) -> ScatterPlot | None:
    """Test accuracy against the share of weights on, epoch by epoch; the last one is the net."""
    shares: dict[tuple[int, int], list[int]] = {}
    for r in found.rows:
        pair = shares.setdefault((r.stage, r.epoch), [0, 0])
        pair[0], pair[1] = pair[0] + r.on, pair[1] + r.weights
    known = [
        (i, e.test_top1, 100 * pair[0] / pair[1], _on(100 * pair[0] / pair[1]))
        for i, e in enumerate(run.epochs, 1)
        if (pair := shares.get((e.stage, e.epoch))) and pair[0] and e.test_top1 is not None
    ]
    title, x_title = "Accuracy against the share of weights on", "weights on (%, log; left is sparser)"
    return epochs_scatter(title, x_title, known, "weights on", " of the weights on")


def layers(found: SelfPrune) -> ChartTable | None:
    if not found.last:
        return None
    headers = ("layer", "on", "on %", "fan-in, most", "no input", "live")
    rows = tuple(
        (
            r.layer, f"{r.on:,} of {r.weights:,}", share_text(_share(r)),
            f"{filters.general(r.fan_in_mean)}, {filters.count(r.fan_in_max)}", filters.count(r.no_input),
            f"{filters.count(r.live)} of {r.units:,}",
        )
        for r in found.last
    )  # fmt: skip
    return ChartTable("Layers of 0/1 weights after the last epoch", headers, rows)


# -- the sweep ------------------------------------------------------------------------------------------------------------
def sweep_chart(sweeps: Sequence[WeightSweep], title: str, columns: tuple[str, ...]) -> Curves | None:
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
    plain = axes(y, y, "weight value", "images (%)", x_ticks=ticks)
    own = sweeps[0].trained_on
    mark = None if own not in place else (place[own], f"{own:g}")
    head, *body = side_by_side(sweeps)
    table = ChartTable("Sweep", tuple(head), tuple(tuple(row) for row in body))
    return Curves(title, plain, tuple(lines), (), table, cut, mark)


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
