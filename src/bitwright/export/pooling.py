"""Layers that pool what they compute: one operator where a net has a convolution, its codes, and a max-pooling of both."""

from __future__ import annotations

from typing import Any

from bitwright.engine.graph import Graph, Node, ints

MOST = 8  # pixels of a window's side, as the kernels have it


def pool_inside(graph: Graph) -> Graph:
    """A copy in which convolutions whose floats only a max-pooling reads do it themselves: `attrs["pool"]` is its window, and the
    codes beside the floats are those of the pooled floats, because a quantizer never falls as its input rises."""
    graph = graph.copy()
    users = graph.users()
    for layer in [n for n in graph.nodes if _fits(n)]:
        readers = [n for n in users[layer.name] if n.op != "emitted"]
        beside = layer.attrs.get("extra")
        coded = users[beside] if beside is not None else []
        if len(readers) != 1 or len(coded) != (beside is not None):
            continue
        if (cuts := graph.tensor(layer, "cuts")) is not None and len(cuts) > 1:
            continue
        pool, window = readers[0], _window(readers[0], "max_pool")
        if window is None or any(_window(n, "max_pool_codes") != window for n in coded):
            continue
        graph.nodes.remove(pool)
        layer.attrs["pool"], layer.attrs["shape"], layer.name = window, list(pool.shape), pool.name
        for node in coded:  # the value of codes takes the place of the pooling of codes
            graph.nodes.remove(node)
            emitted = graph.node(layer.attrs["extra"])
            emitted.name, emitted.inputs = node.name, [layer.name]
            emitted.attrs["shape"] = list(node.shape)
            layer.attrs["extra"] = node.name
    return graph


def _fits(layer: Node) -> bool:
    a = layer.attrs
    images = layer.op == "coded_conv" and len(layer.shape) == 3 and len(layer.inputs) == 1
    stepped = "grid" in a and a["grid"].kind == "step"
    return images and "emit" not in a and len(a["weight"]["terms"]) == 1 and not stepped


def _window(node: Node, op: str) -> dict[str, Any] | None:
    """The window as attributes of the operator, if `node` pools so and the kernels can."""
    if node.op != op or int(node.attrs["rank"]) != 2 or bool(node.attrs["ceil"]):
        return None
    kernel = ints(node.attrs["kernel"], 2)
    stride, pads = ints(node.attrs["stride"] or kernel, 2), ints(node.attrs["padding"], 2)
    square = all(len(set(pair)) == 1 for pair in (kernel, stride, pads))
    if not square or set(ints(node.attrs["dilation"], 2)) != {1} or max(kernel[0], stride[0]) > MOST:
        return None
    return {"pool_kernel": kernel, "pool_strides": stride, "pool_pads": [*pads, *pads]}
