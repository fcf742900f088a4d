"""Layers and operators that compute in float, in a fixed order of sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from bitwright.engine import reference
from bitwright.engine.graph import Graph, Node
from bitwright.export_c.layers import stored_bits, window_numbers
from bitwright.export_c.program import CProgram, call, floats_at
from bitwright.export_c.text import words

SLAB = 8  # outputs whose weights are made from bits at a time


def layer(p: CProgram, node: Node) -> None:
    """A convolution or a linear layer on floats."""
    graph, source = p.graph, p.read(node.inputs[0])
    weight = reference.stored_weight(graph, node)
    shape = list(weight.shape)
    outputs, kernel = shape[0], shape[2:] or [1, 1]
    if len(kernel) != 2:
        p.refuse(node, f"a convolution over {len(kernel)} axes", "A C file takes convolutions over images")
    numbers = window_numbers(p, node, source, kernel)
    groups, each = numbers[-1], math.prod(shape[1:])
    window = p.window(node, numbers)
    bias = graph.tensor(node, "bias")
    bias_name = "0" if bias is None else p.constant(node, "bias", bias, "float")
    share = outputs // groups
    if node.key("bits") is None:
        rows = weight.movedim(1, -1).reshape(groups, share, each).transpose(1, 2)
        made = _from_floats(p.constant(node, "weight", rows, "float", "[group][row, column, channel][output]"), each)
        bits = ""
    else:
        made = _from_bits(p, node, outputs, each, share)
        bits = f", {node.attrs['weight']['planes']}-bit weights"
    y = p.value(node.name, node, "floats")
    said = f"{outputs} sums of {each} products{bits}"
    p.floats.append(f"{node.owner}: {said}")

    def run(w: str, group: int, first: str, count: int) -> str:
        x, to = floats_at(source), floats_at(y)
        return call(
            f"net_conv_{'fused' if fused(graph) else 'float'}",
            f"&{window}",
            x,
            w,
            bias_name,
            group,
            first,
            count,
            outputs,
            to,
        )

    def body() -> str:
        out = "".join(made(run, group, group * share, share) for group in range(groups))
        return ("    int32_t first;\n" if "(first = " in out else "") + out

    p.step(node, f"{node.owner}: float, {source.channels} -> {outputs} channels, {said}", body)


def fused(graph: Graph) -> bool:
    """Whether its float layers add by fused multiplies and adds, as the kernels do: only codes behind them make that worth its time on
    machines without such an instruction."""
    return any(n.op == "quantize" for n in graph.nodes)


Run = Callable[
    [str, int, str, int], str
]  # place of weights, group, first output, how many: the call that computes them
Made = Callable[[Run, int, int, int], str]


def _from_floats(name: str, each: int) -> Made:
    return lambda run, group, first, count: (
        f"    {run(f'{name} + {first * each}' if first else name, group, str(first), count)}\n"
    )


def _from_bits(p: CProgram, node: Node, outputs: int, each: int, share: int) -> Made:
    """Weights that are stored as bits become floats for a few outputs at a time."""
    name, planes, levels, row = _levels(p, node, outputs, each)
    slab = min(SLAB, share)
    room = p.room("weights", "words", each * slab)

    def pair(run: Run, group: int, first: str, count: int) -> list[str]:
        at = floats_at(room)
        expand = call("net_weights_of_bits", name, planes, f"{row}u", levels, first, count, each, at)
        return [expand, run(at, group, first, count)]

    def lines(run: Run, group: int, first: int, count: int) -> str:
        whole = count // slab * slab
        inner = "".join(f"        {line}\n" for line in pair(run, group, "first", slab))
        out = f"    for (first = {first}; first < {first + whole}; first += {slab}) {{\n{inner}    }}\n"
        if count > whole:
            out += "".join(f"    {line}\n" for line in pair(run, group, str(first + whole), count - whole))
        return out

    return lines


def _levels(p: CProgram, node: Node, outputs: int, each: int) -> tuple[str, int, str, int]:
    """(bits, planes, levels, words of a row) of a weight that is stored as bits: the float of each code, per output."""
    info = node.attrs["weight"]
    planes = int(info["planes"])
    if planes > 6:
        p.refuse(
            node, f"a float layer with {planes}-bit weights", "Give its input bits, too, or keep its weights float"
        )
    bit = stored_bits(p, node)
    codes = (torch.arange(1 << planes)[None] >> torch.arange(planes)[:, None]) & 1  # [planes, codes]
    value = torch.zeros(outputs, 1 << planes, dtype=torch.float64)
    for row, t in zip(p.graph.need(node, "scale").double(), info["terms"], strict=True):
        whole = reference.whole_numbers(codes.to(torch.uint8), t["planes"], t["mult"], int(t["zero"]))
        value += row[:, None] * whole
    rows = words(bit.transpose(0, 1).reshape(-1, each).numpy())
    name = p.constant(node, "weight", rows, "uint32_t", "bits: [output][plane][row, column, channel]")
    levels = p.constant(node, "levels", value.float(), "float", "the weight that each code stands for: [output][code]")
    return name, planes, levels, rows.shape[1]
