"""The closed table of operators: one record each. Adding an operator is adding its record.

A record holds all that the engine knows of an operator: what it reads, which attributes of which kind and bounds, which
tensors, how it runs in plain torch (on the meta device that run is its shape rule), what else must hold, whether it may
disappear into the thresholds of a quantizer, and from which ATen calls it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import aten_list, reference
from bitwright.engine.graph import Graph, Node, ints

MAX_RANK = 8
MAX_VALUES = 1 << 28  # of one value, per sample
MAX_STEP = 1 << 16  # stride, padding, dilation, kernel
MAX_MULT = 1 << 14
MAX_TABLE = 1 << 24  # entries of the tables a kernel keeps for the border of a convolution
MAX_LEVELS, MAX_PLANES, MAX_TERMS = 255, 8, 8
INT32 = 2**31 - 1
HUGE = 1e37  # sums of numbers below it stay finite in float32, in any order
CODED = ("coded_conv", "coded_linear")
LAYERS = (*CODED, "conv", "linear", "conv_transpose")


class Unfit(ValueError):
    """Why a call has no form as this operator, or what is wrong with a node of a file."""


def need(condition: bool, text: str) -> None:
    if not condition:
        raise Unfit(text)


# -- attributes: what a file may hold, and how an argument of ATen becomes it -----------------------------
Fits = Callable[[Any], bool]


@dataclass(frozen=True)
class Attr:
    """fits: of a file's value; read: from an ATen argument and its value's rank; usual: left out in files."""

    fits: Fits
    read: Callable[[Any, int], Any] = lambda v, rank: v
    argument: str = ""  # its name in ATen, where that differs
    usual: Callable[[Mapping[str, Any]], Any] | None = None
    required: bool = True

    def of(self, argument: str) -> Attr:
        return replace(self, argument=argument)

    def usually(self, value: Any) -> Attr:
        return replace(self, usual=lambda attrs: value)


def whole(low: int, high: int) -> Fits:
    return lambda v: type(v) is int and low <= v <= high


def listed(item: Fits, low: int = 0, high: int = 65536) -> Fits:
    return lambda v: isinstance(v, list) and low <= len(v) <= high and all(item(x) for x in v)


def _number(v: Any) -> bool:
    return type(v) in (int, float) and v == v


def _axis(v: int, rank: int) -> int:
    if not isinstance(v, int) or v % rank == 0:
        raise Unfit("mixes images of a batch")
    return v % rank


def _words(*words: str) -> Attr:
    return Attr(lambda v: isinstance(v, str) and v in words, lambda v, rank: str(v))


NUMBER = Attr(_number, lambda v, rank: float(v))
BOUND = Attr(lambda v: v is None or _number(v), lambda v, rank: None if v is None else float(v))
FLAG = Attr(lambda v: type(v) is bool, lambda v, rank: bool(v))
STEPS = Attr(listed(whole(1, MAX_STEP), 1, 3), lambda v, rank: ints(v, rank - 2) if v else [])
PADS = Attr(listed(whole(0, MAX_STEP), 1, 3), lambda v, rank: ints(v, rank - 2))
RANK = Attr(whole(1, 3), lambda v, rank: rank - 2)
AXIS = Attr(whole(1, MAX_RANK), _axis)
AXES = Attr(listed(whole(1, MAX_RANK), 1, MAX_RANK), lambda v, rank: [_axis(d, rank) for d in ints(v, 1)])
INDEX = Attr(whole(-(1 << 31), 1 << 31))
SIZE = whole(1, MAX_VALUES)


def _ones(attrs: Mapping[str, Any]) -> Any:
    rank = attrs.get("rank")
    return [1] * rank if isinstance(rank, int) and 0 < rank <= 3 else ...


ONES = replace(STEPS, usual=_ones)
GROUPS = Attr(whole(1, 1 << 24)).usually(1)
LAST = FLAG.usually(False)
WEIGHT = Attr(lambda v: isinstance(v, dict))
CONV = {"rank": RANK, "stride": ONES, "padding": PADS, "dilation": ONES, "groups": GROUPS}


# -- records ------------------------------------------------------------------------------------------------
Function = Callable[..., Tensor]
Attrs = Mapping[str, Any]


@dataclass(frozen=True)
class Operator:
    """inputs: how many values, -1 for one or more, None for any number; tensors: roles, those in brackets may be absent; codes: it reads a
    quantizer's codes, not numbers; monotone: elementwise and monotone in exact float arithmetic, each step a correctly
    rounded operation or a comparison."""

    inputs: int | None = 1
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    tensors: str = ""
    run: Callable[[Node, Graph], Function] | None = None
    check: Callable[[Node, Graph, list[Tensor], Node], None] | None = None
    shape: Callable[[Node, Graph, Tensor, Node], Tensor] | None = None  # where it is not `run` on meta tensors
    codes: bool = False
    bound: Callable[[Node, Graph, list[float]], float] = lambda node, graph, x: max(x, default=math.inf)
    monotone: Callable[[Node, Graph], bool] | None = None
    clip: bool = False  # may change nothing that the quantizer behind it sees
    aten: str = ""


def _plain(f: Callable[..., Tensor]) -> Callable[[Node, Graph], Function]:
    """A function without attributes."""
    return lambda node, graph: f


def _with(f: Callable[[Tensor, Attrs], Tensor]) -> Callable[[Node, Graph], Function]:
    """A function of one tensor and the attributes."""
    return lambda node, graph: lambda x, a=node.attrs: f(x, a)


def _always(node: Node, graph: Graph) -> bool:
    return True


def _same(node: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    return x


# what else must hold, operator by operator
def _channels(shape: tuple[int, ...], last: bool) -> int:
    return 1 if not shape else shape[-1] if last or len(shape) == 1 else shape[0]


def _check_quantize(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    table, channels = graph.need(n, "thresholds"), _channels(tuple(inputs[0].shape[1:]), n.attrs["last"])
    levels, zero = n.attrs["levels"], n.attrs["zero"]
    need(tuple(table.shape) in ((levels,), (channels, levels)), f"thresholds are {list(table.shape)}")
    need(not bool(table.isnan().any()) and bool((table[..., 1:] >= table[..., :-1]).all()), "thresholds fall")
    need(len(zero) in (1, channels), f"{len(zero)} zeros for {channels} channels")


def _check_affine(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    scale, add = graph.need(n, "scale"), graph.need(n, "add")
    need(scale.dim() == 1 and scale.shape == add.shape, "scale and add differ in shape")
    have = _channels(tuple(inputs[0].shape[1:]), n.attrs["last"])
    need(scale.numel() in (1, have) or have == 1, f"{scale.numel()} scales for {have} channels")


def _check_norm(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    sizes = tuple(n.attrs["normalized"])
    need(tuple(inputs[0].shape[-len(sizes) :]) == sizes, f"normalized={list(sizes)} are not the last axes")
    for role in ("weight", "bias"):
        t = graph.tensor(n, role)
        need(t is None or tuple(t.shape) == sizes, f"{role} is not of shape {list(sizes)}")


def _check_pool(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    a = n.attrs
    rank = a["rank"]
    need(inputs[0].dim() == rank + 2, f"{rank}-dimensional, but its input is not")
    for k in ("kernel", "stride", "padding", "dilation", "size"):
        need(k not in a or len(a[k]) == rank, f"{k} needs {rank} numbers")
    if "padding" in a:
        need(all(2 * p <= k for p, k in zip(a["padding"], a["kernel"], strict=True)), "padding above half the kernel")


def _check_ranks(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    need(inputs[0].dim() == inputs[1].dim(), "values of different rank")


def _check_axis(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    need(n.attrs["dim"] < inputs[0].dim(), f"no axis {n.attrs['dim']}")


def _check_slope(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    slope, channels = graph.need(n, "slope"), inputs[0].shape[1] if inputs[0].dim() > 1 else 1
    need(slope.dim() == 1 and slope.numel() in (1, channels), "slope is not one number per channel")


def _check_bounds(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    need(n.attrs["low"] <= n.attrs["high"], "low is above high")


def _check_flatten(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    need(n.attrs["start"] <= n.attrs["end"], "end lies before start")


def _check_permute(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    need(n.attrs["dims"] == [0, *n.attrs["dims"][1:]], "moves the batch axis")


def _check_pads(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    count = len(n.attrs["pads"])
    need(count % 2 == 0 and count <= 2 * (inputs[0].dim() - 1), "pads the batch axis")


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
    need(listed(SIZE, 2, 5)(shape), "weight: shape is no list of 2 to 5 sizes")
    need(whole(1, MAX_PLANES)(planes), f"weight: planes is none of 1..{MAX_PLANES}")
    bits, data = planes * math.prod(shape), graph.need(n, "bits")
    need(data.dim() == 1 and data.numel() == (bits + 7) // 8, f"{data.numel()} bytes for {bits} bits")
    need(isinstance(terms, list) and 1 <= len(terms) <= MAX_TERMS, f"weight: terms are no list of 1..{MAX_TERMS}")
    for t in terms:
        need(isinstance(t, dict) and set(t) == {"planes", "mult", "zero"}, "weight: a term needs planes, mult, zero")
        need(listed(whole(0, planes - 1), 1, MAX_PLANES)(t["planes"]), "weight: a term of unknown planes")
        need(listed(whole(-MAX_MULT, MAX_MULT), 1, MAX_PLANES)(t["mult"]), "weight: mult is out of bounds")
        need(whole(-MAX_MULT, MAX_MULT)(t["zero"]), "weight: zero is out of bounds")
        need(len(t["planes"]) == len(t["mult"]), "weight: one mult for each plane of a term")
    outputs = len(terms), shape[1] * int(n.attrs["groups"]) if n.op == "conv_transpose" else shape[0]
    scale = graph.need(n, "scale")
    need(tuple(scale.shape) == outputs, f"scale is {list(scale.shape)}, not {list(outputs)}")
    return tuple(shape)


def _layer(n: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    a = n.attrs
    shape = weight_shape(n, graph)
    outputs = shape[1] * int(a["groups"]) if n.op == "conv_transpose" else shape[0]
    for role in ("bias", "add"):
        t = graph.tensor(n, role)
        need(t is None or tuple(t.shape) == (outputs,), f"{role} is not one number for each of {outputs} outputs")
    need(n.op != "conv_transpose" or "weight" not in a, "a transposed convolution is stored in float")
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
    info, x = n.attrs["weight"], source.attrs
    each = max(abs(t["zero"]) + sum(abs(m) for m in t["mult"]) for t in info["terms"])
    ends = [abs(z + e) for z in x["zero"] for e in (0, x["mult"] * x["levels"])]
    return math.prod(info["shape"][1:]) * each * max(ends)


def _transposed(x: Tensor, w: Tensor, b: Tensor | None, a: Attrs) -> Tensor:
    y = F.conv_transpose2d(
        reference.in_few_sizes(x), w, b, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
    )
    return y[: len(x)]


def _run_layer(node: Node, graph: Graph) -> Function:
    w, b = reference.stored_weight(graph, node), graph.tensor(node, "bias")
    if node.op == "linear":
        return lambda x: F.linear(x, w, b)
    if node.op == "conv_transpose":
        return lambda x: _transposed(x, w, b, node.attrs)
    if w.dim() == 4:
        w = w.contiguous(memory_format=torch.channels_last)
    return lambda x: reference.convolve(x, w, b, node)


# how large a result can be
def _most(t: Tensor | None) -> float:
    return 0.0 if t is None or not t.numel() else float(t.double().abs().max())


def _bound_coded(n: Node, graph: Graph, x: list[float]) -> float:
    integer = largest(n, graph.node(n.inputs[0]))
    return integer * float(graph.need(n, "scale").double().abs().sum(0).max()) + _most(graph.tensor(n, "add"))


def _bound_layer(n: Node, graph: Graph, x: list[float]) -> float:
    w = reference.stored_weight(graph, n).double().abs()
    rows = w.sum((0, *range(2, w.dim()))) if n.op == "conv_transpose" else w.flatten(1).sum(1)
    return x[0] * float(rows.max()) + _most(graph.tensor(n, "bias"))


def _bound_affine(n: Node, graph: Graph, x: list[float]) -> float:
    return x[0] * _most(graph.need(n, "scale")) + _most(graph.need(n, "add"))


def _bound_norm(n: Node, graph: Graph, x: list[float]) -> float:
    weight = graph.tensor(n, "weight")
    each = math.sqrt(math.prod(n.attrs["normalized"])) if x[0] < 1e18 else math.inf  # its squares must not overflow
    return each * (1.0 if weight is None else _most(weight)) + _most(graph.tensor(n, "bias"))


def _bound_decode(n: Node, graph: Graph, x: list[float]) -> float:
    a = graph.node(n.inputs[0]).attrs
    return abs(n.attrs["unit"]) * max(abs(z + e) for z in a["zero"] for e in (0, a["mult"] * a["levels"]))


def _one(n: Node, graph: Graph, x: list[float]) -> float:
    return 1.0 if x[0] < math.inf else math.inf


def _scaled(n: Node, graph: Graph, x: list[float]) -> float:
    return x[0] * max(1.0, abs(n.attrs.get("slope", 1.0)), _most(graph.tensor(n, "slope")))


def _moved(n: Node, graph: Graph, x: list[float]) -> float:
    ends = [abs(n.attrs[k]) for k in ("low", "high", "value") if n.attrs.get(k) is not None]
    return max([*x, *ends])


def _bound_call(n: Node, graph: Graph, x: list[float]) -> float:
    stored = [_most(graph.tensors[k]) for k in n.attrs.get("tensors", {}).values()]
    return max([*x, *stored], default=math.inf) if n.attrs["call"].split(".")[0] in aten_list.MOVING else math.inf


# functions that take more than a line
def _run_affine(node: Node, graph: Graph) -> Function:
    scale, add, last = graph.need(node, "scale"), graph.need(node, "add"), bool(node.attrs["last"])
    return lambda x: reference.affine(x, scale, add, last)


def _run_norm(node: Node, graph: Graph) -> Function:
    w, b, a = graph.tensor(node, "weight"), graph.tensor(node, "bias"), node.attrs
    return lambda x: F.layer_norm(x, a["normalized"], w, b, a["eps"])


def _run_prelu(node: Node, graph: Graph) -> Function:
    slope = graph.need(node, "slope")
    return lambda x: F.prelu(x, slope)


def _pad(x: Tensor, a: Attrs) -> Tensor:
    return F.pad(x, a["pads"], mode=a["mode"], value=a["value"] if a["mode"] == "constant" else None)


def _avg_pool(x: Tensor, a: Attrs) -> Tensor:
    f = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[int(a["rank"])]
    return f(x, a["kernel"], a["stride"], a["padding"], a["ceil"], a["count_pad"])


def _adaptive(x: Tensor, a: Attrs) -> Tensor:
    return {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}[a["rank"]](x, a["size"])


def _slice(x: Tensor, a: Attrs) -> Tensor:
    return x[(slice(None),) * a["dim"] + (slice(a["start"], a["end"], a["step"]),)]


def _cat(node: Node, graph: Graph) -> Function:
    return lambda *xs, dim=node.attrs["dim"]: torch.cat(xs, dim)


# the generic node, and the ends
def _run_call(node: Node, graph: Graph) -> Function:
    roles = {role: graph.tensors[key] for role, key in node.attrs.get("tensors", {}).items()}
    run, item = aten_list.bound(node.attrs, roles), node.attrs.get("item")
    return lambda *xs: run(xs) if item is None else run(xs)[item]


def _check_call(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    call, args, roles = n.attrs["call"], n.attrs["args"], n.attrs.get("tensors", {})
    kinds = aten_list.arguments(call)
    results = len(aten_list.overload(call)._schema.returns)
    need((results == 1) == ("item" not in n.attrs) and n.attrs.get("item", 0) < results, f"gives {results} results")
    need(set(args) <= set(kinds), f"{call} takes {', '.join(kinds)}")
    missing = [k for k, (_, optional) in kinds.items() if not optional and k not in args]
    need(not missing, f"{', '.join(missing)} is missing")
    for k, v in args.items():
        need(aten_list.fits(v, kinds[k][0], len(inputs), roles), f"{k}={str(v)[:60]} is no {kinds[k][0]}")
    if any(aten_list.depends_on_batch(v, kinds[k][0]) for k, v in args.items()):
        need(source.op == "input", "a size of N needs the graph's input as the last input")


def _check_output(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    leaves: list[Any] = []

    def walk(value: Any, depth: int) -> None:
        if value is None or type(value) is int:
            leaves.append(value)
            return
        need(isinstance(value, dict) and len(value) == 1 and depth < 16, "structure is no nest of tuples, lists, dicts")
        kind, inner = next(iter(value.items()))
        fits = isinstance(inner, dict) if kind == "dict" else kind in ("tuple", "list") and isinstance(inner, list)
        need(fits, "structure is no nest of tuples, lists, dicts")
        for v in inner.values() if isinstance(inner, dict) else inner:
            walk(v, depth + 1)

    walk(n.attrs.get("structure", 0), 0)
    need([v for v in leaves if v is not None] == list(range(len(inputs))), "structure does not name each output once")


POOL = {
    "rank": RANK,
    "kernel": STEPS.of("kernel_size"),
    "stride": STEPS,
    "padding": PADS,
}
CEIL = FLAG.of("ceil_mode")


def _unary(f: Function, aten: str, **more: Any) -> Operator:
    return Operator(run=_plain(f), shape=_same, aten=aten, **more)


OPERATORS: dict[str, Operator] = {
    "input": Operator(0, attrs={"dtype": _words(*aten_list.DTYPES).usually("float32")}),
    "output": Operator(-1, attrs={"structure": Attr(lambda v: True, required=False)}, shape=_same, check=_check_output),
    "aten": Operator(
        None,
        attrs={
            "call": Attr(lambda v: isinstance(v, str)),
            "args": Attr(lambda v: isinstance(v, dict)),
            "item": Attr(whole(0, 16), required=False),
        },
        run=_run_call,
        check=_check_call,
        bound=_bound_call,
    ),
    # ours
    "quantize": Operator(
        attrs={
            "levels": Attr(whole(1, MAX_LEVELS)),
            "mult": Attr(whole(1, MAX_MULT)).usually(1),
            "zero": Attr(listed(whole(-MAX_STEP, MAX_STEP), 1, 1 << 16)),
            "last": LAST,
        },
        tensors="thresholds",
        check=_check_quantize,
        shape=_same,
    ),
    "coded_conv": Operator(
        attrs={**CONV, "weight": WEIGHT}, tensors="bits scale add", shape=_layer, codes=True, bound=_bound_coded
    ),
    "coded_linear": Operator(
        attrs={"weight": WEIGHT}, tensors="bits scale add", shape=_layer, codes=True, bound=_bound_coded
    ),
    "decode": Operator(attrs={"unit": NUMBER}, shape=_same, codes=True, bound=_bound_decode),
    "affine": Operator(
        attrs={"last": LAST, "keep": replace(FLAG, required=False)},
        tensors="scale add",
        run=_run_affine,
        check=_check_affine,
        monotone=_always,
        bound=_bound_affine,
    ),
    # float layers; the attribute `weight` describes a weight that is stored as bits
    "conv": Operator(
        attrs={**CONV, "weight": replace(WEIGHT, required=False)},
        tensors="weight [bias]",
        run=_run_layer,
        shape=_layer,
        bound=_bound_layer,
    ),
    "conv_transpose": Operator(
        attrs={
            "stride": STEPS,
            "padding": PADS,
            "output_padding": PADS,
            "dilation": STEPS,
            "groups": GROUPS,
            "weight": replace(WEIGHT, required=False),
        },
        tensors="weight [bias]",
        run=_run_layer,
        shape=_layer,
        bound=_bound_layer,
    ),
    "linear": Operator(
        attrs={"weight": replace(WEIGHT, required=False)},
        tensors="weight [bias]",
        run=_run_layer,
        shape=_layer,
        bound=_bound_layer,
    ),
    # torch's
    "relu": _unary(F.relu, "relu", monotone=_always, clip=True),
    "relu6": _unary(F.relu6, "relu6", monotone=_always, clip=True),
    "hardtanh": Operator(
        attrs={"low": NUMBER.of("min_val"), "high": NUMBER.of("max_val")},
        run=_with(lambda x, a: F.hardtanh(x, a["low"], a["high"])),
        clip=True,
        monotone=_always,
        aten="hardtanh",
        bound=_moved,
        shape=_same,
        check=_check_bounds,
    ),
    "clamp": Operator(
        attrs={"low": BOUND.of("min"), "high": BOUND.of("max")},
        run=_with(lambda x, a: torch.clamp(x, a["low"], a["high"])),
        clip=True,
        monotone=_always,
        aten="clamp clip clamp_min clamp_max",
        bound=_moved,
        shape=_same,
    ),
    "leaky_relu": Operator(
        attrs={"slope": NUMBER.of("negative_slope")},
        run=_with(lambda x, a: F.leaky_relu(x, a["slope"])),
        clip=True,
        monotone=lambda n, graph: n.attrs["slope"] >= 0,
        aten="leaky_relu",
        bound=_scaled,
        shape=_same,
    ),
    "prelu": Operator(
        tensors="slope",
        run=_run_prelu,
        check=_check_slope,
        monotone=lambda n, graph: bool((graph.need(n, "slope") >= 0).all()),
        bound=_scaled,
        shape=_same,
    ),
    "sigmoid": _unary(torch.sigmoid, "sigmoid", bound=_one),
    "tanh": _unary(torch.tanh, "tanh", bound=_one),
    "gelu": Operator(
        attrs={"approximate": _words("none", "tanh")},
        run=_with(lambda x, a: F.gelu(x, approximate=a["approximate"])),
        aten="gelu",
        shape=_same,
    ),
    "silu": _unary(F.silu, "silu"),
    "hardswish": _unary(F.hardswish, "hardswish"),
    "softmax": Operator(
        attrs={"dim": AXIS},
        run=_with(lambda x, a: torch.softmax(x, a["dim"])),
        check=_check_axis,
        aten="softmax _softmax",
        bound=_one,
        shape=_same,
    ),
    "log_softmax": Operator(
        attrs={"dim": AXIS},
        run=_with(lambda x, a: torch.log_softmax(x, a["dim"])),
        check=_check_axis,
        aten="log_softmax _log_softmax",
        bound=lambda n, graph, x: 2 * x[0] + 100,
        shape=_same,
    ),
    "layer_norm": Operator(
        attrs={
            "normalized": replace(
                Attr(listed(SIZE, 1, MAX_RANK), lambda v, rank: list(v)), argument="normalized_shape"
            ),
            "eps": NUMBER,
        },
        tensors="[weight] [bias]",
        run=_run_norm,
        check=_check_norm,
        aten="layer_norm",
        bound=_bound_norm,
        shape=_same,
    ),
    "max_pool": Operator(
        attrs={**POOL, "dilation": STEPS, "ceil": CEIL},
        run=_with(reference.max_pool),
        check=_check_pool,
        aten="max_pool1d max_pool2d max_pool3d",
    ),
    "avg_pool": Operator(
        attrs={**POOL, "ceil": CEIL, "count_pad": FLAG.of("count_include_pad")},
        run=_with(_avg_pool),
        check=_check_pool,
        aten="avg_pool1d avg_pool2d avg_pool3d",
    ),
    "adaptive_avg_pool": Operator(
        attrs={
            "rank": Attr(whole(1, 2), lambda v, rank: rank - 2),
            "size": replace(STEPS, fits=listed(whole(1, MAX_STEP), 1, 2), argument="output_size"),
        },
        run=_with(_adaptive),
        check=_check_pool,
        aten="adaptive_avg_pool1d adaptive_avg_pool2d",
    ),
    "mean": Operator(
        attrs={"dims": AXES.of("dim"), "keepdim": FLAG},
        run=_with(lambda x, a: x.mean(a["dims"], keepdim=a["keepdim"])),
        aten="mean",
    ),
    "flatten": Operator(
        attrs={
            "start": AXIS.of("start_dim"),
            "end": replace(AXIS, read=lambda v, rank: v % rank, argument="end_dim"),
        },
        run=_with(lambda x, a: x.flatten(a["start"], a["end"])),
        check=_check_flatten,
        aten="flatten",
    ),
    "reshape": Operator(
        attrs={"sizes": Attr(listed(whole(0, MAX_VALUES), 0, MAX_RANK))},
        run=_with(lambda x, a: x.reshape(x.shape[0], *a["sizes"])),
    ),
    "permute": Operator(
        attrs={
            "dims": Attr(listed(whole(0, MAX_RANK), 1, MAX_RANK), lambda v, rank: [d % rank for d in v]),
        },
        run=_with(lambda x, a: x.permute(a["dims"])),
        check=_check_permute,
        aten="permute",
    ),
    "transpose": Operator(
        attrs={"dim0": AXIS, "dim1": AXIS},
        run=_with(lambda x, a: x.transpose(a["dim0"], a["dim1"])),
        aten="transpose",
    ),
    "squeeze": Operator(
        attrs={"dims": AXES.of("dim")}, run=_with(lambda x, a: x.squeeze(tuple(a["dims"]))), aten="squeeze"
    ),
    "unsqueeze": Operator(
        attrs={"dim": replace(AXIS, read=lambda v, rank: _axis(v, rank + 1))},
        run=_with(lambda x, a: x.unsqueeze(a["dim"])),
        aten="unsqueeze",
    ),
    "slice": Operator(
        attrs={"dim": AXIS, "start": INDEX, "end": INDEX, "step": Attr(SIZE)},
        run=_with(_slice),
    ),
    "pad": Operator(
        attrs={
            "pads": Attr(listed(whole(-MAX_STEP, MAX_STEP), 2, 2 * MAX_RANK)),
            "value": NUMBER,
            "mode": _words("constant", "reflect", "replicate", "circular"),
        },
        run=_with(_pad),
        check=_check_pads,
        bound=_moved,
    ),
    "cat": Operator(-1, attrs={"dim": AXIS}, run=_cat),
    "add": Operator(2, run=_plain(torch.add), check=_check_ranks, bound=lambda n, graph, x: x[0] + x[1]),
    "sub": Operator(2, run=_plain(torch.sub), check=_check_ranks, bound=lambda n, graph, x: x[0] + x[1]),
    "mul": Operator(2, run=_plain(torch.mul), check=_check_ranks, bound=lambda n, graph, x: x[0] * x[1]),
    "add_scalar": Operator(
        attrs={"value": NUMBER},
        run=_with(lambda x, a: x + a["value"]),
        monotone=_always,
        bound=lambda n, graph, x: x[0] + abs(n.attrs["value"]),
        shape=_same,
    ),
    "mul_scalar": Operator(
        attrs={"value": NUMBER},
        run=_with(lambda x, a: x * a["value"]),
        monotone=_always,
        bound=lambda n, graph, x: x[0] * abs(n.attrs["value"]),
        shape=_same,
    ),
    "neg": _unary(torch.neg, "neg", monotone=_always),
    "abs": _unary(torch.abs, "abs"),
}


def function(node: Node, graph: Graph) -> Function:
    """The function of a float operator, its constants bound. Shared by all backends: it is torch's own."""
    run = OPERATORS[node.op].run
    assert run is not None, node.op
    return run(node, graph)


def monotone(node: Node, graph: Graph) -> bool:
    rises_or_falls = OPERATORS[node.op].monotone if node.op in OPERATORS else None
    return rises_or_falls is not None and rises_or_falls(node, graph)


def bounds(graph: Graph, of_input: float) -> dict[str, float]:
    """How large each value can be, infinite where that is not known, for inputs up to `of_input`."""
    found: dict[str, float] = {}
    for n in graph.nodes:
        bound = of_input if n.op == "input" else OPERATORS[n.op].bound(n, graph, [found[i] for i in n.inputs])
        found[n.name] = bound if bound < HUGE else math.inf  # also of NaN
    return found
