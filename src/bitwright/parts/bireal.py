"""Bi-Real Net weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.fn.coded import sign_code
from bitwright.fn.fast import binary_weight
from bitwright.fn.ste import sign, ste
from bitwright.parts.registry import part
from bitwright.parts.scale import mean_abs
from bitwright.types import Coded


@part("bireal", "w")
class Bireal(nn.Module):
    """Binary weights {-a, +a} with a detached scale a = mean|w| per filter.

    value     a * sign(w)
    gradient  g * 1[|w| <= 1], without the factor a (the public code puts clip(w, -1, 1) in the backward pass)
    shape     [O, ...], any rank
    options   clip=True clips latents to [-1, 1] after each step: beyond 1 no gradient would bring them back
    source    Liu et al. 2018, arXiv 1808.00278; liuzechun/Bi-Real-net, pytorch_implementation
    differs   the public code does not clip; the paper's magnitude-aware gradient carries a, its code does not

    >>> Bireal()(torch.tensor([[1.0, -2.0, 3.0]])).tolist()
    [[2.0, -2.0, 2.0]]
    """

    bits = planes = storage_bits = 1
    projects = True  # after_step twice is after_step once

    def __init__(self, clip: bool = True) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        fast = binary_weight(w, "clip") if keep is None else None
        if fast is not None:
            return fast
        fixed = w.detach()
        return ste(w, mean_abs(fixed, "filter", keep) * sign(fixed), fixed.abs() <= 1)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        return sign_code(w, mean_abs(w.detach(), "filter", keep))

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sign(w.detach()), mean_abs(w.detach(), "filter", keep)

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        if self.clip:
            weight.clamp_(-1, 1)
