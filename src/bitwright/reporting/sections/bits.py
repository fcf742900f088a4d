"""Which layers deserve more bits? What `bitwright analyze` found: variance by component, and counts along the depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitwright import numbers
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Section
from bitwright.reporting.svg.charts import BOTTOM, LEFT, RIGHT, TOP, Axes, ChartTable, axes, table_of
from bitwright.reporting.svg.curves import Line
from bitwright.reporting.svg.scales import Scale, tick_text
from bitwright.runs.result_tables import Components, Dimension

MOST_POINTS = 160  # of one curve


class BitsSection(Section):
    name, title, place = "bits", "Bits", 40
    key, tables = "bits", (Components,)

    def read(self, run: RunData) -> Components | None:
        """Each layer with what is said of it elsewhere in the file; delta None: another rule than a least rise chose."""
        found = run.one(Components)
        if found is None:
            return None
        counts, layers = {row.layer: row.components for row in found.layers}, []
        for row in found.layers:
            before, shares = (
                str(found.before.get(row.layer, "")),
                tuple(round(v, 6) for v in row.shares),
            )
            more = {"before": before, "before_components": counts.get(before), "shares": shares}
            more |= {"chosen": row.layer in found.significant, "channels": row.channels or len(row.shares)}
            layers.append(row.model_copy(update=more))
        delta = found.delta if found.relative is None and found.budget is None else None
        return found.model_copy(update={"layers": tuple(layers), "delta": delta})

    def shown(self, run: RunData) -> bool:
        return bool(run["bits"] and run["bits"].layers)

    def view(self, run: RunData) -> dict[str, Any]:
        found = run["bits"]
        return {"spectra": spectra(found), "depth": depth(found), "choices": choices(found)}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"bits": run["bits"].model_dump(exclude={"before", "significant", "relative", "budget"})}


@dataclass(frozen=True)
class Spectra:
    """A curve per layer; `level` is the height of the threshold; marks are where the curves cross it."""

    title: str
    axes: Axes
    lines: tuple[Line, ...]
    level: float
    level_text: str
    keys: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class ComponentsBar:
    """A layer: y of its count, top of its channels, mark at the count that would be a rise."""

    x: float
    width: float
    y: float
    top: float
    mark: float | None
    color: str
    tip: str


@dataclass(frozen=True)
class Depth:
    title: str
    axes: Axes
    bars: tuple[ComponentsBar, ...]
    table: ChartTable


def spectra(bits: Components) -> Spectra | None:
    """Cumulative variance in per cent; the chosen layers lie on top."""
    drawn = [d for d in bits.layers if d.shares and d.shares[-1] > 0]
    if not drawn:
        return None
    x = Scale(0, max(len(d.shares) for d in drawn), LEFT, RIGHT)
    y = Scale(min(100 * d.shares[0] for d in drawn) - 2, 101.5, BOTTOM, TOP)
    lines = tuple(_curve(d, bits.threshold, x, y) for d in sorted(drawn, key=lambda d: d.chosen))
    kinds = [("chosen: more bits", "ours", ""), ("stays binary", "fp32", "2 2")]
    keys = tuple(k for k, chosen in zip(kinds, (True, False), strict=True) if any(d.chosen == chosen for d in drawn))
    text = f"{100 * bits.threshold:g} % of the variance"
    plain = axes(x, y, "component", "variance so far (%)")
    return Spectra("Cumulative variance by component", plain, lines, y(100 * bits.threshold), text, keys)


def _curve(d: Dimension, threshold: float, x: Scale, y: Scale) -> Line:
    points = [(j, 100 * share) for j, share in enumerate(d.shares, 1)]
    every = -(-len(points) // MOST_POINTS)
    shown = [p for i, p in enumerate(points) if i % every == 0 or i == len(points) - 1]
    path = "".join(f"{'L' if i else 'M'}{x(j)} {y(v)}" for i, (j, v) in enumerate(shown))
    at = next((p for p in points if p[1] >= 100 * threshold), points[-1])
    mark = (x(at[0]), y(at[1]), _tip(d))
    return Line(d.layer, "ours" if d.chosen else "fp32", "" if d.chosen else "2 2", path, (mark,))


def depth(bits: Components) -> Depth | None:
    """Counts in the order in which the layers run."""
    if not bits.layers:
        return None
    n = len(bits.layers)
    x = Scale(0.5, n + 0.5, LEFT, RIGHT)
    highest = max(max(d.channels, (d.before_components or 0) + (bits.delta or 0)) for d in bits.layers)
    y = Scale(0, max(1.0, highest * 1.04), BOTTOM, TOP)
    width = round((x(2) - x(1)) * 0.72, 1) if n > 1 else 60.0
    bars = []
    for i, d in enumerate(bits.layers, 1):
        needed = None if d.before_components is None or bits.delta is None else d.before_components + bits.delta
        mark = None if needed is None else y(needed)
        left = round(x(i) - width / 2, 1)
        bars.append(
            ComponentsBar(left, width, y(d.components), y(d.channels), mark, "ours" if d.chosen else "fp32", _tip(d))
        )
    ticks = tuple((x(v), tick_text(v)) for v in x.ticks(8) if v == int(v) and 1 <= v <= n)
    rows = tuple(
        (
            d.layer, str(d.channels), str(d.components), d.before or "-", "-" if d.rise is None else f"{d.rise:+d}",
            "more bits" if d.chosen else "binary",
        )
        for d in bits.layers
    )  # fmt: skip
    headers = ("layer", "channels", "components", "compared with", "rise", "choice")
    return Depth(
        "Components along the depth", axes(x, y, "layer, in the order they run", "components", x_ticks=ticks), tuple(bars),
        ChartTable("Components of every layer", headers, rows),
    )  # fmt: skip


def choices(bits: Components) -> ChartTable | None:
    """What the choice is compared with."""
    names = {"pca": "PCA", "binary": "all binary", "kbit": f"all {bits.bits} bits"}
    columns = {
        "choice": ("name", lambda name: names.get(name, name)), "layers of more bits": ("layers", lambda names: str(len(names))),
        "their weights %": ("share", numbers.percent), "storage": ("storage_bytes", numbers.kb_unit),
        "float / it": ("compression", _times), "energy: float / it": ("energy_efficiency", _times),
    }  # fmt: skip
    return table_of("Choices of layers", bits.choices, columns) if bits.choices else None


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def _tip(d: Dimension) -> str:
    text = f"{d.layer}\n{d.components} of {d.channels} components"
    return text if d.rise is None else f"{text}\n{d.rise:+d} over {d.before}"
