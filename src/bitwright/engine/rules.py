"""What takes more than a line of a record: what must hold, shapes of layers, how large a result can be, how it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import aten_list, reference
from bitwright.engine.attributes import MAX_MULT, MAX_PLANES, MAX_STEP, MAX_TERMS, SIZE, listed, need, whole
from bitwright.engine.graph import Graph, Node

MAX_TABLE = 1 << 24  # entries of the tables a kernel keeps for the border of a convolution
INT32 = 2**31 - 1
HUGE = 1e37  # sums of numbers below it stay finite in float32, in any order
CODED = ("coded_conv", "coded_linear")
CODED_SPLITS = ("coded_channel_gate", "precision_gate")
SPLITS = ("channel_gate", *CODED_SPLITS)  # layers with a gate that splits their sum
LAYERS = (*CODED, *SPLITS, "conv", "linear", "conv_transpose")
Function = Callable[..., Tensor]
Attrs = Mapping[str, Any]


# what else must hold, operator by operator
def _channels(x: Tensor, last: bool = False) -> int:
    return x.shape[-1 if last else 1] if x.dim() > 1 else 1


def check_quantize(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    table, channels = graph.need(n, "thresholds"), _channels(inputs[0], n.attrs["last"])
    levels, zero = n.attrs["levels"], n.attrs["zero"]
    need(tuple(table.shape) in ((levels,), (channels, levels)), f"thresholds are {list(table.shape)}")
    need(not bool(table.isnan().any()) and bool((table[..., 1:] >= table[..., :-1]).all()), "thresholds fall")
    need(len(zero) in (1, channels), f"{len(zero)} zeros for {channels} channels")


def check_affine(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    scale, add = graph.need(n, "scale"), graph.need(n, "add")
    need(scale.dim() == 1 and scale.shape == add.shape, "scale and add differ in shape")
    have = _channels(inputs[0], n.attrs["last"])
    need(scale.numel() in (1, have) or have == 1, f"{scale.numel()} scales for {have} channels")


def check_pool(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    a = n.attrs
    rank = a["rank"]
    need(inputs[0].dim() == rank + 2, f"{rank}-dimensional, but its input is not")
    for k in ("kernel", "stride", "padding", "dilation", "size"):
        need(k not in a or len(a[k]) == rank, f"{k} needs {rank} numbers")
    if "padding" in a:
        need(all(2 * p <= k for p, k in zip(a["padding"], a["kernel"], strict=True)), "padding above half the kernel")


def check_prelu(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    slope = graph.need(n, "slope")
    need(slope.dim() == 1 and slope.numel() in (1, _channels(inputs[0])), "slope is not one number per channel")


def run_call(node: Node, graph: Graph) -> Function:
    roles = {role: graph.tensors[key] for role, key in node.attrs.get("tensors", {}).items()}
    run, item = aten_list.bound_call(node.attrs, roles), node.attrs.get("item")
    return lambda *xs: run(list(xs)) if item is None else run(list(xs))[item]


def check_call(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    call, args, roles = n.attrs["call"], n.attrs["args"], n.attrs.get("tensors", {})
    kinds = aten_list.arguments(call)
    results = len(aten_list.overload(call)._schema.returns)
    need((results == 1) == ("item" not in n.attrs) and n.attrs.get("item", 0) < results, f"gives {results} results")
    need(set(args) <= set(kinds), f"{call} takes {', '.join(kinds)}")
    missing = [k for k, (_, optional) in kinds.items() if not optional and k not in args]
    need(not missing, f"{', '.join(missing)} is missing")
    for k, v in args.items():
        need(aten_list.fits(v, kinds[k][0], len(inputs), roles), f"{k}={str(v)[:60]} is no {kinds[k][0]}")
    if aten_list.depends_on_batch(args, call):
        need(source.op == "input", "a size of N needs the graph's input as the last input")


def check_output(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    leaves: list[Any] = []
    nest = "structure is not a nest of tuples, lists, dicts"

    def walk(value: Any, depth: int) -> None:
        if value is None or type(value) is int:
            leaves.append(value)
            return
        need(isinstance(value, dict) and len(value) == 1 and depth < 16, nest)
        kind, inner = next(iter(value.items()))
        fits = isinstance(inner, dict) if kind == "dict" else kind in ("tuple", "list") and isinstance(inner, list)
        need(fits, nest)
        for v in inner.values() if isinstance(inner, dict) else inner:
            walk(v, depth + 1)

    walk(n.attrs.get("structure", 0), 0)
    need([v for v in leaves if v is not None] == list(range(len(inputs))), "structure does not name each output once")


# layers: the weight as stored, their shape rule
def weight_shape(n: Node, graph: Graph) -> tuple[int, ...]:
    """The shape of a layer's weight, stored as bits or as float32."""
    info: Any = n.attrs.get("weight")
    if "weight" not in n.attrs:
        weight = graph.need(n, "weight")
        need(1 < weight.dim() <= 5 and weight.numel() > 0, f"a weight of shape {list(weight.shape)}")
        return tuple(weight.shape)
    need(isinstance(info, dict) and set(info) == {"shape", "planes", "terms"}, "weight needs shape, planes, terms")
    shape, planes, terms = info["shape"], info["planes"], info["terms"]
    need(listed(SIZE, 2, 5)(shape), "weight: shape is not a list of 2 to 5 sizes")
    need(whole(1, MAX_PLANES)(planes), f"weight: planes is none of 1..{MAX_PLANES}")
    bits, data = planes * math.prod(shape), graph.need(n, "bits")
    need(data.dim() == 1 and data.numel() == (bits + 7) // 8, f"{data.numel()} bytes for {bits} bits")
    need(isinstance(terms, list) and 1 <= len(terms) <= MAX_TERMS, f"weight: terms are not a list of 1..{MAX_TERMS}")
    for t in terms:
        need(isinstance(t, dict) and set(t) == {"planes", "mult", "zero"}, "weight: a term needs planes, mult, zero")
        need(listed(whole(0, planes - 1), 1, MAX_PLANES)(t["planes"]), "weight: a term of unknown planes")
        need(listed(whole(-MAX_MULT, MAX_MULT), 1, MAX_PLANES)(t["mult"]), "weight: mult is out of bounds")
        need(whole(-MAX_MULT, MAX_MULT)(t["zero"]), "weight: zero is out of bounds")
        need(len(t["planes"]) == len(t["mult"]), "weight: one mult for each plane of a term")
    scale = graph.need(n, "scale")
    need(tuple(scale.shape) == (len(terms), shape[0]), f"scale is {list(scale.shape)}, not {[len(terms), shape[0]]}")
    return tuple(shape)


def place_of(n: Node) -> dict[str, Any]:
    """Kernel, stride, padding, dilation and groups of a coded layer as a convolution over two axes, which kernels know."""
    kernel = n.attrs["weight"]["shape"][2:]
    missing = 2 - len(kernel)
    usual = (("stride", 1), ("padding", 0), ("dilation", 1))
    steps = {key: [value] * missing + list(n.attrs.get(key, ())) for key, value in usual}
    return {"kernel": [1] * missing + list(kernel), **steps, "groups": int(n.attrs.get("groups", 1))}


def shape_of_layer(n: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    a = n.attrs
    shape = weight_shape(n, graph)
    outputs = shape[1] * int(a["groups"]) if n.op == "conv_transpose" else shape[0]
    for role in ("bias", "add"):
        t = graph.tensor(n, role)
        need(t is None or tuple(t.shape) == (outputs,), f"{role} is not one number for each of {outputs} outputs")
    w = torch.empty(shape, device="meta")
    if n.op.endswith("linear"):
        need(len(shape) == 2 and x.dim() >= 2, f"a weight of {len(shape)} axes")
        y = F.linear(x, w)
    else:
        rank = 2 if n.op == "conv_transpose" else int(a["rank"])
        lists = ("stride", "padding", "dilation", *(["output_padding"] if n.op == "conv_transpose" else []))
        need(n.op == "conv" or rank < 3, "rank=3 is out of bounds")
        need(all(len(a[k]) == rank for k in lists), f"stride, padding, dilation need {rank} numbers each")
        need(len(shape) == rank + 2 and x.dim() == rank + 2, f"{rank}-dimensional, but weight or input is not")
        need(outputs % int(a["groups"]) == 0, f"{outputs} outputs in {a['groups']} groups")
        need(all(k <= MAX_STEP for k in shape[2:]), "the kernel is too large")
        y = _transposed(x, w, None, a) if n.op == "conv_transpose" else reference.convolve(x, w, None, n)
    if n.op in CODED:
        need(x.dim() == 2 or source.attrs["last"] == (n.op == "coded_linear"), "reads codes along another axis")
        table = outputs * math.prod(min(o, 2 * k + 1) for o, k in zip(y.shape[2:], shape[2:], strict=False))
        wide = max([o * k for o, k in zip(y.shape[2:], shape[2:], strict=False)], default=1)
        need(max(table, wide) <= MAX_TABLE, "the kernel is too large for its input")
        need(largest(n, source) <= INT32, "its sums may exceed 32 bits")
    return y


def largest(n: Node, source: Node) -> int:
    """A bound of |I|, from the shapes and multipliers alone."""
    info, x = n.attrs["weight"], n.attrs.get("x") or source.attrs  # a fused layer has the codes it reads in itself
    each = max(abs(t["zero"]) + sum(abs(m) for m in t["mult"]) for t in info["terms"])
    ends = [abs(z + e) for z in x["zero"] for e in (0, x["mult"] * x["levels"])]
    return math.prod(info["shape"][1:]) * each * max(ends)


def _transposed(x: Tensor, w: Tensor, b: Tensor | None, a: Attrs) -> Tensor:
    y = F.conv_transpose2d(
        reference.in_few_sizes(x), w, b, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
    )
    return y[: len(x)]


def run_layer(node: Node, graph: Graph) -> Function:
    w, b = reference.stored_weight(graph, node), graph.tensor(node, "bias")
    if node.op == "linear":
        return lambda x: F.linear(x, w, b)
    if node.op == "conv_transpose":
        return lambda x: _transposed(x, w, b, node.attrs)
    if w.dim() == 4:
        w = w.contiguous(memory_format=torch.channels_last)
    return lambda x: reference.convolve(x, w, b, node)


# how large a result can be
def most(t: Tensor | None) -> float:
    return 0.0 if t is None or not t.numel() else float(t.double().abs().max())


def bound_coded(n: Node, graph: Graph, x: list[float]) -> float:
    integer = largest(n, graph.node(n.inputs[0]))
    return integer * float(graph.need(n, "scale").double().abs().sum(0).max()) + most(graph.tensor(n, "add"))


def bound_layer(n: Node, graph: Graph, x: list[float]) -> float:
    w = reference.stored_weight(graph, n).double().abs()
    rows = w.sum((0, *range(2, w.dim()))) if n.op == "conv_transpose" else w.flatten(1).sum(1)
    return x[0] * float(rows.max()) + most(graph.tensor(n, "bias"))


def bound_decode(n: Node, graph: Graph, x: list[float]) -> float:
    a = graph.node(n.inputs[0]).attrs
    return abs(n.attrs["unit"]) * max(abs(z + e) for z in a["zero"] for e in (0, a["mult"] * a["levels"]))


def bound_moved(n: Node, graph: Graph, x: list[float]) -> float:
    ends = [abs(n.attrs[k]) for k in ("low", "high", "value") if n.attrs.get(k) is not None]
    return max([*x, *ends])


def bound_call(n: Node, graph: Graph, x: list[float]) -> float:
    name = n.attrs["call"].split(".")[0]
    if name in aten_list.UP_TO_ONE:
        return 1.0 if max(x, default=0.0) < math.inf else math.inf
    stored = [most(graph.tensors[k]) for k in n.attrs.get("tensors", {}).values()]
    return max([*x, *stored], default=math.inf) if name in aten_list.MOVING else math.inf


# functions that take more than a line
def padded(x: Tensor, a: Attrs) -> Tensor:
    return F.pad(x, a["pads"], mode=a["mode"], value=a["value"] if a["mode"] == "constant" else None)


def adaptive_avg_pool(x: Tensor, a: Attrs) -> Tensor:
    """In double, where the sum of an image's floats is exact: its order, which each program has of its own, changes nothing."""
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}[a["rank"]]
    return pool(x.double(), a["size"]).to(x.dtype)


def sliced(x: Tensor, a: Attrs) -> Tensor:
    return x[(slice(None),) * a["dim"] + (slice(a["start"], a["end"], a["step"]),)]
