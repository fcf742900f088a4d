"""Units that a net gives the same answers without: outputs of layers whose weights are partly zero.

A unit (an output channel of a layer) that no weight reads need not be computed. A unit whose inputs all have weight 0, or are
constants themselves, is a constant: what it adds to its readers is added once, here. Both are exact for layers with codes:
their sums are whole numbers, and `shift` is what constants add to them. In float layers they go into the bias.

Values that lie unit by unit one behind the other (a layer, its norm, its quantizer, sums of two layers) keep the same units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.graph import Graph, Node, fresh
from bitwright.engine.operators import bounds, function
from bitwright.engine.rules import CODED

SLICED = (*CODED, "linear", "conv")  # layers that can lose outputs and inputs, where they have no groups
EACH = (
    "relu",
    "clamp",
    "prelu",
    "add_scalar",
    "mul_scalar",
    "affine",
    "quantize",
    "decode",
)  # of each number by itself
EACH_CALL = ("abs", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "neg", "relu6", "sigmoid", "silu",
             "softplus", "tanh")  # fmt: skip


@dataclass
class _Values:
    """Values that keep the same units.

    axis    of the units, in one sample: 0 or -1;   fixed   whether all of them stay
    needed  bool [units];   blocks   how many numbers in a row belong to one unit of the value before, of a flattened one
    """

    axis: int
    units: int
    fixed: bool = False
    blocks: int = 0
    nodes: list[Node] = field(default_factory=list)
    needed: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def flattens(self, n: Node) -> bool:
        """Whether n is the operator that these values begin with, and flattens."""
        return self.blocks > 0 and self.nodes[0] is n


@dataclass
class _Weighing:
    """weighs: [outputs, inputs]; numbers: what it always reads there, NaN where that changes; absorbs: those that can go
    into its sums."""

    weighs: Tensor
    numbers: Tensor
    absorbs: Tensor


def without_unused(graph: Graph, limit: float) -> Graph:
    """The graph without such units, changed in place. `limit`: of an input of the net.

    A layer or quantizer that lost some has the attribute `units`: those left, in order. Nothing is left out where a float value
    may be infinite: 0 times it is NaN.
    """
    weighs = {n.name: _weighs(graph, n) for n in graph.nodes if _layer(n)}
    if all(bool(w.any(0).all() and w.any(1).all()) for w in weighs.values()):
        return graph
    bound = bounds(graph, limit)
    groups = _groups(graph)
    constants = _constants(graph, groups, weighs)
    readers = {
        n.name: _reader(graph, n, weighs[n.name], bound[n.inputs[0]], constants[n.inputs[0]])
        for n in graph.nodes
        if n.name in weighs and not groups[n.inputs[0]].fixed
    }
    _find_needed(graph, groups, readers)
    for n in graph.nodes:  # what is left of a flattened value is decided by the value before
        values = groups[n.name]
        if values.flattens(n) and not values.fixed:
            values.needed = groups[n.inputs[0]].needed.repeat_interleave(values.blocks)
    for n in graph.nodes:
        if n.name in readers:
            _drop_inputs(graph, n, groups[n.inputs[0]].needed, readers[n.name])
        if not bool(groups[n.name].needed.all()):
            _drop_units(graph, n, groups[n.name])
    graph.prune()
    return graph


def left(node: Node, fused: Node) -> tuple[int, int]:
    """Units of a layer that run, and of the layer as it was trained."""
    have = node.attrs["weight"]["shape"][0] if "weight" in node.attrs else node.channels
    return len(fused.attrs["units"]) if "units" in fused.attrs else int(have), int(have)


def _layer(n: Node) -> bool:
    return n.op in SLICED and int(n.attrs.get("groups", 1)) == 1


def _matrix(graph: Graph, n: Node) -> Tensor:
    """A layer's weight [outputs, inputs, taps]: whole numbers, or floats."""
    if n.op in CODED:
        terms = reference.weight_integers(graph, n)
        weight = terms[0] if len(terms) == 1 else torch.stack(terms, -1)
    else:
        weight = reference.stored_weight(graph, n)
    return weight.reshape(*weight.shape[:2], -1)


def _weighs(graph: Graph, n: Node) -> Tensor:
    """[outputs, inputs]: whether the output depends on the input. A scale of 0 leaves it the `add` alone."""
    found = (_matrix(graph, n) != 0).any(-1)
    return found & (graph.need(n, "scale") != 0).any(0)[:, None] if n.op in CODED else found


# -- which values belong together ------------------------------------------------------------------------------
def _each(n: Node) -> bool:
    if n.op == "aten":
        name = n.attrs["call"].split(".")[0]
        return name in EACH_CALL and len(n.inputs) == 1 and not n.attrs.get("tensors") and "item" not in n.attrs
    return n.op in EACH


