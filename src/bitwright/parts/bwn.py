"""Binary Weight Networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import sign_code
from bitwright.fn.ste import sign, ste
from bitwright.parts.registry import part
from bitwright.parts.scale import mean_abs, warn_flat, weight_of
from bitwright.types import Coded


@part("bwn", "w")
class Bwn(nn.Module):
    """Binary weights {-a, +a}, a = mean|w| per filter.

    value     a * sign(w), a = mean|w| over each filter (granularity="layer": over the tensor)
    gradient  dw_i = a g_i 1[|w_i| <= 1] + sign(w_i) / n * sum_j g_j sign(w_j): exact through a, clipped through sign
    shape     [O, ...], any rank; n = weights of one filter
    moments   after_step clips the latent to [-1, 1]
    source    Rastegari et al. 2016, arXiv 1603.05279, section 3.1
    differs   the paper prints the second term without its sum (a weight seen alone); this is the full derivative.
              A filter of zeros keeps the second term, so it recovers

    >>> Bwn()(torch.tensor([[1.0, -2.0, 3.0]])).tolist()
    [[2.0, -2.0, 2.0]]
    """

    bits = 1
    planes = 1
    storage_bits = 1
    projects = True  # after_step twice is after_step once

    def __init__(self, granularity: str = "filter") -> None:
        super().__init__()
        if granularity not in ("filter", "layer"):
            raise InputError(f"part bwn: granularity={granularity!r} is neither filter nor layer", code="option")
        self.granularity = granularity

    @classmethod
    def for_layer(cls, layer: nn.Module, granularity: str = "filter") -> Bwn:
        latent = weight_of(layer)
        if latent is not None and granularity == "filter":
            warn_flat("bwn", layer, latent, latent)
        return cls(granularity)

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        scale = mean_abs(w, self.granularity, keep)
        return scale * ste(w, sign(w), w.detach().abs() <= 1)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        return sign_code(w, mean_abs(w.detach(), self.granularity, keep))

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sign(w.detach()), mean_abs(w.detach(), self.granularity, keep)

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        weight.clamp_(-1, 1)
