"""Is this graph one that we would have written? Every attribute typed and bounded, every shape worked out anew.

What passes cannot ask for more memory than its tensors and its declared sizes say, and no number of it reaches a kernel
unchecked. Shapes come from torch's own operators on the meta device: no values, no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine.ir import OPERATORS, Graph, Node
from bitwright.errors import InputError

MAX_RANK = 8
MAX_VALUES = 1 << 28  # of one value, per sample
MAX_TOTAL = 1 << 31  # of all values together, per sample
MAX_STEP = 1 << 16  # stride, padding, dilation, kernel
MAX_MULT = 1 << 14
MAX_TABLE = 1 << 24  # entries of the tables a kernel keeps for the border of a convolution
MAX_LEVELS, MAX_PLANES, MAX_TERMS = 255, 8, 8
MAX_TRIAL_VALUES, MAX_TRIAL_MACS = 1 << 24, 1 << 33
LAYERS = ("coded_conv", "coded_linear", "conv", "linear", "conv_transpose")
INT32 = 2**31 - 1


class Bad(ValueError):
    """What is wrong with one node."""


Kind = Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    return lambda v: type(v) is int and low <= v <= high


def _list(item: Kind, low: int = 0, high: int = 65536) -> Kind:
    return lambda v: isinstance(v, list) and low <= len(v) <= high and all(item(x) for x in v)


def _number(v: Any) -> bool:
    return type(v) in (int, float) and v == v


def _bool(v: Any) -> bool:
    return type(v) is bool


def _maybe(kind: Kind) -> Kind:
    return lambda v: v is None or kind(v)


def _word(*words: str) -> Kind:
    return lambda v: isinstance(v, str) and v in words


_STEPS, _PADS = _list(whole(1, MAX_STEP), 1, 3), _list(whole(0, MAX_STEP), 1, 3)
_AXIS, _INDEX = whole(1, MAX_RANK), whole(-(1 << 31), 1 << 31)
_CONV: dict[str, Kind] = {
    "rank": whole(1, 3),
    "stride": _STEPS,
    "padding": _PADS,
    "dilation": _STEPS,
    "groups": whole(1, 1 << 24),
}
_POOL: dict[str, Kind] = {"rank": whole(1, 3), "kernel": _STEPS, "stride": _STEPS, "padding": _PADS, "ceil": _bool}

# op -> attribute -> what it must be; all are required but those in OPTIONAL
SCHEMA: dict[str, dict[str, Kind]] = {
    "quantize": {
        "levels": whole(1, MAX_LEVELS),
        "mult": whole(1, MAX_MULT),
        "last": _bool,
        "zero": _list(whole(-MAX_STEP, MAX_STEP), 1, 1 << 16),
    },
    "coded_conv": {**_CONV, "rank": whole(1, 2)},
    "decode": {"unit": _number},
    "affine": {"last": _bool, "keep": _bool},
    "conv": _CONV,
    "conv_transpose": {k: v for k, v in _CONV.items() if k != "rank"} | {"output_padding": _PADS},
    "hardtanh": {"low": _number, "high": _number},
    "clamp": {"low": _maybe(_number), "high": _maybe(_number)},
    "leaky_relu": {"slope": _number},
    "gelu": {"approximate": _word("none", "tanh")},
    "softmax": {"dim": _AXIS},
    "log_softmax": {"dim": _AXIS},
    "layer_norm": {"normalized": _list(whole(1, MAX_VALUES), 1, MAX_RANK), "eps": _number},
    "max_pool": {**_POOL, "dilation": _STEPS},
    "avg_pool": {**_POOL, "count_pad": _bool},
    "adaptive_avg_pool": {"rank": whole(1, 2), "size": _list(whole(1, MAX_STEP), 1, 2)},
    "mean": {"dims": _list(_AXIS, 1, MAX_RANK), "keepdim": _bool},
    "flatten": {"start": _AXIS, "end": _AXIS},
    "reshape": {"sizes": _list(whole(0, MAX_VALUES), 0, MAX_RANK)},
    "permute": {"dims": _list(whole(0, MAX_RANK), 1, MAX_RANK)},
    "transpose": {"dim0": _AXIS, "dim1": _AXIS},
    "squeeze": {"dims": _list(_AXIS, 1, MAX_RANK)},
    "unsqueeze": {"dim": _AXIS},
    "slice": {"dim": _AXIS, "start": _INDEX, "end": _INDEX, "step": whole(1, MAX_VALUES)},
    "pad": {
        "pads": _list(whole(-MAX_STEP, MAX_STEP), 2, 2 * MAX_RANK),
        "value": _number,
        "mode": _word("constant", "reflect", "replicate", "circular"),
    },
    "cat": {"dim": _AXIS},
    "add_scalar": {"value": _number},
    "mul_scalar": {"value": _number},
}
OPTIONAL = frozenset({"keep", "weight"})

# op -> tensors it must have; {role} = float32, [role] = may be absent
ROLES: dict[str, str] = {
    "quantize": "thresholds",
    "coded_conv": "bits scale add",
    "coded_linear": "bits scale add",
    "affine": "scale add",
    "prelu": "slope",
    "layer_norm": "[weight] [bias]",
}


def check(graph: Graph) -> None:
    """`InputError` naming the first node that is not as `docs/format.md` says."""
    seen: dict[str, Node] = {}
    shapes: dict[str, Tensor] = {}
    counts = {"input": 0, "output": 0}
    total = 0
    for i, n in enumerate(graph.nodes):
        try:
            _form(n, seen, graph)
            for attr, kind in SCHEMA.get(n.op, {}).items():
                if attr in n.attrs:
                    _need(kind(n.attrs[attr]), f"{attr}={str(n.attrs[attr])[:60]} is out of bounds")
                else:
                    _need(attr in OPTIONAL, f"{attr} is missing")
            _tensors(n, graph)
            try:
                value = _value(n, graph, seen, shapes)
            except (RuntimeError, IndexError, TypeError, OverflowError) as error:
                if isinstance(error, InputError):
                    raise
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise Bad(first[:160]) from None
            n.attrs.setdefault("shape", [int(v) for v in value.shape[1:]])  # a file may leave it to us
            _need(tuple(value.shape) == (2, *n.shape), f"shape {list(n.shape)}, but it gives {list(value.shape[1:])}")
            _need(math.prod(max(1, v) for v in n.shape) <= MAX_VALUES, f"more than {MAX_VALUES} values a sample")
        except Bad as reason:
            name, op = str(n.name)[:60], str(n.op)[:40]
            raise InputError(f"packed file: node {i} {name!r} ({op}): {reason}", code="file-graph") from None
        shapes[n.name] = value
        total += math.prod(n.shape)
        counts[n.op] = counts.get(n.op, 0) + 1
        seen[n.name] = n
    ends = graph.nodes[0].op == "input" and graph.nodes[-1].op == "output"
    if counts["input"] != 1 or counts["output"] != 1 or not ends:
        raise InputError("packed file: a graph begins with one input and ends with one output", code="file-graph")
    if total > MAX_TOTAL:
        raise InputError(f"packed file: {total} values a sample, at most {MAX_TOTAL}", code="file-graph")


def light(graph: Graph) -> bool:
    """Whether one sample through a checked graph takes little memory and less than seconds: a load may try it."""
    values = sum(math.prod(n.shape) for n in graph.nodes)
    macs = sum(math.prod(_weight(n, graph)) * math.prod(n.shape[1:]) for n in graph.nodes if n.op in LAYERS)
    return values <= MAX_TRIAL_VALUES and macs <= MAX_TRIAL_MACS


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise Bad(text)


def _form(n: Node, seen: dict[str, Node], graph: Graph) -> None:
    """Names, inputs and the keys every node may have."""
    _need(isinstance(n.op, str) and n.op in OPERATORS, "unknown operator")
    _need(isinstance(n.name, str) and 0 < len(n.name) <= 300 and n.name not in seen, "name missing, too long or taken")
    known = isinstance(n.inputs, list) and all(isinstance(s, str) and s in seen for s in n.inputs)
    _need(known, "reads a value that does not exist yet")
    count, allowed = OPERATORS[n.op]
    _need(len(n.inputs) == count if count >= 0 else len(n.inputs) > 0, f"takes {count} inputs, has {len(n.inputs)}")
    _need(isinstance(n.attrs, dict) and set(n.attrs) <= allowed, "unknown attributes")
    for key in ("owner", "frame"):
        text = n.attrs.get(key, "")
        _need(isinstance(text, str) and len(text) <= 1000, f"{key} is no short text")
    shape = n.attrs.get("shape", None if n.op == "input" else [])
    _need(_list(whole(0, MAX_VALUES), 0, MAX_RANK)(shape), "shape is not a short list of sizes")
    _need(math.prod(max(1, s) for s in n.shape) <= MAX_VALUES, f"more than {MAX_VALUES} values a sample")
    roles = n.attrs.get("tensors", {})
    found = isinstance(roles, dict) and all(isinstance(k, str) and k in graph.tensors for k in roles.values())
    _need(found, "names a tensor that the file does not hold")
    for s in n.inputs:
        coded = seen[s].op == "quantize"
        _need(coded == (n.op in ("coded_conv", "coded_linear", "decode")), f"reads {s[:60]!r}, {seen[s].op}")


def _tensors(n: Node, graph: Graph) -> None:
    roles = n.attrs.get("tensors", {})
    if n.op in ("conv", "linear", "conv_transpose"):
        wanted = "bits scale [bias]" if "weight" in n.attrs else "weight [bias]"
    else:
        wanted = ROLES.get(n.op, "")
    must = {r for r in wanted.split() if r[0] != "["}
    may = {r.strip("[]") for r in wanted.split()}
    _need(must <= set(roles) <= may, f"has tensors {sorted(map(str, roles))}, takes {wanted or 'none'}")
    for role, key in roles.items():
        t = graph.tensors[key]
        dtype = torch.uint8 if role == "bits" else torch.float32
        _need(t.dtype == dtype and t.is_contiguous(), f"{role} is {t.dtype}")


def _channels(shape: tuple[int, ...], last: bool) -> int:
    return 1 if not shape else shape[-1] if last or len(shape) == 1 else shape[0]


def _weight(n: Node, graph: Graph) -> tuple[int, ...]:
    """The shape of a layer's weight, stored as bits or as float32."""
    info: Any = n.attrs.get("weight")
    if "weight" not in n.attrs and not n.op.startswith("coded"):
        weight = graph.tensor(n, "weight")
        assert weight is not None
        _need(1 < weight.dim() <= 5 and weight.numel() > 0, f"a weight of shape {list(weight.shape)}")
        return tuple(weight.shape)
    _need(isinstance(info, dict) and set(info) == {"shape", "planes", "terms"}, "weight needs shape, planes, terms")
    shape, planes, terms = info["shape"], info["planes"], info["terms"]
    _need(_list(whole(1, MAX_VALUES), 2, 5)(shape), "weight: shape is no list of 2 to 5 sizes")
    _need(whole(1, MAX_PLANES)(planes), f"weight: planes is none of 1..{MAX_PLANES}")
    bits, data = planes * math.prod(shape), graph.tensor(n, "bits")
    assert data is not None
    _need(data.dim() == 1 and data.numel() == (bits + 7) // 8, f"{data.numel()} bytes for {bits} bits")
    _need(isinstance(terms, list) and 1 <= len(terms) <= MAX_TERMS, f"weight: terms are no list of 1..{MAX_TERMS}")
    for t in terms:
        _need(isinstance(t, dict) and set(t) == {"planes", "mult", "zero"}, "weight: a term needs planes, mult, zero")
        _need(_list(whole(0, planes - 1), 1, MAX_PLANES)(t["planes"]), "weight: a term of unknown planes")
        _need(_list(whole(-MAX_MULT, MAX_MULT), 1, MAX_PLANES)(t["mult"]), "weight: mult is out of bounds")
        _need(whole(-MAX_MULT, MAX_MULT)(t["zero"]), "weight: zero is out of bounds")
        _need(len(t["planes"]) == len(t["mult"]), "weight: one mult for each plane of a term")
    scale = graph.tensor(n, "scale")
    assert scale is not None and isinstance(terms, list)
    outputs = len(terms), shape[1] * int(n.attrs["groups"]) if n.op == "conv_transpose" else shape[0]
    _need(tuple(scale.shape) == outputs, f"scale is {list(scale.shape)}, not {list(outputs)}")
    return tuple(shape)


def _layer(n: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    a = n.attrs
    shape = _weight(n, graph)
    linear = n.op.endswith("linear")
    outputs = shape[1] * int(a["groups"]) if n.op == "conv_transpose" else shape[0]
    for role in ("bias", "add"):
        t = graph.tensor(n, role)
        _need(t is None or tuple(t.shape) == (outputs,), f"{role} is not one number for each of {outputs} outputs")
    _need(n.op != "conv_transpose" or "weight" not in a, "a transposed convolution is stored in float")
    w = torch.empty(shape, device="meta")
    if linear:
        _need(len(shape) == 2 and x.dim() >= 2, f"a weight of {len(shape)} axes")
        y = F.linear(x, w)
    else:
        rank = 2 if n.op == "conv_transpose" else int(a["rank"])
        lists = ("stride", "padding", "dilation", *(["output_padding"] if n.op == "conv_transpose" else []))
        _need(all(len(a[k]) == rank for k in lists), f"stride, padding, dilation need {rank} numbers each")
        _need(len(shape) == rank + 2 and x.dim() == rank + 2, f"{rank}-dimensional, but weight or input is not")
        _need(outputs % int(a["groups"]) == 0, f"{outputs} outputs in {a['groups']} groups")
        _need(all(k <= MAX_STEP for k in shape[2:]), "the kernel is too large")
        if n.op == "conv_transpose":
            y = F.conv_transpose2d(
                x, w, None, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
            )
        else:
            f = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
            y = f(x, w, None, a["stride"], a["padding"], a["dilation"], a["groups"])
    if n.op.startswith("coded"):
        table = outputs * math.prod(min(o, 2 * k + 1) for o, k in zip(y.shape[2:], shape[2:], strict=False))
        wide = max([o * k for o, k in zip(y.shape[2:], shape[2:], strict=False)], default=1)
        _need(max(table, wide) <= MAX_TABLE, "the kernel is too large for its input")
        _need(_largest(n, source) <= INT32, "its sums may exceed 32 bits")
    return y


def _largest(n: Node, source: Node) -> int:
    """A bound of |I|, from the shapes and multipliers alone."""
    info, x = n.attrs["weight"], source.attrs
    each = max(abs(t["zero"]) + sum(abs(m) for m in t["mult"]) for t in info["terms"])
    ends = [abs(z + e) for z in x["zero"] for e in (0, x["mult"] * x["levels"])]
    return math.prod(info["shape"][1:]) * each * max(ends)


def _value(n: Node, graph: Graph, seen: dict[str, Node], shapes: dict[str, Tensor]) -> Tensor:
    """The node's value without its numbers: two samples on the meta device."""
    from bitwright.engine import reference  # it reads graphs too

    if n.op == "input":
        return torch.empty((2, *n.shape), device="meta")
    inputs = [shapes[s] for s in n.inputs]
    x = inputs[0]
    shape = tuple(x.shape[1:])
    if n.op in ("output", "decode"):
        return x
    if n.op == "quantize":
        table, channels = graph.tensor(n, "thresholds"), _channels(shape, n.attrs["last"])
        assert table is not None
        levels, zero = n.attrs["levels"], n.attrs["zero"]
        _need(tuple(table.shape) in ((levels,), (channels, levels)), f"thresholds are {list(table.shape)}")
        _need(not bool(table.isnan().any()) and bool((table[..., 1:] >= table[..., :-1]).all()), "thresholds fall")
        _need(len(zero) in (1, channels), f"{len(zero)} zeros for {channels} channels")
        return x
    if n.op in LAYERS:
        return _layer(n, graph, x, seen[n.inputs[0]])
    if n.op == "affine":
        scale, add = graph.tensor(n, "scale"), graph.tensor(n, "add")
        assert scale is not None and add is not None
        _need(scale.dim() == 1 and scale.shape == add.shape, "scale and add differ in shape")
        have = _channels(shape, n.attrs["last"])
        _need(scale.numel() in (1, have) or have == 1, f"{scale.numel()} scales for {have} channels")
    if n.op == "prelu":
        slope = graph.tensor(n, "slope")
        _need(slope is not None and slope.dim() == 1, "slope is not one number per channel")
    if n.op == "layer_norm":
        sizes = tuple(n.attrs["normalized"])
        for role in ("weight", "bias"):
            t = graph.tensor(n, role)
            _need(t is None or tuple(t.shape) == sizes, f"{role} is not of shape {list(sizes)}")
    if n.op in ("add", "sub", "mul"):
        _need(inputs[0].dim() == inputs[1].dim(), "values of different rank")
    if n.op in ("max_pool", "avg_pool", "adaptive_avg_pool"):
        _pool(n, x)
    if n.op in ("softmax", "log_softmax"):
        _need(n.attrs["dim"] < x.dim(), f"no axis {n.attrs['dim']}")
    if n.op == "flatten":
        _need(n.attrs["start"] <= n.attrs["end"], "end lies before start")
    if n.op == "permute":
        _need(n.attrs["dims"] == [0, *n.attrs["dims"][1:]], "moves the batch axis")
    if n.op == "pad":
        _need(len(n.attrs["pads"]) % 2 == 0 and len(n.attrs["pads"]) <= 2 * len(shape), "pads the batch axis")
    only = {k: graph.tensors[k].to("meta") for k in n.attrs.get("tensors", {}).values()}
    return reference.float_op(n, replace(graph, tensors=only))(*inputs)


def _pool(n: Node, x: Tensor) -> None:
    a = n.attrs
    rank = a["rank"]
    _need(x.dim() == rank + 2, f"{rank}-dimensional, but its input is not")
    for k in ("kernel", "stride", "padding", "dilation", "size"):
        _need(k not in a or len(a[k]) == rank, f"{k} needs {rank} numbers")
    if "padding" in a:
        _need(all(2 * p <= k for p, k in zip(a["padding"], a["kernel"], strict=True)), "padding above half the kernel")
