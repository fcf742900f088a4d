"""A layer's kind, sizes and padding, as messages name them and as kernels take them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def describe(layer: nn.Module) -> str:
    """`Conv2d 64>64 3x3`, as messages name a layer."""
    weight = getattr(layer, "weight", None)
    kind = type(layer).__name__
    if not isinstance(weight, Tensor):
        return kind
    if isinstance(layer, nn.Linear):
        return f"{kind} {weight.shape[1]}>{weight.shape[0]}"
    size = "x".join(str(k) for k in weight.shape[2:])
    return f"{kind} {getattr(layer, 'in_channels', '?')}>{getattr(layer, 'out_channels', '?')} {size}"


def padding_of(layer: nn.Module) -> list[int]:
    """Zero padding of both sides as ints. "same" with an even kernel pads one less on the left: see `crop_of`."""
    padding: Any = getattr(layer, "padding", 0)
    if padding == "valid":
        return [0] * len(layer.kernel_size)  # type: ignore[arg-type]
    return [(t + 1) // 2 for t in _same(layer)] if padding == "same" else [int(p) for p in padding]


def crop_of(layer: nn.Module) -> list[int]:
    """How many results in front are too many, per axis, where `padding_of` pads one more than the layer does."""
    return [t % 2 for t in _same(layer)] if getattr(layer, "padding", 0) == "same" else []


def _same(layer: nn.Module) -> list[int]:
    return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # type: ignore[arg-type]
