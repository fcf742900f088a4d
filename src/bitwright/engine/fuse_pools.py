"""Poolings of images of floats: what the kernels can do, and layers that pool what they compute, one operator where a net has a
convolution, its codes, and a max-pooling of both."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.engine.graph import Graph, Node, ints

MOST = 8  # pixels of a window's side, as the kernels have it


@dataclass(frozen=True)
class FloatWindow:
    """kernel, stride, padding, dilation (lists as ATen has them, stride may be empty), and whether a last window may stand out."""

    average: bool
    window: tuple[list[int], list[int], list[int], list[int], bool]


def float_window(node: Node) -> FloatWindow | None:
    """The window of a pooling of images of floats that our operators can do, else None."""
    a = node.attrs
    if len(node.shape) != 3:
        return None
    if node.op == "max_pool":
        return FloatWindow(False, (a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"]))
    if node.op != "aten" or a["call"] != "avg_pool2d.default":
        return None
    given = a["args"]
    padding, known = given.get("padding", [0]), {"self", "kernel_size", "stride", "padding", "count_include_pad"}
    if not set(given) <= known or (any(padding) and given.get("count_include_pad", True)):
        return None  # windows cut off at the border, or a divisor of the caller's
    return FloatWindow(True, (given["kernel_size"], given.get("stride", []), padding, [1], False))


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


def _window(node: Node, op: str) -> tuple[int, int, int] | None:
    """(side, stride, padding) of its window, if `node` pools so and the kernels can."""
    if node.op != op or int(node.attrs["rank"]) != 2 or bool(node.attrs["ceil"]):
        return None
    kernel = ints(node.attrs["kernel"], 2)
    stride, pads = ints(node.attrs["stride"] or kernel, 2), ints(node.attrs["padding"], 2)
    square = all(len(set(pair)) == 1 for pair in (kernel, stride, pads))
    if not square or set(ints(node.attrs["dilation"], 2)) != {1} or max(kernel[0], stride[0]) > MOST:
        return None
    return kernel[0], stride[0], pads[0]
