"""Layers, elementwise operators and what moves values, in ONNX: one function per operator of the folded graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bitwright.engine.graph import Node, ints
from bitwright.export.qonnx_graph import QonnxGraph, refuse
from bitwright.export.qonnx_quant import quantize, weight

Emitter = Callable[[QonnxGraph, Node], None]


def coded(q: QonnxGraph, node: Node) -> None:
    """Whole numbers times whole numbers; then one multiply and one add per channel."""
    w, scale = weight(q, node, inside=False)
    y, last = _product(q, node, w), node.op == "coded_linear"
    y = q.scaled("Mul", y, f"{node.name}.scale", q.along(scale, node, last), 1.0)
    add = q.along(q.graph.need(node, "add"), node, last)
    q.values[node.name] = q.scaled("Add", y, f"{node.name}.add", add, 0.0)
    q.coded.append(node.owner or node.name)


def layer(q: QonnxGraph, node: Node) -> None:
    """A layer whose input is float: its weight behind Quant where it has bits."""
    if node.key("bits") is None:
        value = q.graph.need(node, "weight")
        w = q.constant(f"{node.name}.weight", value.T if node.op == "linear" else value)
        q.plain.append(node.owner or node.name)
    else:
        w, _ = weight(q, node, inside=True)
        q.coded.append(node.owner or node.name)
    y, bias = _product(q, node, w), q.graph.tensor(node, "bias")
    q.values[node.name] = (
        y if bias is None else q.scaled("Add", y, f"{node.name}.bias", q.along(bias, node, node.op == "linear"), 0.0)
    )


def _product(q: QonnxGraph, node: Node, w: str) -> str:
    if node.op.endswith("linear"):
        return q.put("MatMul", [q.read(node), w], f"{node.name}.matmul")
    a = node.attrs
    kernel = [int(k) for k in (a["weight"]["shape"] if "weight" in a else q.graph.need(node, "weight").shape)[2:]]
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": list(a["stride"]),
        "pads": [*a["padding"], *a["padding"]],
    }
    attrs |= {"dilations": list(a["dilation"]), "group": int(a["groups"])}
    return q.put("Conv", [q.read(node), w], f"{node.name}.conv", **attrs)


def decode(q: QonnxGraph, node: Node) -> None:
    q.values[node.name] = q.scaled("Mul", q.read(node), node.name, node.attrs["unit"], 1.0)


def affine(q: QonnxGraph, node: Node) -> None:
    scale, add = (q.along(q.graph.need(node, role), node, node.last) for role in ("scale", "add"))
    y = q.scaled("Mul", q.read(node), f"{node.name}.scale", scale, 1.0)
    q.values[node.name] = q.scaled("Add", y, f"{node.name}.add", add, 0.0)


def _unary(op: str) -> Emitter:
    return lambda q, node: q.values.__setitem__(node.name, q.put(op, [q.read(node)], node.name))


def _with_number(op: str, idle: float) -> Emitter:
    return lambda q, node: q.values.__setitem__(
        node.name, q.scaled(op, q.read(node), node.name, node.attrs["value"], idle)
    )


def add(q: QonnxGraph, node: Node) -> None:
    q.values[node.name] = q.put("Add", [q.read(node, 0), q.read(node, 1)], node.name)


def prelu(q: QonnxGraph, node: Node) -> None:
    slope = q.along(q.graph.need(node, "slope"), node, False)
    slope = slope.reshape(slope.shape[1:]) if slope.dim() else slope.reshape(1)
    q.values[node.name] = q.put("PRelu", [q.read(node), q.constant(f"{node.name}.slope", slope)], node.name)


def clamp(q: QonnxGraph, node: Node) -> None:
    ends = [node.attrs["low"], node.attrs["high"]]
    given = ["" if e is None else q.constant(f"{node.name}.end", np.float32(e)) for e in ends]
    q.values[node.name] = q.put("Clip", [q.read(node), *given], node.name)


def max_pool(q: QonnxGraph, node: Node) -> None:
    a, rank = node.attrs, int(node.attrs["rank"])
    pads = ints(a["padding"], rank)
    attrs: dict[str, Any] = {"kernel_shape": ints(a["kernel"], rank), "strides": ints(a["stride"] or a["kernel"], rank)}
    attrs |= {"pads": [*pads, *pads], "dilations": ints(a["dilation"], rank), "ceil_mode": int(a["ceil"])}
    q.values[node.name] = q.put("MaxPool", [q.read(node)], node.name, **attrs)


def adaptive_avg_pool(q: QonnxGraph, node: Node) -> None:
    rank, size = int(node.attrs["rank"]), list(node.attrs["size"])
    source = [int(s) for s in q.by_name[node.inputs[0]].shape[-rank:]]
    if set(size) == {1}:
        q.values[node.name] = q.put("GlobalAveragePool", [q.read(node)], node.name)
        return
    if any(s % o for s, o in zip(source, size, strict=True)):
        refuse(node, f"means over {source} values to {size}", "Possible: sizes that divide those of the image, or 1")
    window = [s // o for s, o in zip(source, size, strict=True)]
    q.values[node.name] = q.put("AveragePool", [q.read(node)], node.name, kernel_shape=window, strides=window)


def avg_pool(q: QonnxGraph, node: Node) -> None:
    given = node.attrs["args"]
    known = {"self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"}
    if set(given) - known or given.get("ceil_mode"):
        refuse(node, "a mean with a divisor or a size of its own", "Possible: avg_pool2d without ceil_mode and divisor")
    kernel, pads = ints(given["kernel_size"], 2), ints(given.get("padding", 0), 2)
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": ints(given.get("stride") or kernel, 2),
        "pads": [*pads, *pads],
    }
    attrs["count_include_pad"] = int(given.get("count_include_pad", True))
    q.values[node.name] = q.put("AveragePool", [q.read(node)], node.name, **attrs)


def mean(q: QonnxGraph, node: Node) -> None:
    """The mean over all places of an image."""
    given, rank = node.attrs["args"], len(q.by_name[node.inputs[0]].shape)
    axes = sorted(int(d) % (rank + 1) for d in given.get("dim") or range(1, rank + 1))
    if set(given) - {"self", "dim", "keepdim"} or axes != list(range(2, rank + 1)):
        refuse(node, "a mean over other axes than those of the image", "Possible: mean((2, 3)) or adaptive_avg_pool")
    y = q.put("GlobalAveragePool", [q.read(node)], f"{node.name}.mean")
    q.values[node.name] = y if given.get("keepdim") else q.put("Flatten", [y], node.name, axis=1)


def flatten(q: QonnxGraph, node: Node) -> None:
    if len(node.shape) == 1:
        q.values[node.name] = q.put("Flatten", [q.read(node)], node.name, axis=1)
        return
    shape = q.constant(f"{node.name}.shape", [0, *(int(s) for s in node.shape)], np.int64)
    q.values[node.name] = q.put("Reshape", [q.read(node), shape], node.name)


def cut(q: QonnxGraph, node: Node) -> None:
    a = node.attrs
    ends = [[int(a["start"])], [min(int(a["end"]), (1 << 62))], [int(a["dim"])], [int(a["step"])]]
    given = [
        q.constant(f"{node.name}.{k}", v, np.int64) for k, v in zip(("from", "to", "axis", "step"), ends, strict=True)
    ]
    q.values[node.name] = q.put("Slice", [q.read(node), *given], node.name)


def pad(q: QonnxGraph, node: Node) -> None:
    a, rank = node.attrs, len(node.shape) + 1
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(a["mode"])
    if mode is None or min(a["pads"]) < 0:
        refuse(node, f"padding {a['pads']} in mode {a['mode']}", "Possible: constant, reflect, replicate, of 0 or more")
    pairs = [(0, 0)] * rank
    for k in range(len(a["pads"]) // 2):  # torch names the last axis first
        pairs[rank - 1 - k] = a["pads"][2 * k], a["pads"][2 * k + 1]
    given = [q.constant(f"{node.name}.pads", [p for p, _ in pairs] + [p for _, p in pairs], np.int64)]
    given += [q.constant(f"{node.name}.value", np.float32(a["value"]))] if mode == "constant" else []
    q.values[node.name] = q.put("Pad", [q.read(node), *given], node.name, mode=mode)


EMITTERS: dict[str, Emitter] = {
    "quantize": quantize,
    "decode": decode,
    "coded_conv": coded,
    "coded_linear": coded,
    "conv": layer,
    "linear": layer,
    "affine": affine,
    "relu": _unary("Relu"),
    "clamp": clamp,
    "prelu": prelu,
    "add_scalar": _with_number("Add", 0.0),
    "mul_scalar": _with_number("Mul", 1.0),
    "add": add,
    "max_pool": max_pool,
    "adaptive_avg_pool": adaptive_avg_pool,
    "avg_pool2d.default": avg_pool,
    "mean.dim": mean,
    "flatten": flatten,
    "slice": cut,
    "pad": pad,
}


def emit(q: QonnxGraph) -> None:
    """Writes every node of the graph. Errors: `InputError` for an operator that has no form here."""
    for node in q.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "input":
            if node.attrs["dtype"] != "float32":
                refuse(node, f"an input of {node.attrs['dtype']}", "Possible: float32")
            q.values[node.name] = node.name
            q.taken.add(node.name)
            continue
        name = str(node.attrs["call"]) if node.op == "aten" else node.op
        if name not in EMITTERS:
            refuse(node, f"{name} has no form in this file", f"Possible: {', '.join(sorted(EMITTERS))}")
        EMITTERS[name](q, node)
