"""Float layers on their connections take in what stands around them: an affine step before becomes part of their weights, a tanh behind
is computed in place.

Around a layer that multiplies one weight in a thousand such steps take most of the time. For the native run alone; the weights are
joined in float64 and rounded once, so that answers differ from the separate steps by rounding.
"""

from __future__ import annotations

import torch

from bitwright.engine import reference
from bitwright.engine.fuse import LIMIT
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import bounds
from bitwright.engine.sparse_linear import finite_input, joined_weights, on_connections

TANH = "tanh.default"


def joined_connections(graph: Graph) -> Graph:
    """A new graph where some layer takes in a neighbor, else the same one."""
    layers = [n for n in graph.nodes if on_connections(n, graph)]
    if not layers:
        return graph
    largest = bounds(graph, LIMIT)
    names = [n.name for n in layers if finite_input(n, largest)]
    graph = graph.copy()
    for layer in [graph.node(name) for name in names]:
        _take_affine(graph, layer)
        _take_tanh(graph, layer)
    return graph


def _take_affine(graph: Graph, layer: Node) -> None:
    before = graph.node(layer.inputs[0])
    if before.op != "affine" or len(before.shape) != 1 or len(graph.users()[before.name]) != 1:
        return
    scale, add, weight = graph.need(before, "scale"), graph.need(before, "add"), reference.stored_weight(graph, layer)
    joined = joined_weights(weight, graph.tensor(layer, "bias"), scale, add)
    if not all(bool(torch.isfinite(t).all()) for t in joined):
        return
    tensors = before.attrs["tensors"]
    layer.attrs["tensors"] = {**layer.attrs["tensors"], "in_scale": tensors["scale"], "in_add": tensors["add"]}
    layer.inputs[0] = before.inputs[0]
    graph.nodes.remove(before)


def _take_tanh(graph: Graph, layer: Node) -> None:
    after = graph.users()[layer.name]
    if len(after) == 1 and after[0].op == "aten" and after[0].attrs["call"] == TANH and after[0].shape == layer.shape:
        layer.attrs["tanh"] = True
        graph.nodes.remove(after[0])
        layer.name = after[0].name
