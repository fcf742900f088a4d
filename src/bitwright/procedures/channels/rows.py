"""Weights with outputs first, whatever their operator's order is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def as_rows(layer: Any, weight: Tensor) -> Tensor:
    """[O, I/g, *kernel] of a weight.

    >>> import torch
    >>> as_rows(nn.ConvTranspose2d(4, 6, 3, groups=2), torch.zeros(4, 3, 3, 3)).shape
    torch.Size([6, 2, 3, 3])
    """
    return _swapped(weight, layer.groups) if getattr(layer, "transposed", False) else weight


def from_rows(layer: Any, rows: Tensor, groups: int) -> Tensor:
    """Back to the order of the operator, for so many groups."""
    return _swapped(rows, groups).contiguous() if getattr(layer, "transposed", False) else rows


def _swapped(weight: Tensor, groups: int) -> Tensor:
    a, b, *kernel = weight.shape
    return weight.reshape(groups, a // groups, b, *kernel).transpose(1, 2).reshape(groups * b, a // groups, *kernel)


def has_border(layer: Any) -> bool:
    """Whether outputs at the border see zeros, or fewer inputs, in place of what the layer reads elsewhere."""
    if isinstance(layer, nn.Linear):
        return False
    if getattr(layer, "transposed", False):
        return True
    padding = layer.padding
    none = padding == "valid" or (not isinstance(padding, str) and not any(padding))
    if padding == "same":
        none = all(k == 1 for k in layer.kernel_size)
    return layer.padding_mode == "zeros" and not none
