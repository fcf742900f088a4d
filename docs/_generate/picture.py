"""A part drawn by running it: its value, and the gradient it passes, over one line of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import bitwright as bw

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 260, 40, 16, 40
RANGES = {"input8": (0.0, 1.0), "dorefa_a": (-0.5, 1.5)}


def picture(name: str, slots: Sequence[str]) -> str:
    """SVG in a figure; "" for a part that has no codes, where a line would say nothing."""
    if not bw.parts()[name].packs:
        return ""
    slot = "w" if "w" in slots else "x"
    options: dict[str, Any] = {"bits": 2} if name.startswith(("dorefa", "uniform")) else {}
    low, high = RANGES.get(name, (-1.5, 1.5))
    x = torch.linspace(low, high, 601)
    part = bw.make_part(name, slot=slot, **options).eval()
    t = x.reshape(1, 1, 1, -1).clone().requires_grad_()
    y = part(t)
    (slope,) = torch.autograd.grad(y.sum(), t)
    lines = {"value": y.detach().flatten().tolist(), "slope": slope.flatten().tolist()}
    said = ", ".join(f"{key} = {value}" for key, value in options.items())
    what = "weight" if slot == "w" else "input"
    caption = f"Drawn by the code{f' with {said}' if said else ''}: value (solid) and gradient (dashed) over the {what}"
    return f'<figure markdown="0">\n{_svg(name, x.tolist(), lines)}\n<figcaption>{caption}</figcaption>\n</figure>\n'


def _svg(name: str, x: list[float], lines: dict[str, list[float]]) -> str:
    every = [v for values in lines.values() for v in values]
    bottom, top = min(0.0, min(every)), max(0.0, max(every))
    margin = 0.06 * (top - bottom or 1)
    bottom, top = bottom - margin, top + margin

    def px(v: float) -> float:
        return LEFT + (v - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - 12)

    def py(v: float) -> float:
        return TOP + (top - v) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    pieces = [f'<line class="axis" x1="{LEFT}" y1="{py(0):.1f}" x2="{WIDTH - 12}" y2="{py(0):.1f}"/>']
    if x[0] < 0 < x[-1]:
        pieces.append(f'<line class="axis" x1="{px(0):.1f}" y1="{TOP}" x2="{px(0):.1f}" y2="{HEIGHT - BOTTOM}"/>')
    for v in (x[0], 0.0, 0.5, 1.0, -1.0, x[-1]):
        if x[0] <= v <= x[-1]:
            pieces.append(f'<text x="{px(v):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{v:g}</text>')
    for v in sorted({round(v, 2) for v in (min(every), max(every), 0.0)}):
        pieces.append(f'<text x="{LEFT - 6}" y="{py(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    pieces += [f'<polyline class="{kind}" points="{_points(x, values, px, py)}"/>' for kind, values in lines.items()]
    body = "".join(dict.fromkeys(pieces))
    return f'<svg class="part-picture" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}: value and gradient">{body}</svg>'


def _points(x: list[float], values: list[float], px: object, py: object) -> str:
    """Only where the line bends: steps are drawn as steps."""
    kept = []
    for i, v in enumerate(values):
        if 0 < i < len(values) - 1 and values[i - 1] == v == values[i + 1]:
            continue
        kept.append(f"{px(x[i]):.1f},{py(v):.1f}")  # type: ignore[operator]
    return " ".join(kept)
