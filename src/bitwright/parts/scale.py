"""Mean magnitude of weights, the scale of every 1-bit method, with a slope that never dies."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.fn.ste import sign


def wide(t: Tensor) -> Tensor:
    """float32 for half types, unchanged otherwise: sums over a filter are taken here."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def filter_axes(w: Tensor, granularity: str) -> tuple[int, ...]:
    """Axes to reduce over: all but the first for "filter", all for "layer"."""
    return tuple(range(1 if granularity == "filter" else 0, w.dim()))


def mean_abs(w: Tensor, granularity: str = "filter", keep: Tensor | None = None) -> Tensor:
    """mean|w| with keepdim, over kept entries only; [O, 1, ...] or [1, 1, ...].

    gradient  sign(w) / n with sign(0) = +1, where autograd of abs would give 0 and a zero filter would never recover.
    An empty or fully pruned filter gives 0.

    >>> mean_abs(torch.tensor([[1.0, -2.0, 3.0]])).item()
    2.0
    """
    axes = filter_axes(w, granularity)
    size = wide(w) * sign(wide(w).detach())
    if keep is None:
        count = max(1, w.numel() // max(1, w.shape[0])) if granularity == "filter" else max(1, w.numel())
        total = size.sum(axes, keepdim=True) if axes else size
        return (total / count).to(w.dtype)
    kept = keep.to(size.dtype)
    total = (size * kept).sum(axes, keepdim=True)
    return (total / kept.sum(axes, keepdim=True).clamp_min(1)).to(w.dtype)
