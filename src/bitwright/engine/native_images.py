"""What stands between layers, on images of floats that a kernel wrote: pooling, the mean of an image, shortcuts that step over it. On the
kernels too they stay in the run of their neighbors (`native_run`), which is then one call; torch's operators would give the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bitwright.engine.fuse_pools import float_window, pool_inside
from bitwright.engine.fuse_shortcuts import subsample_at_once
from bitwright.engine.graph import Graph, Node, ints
from bitwright.engine.native_codes import SMALL, pool_struct
from bitwright.engine.native_library import IMAGE_OPERATIONS, PoolStruct, SubsampleStruct
from bitwright.engine.native_run import Laid, Program
from bitwright.engine.rules import CODED


def image_kernels(graph: Graph) -> Graph:
    """A new graph, where such nodes behind a layer on the kernels are of `IMAGE_OPERATIONS`."""
    graph = subsample_at_once(pool_inside(graph))
    nodes, users = graph.by_name(), graph.users()
    for node in list(graph.nodes):
        source, pool = nodes[node.inputs[0]] if node.inputs else node, float_window(node)
        if not _on_kernels(source):
            continue
        if pool is not None:
            node.op, node.attrs["window"] = "avgpool_floats" if pool.average else "maxpool_floats", pool.window
        elif node.op == "subsample":
            node.op = "subsample_floats"
        elif node.op == "adaptive_avg_pool" and node.attrs["size"] == [1, 1]:
            node.op = "mean_floats"
            readers = users[node.name]
            if len(readers) == 1 and readers[0].op == "flatten" and len(readers[0].shape) == 1:
                graph.nodes.remove(node)  # an image of one pixel is a row already
                readers[0].op, readers[0].inputs = node.op, node.inputs
    return graph


def _on_kernels(source: Node) -> bool:
    """Whether a value is an image of floats that a kernel of ours writes."""
    images = source.op in (*IMAGE_OPERATIONS, "float_conv", "gated_conv") or (
        source.op in CODED and "emit" not in source.attrs
    )
    return images and len(source.shape) == 3


def lay_image(node: Node) -> Callable[[Program], None]:
    source = node.inputs[0]

    def lay(p: Program) -> None:
        n, h, w, c = p.laid[source].memory
        if node.op == "subsample_floats":
            (down, across), (low, high) = node.attrs["strides"], node.attrs["channel_pads"]
            struct = SubsampleStruct(n, h, w, c, down, across, low, high)
            memory = (n, -(-h // down), -(-w // across), low + c + high)
        elif node.op == "mean_floats":
            struct, memory = PoolStruct(n, h, w, c), (n, 1, 1, c)
        else:
            kernel, stride, padding, dilation, ceil = node.attrs["window"]
            pairs = (tuple(ints(of, 2)) for of in (kernel, stride or kernel, padding, dilation))
            struct = pool_struct((n, h, w, c), *pairs, bool(ceil))
            memory = (n, struct.oh, struct.ow, c)
        out = {"out": (node.name, Laid(memory, torch.float32))}
        p.add(node.op, struct, {"x": source}, out, alone=n * h * w * c < SMALL)

    return lay
