"""Float layers on their connections: such a `linear` becomes `connections`, and takes in what stands around it. An affine step before it
becomes part of its weights; a tanh of its inputs or of its sums, and an affine step behind them, are computed with it.

Around a layer that multiplies one weight in a thousand such steps take most of the time. For the native run alone; the weights are
joined in float64 and rounded once, so that answers differ from the separate steps by rounding.
"""

from __future__ import annotations

import torch

from bitwright.engine import reference
from bitwright.engine.fuse import LIMIT
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import bounds
from bitwright.engine.sparse_linear import INPUTS, SUMS, finite_input, is_tanh, joined_weights, on_connections


def joined_connections(graph: Graph) -> Graph:
    """A new graph where some layer runs so, else the same one."""
    layers = [n for n in graph.nodes if on_connections(n, graph)]
    if not layers:
        return graph
    largest = bounds(graph, LIMIT)
    names = [n.name for n in layers if finite_input(n, largest)]
    graph = graph.copy()
    made = [graph.node(name) for name in names]
    for layer in made:
        layer.op, layer.attrs["tanh"] = "connections", 0
        _take_before(graph, layer)
    for layer in made:
        _take_behind(graph, layer)
    return graph


def _take_before(graph: Graph, layer: Node) -> None:
    before = graph.node(layer.inputs[0])
    if before.op == "affine" and _only(graph, before):
        scale, add, weight = (
            graph.need(before, "scale"),
            graph.need(before, "add"),
            reference.stored_weight(graph, layer),
        )
        joined = joined_weights(weight, graph.tensor(layer, "bias"), scale, add)
        if all(bool(torch.isfinite(t).all()) for t in joined):
            _take_table(layer, before, "in")
            layer.inputs[0] = before.inputs[0]
            graph.nodes.remove(before)
            before = graph.node(layer.inputs[0])
    if is_tanh(before) and _only(graph, before):
        layer.attrs["tanh"] |= INPUTS
        layer.inputs[0] = before.inputs[0]
        graph.nodes.remove(before)


def _take_behind(graph: Graph, layer: Node) -> None:
    for step in ("tanh", "affine"):
        after = graph.users()[layer.name]
        if len(after) != 1 or after[0].shape != layer.shape:
            return
        if step == "tanh" and is_tanh(after[0]):
            layer.attrs["tanh"] |= SUMS
        elif step == "affine" and after[0].op == "affine":
            _take_table(layer, after[0], "out")
        else:
            continue
        graph.nodes.remove(after[0])
        layer.name = after[0].name


def _only(graph: Graph, node: Node) -> bool:
    return len(node.shape) == 1 and len(graph.users()[node.name]) == 1


def _take_table(layer: Node, affine: Node, place: str) -> None:
    tensors = affine.attrs["tensors"]
    taken = {f"{place}_scale": tensors["scale"], f"{place}_add": tensors["add"]}
    layer.attrs["tensors"] = {**layer.attrs["tensors"], **taken}
