"""The closed table of operators: one record each. Adding an operator is adding its record.

Own records have what `fuse` understands (codes, layers, what may disappear into thresholds, residual adds), and little
else: any other pure operator of ATen is a node `aten` (see `aten_list`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import aten_list, gates, reference, rules
from bitwright.engine import attributes as a
from bitwright.engine.attributes import Attr, listed, need, whole
from bitwright.engine.graph import Graph, Node
from bitwright.engine.rules import Function


@dataclass(frozen=True)
class Operator:
    """All that the engine knows of an operator.

    inputs    how many values it reads; -1: one or more, None: any number
    attrs     which attributes a file may hold; `tensors`: which roles, those in brackets may be absent
    run       its function in plain torch; on the meta device that is its shape rule, where `shape` gives no other
    check     what else must hold
    codes     it reads a quantizer's codes, not numbers
    bound     how large a result can be, from that of the inputs
    monotone  elementwise and monotone in exact float arithmetic: each step a correctly rounded operation or a comparison
    clip      may change nothing that the quantizer behind it sees
    """

    inputs: int | None = 1
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    tensors: str = ""
    run: Callable[[Node, Graph], Function] | None = None
    check: Callable[[Node, Graph, list[Tensor], Node], None] | None = None
    shape: Callable[[Node, Graph, Tensor, Node], Tensor] | None = None
    codes: bool = False
    bound: Callable[[Node, Graph, list[float]], float] = lambda node, graph, x: max(x, default=math.inf)
    monotone: bool | Callable[[Node, Graph], bool] = False
    clip: bool = False


def _with(f: Callable[..., Tensor], *roles: str) -> Callable[[Node, Graph], Function]:
    """A function of one value, the attributes and the node's tensors."""

    def bind(node: Node, graph: Graph) -> Function:
        tensors = [graph.need(node, role) for role in roles]
        return lambda x: f(x, node.attrs, *tensors)

    return bind