def _groups(graph: Graph) -> dict[str, _Values]:
    """The values that each node's value keeps its units with."""
    found: dict[str, _Values] = {}
    for n in graph.nodes:
        before = [found[i] for i in n.inputs]
        if _layer(n):
            values = _Values(-1 if n.last else 0, n.channels)
            before[0].fixed |= before[0].axis != values.axis and len(graph.node(n.inputs[0]).shape) > 1
        elif (_each(n) and _same_axis(n, before[0])) or (_pools(n) and before[0].axis == 0):
            values = before[0]
        elif n.op == "add" and before[0].axis == before[1].axis and _alike(graph, n):
            values = _joined(found, *before)
        elif n.op == "flatten" and (blocks := _blocks(graph, n, before[0])):
            values = _Values(0, n.channels, blocks=blocks)
        else:
            values = _Values(0, 1, fixed=True)  # nothing of them is left out, so nobody asks how many there are
            for other in before:
                other.fixed = True
        values.nodes.append(n)
        found[n.name] = values
    for n in graph.nodes:
        values = found[n.name]
        if values.flattens(n):  # it has the units of the value before it
            values.fixed |= found[n.inputs[0]].fixed or any(_layer(m) for m in values.nodes)
    for values in found.values():
        values.needed = torch.full((values.units,), values.fixed)
    return found


def _pools(n: Node) -> bool:
    return n.op in ("max_pool", "adaptive_avg_pool") and len(n.shape) == n.attrs["rank"] + 1


def _same_axis(n: Node, before: _Values) -> bool:
    if len(n.shape) == 1 or n.op not in ("affine", "quantize", "prelu"):
        return True
    return (before.axis == -1) == bool(n.attrs.get("last"))


def _alike(graph: Graph, n: Node) -> bool:
    return all(graph.node(i).shape == n.shape for i in n.inputs)


def _joined(found: dict[str, _Values], a: _Values, b: _Values) -> _Values:
    if a is not b:
        a.fixed |= b.fixed or bool(a.blocks or b.blocks)  # a flattened value follows the one before it, and only that
        a.nodes += b.nodes
        for name in [name for name, values in found.items() if values is b]:
            found[name] = a
    return a


def _blocks(graph: Graph, n: Node, before: _Values) -> int:
    """How many numbers of a unit lie side by side in a flattened value; 0 where they do not, or it has other axes left."""
    shape = graph.node(n.inputs[0]).shape
    whole = n.attrs["start"] == 1 and len(n.shape) == 1 and all(isinstance(s, int) for s in shape)
    return math.prod(shape[1:]) if whole and (before.axis == 0 or len(shape) == 1) else 0


# -- constants, unit by unit: NaN where a unit is none ---------------------------------------------------------
def _constants(graph: Graph, groups: dict[str, _Values], weighs: dict[str, Tensor]) -> dict[str, Tensor]:
    """[units] float64: the number (of a quantizer, the code) that a unit always has."""
    found: dict[str, Tensor] = {}
    for n in graph.nodes:
        values, x = groups[n.name], found[n.inputs[0]] if n.inputs else torch.zeros(0)
        value = torch.full((values.units,), torch.nan, dtype=torch.float64)
        if values.fixed:
            pass  # all of them stay, whatever they are
        elif _layer(n):
            w = weighs[n.name]
            value = _constant_outputs(
                graph, n, w, x if not groups[n.inputs[0]].fixed else x.new_full(w.shape[1:], torch.nan)
            )
        elif n.op == "add":
            value = (x.float() + found[n.inputs[1]].float()).double()
        elif n.op == "max_pool":
            value = x
        elif n.op == "adaptive_avg_pool":
            value = torch.where(x == 0, 0.0, torch.nan)  # a mean of equal numbers may be rounded
        elif n.op == "flatten":
            value = x.repeat_interleave(values.blocks)
        else:
            value = torch.where(x.isnan(), torch.nan, _run(graph, n, x.nan_to_num()))
        found[n.name] = torch.where(value.isfinite(), value, torch.nan)
    return found


def _run(graph: Graph, n: Node, x: Tensor) -> Tensor:
    """An operator of each number by itself, on one number per unit."""
    if n.op == "quantize":
        codes = reference.quantize(x.float()[None], graph.need(n, "thresholds"), graph.tensor(n, "flip"), True)
        return codes[0].double()
    if n.op == "decode":
        a = graph.node(n.inputs[0]).attrs
        return (reference.numbers(x[None], int(a["mult"]), a["zero"], True) * float(n.attrs["unit"]))[0].double()
    return function(n, graph)(x.float()[None])[0].double()


def _numbers(graph: Graph, n: Node, x: Tensor) -> Tensor:
    """What a layer computes with: whole numbers of codes, floats as they are; NaN where x is none."""
    source = graph.node(n.inputs[0])
    if n.op not in CODED:
        return x
    return x * int(source.attrs["mult"]) + torch.tensor(source.attrs["zero"], dtype=torch.float64)


def _padded(n: Node) -> bool:
    return any(n.attrs.get("padding", ()))


