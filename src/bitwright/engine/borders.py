"""What the constant part of a layer's input adds, at the borders of an image and inside."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def tap_sums(values: Tensor, x_zero: int | Sequence[int] | Tensor, groups: int) -> Tensor:
    """int64 [O, kh, kw]: what the input constant x_zero (one, or one a channel) adds at each tap of the weight
    [O, C / groups, kh, kw]."""
    outputs, per_group = values.shape[:2]
    zero = torch.as_tensor(x_zero).to(torch.int64).expand(per_group * groups)
    of_output = torch.arange(outputs) * groups // max(outputs, 1)
    return (values.to(torch.int64) * zero.reshape(groups, per_group)[of_output, :, None, None]).sum(1)


@functools.lru_cache(4096)
def border_classes(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Which taps are inside the image: the distinct cases `[classes, kernel]`, and each output's case."""
    at = torch.arange(out)[:, None] * stride - pad + torch.arange(kernel) * dilation
    cases, which = torch.unique((at >= 0) & (at < size), dim=0, return_inverse=True)
    return cases.to(torch.int64), which.to(torch.int32).contiguous()


def corrections(sums: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """int64 [row classes, column classes, O]: the sum over the taps that each class has inside the image."""
    return torch.einsum("rk,cl,okl->rco", rows, cols, sums)
