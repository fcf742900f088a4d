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
from bitwright.engine.attributes import (
    AXES,
    AXIS,
    BOUND,
    CONV,
    FLAG,
    GROUPS,
    INDEX,
    LAST,
    MAX_LEVELS,
    MAX_MULT,
    MAX_RANK,
    MAX_STEP,
    MAX_VALUES,
    NUMBER,
    PADS,
    RANK,
    SIZE,
    STEPS,
    WEIGHT,
    Attr,
    axis,
    listed,
    need,
    whole,
    words,
)
from bitwright.engine.graph import Graph, Node
from bitwright.engine.rules import (
    HUGE,
    Attrs,
    Function,
    adaptive_avg_pool,
    avg_pool,
    bound_affine,
    bound_call,
    bound_coded,
    bound_decode,
    bound_layer,
    bound_moved,
    bound_norm,
    bound_one,
    bound_scaled,
    check_affine,
    check_call,
    check_norm,
    check_output,
    check_pool,
    check_quantize,
    check_slope,
    padded,
    run_affine,
    run_call,
    run_cat,
    run_layer,
    run_norm,
    run_prelu,
    shape_of_layer,
    sliced,
)


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


def _holds(fits: Callable[[Attrs, list[Tensor]], bool], text: str) -> Callable[..., None]:
    """What must hold of attributes and inputs."""
    return lambda node, graph, inputs, source: need(fits(node.attrs, inputs), text)


def _always(node: Node, graph: Graph) -> bool:
    return True