def _same(node: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    return x


_CODED: dict[str, Any] = {"shape": rules.shape_of_layer, "codes": True, "bound": rules.bound_coded}
_LAYER: dict[str, Any] = {
    "tensors": "weight [bias]",
    "run": rules.run_layer,
    "shape": rules.shape_of_layer,
    "bound": rules.bound_layer,
}
_SPLIT: dict[str, Any] = {
    "tensors": "weight threshold [scale] [bias] [on_scale] [on_add] [off_scale] [off_add]",
    "shape": gates.shape_of_split,
    "bound": gates.bound_split,
}
_SPLIT_ATTRS: dict[str, Attr] = {
    **{"rank": Attr(whole(0, 3)), "stride": a.ONES.optional, "padding": a.PADS.optional, "dilation": a.ONES.optional},
    **{"groups": a.GROUPS, "last": a.LAST, "weight": a.TABLE.optional, "unit": a.NUMBER.optional},
    "share": a.SHARE.optional,  # of outputs that were on
}
_CHANNEL: dict[str, Attr] = {"splits": Attr(whole(2, 1 << 16)), "group": a.FLAG, "shuffle": a.FLAG.usually(False)}

OPERATORS: dict[str, Operator] = {
    "input": Operator(0, attrs={"dtype": a.words(*aten_list.DTYPES).usually("float32"), "any_size": a.FLAG.optional}),
    "output": Operator(-1, attrs={"structure": Attr(lambda v: True).optional}, shape=_same, check=rules.check_output),
    "aten": Operator(
        None,
        attrs={"call": a.TEXT, "args": a.TABLE, "item": Attr(whole(0, 16)).optional},
        run=rules.run_call,
        check=rules.check_call,
        bound=rules.bound_call,
    ),
    "quantize": Operator(
        attrs={
            "levels": Attr(whole(1, a.MAX_LEVELS)),
            "mult": Attr(whole(1, a.MAX_MULT)).usually(1),
            "zero": Attr(listed(whole(-a.MAX_STEP, a.MAX_STEP), 1, 1 << 16)),
            "last": a.LAST,
        },
        tensors="thresholds",
        check=rules.check_quantize,
        shape=_same,
    ),
    "coded_conv": Operator(attrs={**a.CONV, "weight": a.TABLE}, tensors="bits scale add", **_CODED),
    "coded_linear": Operator(attrs={"weight": a.TABLE}, tensors="bits scale add", **_CODED),
    "decode": Operator(attrs={"unit": a.NUMBER}, shape=_same, codes=True, bound=rules.bound_decode),
    "affine": Operator(
        attrs={"last": a.LAST, "keep": a.FLAG.optional},
        tensors="scale add",
        run=_with(lambda x, attrs, scale, add: reference.affine(x, scale, add, attrs["last"]), "scale", "add"),
        check=rules.check_affine,
        monotone=True,
        bound=lambda node, graph, x: x[0] * rules.most(graph.need(node, "scale")) + rules.most(graph.need(node, "add")),
    ),
    # layers that compute in float; the attribute `weight` describes a weight that is stored as bits
    "conv": Operator(attrs={**a.CONV, "weight": a.TABLE.optional}, **_LAYER),
    "linear": Operator(attrs={"weight": a.TABLE.optional}, **_LAYER),
    "conv_transpose": Operator(
        attrs={"stride": a.STEPS, "padding": a.PADS, "output_padding": a.PADS, "dilation": a.STEPS, "groups": a.GROUPS},
        **_LAYER,
    ),
    # gates (gates.py): winners take all; a base that decides where the rest is added
    "saliency": Operator(
        attrs={"last": a.LAST},
        tensors="weight bias",
        run=_with(gates.saliency, "weight", "bias"),
        check=gates.check_saliency,
        bound=gates.bound_saliency,
    ),
    "winners": Operator(
        attrs={"count": Attr(a.SIZE), "block": Attr(a.SIZE).usually(1)},
        run=_with(gates.winners),
        check=gates.check_winners,
        bound=lambda node, graph, x: 1.0,
    ),
    "switch": Operator(
        3,
        attrs={"last": a.LAST},
        run=gates.run_switch,
        check=gates.check_switch,
        bound=lambda node, graph, x: x[0] * x[1],
    ),
    "channel_gate": Operator(attrs={**_SPLIT_ATTRS, **_CHANNEL}, run=gates.SplitOperator, **_SPLIT),
    "coded_channel_gate": Operator(attrs={**_SPLIT_ATTRS, **_CHANNEL}, codes=True, **_SPLIT),
    "precision_gate": Operator(attrs={**_SPLIT_ATTRS, "step": Attr(whole(2, a.MAX_STEP))}, codes=True, **_SPLIT),
    # elementwise
    "relu": Operator(run=lambda node, graph: F.relu, monotone=True, clip=True),
    "clamp": Operator(
        attrs={"low": a.END, "high": a.END},
        run=_with(lambda x, attrs: torch.clamp(x, attrs["low"], attrs["high"])),
        clip=True,
        monotone=True,
        bound=rules.bound_moved,
    ),
    "prelu": Operator(
        tensors="slope",
        run=_with(lambda x, attrs, slope: F.prelu(x, slope), "slope"),
        check=rules.check_prelu,
        monotone=lambda node, graph: bool((graph.need(node, "slope") >= 0).all()),
        bound=lambda node, graph, x: x[0] * max(1.0, rules.most(graph.need(node, "slope"))),
    ),
    "add_scalar": Operator(
        attrs={"value": a.NUMBER},
        run=_with(lambda x, attrs: x + attrs["value"]),
        monotone=True,
        bound=lambda node, graph, x: x[0] + abs(node.attrs["value"]),
    ),
    "mul_scalar": Operator(
        attrs={"value": a.NUMBER},
        run=_with(lambda x, attrs: x * attrs["value"]),
        monotone=True,
        bound=lambda node, graph, x: x[0] * abs(node.attrs["value"]),
    ),
    "add": Operator(
        2,
        run=lambda node, graph: torch.add,
        check=lambda node, graph, x, source: need(x[0].dim() == x[1].dim(), "values of different rank"),
        bound=lambda node, graph, x: x[0] + x[1],
    ),
    # what moves values
    "max_pool": Operator(
        attrs={
            **{"rank": a.RANK, "kernel": a.STEPS, "stride": a.STEPS, "padding": a.PADS, "dilation": a.STEPS},
            "ceil": a.FLAG,
        },
        run=_with(reference.max_pool),
        check=rules.check_pool,
    ),
    "adaptive_avg_pool": Operator(
        attrs={"rank": Attr(whole(1, 2)), "size": a.STEPS},
        run=_with(rules.adaptive_avg_pool),
        check=rules.check_pool,
    ),
    "flatten": Operator(
        attrs={"start": a.AXIS, "end": a.AXIS},
        run=_with(lambda x, attrs: x.flatten(attrs["start"], attrs["end"])),
        check=lambda node, *_: need(node.attrs["start"] <= node.attrs["end"], "end lies before start"),
    ),
    "slice": Operator(
        attrs={"dim": a.AXIS, "start": a.INDEX, "end": a.INDEX, "step": Attr(a.SIZE)}, run=_with(rules.sliced)
    ),
    "pad": Operator(
        attrs={
            "pads": Attr(listed(whole(-a.MAX_STEP, a.MAX_STEP), 2, 2 * a.MAX_RANK)),
            "value": a.NUMBER,
            "mode": a.words("constant", "reflect", "replicate", "circular"),
        },
        run=_with(rules.padded),
        check=lambda node, graph, x, source: need(
            len(node.attrs["pads"]) in range(2, 2 * x[0].dim(), 2), "pads the batch axis"
        ),
        bound=rules.bound_moved,
    ),
}


def function(node: Node, graph: Graph) -> Function:
    """The function of a float operator, its constants bound. Shared by all backends: it is torch's own."""
    run = OPERATORS[node.op].run
    assert run is not None, node.op
    return run(node, graph)


def monotone(node: Node, graph: Graph) -> bool:
    rule = OPERATORS[node.op].monotone if node.op in OPERATORS else False
    return rule if isinstance(rule, bool) else rule(node, graph)


def bounds(graph: Graph, of_input: float) -> dict[str, float]:
    """How large each value can be, infinite where that is not known, for inputs up to `of_input`."""
    found: dict[str, float] = {}
    for n in graph.nodes:
        x, bound = [found[i] for i in n.inputs], math.inf
        if n.op == "input":
            bound = of_input
        elif n.op == "float_conv":  # the kernels' own: a layer, and what it adds
            bound = rules.bound_layer(n, graph, x) + sum(x[1:])
        elif n.op in OPERATORS:
            bound = OPERATORS[n.op].bound(n, graph, x)
        found[n.name] = bound if bound < rules.HUGE else math.inf  # also of NaN
    return found
