"""The decision of a gate: 0 or 1, with a slope to learn from."""

from __future__ import annotations

import torch
from torch import Tensor


def gate(v: Tensor, slope: float, sparse: bool = False) -> Tensor:
    """1 where v > 0, else 0; the gradient is that of sigmoid(slope v), the exact bump slope s (1 - s).

    sparse   the gradient passes only where v >= 0: what a gate skips is then never needed, in backward either
    NaN      stays NaN: neither on nor off

    The value is exactly 0 or 1: the soft term is subtracted from itself before it meets the hard one.

    >>> v = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    >>> on = gate(v, 2.0, sparse=True)
    >>> on.tolist()
    [0.0, 0.0, 1.0]
    >>> on.sum().backward()
    >>> [round(g, 3) for g in v.grad.tolist()]
    [0.0, 0.5, 0.21]
    """
    soft = torch.sigmoid(slope * v)
    bump = soft - soft.detach()
    if sparse:
        bump = bump * (v >= 0).to(v.dtype)
    return (v > 0).to(v.dtype) + bump
