"""Folds BatchNorm and constants in float64, rounding once."""

from __future__ import annotations

import torch

from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import OPERATORS, function, monotone
from bitwright.engine.rules import LAYERS, SPLITS
from bitwright.engine.thresholds import code_after, float_thresholds


def fold(graph: Graph) -> Graph:
    """A new graph without BatchNorm behind a layer, all numbers float32.

    layer then affine      -> the layer's scale and add (coded), or weight and bias (float)
    affine then affine     -> one affine
    a clip that changes no code of the quantizer behind it -> removed
    """
    graph = graph.copy()
    norms = [n for n in graph.nodes if n.op == "affine" and not n.attrs.get("keep")]  # a norm part stays: see lower
    for node in norms:
        before = graph.node(node.inputs[0])
        if len(graph.users()[before.name]) == 1 and _absorb(graph, before, node):
            graph.replace_uses(node.name, before.name)
            graph.nodes.remove(node)
    _round(graph)
    _drop_idle(graph)
    graph.prune()
    return graph


def _drop_idle(graph: Graph) -> None:
    """A clip in front of a quantizer that changes none of its codes: the hardtanh that stands in a sign's place."""
    by_name = graph.by_name()
    for q in graph.nodes:
        table = graph.tensor(q, "thresholds") if q.op == "quantize" else None
        if table is None or table.dim() != 1:
            continue
        source = by_name[q.inputs[0]]
        while OPERATORS[source.op].clip and monotone(source, graph):
            codes = code_after([function(source, graph)], table, None)
            found, flip = float_thresholds(codes, int(q.attrs["levels"]), 1)
            if bool(flip.any()) or not torch.equal(found[0], table):
                break
            source = by_name[source.inputs[0]]
            q.inputs = [source.name]


def _absorb(graph: Graph, layer: Node, affine: Node) -> bool:
    """y = k * layer + b into the layer; False where the layer cannot take it."""
    k, b = graph.need(affine, "scale").double(), graph.need(affine, "add").double()
    if layer.op == "affine":
        if layer.attrs.get("keep") or bool(layer.attrs["last"]) != bool(affine.attrs["last"]):
            return False
    # a linear layer on [N, T, C] has its channels last, a norm behind it on axis 1: not the same axis; and a norm behind a
    # gate that decides by the sum would move the decision
    elif layer.op not in LAYERS or layer.op in SPLITS or (layer.op.endswith("linear") and len(layer.shape) != 1):
        return False
    if layer.key("scale"):
        graph.put(layer, "scale", graph.need(layer, "scale").double() * k)
    else:
        weight = graph.need(layer, "weight").double()
        rate = k.reshape(-1, *[1] * (weight.dim() - 1))
        if layer.op == "conv_transpose":  # [I, O / groups, ...], the inputs of a group together
            groups = int(layer.attrs["groups"])
            rate = k.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)[:, :, None, None]
        graph.put(layer, "weight", weight * rate)
    role = "add" if layer.key("add") else "bias"
    old = graph.tensor(layer, role)
    graph.put(layer, role, b if old is None else old.double() * k + b)
    return True


def _round(graph: Graph) -> None:
    """float64 -> float32, the only rounding of the folded constants; a generic call keeps its own types."""
    for node in graph.nodes:
        for key in node.attrs.get("tensors", {}).values() if node.op != "aten" else ():
            if graph.tensors[key].dtype == torch.float64:
                graph.tensors[key] = graph.tensors[key].float()
