"""Folds BatchNorm and constants in float64, rounding once."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import OPERATORS, function, monotone
from bitwright.engine.thresholds import float_thresholds


def fold(graph: Graph) -> Graph:
    """A new graph without BatchNorm behind a layer, all numbers float32.

    layer then affine      -> the layer's scale and add (coded), or weight and bias (float)
    affine then affine     -> one affine
    a clip in front of a quantizer that sees no difference -> gone
    """
    graph = graph.copy()
    changed = True
    while changed:
        changed = False
        users = graph.users()
        by_name = graph.by_name()
        for node in graph.nodes:
            if node.op != "affine" or node.attrs.get("keep"):  # a norm part belongs to its layer, see trace
                continue
            before = by_name[node.inputs[0]]
            if len(users[before.name]) != 1 or not _absorb(graph, before, node):
                continue
            graph.replace_uses(node.name, before.name)
            graph.nodes.remove(node)
            changed = True
            break
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
            clip = function(source, graph)
            found, flip = float_thresholds(
                lambda x, f=clip, t=table: reference.quantize(f(x), t, None, True), int(q.attrs["levels"]), 1
            )
            if bool(flip.any()) or not torch.equal(found[0], table):
                break
            source = by_name[source.inputs[0]]
            q.inputs = [source.name]


def _absorb(graph: Graph, layer: Node, affine: Node) -> bool:
    """y = k * layer + b into the layer; False where the layer cannot take it."""
    k, b = _get(graph, affine, "scale"), _get(graph, affine, "add")
    if layer.op == "affine":
        if layer.attrs.get("keep"):
            return False
        if bool(layer.attrs["last"]) != bool(affine.attrs["last"]):
            return False
        graph.put(layer, "scale", _get(graph, layer, "scale") * k)
        graph.put(layer, "add", _get(graph, layer, "add") * k + b)
        return True
    # a linear layer on [N, T, C] has its channels last, a norm behind it on axis 1: not the same axis
    if layer.op in ("linear", "coded_linear") and len(layer.shape) != 1:
        return False
    if layer.op in ("coded_conv", "coded_linear"):
        graph.put(layer, "scale", _get(graph, layer, "scale") * k)
        graph.put(layer, "add", _get(graph, layer, "add") * k + b)
        return True
    if layer.op not in ("conv", "linear", "conv_transpose"):
        return False
    if layer.key("scale"):  # stored as bits: the channel's scale takes it
        graph.put(layer, "scale", _get(graph, layer, "scale") * k)
    else:
        weight = _get(graph, layer, "weight")
        if layer.op == "conv_transpose":
            groups = int(layer.attrs["groups"])
            i, o = weight.shape[0], weight.shape[1]
            shaped = weight.reshape(groups, i // groups, o, *weight.shape[2:])
            rate = k.reshape(groups, 1, o, *[1] * (weight.dim() - 2))
            graph.put(layer, "weight", (shaped * rate).reshape(weight.shape))
        else:
            graph.put(layer, "weight", weight * k.reshape(-1, *[1] * (weight.dim() - 1)))
    old = graph.tensor(layer, "bias")
    graph.put(layer, "bias", b if old is None else old.double() * k + b)
    return True


def _get(graph: Graph, node: Node, role: str) -> Tensor:
    return graph.need(node, role).double()


def _round(graph: Graph) -> None:
    """float64 -> float32, the only rounding of the folded constants; a generic call keeps its own types."""
    for node in graph.nodes:
        for key in node.attrs.get("tensors", {}).values() if node.op != "aten" else ():
            if graph.tensors[key].dtype == torch.float64:
                graph.tensors[key] = graph.tensors[key].float()
