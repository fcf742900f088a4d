"""Geometry of the charts, in SVG units. Every chart brings the table that says the same in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.svg.scales import Scale, linear_scale, log_scale, tick_text

WIDTH, HEIGHT = 400.0, 276.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 386.0, 26.0, 226.0
EPOCHS_SHOWN = 40  # points of one scatter chart
LINE_HEIGHT, CHARACTER = 12.0, 6.4  # of the labels, for keeping them apart

SHAPES = {
    "diamond": "M{x} {y}m-8 0l8-8 8 8-8 8z",
    "circle": "M{x} {y}m-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
    "square": "M{x} {y}m-6-6h12v12h-12z",
    "triangle": "M{x} {y}m-7 6h14l-7-13z",
    "down": "M{x} {y}m-7-6h14l-7 13z",
    "cross": "M{x} {y}m-6-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
}


@dataclass(frozen=True)
class ChartTable:
    """Headings and rows of text; the first column is the row's heading."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_of(title: str, rows: Iterable[Any], columns: dict[str, tuple[str, Callable[[Any], str]]]) -> ChartTable:
    """columns: heading -> (attribute of a row, how it is written)."""
    cells = (tuple(write(getattr(row, name)) for name, write in columns.values()) for row in rows)
    return ChartTable(title, tuple(columns), tuple(cells))