def _constant_outputs(graph: Graph, n: Node, weighs: Tensor, x: Tensor) -> Tensor:
    numbers = _numbers(graph, n, x)
    known = numbers == 0 if _padded(n) else ~numbers.isnan()  # at the border of an image a number counts less often
    outputs = ~(weighs & ~known).any(1)
    value = torch.full((len(weighs),), torch.nan, dtype=torch.float64)
    if not bool(outputs.any()):
        return value
    rows, given = _matrix(graph, n)[outputs], torch.where(known, numbers, 0.0)
    if n.op in CODED:
        count = len(n.attrs["weight"]["terms"])
        rows = rows.reshape(*rows.shape[:2], -1, count).double().sum(2)  # [outputs, inputs, terms]: of all taps
        sums = [(rows[..., t] @ given)[None] for t in range(count)]
        scale, add = graph.need(n, "scale")[:, outputs], graph.need(n, "add")[outputs]
        value[outputs] = reference.epilogue(sums, scale, add, True)[0].double()
    else:
        bias = graph.tensor(n, "bias")
        sums = rows.double().sum(-1) @ given
        value[outputs] = (sums if bias is None else sums + bias[outputs].double()).float().double()
    return value


# -- what is needed --------------------------------------------------------------------------------------------
def _reader(graph: Graph, n: Node, weighs: Tensor, bound: float, constant: Tensor) -> _Weighing:
    numbers = _numbers(graph, n, constant)
    absorbs = ~numbers.isnan()
    if _padded(n) or (n.op in CODED and len(n.attrs["weight"]["terms"]) > 1):
        absorbs = numbers == 0
    if n.op not in CODED and bound == math.inf:
        weighs, absorbs = torch.ones_like(weighs), torch.zeros_like(absorbs)
    return _Weighing(weighs, numbers, absorbs)


def _find_needed(graph: Graph, groups: dict[str, _Values], readers: dict[str, _Weighing]) -> None:
    """Marks units until nothing more is needed; at least one of each value."""
    changed = True
    while changed:
        changed = False
        for n in reversed(graph.nodes):
            values, wanted = groups[n.name], None
            if n.name in readers:
                r = readers[n.name]
                wanted = r.weighs[values.needed].any(0) & ~r.absorbs
            elif values.flattens(n) and not groups[n.inputs[0]].fixed:
                wanted = values.needed.reshape(-1, values.blocks).any(1)
            if wanted is not None:
                needed = groups[n.inputs[0]].needed
                changed |= bool((wanted & ~needed).any())
                needed |= wanted
        for values in () if changed else groups.values():
            if not bool(values.needed.any()):
                values.needed[0] = changed = True


# -- the smaller graph -----------------------------------------------------------------------------------------
def _put(graph: Graph, n: Node, role: str, value: Tensor) -> None:
    """A tensor of this node alone: another call of the layer may share the old one."""
    key = fresh(f"{n.name}.{role}", graph.tensors)
    graph.tensors[key] = value.contiguous()
    n.attrs["tensors"] = {**n.attrs.get("tensors", {}), role: key}


def _put_weight(graph: Graph, n: Node, axis: int, keep: Tensor) -> None:
    """The weight with those outputs (axis 0) or inputs (axis 1)."""
    info: Any = n.attrs.get("weight")
    if info is None:
        _put(graph, n, "weight", graph.need(n, "weight").index_select(axis, keep))
        return
    bit = reference.unpack_bits(graph.need(n, "bits"), (info["planes"], *info["shape"])).index_select(axis + 1, keep)
    n.attrs["weight"] = {**info, "shape": [int(s) for s in bit.shape[1:]]}
    _put(graph, n, "bits", reference.pack_bits(bit))


def _drop_inputs(graph: Graph, n: Node, needed: Tensor, reader: _Weighing) -> None:
    if bool(needed.all()):
        return
    numbers = torch.where(~needed & reader.absorbs, reader.numbers, 0.0)
    if bool((numbers != 0).any()):
        added = _matrix(graph, n).double().sum(-1) @ numbers
        if n.op in CODED:
            _put(graph, n, "shift", added.to(torch.int64))
        else:
            bias = graph.tensor(n, "bias")
            _put(graph, n, "bias", (added if bias is None else bias.double() + added).float())
    _put_weight(graph, n, 1, needed.nonzero().flatten())


def _drop_units(graph: Graph, n: Node, values: _Values) -> None:
    keep, units = values.needed.nonzero().flatten(), values.units
    if _layer(n):
        _put_weight(graph, n, 0, keep)
    for role in () if n.op == "aten" else ("scale", "add", "bias", "shift", "slope", "thresholds"):
        t = graph.tensor(n, role)
        if t is None or (role == "thresholds" and t.dim() == 1) or (role == "slope" and t.numel() == 1):
            continue
        axis = 0 if role == "thresholds" else -1
        if t.shape[axis] == units:
            _put(graph, n, role, t.index_select(axis, keep))
    if n.op == "quantize" and len(n.attrs["zero"]) > 1:
        n.attrs["zero"] = [n.attrs["zero"][i] for i in keep.tolist()]
    shape = list(n.shape)
    shape[values.axis] = len(keep)
    n.attrs |= {"shape": shape, "units": keep}
