"""Sums of products of whole numbers, exact whatever the order in which a machine adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.fn.kernels import readable

FLOAT32_EXACT = 1 << 24  # whole numbers up to this are exact in float32
HALF = (torch.float16, torch.bfloat16)


def whole_op(op: Callable[..., Tensor], weights: Tensor, round_once: bool = True) -> Callable[..., Tensor]:
    """The operator `op(x, w, b)` for whole numbers: it computes in float32 (float64 for double inputs), whatever type
    autocast would take. Where a sum might pass 2^24 it computes in float64 and rounds once; without `round_once` such sums
    stay float64. Under a compiler or a transform, which cannot look at values, it computes in float32.

    weights   [O, ...], what one output sums: they bound its sums. The operator may get parts of them, in its own layout

    >>> w = torch.tensor([[4096.0, 4096.0, 1.0]])
    >>> whole_op(torch.nn.functional.linear, w)(torch.tensor([[4096.0, -4096.0, 1.0]]), w, None).item()
    1.0
    """
    size = weights.detach().abs().flatten(1).sum(1).amax() if weights.numel() else weights.new_zeros(())

    def exact(x: Tensor, w: Tensor, b: Tensor | None, **kw: Any) -> Tensor:
        kind = torch.float32 if x.dtype in HALF else x.dtype
        wide = torch.float64 if kind == torch.float32 and _may_pass(x, size) else kind
        with torch.autocast(x.device.type, enabled=False):
            y = op(x.to(wide), w.to(wide), b, **kw)
            return y.to(kind) if round_once else y

    return exact


def _may_pass(x: Tensor, size: Tensor) -> bool:
    """Whether a sum may leave the whole numbers of float32."""
    if not (readable(x) and readable(size) and x.device.type in ("cpu", "cuda") and x.numel()):
        return False
    return float(x.detach().abs().amax()) * float(size) > FLOAT32_EXACT
