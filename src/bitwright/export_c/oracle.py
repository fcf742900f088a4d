"""The same program in Python: the reference of the engine, with the sums of float layers in the order of the C file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import reference, run_reference
from bitwright.engine.graph import Graph, Node, ints
from bitwright.engine.run_reference import of_one
from bitwright.export_c.floats import fused


def answers(graph: Graph, x: Tensor) -> Tensor:
    """The net's answer for a batch of floats, to the bit what the C file gives."""
    env = {graph.inputs()[0].name: x}
    for node, step in run_reference.build(graph):
        if node.op in ("conv", "linear"):
            step = of_one(node, _layer(node, graph))
        elif node.op == "aten":  # avg_pool2d
            step = of_one(node, _windows(node))
        step(env)
    return env[graph.nodes[-1].inputs[0]] + 0.0  # -0 becomes 0


def _layer(node: Node, graph: Graph) -> Callable[[Tensor], Tensor]:
    weight, bias, a = reference.stored_weight(graph, node), graph.tensor(node, "bias"), node.attrs
    if node.op == "linear":
        weight, place = weight[:, :, None, None], ([1, 1], [0, 0], [1, 1], 1)
    else:
        place = (a["stride"], a["padding"], a["dilation"], int(a["groups"]))

    plus = fused_sum if fused(graph) else _rounded_sum

    def run(x: Tensor) -> Tensor:
        image = x[:, :, None, None] if node.op == "linear" else x
        y = _ordered(plus, image, weight, bias, *place)
        return y.flatten(1) if node.op == "linear" else y

    return run


def _rounded_sum(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return c + a * b


def fused_sum(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c in float32, rounded once: in double the product is exact, and what the sum loses decides where it lies in the middle
    between two floats."""
    product, c = a.double() * b.double(), c.double()
    total = product + c
    value = total.float()
    off = total - value.double()
    other = value.double() + 2 * off
    middle = (other.float().double() == other) & (off != 0)
    if not bool(middle.any()):
        return value
    part = total - product
    lost = (product - (total - part)) + (c - part)
    return torch.where(middle & (off.sign() == lost.sign()), other.float(), value)


def _ordered(
    plus: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Products added one by one: rows, columns, channels of the window."""
    outputs, depth, rows, columns = weight.shape
    n = len(x)
    x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    high = (x.shape[2] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    wide = (x.shape[3] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    x = x.reshape(n, groups, depth, *x.shape[2:])
    w = weight.reshape(groups, outputs // groups, depth, rows, columns)
    total = torch.zeros(n, groups, outputs // groups, high, wide)
    for ky in range(rows):
        for kx in range(columns):
            top, left = ky * dilation[0], kx * dilation[1]
            seen = x[
                ...,
                top : top + (high - 1) * stride[0] + 1 : stride[0],
                left : left + (wide - 1) * stride[1] + 1 : stride[1],
            ]
            for c in range(depth):
                total = plus(seen[:, :, c, None], w[None, :, :, c, ky, kx, None, None], total)
    total = total.reshape(n, outputs, high, wide)
    return total if bias is None else total + bias[:, None, None]


def _windows(node: Node) -> Callable[[Tensor], Tensor]:
    """Means of windows: sums in order, divided by the pixels inside, or by all where padding counts."""
    a = node.attrs["args"]
    kernel, padding = ints(a["kernel_size"], 2), ints(a.get("padding", [0]), 2)
    stride = ints(a.get("stride", []) or kernel, 2)
    counts_pad = any(padding) and bool(a.get("count_include_pad", True))

    def run(x: Tensor) -> Tensor:
        high, wide = (int(s) for s in node.shape[1:])
        need = [(high - 1) * stride[0] + kernel[0], (wide - 1) * stride[1] + kernel[1]]
        more = [max(0, n - s - q) for n, s, q in zip(need, x.shape[2:], padding, strict=True)]
        sides = [padding[1], more[1], padding[0], more[0]]
        image, ones = F.pad(x, sides), F.pad(torch.ones_like(x), sides)
        total, count = torch.zeros(*x.shape[:2], high, wide), torch.zeros(*x.shape[:2], high, wide)
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                seen = (
                    ...,
                    slice(ky, ky + (high - 1) * stride[0] + 1, stride[0]),
                    slice(kx, kx + (wide - 1) * stride[1] + 1, stride[1]),
                )
                total, count = total + image[seen], count + ones[seen]
        return total / (float(kernel[0] * kernel[1]) if counts_pad else count)

    return run
