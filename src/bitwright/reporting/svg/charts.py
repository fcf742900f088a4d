"""Geometry of the charts, in SVG units. Every chart brings the table that says the same in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bitwright.reporting.svg.scales import Scale, linear_scale, log_scale, tick_text

WIDTH, HEIGHT = 400.0, 276.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 386.0, 26.0, 226.0
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
class Table:
    """Headings and rows of text; the first column is the row's heading."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Point:
    """A net on a scatter chart; `x` in the chart's unit, accuracy as a share."""

    name: str
    x: float
    accuracy: float
    shape: str
    color: str
    tip: str
    main: bool = False
    filled: bool = True


@dataclass(frozen=True)
class Mark:
    """A labelled vertical: something whose x is known and whose accuracy is not."""

    name: str
    x: float
    color: str
    tip: str


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
class Scatter:
    title: str
    axes: Axes
    dots: tuple[Dot, ...]
    uprights: tuple[Upright, ...]
    stairs: str
    table: Table
    points: tuple[Point, ...] = field(default=())


def axes(x: Scale, y: Scale, x_title: str, y_title: str, most: int = 6) -> Axes:
    return Axes(
        y_title,
        x_title,
        tuple((x(v), tick_text(v)) for v in x.ticks(most)),
        tuple((y(v), tick_text(v)) for v in y.ticks(5)),
    )


def scatter(title: str, x_title: str, points: Sequence[Point], marks: Sequence[Mark], table: Table) -> Scatter | None:
    """Accuracy against a cost on a log axis; None without a point."""
    points = [p for p in points if p.x > 0]
    if not points:
        return None
    x = log_scale([p.x for p in points] + [m.x for m in marks], LEFT, RIGHT)
    y = linear_scale([p.accuracy * 100 for p in points], BOTTOM, TOP)
    taken: list[tuple[float, float, float, float]] = []
    for p in points:
        cx, cy = x(p.x), y(p.accuracy * 100)
        taken.append((cx - 9, cy - 9, cx + 9, cy + 9))
    uprights = _uprights(marks, x, taken)
    dots = [_dot(p, x(p.x), y(p.accuracy * 100), taken) for p in sorted(points, key=lambda p: not p.main)]
    return Scatter(
        title,
        axes(x, y, x_title, "test accuracy (%)"),
        tuple(dots),
        tuple(uprights),
        _stairs(points, x, y),
        table,
        tuple(points),
    )


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
    text = point.name if len(point.name) <= 26 else f"{point.name[:14]}...{point.name[-9:]}"
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
    for p in sorted(points, key=lambda p: (p.x, -p.accuracy)):
        if not best or p.accuracy > best[-1].accuracy:
            best.append(p)
    if len(best) < 2:
        return ""
    path = f"M{x(best[0].x)} {y(best[0].accuracy * 100)}"
    return path + "".join(f"H{x(p.x)}V{y(p.accuracy * 100)}" for p in best[1:])


def short(name: str) -> str:
    """The name of a layer, for a place beside a chart.

    >>> short("features.stage4.block17.conv")
    'features...17.conv'
    """
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"