def _same(node: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    return x


_RANKS = _holds(lambda a, x: x[0].dim() == x[1].dim(), "values of different rank")
POOL = {"rank": RANK, "kernel": STEPS.of("kernel_size"), "stride": STEPS, "padding": PADS}
CEIL = FLAG.of("ceil_mode")


def _unary(f: Function, aten: str, **more: Any) -> Operator:
    return Operator(run=_plain(f), shape=_same, aten=aten, **more)


OPERATORS: dict[str, Operator] = {
    "input": Operator(0, attrs={"dtype": words(*aten_list.DTYPES).usually("float32")}),
    "output": Operator(-1, attrs={"structure": Attr(lambda v: True, required=False)}, shape=_same, check=check_output),
    "aten": Operator(
        None,
        attrs={
            "call": Attr(lambda v: isinstance(v, str)),
            "args": Attr(lambda v: isinstance(v, dict)),
            "item": Attr(whole(0, 16), required=False),
        },
        run=run_call,
        check=check_call,
        bound=bound_call,
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
        check=check_quantize,
        shape=_same,
    ),
    "coded_conv": Operator(
        attrs={**CONV, "weight": WEIGHT}, tensors="bits scale add", shape=shape_of_layer, codes=True, bound=bound_coded
    ),
    "coded_linear": Operator(
        attrs={"weight": WEIGHT}, tensors="bits scale add", shape=shape_of_layer, codes=True, bound=bound_coded
    ),
    "decode": Operator(attrs={"unit": NUMBER}, shape=_same, codes=True, bound=bound_decode),
    "affine": Operator(
        attrs={"last": LAST, "keep": replace(FLAG, required=False)},
        tensors="scale add",
        run=run_affine,
        check=check_affine,
        monotone=_always,
        bound=bound_affine,
    ),
    # float layers; the attribute `weight` describes a weight that is stored as bits
    "conv": Operator(
        attrs={**CONV, "weight": replace(WEIGHT, required=False)},
        tensors="weight [bias]",
        run=run_layer,
        shape=shape_of_layer,
        bound=bound_layer,
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
        run=run_layer,
        shape=shape_of_layer,
        bound=bound_layer,
    ),
    "linear": Operator(
        attrs={"weight": replace(WEIGHT, required=False)},
        tensors="weight [bias]",
        run=run_layer,
        shape=shape_of_layer,
        bound=bound_layer,
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
        bound=bound_moved,
        shape=_same,
        check=_holds(lambda a, x: a["low"] <= a["high"], "low is above high"),
    ),
    "clamp": Operator(
        attrs={"low": BOUND.of("min"), "high": BOUND.of("max")},
        run=_with(lambda x, a: torch.clamp(x, a["low"], a["high"])),
        clip=True,
        monotone=_always,
        aten="clamp clip clamp_min clamp_max",
        bound=bound_moved,
        shape=_same,
    ),
    "leaky_relu": Operator(
        attrs={"slope": NUMBER.of("negative_slope")},
        run=_with(lambda x, a: F.leaky_relu(x, a["slope"])),
        clip=True,
        monotone=lambda n, graph: n.attrs["slope"] >= 0,
        aten="leaky_relu",
        bound=bound_scaled,
        shape=_same,
    ),
    "prelu": Operator(
        tensors="slope",
        run=run_prelu,
        check=check_slope,
        monotone=lambda n, graph: bool((graph.need(n, "slope") >= 0).all()),
        bound=bound_scaled,
        shape=_same,
    ),
    "sigmoid": _unary(torch.sigmoid, "sigmoid", bound=bound_one),
    "tanh": _unary(torch.tanh, "tanh", bound=bound_one),
    "gelu": Operator(
        attrs={"approximate": words("none", "tanh")},
        run=_with(lambda x, a: F.gelu(x, approximate=a["approximate"])),
        aten="gelu",
        shape=_same,
    ),
    "silu": _unary(F.silu, "silu"),
    "hardswish": _unary(F.hardswish, "hardswish"),
    "softmax": Operator(
        attrs={"dim": AXIS},
        run=_with(lambda x, a: torch.softmax(x, a["dim"])),
        check=_holds(lambda a, x: a["dim"] < x[0].dim(), "no such axis"),
        aten="softmax _softmax",
        bound=bound_one,
        shape=_same,
    ),
    "log_softmax": Operator(
        attrs={"dim": AXIS},
        run=_with(lambda x, a: torch.log_softmax(x, a["dim"])),
        check=_holds(lambda a, x: a["dim"] < x[0].dim(), "no such axis"),
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
        run=run_norm,
        check=check_norm,
        aten="layer_norm",
        bound=bound_norm,
        shape=_same,
    ),
    "max_pool": Operator(
        attrs={**POOL, "dilation": STEPS, "ceil": CEIL},
        run=_with(reference.max_pool),
        check=check_pool,
        aten="max_pool1d max_pool2d max_pool3d",
    ),
    "avg_pool": Operator(
        attrs={**POOL, "ceil": CEIL, "count_pad": FLAG.of("count_include_pad")},
        run=_with(avg_pool),
        check=check_pool,
        aten="avg_pool1d avg_pool2d avg_pool3d",
    ),
    "adaptive_avg_pool": Operator(
        attrs={
            "rank": Attr(whole(1, 2), lambda v, rank: rank - 2),
            "size": replace(STEPS, fits=listed(whole(1, MAX_STEP), 1, 2), argument="output_size"),
        },
        run=_with(adaptive_avg_pool),
        check=check_pool,
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
        check=_holds(lambda a, x: a["start"] <= a["end"], "end lies before start"),
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
        check=_holds(lambda a, x: a["dims"][0] == 0 and 0 not in a["dims"][1:], "moves the batch axis"),
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
        attrs={"dim": replace(AXIS, read=lambda v, rank: axis(v, rank + 1))},
        run=_with(lambda x, a: x.unsqueeze(a["dim"])),
        aten="unsqueeze",
    ),
    "slice": Operator(
        attrs={"dim": AXIS, "start": INDEX, "end": INDEX, "step": Attr(SIZE)},
        run=_with(sliced),
    ),
    "pad": Operator(
        attrs={
            "pads": Attr(listed(whole(-MAX_STEP, MAX_STEP), 2, 2 * MAX_RANK)),
            "value": NUMBER,
            "mode": words("constant", "reflect", "replicate", "circular"),
        },
        run=_with(padded),
        check=_holds(lambda a, x: len(a["pads"]) in range(2, 2 * x[0].dim(), 2), "pads the batch axis"),
        bound=bound_moved,
    ),
    "cat": Operator(-1, attrs={"dim": AXIS}, run=run_cat),
    "add": Operator(2, run=_plain(torch.add), check=_RANKS, bound=lambda n, graph, x: x[0] + x[1]),
    "sub": Operator(2, run=_plain(torch.sub), check=_RANKS, bound=lambda n, graph, x: x[0] + x[1]),
    "mul": Operator(2, run=_plain(torch.mul), check=_RANKS, bound=lambda n, graph, x: x[0] * x[1]),
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
