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


def steps_of(layer: Any) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution, padded as `padding_of` says; {} for a linear layer."""
    if isinstance(layer, nn.Linear):
        return {}
    steps = {"stride": list(layer.stride), "padding": padding_of(layer), "dilation": list(layer.dilation)}
    return {**steps, "groups": layer.groups}


def as_rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight with outputs first, as parts see it: [O, I/g, *kernel].

    >>> as_rows(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2).weight).shape
    torch.Size([6, 2, 3, 3])
    """
    return _swapped(weight, layer.groups) if getattr(layer, "transposed", False) else weight  # type: ignore[arg-type]


def from_rows(layer: nn.Module, rows: Tensor, groups: int | None = None) -> Tensor:
    """Back to the order of the operator; `groups` where they are not those of the layer."""
    if not getattr(layer, "transposed", False):
        return rows
    return _swapped(rows, layer.groups if groups is None else groups).contiguous()  # type: ignore[arg-type]


def _swapped(weight: Tensor, groups: int) -> Tensor:
    a, b, *kernel = weight.shape
    return weight.reshape(groups, a // groups, b, *kernel).transpose(1, 2).reshape(groups * b, a // groups, *kernel)


def _same(layer: nn.Module) -> list[int]:
    return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # type: ignore[arg-type]
