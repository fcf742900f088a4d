"""Layers and operators that compute in float, in a fixed order of sums."""

from __future__ import annotations

import math

import torch

from bitwright.engine import reference
from bitwright.engine.graph import Node
from bitwright.export_c.layers import window_numbers
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
    groups, each = numbers[13], math.prod(shape[1:])
    window = p.window(node, numbers)
    bias = graph.tensor(node, "bias")
    bias_name = "0" if bias is None else p.constant(node, "bias", bias, "float")
    rows = weight.movedim(1, -1).reshape(groups, outputs // groups, each)  # the order of a window
    stored = None if node.key("bits") is None else _levels(p, node, outputs, each)
    share = outputs // groups
    if stored is None:
        name = p.constant(node, "weight", rows.transpose(1, 2), "float", "[group][row, column, channel][output]")
        slab = 0
    else:
        name, (planes, levels, row) = stored[0], stored[1:]
        slab = min(SLAB, share)
        room = p.room("weights", "words", each * slab)
    y = p.value(node.name, node, "floats")
    bits = "" if stored is None else f", {planes}-bit weights"
    said = f"{outputs} sums of {each} products{bits}"
    p.floats.append(f"{node.owner}: {said}")

    def body() -> str:
        x, to = floats_at(source), floats_at(y)
        out = ""
        for g in range(groups):
            first = g * share
            if stored is None:
                at = name if g == 0 else f"{name} + {first * each}"
                out += (
                    "    " + call("net_conv_float", f"&{window}", x, at, bias_name, g, first, share, outputs, to) + "\n"
                )
                continue
            for start in range(first, first + share, slab):
                n, w = min(slab, first + share - start), floats_at(room)
                if start == first and share > slab and share % slab == 0:
                    made = call("net_weights_of_bits", name, planes, f"{row}u", levels, "first", slab, each, w)
                    run = call("net_conv_float", f"&{window}", x, w, bias_name, g, "first", slab, outputs, to)
                    out += f"    for (first = {first}; first < {first + share}; first += {slab}) {{\n"
                    out += f"        {made}\n        {run}\n    }}\n"
                    break
                made = call("net_weights_of_bits", name, planes, f"{row}u", levels, start, n, each, w)
                run = call("net_conv_float", f"&{window}", x, w, bias_name, g, start, n, outputs, to)
                out += f"    {made}\n    {run}\n"
        return ("    int32_t first;\n" if "(first = " in out else "") + out

    p.step(node, f"{node.owner}: float, {source.channels} -> {outputs} channels, {said}", body)


def _levels(p: CProgram, node: Node, outputs: int, each: int) -> tuple[str, int, str, int]:
    """(bits, planes, levels, words of a row) of a weight that is stored as bits: the float of each code, per output."""
    info = node.attrs["weight"]
    planes = int(info["planes"])
    if planes > 6:
        p.refuse(
            node, f"a float layer with {planes}-bit weights", "Give its input bits, too, or keep its weights float"
        )
    shape = [int(s) for s in info["shape"]]
    bit = (
        reference.unpack_bits(p.graph.need(node, "bits"), (planes, *shape))
        .movedim(2, -1)
        .reshape(planes, outputs, each)
    )
    codes = (torch.arange(1 << planes)[None] >> torch.arange(planes)[:, None]) & 1  # [planes, codes]
    value = torch.zeros(outputs, 1 << planes, dtype=torch.float64)
    for row, t in zip(p.graph.need(node, "scale").double(), info["terms"], strict=True):
        whole = reference.whole_numbers(codes.to(torch.uint8), t["planes"], t["mult"], int(t["zero"]))
        value += row[:, None] * whole
    rows = words(bit.transpose(0, 1).reshape(-1, each).numpy())
    name = p.constant(node, "weight", rows, "uint32_t", "bits: [output][plane][row, column, channel]")
    levels = p.constant(node, "levels", value.float(), "float", "the weight that each code stands for: [output][code]")
    return name, planes, levels, rows.shape[1]
