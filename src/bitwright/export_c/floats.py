"""Layers and operators that compute in float, in a fixed order of sums."""

from __future__ import annotations

import math

import numpy as np
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


def relu(p: CProgram, node: Node) -> None:
    x = p.read(node.inputs[0])
    y = p.value(node.name, node, "floats", shares=[x] if p.dies(x.name, node) else [])
    p.step(node, f"{node.owner}: ReLU", lambda: f"    net_relu({floats_at(x)}, {x.count}, {floats_at(y)});\n")


def add(p: CProgram, node: Node) -> None:
    a, b = (p.read(i) for i in node.inputs)
    if a.count != b.count:
        p.refuse(node, "adds values of different shape", "Give both the same shape")
    shares = next(([v] for v in (a, b) if p.dies(v.name, node)), [])
    y = p.value(node.name, node, "floats", shares=shares)
    p.floats.append(f"{node.owner or node.name}: residual sum")
    p.step(
        node, f"{node.owner}: sum of two values",
        lambda: f"    net_add({floats_at(a)}, {floats_at(b)}, {a.count}, {floats_at(y)});\n",
    )  # fmt: skip


def average(p: CProgram, node: Node) -> None:
    x = p.read(node.inputs[0])
    if set(node.attrs["size"]) != {1}:
        p.refuse(node, f"an average to {node.attrs['size']} pixels", "A C file averages over the whole image")
    y = p.value(node.name, node, "floats")
    p.floats.append(f"{node.owner}: mean of {x.pixels} pixels")
    p.step(
        node, f"{node.owner}: mean over {x.height}x{x.width} pixels",
        lambda: f"    net_average({floats_at(x)}, {x.pixels}, {x.channels}, {floats_at(y)});\n",
    )  # fmt: skip


def flatten(p: CProgram, node: Node) -> None:
    x = p.read(node.inputs[0])
    p.geometry(node)
    if int(node.attrs["start"]) != 1 or len(node.shape) != 1:
        p.refuse(node, "flattens some of the axes", "A C file flattens a whole image to a vector")
    if x.pixels == 1 or x.channels == 1:
        p.alias(node.name, node, x)
        return
    y = p.value(node.name, node, "floats")
    p.step(
        node, f"{node.owner}: {x.channels}x{x.height}x{x.width} to a vector, channel by channel",
        lambda: f"    net_flatten({floats_at(x)}, {x.pixels}, {x.channels}, {floats_at(y)});\n",
    )  # fmt: skip


def _placed(p: CProgram, node: Node, start: list[int], step: list[int], value: float, said: str) -> None:
    """A value cut, thinned out or padded: rows, columns, channels."""
    x = p.read(node.inputs[0])
    y = p.value(node.name, node, "floats")
    first = p.constant(node, "start", np.array(start), "int32_t")
    each = p.constant(node, "step", np.array(step), "int32_t")
    p.step(
        node, f"{node.owner}: {said}",
        lambda: "    " + call(
            "net_place_floats", floats_at(x), x.height, x.width, x.channels, first, each, f"{value!r}F", y.height, y.width,
            y.channels, floats_at(y),
        ) + "\n",
    )  # fmt: skip


def cut(p: CProgram, node: Node) -> None:
    a, shape = node.attrs, [int(s) for s in p.graph.node(node.inputs[0]).shape]
    axis = int(a["dim"]) - 1
    if axis < 0 or len(shape) not in (1, 3):
        p.refuse(node, "slices the batch", "A C file takes one sample at a time")
    start, step = [0, 0, 0], [1, 1, 1]
    place = 2 if len(shape) == 1 else (axis + 2) % 3  # channels, rows, columns -> rows, columns, channels
    begin = int(a["start"])
    start[place] = max(0, begin + shape[axis]) if begin < 0 else begin
    step[place] = int(a["step"])
    _placed(p, node, start, step, 0.0, "every second pixel" if step[place] == 2 else "a part of the values")


def pad(p: CProgram, node: Node) -> None:
    a, source = node.attrs, p.read(node.inputs[0])
    if a["mode"] != "constant":
        p.refuse(node, f"{a['mode']} padding", "Pad with a constant")
    pads = [int(v) for v in a["pads"]] + [0] * 6  # last axis first, before and after
    vector = len(p.graph.node(node.inputs[0]).shape) == 1
    start = [0, 0, -pads[0]] if vector else [-pads[2], -pads[0], -pads[4]]
    p.read(source.name)
    _placed(p, node, start, [1, 1, 1], float(a["value"]), f"padded with {a['value']:g}")