@dataclass(frozen=True)
class Point:
    """A net on a scatter chart: `x` in the chart's unit, accuracy as a share; 0 or None leave it to the table.

    text   the cost in words;   said   follows it where the point is alone
    """

    name: str
    x: float
    accuracy: float | None
    text: str
    shape: str
    color: str
    main: bool = False
    filled: bool = True
    labeled: bool = True
    said: str = ""

    @property
    def tip(self) -> str:
        return f"{self.name}\naccuracy {numbers.percent(self.accuracy)} %\n{self.text}{self.said}"


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line, for a program whose x is known and whose accuracy is not."""

    name: str
    x: float
    text: str
    color: str

    @property
    def tip(self) -> str:
        return f"{self.name}\n{self.text}\nits accuracy was not measured"


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    anchor: str
    text: str
    turned: bool = False


@dataclass(frozen=True)
class Dot:
    path: str
    point: Point
    label: Label


@dataclass(frozen=True)
class Upright:
    x: float
    mark: Mark
    label: Label


@dataclass(frozen=True)
class Axes:
    y_title: str
    x_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class ScatterPlot:
    title: str
    axes: Axes
    dots: tuple[Dot, ...]
    uprights: tuple[Upright, ...]
    stairs: str
    table: ChartTable
    points: tuple[Point, ...] = field(default=())


def axes(
    x: Scale, y: Scale, x_title: str, y_title: str, most: int = 6, x_ticks: tuple[tuple[float, str], ...] | None = None
) -> Axes:
    """x_ticks: in place of those at round numbers."""
    if x_ticks is None:
        x_ticks = tuple((x(v), tick_text(v)) for v in x.ticks(most))
    return Axes(y_title, x_title, x_ticks, tuple((y(v), tick_text(v)) for v in y.ticks(5)))


def scatter(
    title: str,
    x_title: str,
    points: Sequence[Point],
    cost: str,
    *,
    marks: Sequence[Mark] = (),
    first: str = "net",
    what: str = "",
) -> ScatterPlot | None:
    """Accuracy against a cost on a log axis; None without a point.

    cost, first   headings of the table's last column and of its first;   what   for the table's title. [default: cost]
    """
    rows = [(p.name, filters.percent_unit(p.accuracy), p.text) for p in points]
    rows += [(m.name, "not measured", m.text) for m in marks]
    table = ChartTable(f"Accuracy and {what or cost}", (first, "test accuracy", cost), tuple(rows))
    points = [p for p in points if p.x > 0 and p.accuracy is not None]
    if not points:
        return None
    x = log_scale([p.x for p in points] + [m.x for m in marks], LEFT, RIGHT)
    y = linear_scale([_height(p) for p in points], BOTTOM, TOP)
    taken: list[tuple[float, float, float, float]] = []
    for p in points:
        cx, cy = x(p.x), y(_height(p))
        taken.append((cx - 9, cy - 9, cx + 9, cy + 9))
    uprights = tuple(_uprights(marks, x, taken))
    dots = tuple(_dot(p, x(p.x), y(_height(p)), taken) for p in sorted(points, key=lambda p: not p.main))
    plain = axes(x, y, x_title, "test accuracy (%)")
    return ScatterPlot(title, plain, dots, uprights, _stairs(points, x, y), table, tuple(points))


def epochs_scatter(
    title: str,
    x_title: str,
    known: Sequence[tuple[int, float | None, float, str]],
    cost: str,
    said: str,
    what: str = "",
) -> ScatterPlot | None:
    """A point per epoch, few names; the last one is the net. known: (epoch, accuracy, x, x in words)."""
    every = -(-len(known) // EPOCHS_SHOWN)
    drawn = {row[0] for row in known[::-1][:: max(1, every)]}
    points = []
    for i, accuracy, x, text in known:
        last, first = i == known[-1][0], i == known[0][0]
        shape, color = ("diamond", "ours") if last else ("circle", "fp32")
        at = x if i in drawn else 0.0
        points.append(Point(f"epoch {i}", at, accuracy, text, shape, color, last, last, last or first, said))
    return scatter(title, x_title, points, cost, first="epoch", what=what)


def _height(point: Point) -> float:
    return 100 * (point.accuracy or 0.0)


def _uprights(marks: Sequence[Mark], x: Scale, taken: list[tuple[float, float, float, float]]) -> list[Upright]:
    """Turned labels beside their lines, at the height that is free."""
    made = []
    for mark in sorted(marks, key=lambda m: m.x):
        at, long = x(mark.x), len(mark.name) * CHARACTER
        heights = [BOTTOM - 6, TOP + long + 8, (TOP + BOTTOM + long) / 2]
        boxes = [(at - 15.0, h - long, at - 1.0, h) for h in heights]
        best = min(range(3), key=lambda i: (_overlap(boxes[i], taken), i))
        taken.append(boxes[best])
        label = Label(round(at - 4, 1), round(heights[best], 1), "start", mark.name, turned=True)
        made.append(Upright(at, mark, label))
    return made


def _dot(point: Point, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> Dot:
    name = point.name if point.labeled else ""
    text = name if len(name) <= 26 else f"{name[:14]}...{name[-9:]}"
    long = len(text) * CHARACTER * (1.1 if point.main else 1.0)
    places = [  # right, left, below, above, then further away
        (x + 12, y + 4, "start"), (x - 12, y + 4, "end"), (x, y + 24, "middle"), (x, y - 14, "middle"),
        (x + 12, y + 20, "start"), (x - 12, y - 12, "end"), (x + 12, y - 12, "start"), (x - 12, y + 20, "end"),
    ]  # fmt: skip

    def box(place: tuple[float, float, str]) -> tuple[float, float, float, float]:
        px, py, anchor = place
        left = px - {"start": 0.0, "middle": long / 2, "end": long}[anchor]
        return (left, py - LINE_HEIGHT, left + long, py + 3)

    def cost(place: tuple[float, float, str]) -> float:
        left, top, right, bottom = box(place)
        outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, TOP - top) + max(0.0, bottom - BOTTOM)
        return _overlap(box(place), taken) + 40 * outside

    best = min(places, key=cost)
    taken.append(box(best))
    path = SHAPES[point.shape].format(x=x, y=y)
    return Dot(path, point, Label(round(best[0], 1), round(best[1], 1), best[2], text))


def _overlap(box: tuple[float, float, float, float], others: Iterable[tuple[float, float, float, float]]) -> float:
    area = 0.0
    for other in others:
        wide = min(box[2], other[2]) - max(box[0], other[0])
        high = min(box[3], other[3]) - max(box[1], other[1])
        area += max(0.0, wide) * max(0.0, high)
    return area


def _stairs(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """The line through the nets that no other beats in both; "" for a single one."""
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, -_height(p))):
        if not best or _height(p) > _height(best[-1]):
            best.append(p)
    if len(best) < 2:
        return ""
    path = f"M{x(best[0].x)} {y(_height(best[0]))}"
    return path + "".join(f"H{x(p.x)}V{y(_height(p))}" for p in best[1:])


def short(name: str) -> str:
    """The name of a layer, for a place beside a chart.

    >>> short("features.stage4.block17.conv")
    'features...17.conv'
    """
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"
