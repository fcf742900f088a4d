"""What to write in the precision column of our own row."""

from __future__ import annotations

from typing import Any

from torch import nn

from bitwright.nn.layers import is_slot_layer


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
    for layer in source.modules():
        if is_slot_layer(layer) and layer.w is not None:
            key = bits_of(layer.w), bits_of(layer.x)
            weights[key] = weights.get(key, 0) + layer.weight.numel()
    if not weights:
        return "packed" if type(source).__module__.startswith("bitwright.engine") else "float"
    w, x = max(weights, key=lambda key: weights[key])
    if (w, x) == (1, 1):
        return "1 bit"
    return f"W{w or '?'}" + (f"A{x}" if x else "")


def bits_of(part: nn.Module | None) -> int | None:
    """The paper's bits of a part; of a chain, those of the link that has them."""
    if part is None:
        return None
    for candidate in (part, *part.children()):
        bits = getattr(candidate, "bits", None)
        if isinstance(bits, int):
            return bits
    return None
