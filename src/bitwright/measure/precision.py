"""What to write in the precision column of our own row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from bitwright.nn.layers import is_slot_layer
from bitwright.parts.traits import traits_of


def precision_of(given: Any) -> str:
    """`1 bit`, `W1A2`, `W1` (float inputs) or `float`: that of the layers that hold most of the coded weights.

    >>> from bitwright.nn import Conv2d
    >>> precision_of(Conv2d(64, 64, 3, w="bwn", x="sign")), precision_of(Conv2d(8, 8, 3))
    ('1 bit', 'float')
    """
    source = getattr(given, "source", None) or given
    if not isinstance(source, nn.Module):
        return "1 bit"
    weights: dict[tuple[int | None, int | None], int] = {}
    for key, count in _coded(source):
        weights[key] = weights.get(key, 0) + count
    if not weights:
        return "float"
    w, x = max(weights, key=lambda key: weights[key])
    if (w, x) == (1, 1):
        return "1 bit"
    return f"W{w or '?'}" + (f"A{x}" if x else "")


def _coded(model: nn.Module) -> Iterator[tuple[tuple[int | None, int | None], int]]:
    """((bits of weights, of inputs), how many weights) per coded layer; of a packed net from its graph."""
    from bitwright.engine.packed import PackedModel  # whose report is written with numbers of this package

    for layer in model.modules():
        if isinstance(layer, PackedModel):  # a packed net, or one packed layer's program
            yield from _of_graph(layer.graph)
        if is_slot_layer(layer) and layer.w is not None:
            yield (bits_of(layer.w), bits_of(layer.x)), layer.weight.numel()


def _of_graph(graph: Any) -> Iterator[tuple[tuple[int | None, int | None], int]]:
    nodes = graph.by_name()
    for node in graph.nodes:
        if node.key("bits"):
            coded = node.op.startswith("coded")
            levels = int(nodes[node.inputs[0]].attrs["levels"]) if coded else 0
            weight = node.attrs["weight"]
            yield (int(weight["planes"]), levels.bit_length() or None), math.prod(weight["shape"])


def bits_of(part: nn.Module | None) -> int | None:
    """The paper's bits of a part; of a chain, those of the link that has them."""
    if part is None:
        return None
    for candidate in (part, *part.children()):
        bits = traits_of(candidate).bits
        if isinstance(bits, int):
            return bits
    return None
