"""Pooling, and what moves numbers: flatten, slice, pad."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitwright.engine.graph import Node, ints
from bitwright.export_c.codes import Codes
from bitwright.export_c.plan import Value
from bitwright.export_c.program import CProgram, bits_at, call, floats_at
from bitwright.export_c.text import number


def _window(p: CProgram, node: Node, x: Value, a: dict[str, Any]) -> str:
    """The `net_window` of a pooling."""
    rows, columns, _ = p.geometry(node)
    kernel = ints(a["kernel"], 2)
    place = [ints(a["stride"] or kernel, 2), ints(a["padding"], 2), ints(a["dilation"], 2)]
    return p.window(
        node, [x.height, x.width, x.channels, rows, columns, *kernel, *(v for pair in place for v in pair), 1]
    )


def _each_window(y: Value, declared: str, lines: str) -> str:
    inner = "".join(f"            {line}\n" for line in lines.splitlines())
    return (
        f"{declared}    int32_t row, column, pixel = 0;\n    for (row = 0; row < {y.height}; row++)\n"
        f"        for (column = 0; column < {y.width}; column++, pixel++) {{\n{inner}        }}\n"
    )


def max_codes(p: CProgram, node: Node) -> None:
    """The largest code of each window: quantizers never fall as their input rises."""
    x = p.read(node.inputs[0])
    window = _window(p, node, x, node.attrs)
    codes = Codes(p, node, node.name, node.attrs["form"], int(node.attrs["levels"]))

    def body() -> str:
        if x.form == "bits":
            declared, function, source = f"    const net_bits in = {bits_at(x)};\n", "net_max_bits", "in"
        else:
            declared, function, source = "", "net_max_bytes", f"NET_BYTES({x.at})"
        made = codes.row(lambda to: call(function, f"&{window}", source, "row", "column", to), "pixel", x.channels)
        return _each_window(codes.value, declared + codes.declared(), made)

    p.step(node, f"{node.owner}: max-pooling of codes, {_kernel(node.attrs['kernel'])}", body)


def _kernel(kernel: Any) -> str:
    return "x".join(map(str, ints(kernel, 2)))


def max_floats(p: CProgram, node: Node) -> None:
    if int(node.attrs["rank"]) != 2:
        p.refuse(node, f"pools over {node.attrs['rank']} axes", "A C file pools images")
    x = p.read(node.inputs[0])
    window = _window(p, node, x, node.attrs)
    y = p.value(node.name, node, "floats")
    p.floats.append(f"{node.owner}: comparisons of a max-pooling")
    p.step(
        node,
        f"{node.owner}: max-pooling, {_kernel(node.attrs['kernel'])}",
        lambda: _each_window(
            y, "", f"net_max_floats(&{window}, {floats_at(x)}, row, column, {floats_at(y)} + pixel * {x.channels});"
        ),
    )


def average_all(p: CProgram, node: Node) -> None:
    """The mean over the whole image."""
    x = p.read(node.inputs[0])
    if "size" in node.attrs and set(node.attrs["size"]) != {1}:
        p.refuse(node, f"an average to {node.attrs['size']} pixels", "A C file averages windows or the whole image")
    y = p.value(node.name, node, "floats")
    p.floats.append(f"{node.owner or node.name}: means of {x.pixels} pixels, summed in double")
    p.step(
        node,
        f"{node.owner}: mean of the image",
        lambda: f"    {call('net_mean_image', floats_at(x), x.pixels, x.channels, floats_at(y))}\n",
    )


def average_windows(p: CProgram, node: Node) -> None:
    a = dict(node.attrs["args"])
    padding, whole = ints(a.get("padding", [0]), 2), bool(a.get("ceil_mode", False))
    x = p.read(node.inputs[0])
    counts_pad = any(padding) and bool(a.get("count_include_pad", True))
    if a.get("divisor_override") is not None or (counts_pad and whole):
        p.refuse(node, "an average with a divisor of its own", "Use a plain average")
    kernel = ints(a["kernel_size"], 2)
    place = {"kernel": kernel, "stride": a.get("stride", []), "padding": padding, "dilation": [1]}
    window, count = _window(p, node, x, place), kernel[0] * kernel[1] if counts_pad else 0
    y = p.value(node.name, node, "floats")
    p.floats.append(f"{node.owner or node.name}: means of {_kernel(kernel)} pixels")
    p.step(
        node,
        f"{node.owner}: mean of {_kernel(kernel)} pixels",
        lambda: _each_window(
            y, "",
            f"net_mean_window(&{window}, {floats_at(x)}, {count}, row, column, {floats_at(y)} + pixel * {x.channels});",
        ),
    )  # fmt: skip


def decode(p: CProgram, node: Node) -> None:
    """Codes back to the numbers they stand for."""
    source = p.graph.node(node.inputs[0])
    x, a = p.read(node.inputs[0]), node.attrs.get("x") or source.attrs
    zero = p.constant(node, "zero", np.array([int(z) for z in a["zero"]]), "int32_t")
    step, unit = int(len(a["zero"]) > 1), number(float(node.attrs["unit"]))
    y = p.value(node.name, node, "floats")
    p.floats.append(f"{node.owner or node.name}: one multiply a number")
    p.step(
        node,
        f"{node.owner}: codes to numbers",
        lambda: (
            "    "
            + call(
                "net_decode_bytes",
                f"NET_BYTES({x.at})",
                x.pixels,
                x.channels,
                int(a["mult"]),
                zero,
                step,
                unit,
                floats_at(y),
            )
            + "\n"
        ),
    )


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
