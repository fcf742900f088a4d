"""Ternary weight networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import ternary_code
from bitwright.fn.ste import ste
from bitwright.parts.options import check_word
from bitwright.parts.registry import part
from bitwright.parts.scale import filter_axes, kept_only, mean_abs, wide
from bitwright.types import Coded


@part("twn", "w")
class Twn(nn.Module):
    """Ternary weights {-a, 0, +a}: what is larger than 0.7 of the mean magnitude becomes its own mean.

    value     a if w > d, -a if w < -d, else 0;  d = delta * mean|w|, a = mean of |w| where |w| > d
    gradient  g, unchanged
    shape     [O, ...], any rank
    options   granularity="filter": d and a for each filter; "layer": for the tensor
    source    Li et al. 2016, arXiv 1605.04711, section 2; per filter as in Thinklab-SJTU/twns
    differs   a filter of zeros gives exactly 0, where the public code divides 0 by 0. The Caffe code works per layer;
              the authors' later code has 0.75 in one file and 0.7 in the other

    >>> Twn()(torch.tensor([[1.0, -3.0, 0.5, 0.0]])).tolist()
    [[2.0, -2.0, 0.0, 0.0]]
    """

    bits = planes = storage_bits = 2

    def __init__(self, granularity: str = "filter", delta: float = 0.7) -> None:
        super().__init__()
        if not delta >= 0:
            raise InputError(f"part twn: delta={delta!r}; it is 0 or more", code="option")
        self.granularity = check_word("twn", "granularity", granularity, ("filter", "layer"))
        self.delta = delta

    def levels(self, w: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(where +, where -, size [O, 1, ...] or [1, 1, ...])."""
        fixed = wide(kept_only(w.detach(), keep))
        d = self.delta * mean_abs(fixed, self.granularity, keep)
        up, down = fixed > d, fixed < -d
        axes = filter_axes(fixed, self.granularity)
        survivors = (up | down).to(fixed.dtype)
        total = torch.where(up | down, fixed.abs(), torch.zeros_like(fixed))
        if axes:  # sum over no axes would sum over all
            total, survivors = total.sum(axes, keepdim=True), survivors.sum(axes, keepdim=True)
        return up, down, (total / survivors.clamp_min(1)).to(w.dtype)

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        up, down, size = self.levels(w, keep)
        return ste(w, (up.to(w.dtype) - down.to(w.dtype)) * size)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        up, down, size = self.levels(w, keep)
        return ternary_code(up, down, size, size)

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        up, down, size = self.levels(w, keep)
        return up.to(w.dtype) - down.to(w.dtype), size
