"""Operators on each number by itself, in the memory of what they read where nothing else needs that."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.engine.graph import Node
from bitwright.export_c.plan import Value
from bitwright.export_c.program import CProgram, call, floats_at
from bitwright.export_c.text import number


def _each(p: CProgram, node: Node, said: str, line: Callable[[Value, str, str], str]) -> None:
    """A step that writes one value from one other: `line(x, place of x, place of the result)`."""
    x = p.read(node.inputs[0])
    y = p.value(node.name, node, "floats", shares=[x] if p.dies(x.name, node) else [])
    p.step(node, f"{node.owner}: {said}", lambda: f"    {line(x, floats_at(x), floats_at(y))}\n")


def relu(p: CProgram, node: Node) -> None:
    _each(p, node, "ReLU", lambda x, a, b: call("net_relu", a, x.count, b))


def clamp(p: CProgram, node: Node) -> None:
    low, high = (torch.inf if v is None else float(v) for v in (node.attrs["low"], node.attrs["high"]))
    low = -low if node.attrs["low"] is None else low
    said = f"kept in {low:g}..{high:g}"
    _each(p, node, said, lambda x, a, b: call("net_clamp", a, x.count, number(low), number(high), b))


def add_scalar(p: CProgram, node: Node) -> None:
    value = float(node.attrs["value"])
    p.floats.append(f"{node.owner or node.name}: + {value:g}")
    _each(p, node, f"+ {value:g}", lambda x, a, b: call("net_add_scalar", a, x.count, number(value), b))


def mul_scalar(p: CProgram, node: Node) -> None:
    value = float(node.attrs["value"])
    p.floats.append(f"{node.owner or node.name}: * {value:g}")
    _each(p, node, f"* {value:g}", lambda x, a, b: call("net_mul_scalar", a, x.count, number(value), b))


def affine(p: CProgram, node: Node) -> None:
    scale, add = (p.graph.need(node, role) for role in ("scale", "add"))
    names = p.constant(node, "scale", scale, "float"), p.constant(node, "add", add, "float")
    step = int(scale.numel() > 1)
    p.floats.append(f"{node.owner or node.name}: one multiply and one add a number")
    _each(p, node, "scale and add", lambda x, a, b: call("net_affine", a, x.pixels, x.channels, *names, step, b))


def prelu(p: CProgram, node: Node) -> None:
    slope: Tensor = p.graph.need(node, "slope")
    name, step = p.constant(node, "slope", slope, "float"), int(slope.numel() > 1)
    p.floats.append(f"{node.owner or node.name}: PReLU")
    _each(p, node, "PReLU", lambda x, a, b: call("net_prelu", a, x.pixels, x.channels, name, step, b))


def add(p: CProgram, node: Node) -> None:
    a, b = (p.read(i) for i in node.inputs)
    if (a.height, a.width, a.channels) != (b.height, b.width, b.channels):
        p.refuse(node, "adds values of different shape", "Give both the same shape")
    shares = next(([v] for v in (a, b) if p.dies(v.name, node)), [])
    y = p.value(node.name, node, "floats", shares=shares)
    p.floats.append(f"{node.owner or node.name}: residual sum")
    p.step(
        node,
        f"{node.owner}: sum of two values",
        lambda: f"    net_add({floats_at(a)}, {floats_at(b)}, {a.count}, {floats_at(y)});\n",
    )
