"""Binary Weight Networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import sign_code, ternary_code
from bitwright.fn.fast import binary_weight
from bitwright.fn.ste import sign, ste
from bitwright.parts.options import check_compat
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
              A filter of zeros keeps the second term, so it recovers. compat="seed": sign(0) = 0, a third value; a is
              constant and the gradient g * 1[|w| <= a], so that weights larger than the mean never move; Linear layers
              have one a; latents are not clipped

    >>> Bwn()(torch.tensor([[1.0, -2.0, 3.0]])).tolist()
    [[2.0, -2.0, 2.0]]
    """

    bits = planes = storage_bits = 1
    projects = True  # after_step twice is after_step once

    def __init__(self, granularity: str = "filter", compat: str | None = None) -> None:
        super().__init__()
        if granularity not in ("filter", "layer"):
            raise InputError(f"part bwn: granularity={granularity!r} is neither filter nor layer", code="option")
        self.granularity, self.seed = granularity, check_compat("bwn", compat)
        if self.seed:
            self.planes = self.storage_bits = 2

    @classmethod
    def for_layer(cls, layer: nn.Module, granularity: str = "filter", compat: str | None = None) -> Bwn:
        latent = weight_of(layer)
        if latent is not None and granularity == "filter":
            warn_flat("bwn", layer, latent, latent)
        return cls(granularity, compat)

    def offers(self, moment: str) -> bool:
        return not (self.seed and moment == "after_step")

    def scale(self, w: Tensor, keep: Tensor | None) -> Tensor:
        """a of the docstring, [O, 1, ...] or [1, 1, ...]."""
        return mean_abs(w, "layer" if self.seed and w.dim() == 2 else self.granularity, keep)

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.seed:
            fixed = w.detach()
            scale = self.scale(fixed, keep)
            return ste(w, scale * torch.sign(fixed), fixed.abs() <= scale)
        fast = binary_weight(w, "exact", self.granularity == "layer") if keep is None else None
        if fast is not None:
            return fast
        scale = self.scale(w, keep)
        return scale * ste(w, sign(w), w.detach().abs() <= 1)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        size = self.scale(w.detach(), keep)
        return ternary_code(w > 0, w < 0, size, size) if self.seed else sign_code(w, size)

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fixed = w.detach()
        return torch.sign(fixed) if self.seed else sign(fixed), self.scale(fixed, keep)

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        weight.clamp_(-1, 1)
