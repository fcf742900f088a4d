"""Float layers on the kernels: a `conv` over images or lines becomes a `float_conv`, and a residual add and a ReLU behind it
join it.

A sum of floats depends on its order, and codes behind it may: a value near a threshold falls to the other side. The kernels add
product by product, by fused multiplies and adds, and the C file does the same; in nets with codes a `linear` layer is such a layer too, so
that the answers have the same bits. Winograd's kernels have an order of their own.

Made from the fused graph for the native backend and for its operators in ONNX Runtime; what plain torch, standard ONNX and C see
stays as it is. Only where the kernel was measured to be at least as fast as torch's: bench/floats.py.
"""

from __future__ import annotations

from bitwright.engine import native_library, reference
from bitwright.engine.fuse import blind_below_zero, rename
from bitwright.engine.graph import Graph, Node
from bitwright.engine.sparse_linear import on_connections

ISAS = ("avx2", "avx512", "amx")  # others have no vector to hold a tile that pays
WEIGHTS = 1 << 20  # of a linear layer


def float_kernels(fused: Graph) -> Graph:
    """A new graph where some convolution may run so, else the same one."""
    codes = any(n.op == "quantize" for n in fused.nodes)
    if not here() or not any(fits(n, fused, codes) for n in fused.nodes):
        return fused
    graph = fused.copy()
    for layer in [n for n in graph.nodes if fits(n, graph, codes)]:
        if layer.op == "linear":  # a window of one pixel over one pixel
            layer.attrs.update(rank=0, stride=[], padding=[], dilation=[], groups=1)
        layer.op = "float_conv"
        take_add_and_relu(graph, layer)
    return graph


def here() -> bool:
    """Whether the kernel pays on the instruction set in use."""
    return native_library.available() and native_library.isa() in ISAS


def fits(node: Node, graph: Graph, codes: bool) -> bool:
    if node.op == "linear":
        small = codes and len(node.shape) == 1 and reference.stored_weight(graph, node).numel() <= WEIGHTS
        return small and not on_connections(node, graph)
    return node.op == "conv" and int(node.attrs["rank"]) <= 2 and int(node.attrs["groups"]) == 1


def take_add_and_relu(graph: Graph, layer: Node) -> None:
    """The layer also adds the other value of an add of equal shapes, its only reader, and is not below 0 where a ReLU follows.
    Quantizers that read it beside the ReLU, and cannot tell values below 0, read what is left."""
    after = graph.users()[layer.name]
    if len(after) == 1 and after[0].op == "add" and after[0].inputs[0] != after[0].inputs[1]:
        add = after[0]
        other = next(i for i in add.inputs if i != layer.name)
        # the layer moves to the place of the add: all that it reads is there
        if add.shape == layer.shape == graph.node(other).shape:
            graph.nodes.remove(layer)
            layer.inputs.append(other)
            graph.nodes[graph.nodes.index(add)] = layer
            layer.name = add.name
            after = graph.users()[layer.name]
    clips = [n for n in after if n.op == "relu"]
    if len(clips) == 1 and all(n is clips[0] or blind_below_zero(graph, n) for n in after):
        layer.attrs["relu"] = True
        graph.nodes.remove(clips[0])
        rename(graph, layer, clips[0].name)
