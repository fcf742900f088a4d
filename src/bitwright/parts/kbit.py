"""The k-bit grid on [-1, 1] of the hybrid nets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.fn.coded import uint_code
from bitwright.fn.fast import odd_grid
from bitwright.fn.plain import odd_levels
from bitwright.fn.ste import sign, ste
from bitwright.parts.bits import check_bits
from bitwright.parts.options import check_coded, check_compat, check_word
from bitwright.parts.registry import part
from bitwright.parts.scale import centered, filter_axes, kept_only, mean_abs, weight_of, wide
from bitwright.types import Coded, scalar

WEIGHT_SCALES = ("none", "max", "std", "lsq")


@part("kbit", "w", "x")
class Kbit(nn.Module):
    """2^k odd levels on [-1, 1], no zero among them; as a weight times the mean magnitude of its filter.

    value     x: q(x) = (2 u - n) / n, n = 2^k - 1, u = floor((clip(x, -1, 1) + 1) / 2 n + 1/2), so x = 0 counts as plus;
              w: a q(w / r), a = mean|w| of the filter, r by `weight_scale`: "none" 1, "max" the largest |w| of the filter,
              "std" twice its root mean square; "lsq": s n q(w / (s n)) with one learned `.step` s
    gradient  x: g where |x| <= 1, else 0;
              w: a g / r where |w| <= r, + sign(w_i) / n_o sum_j g_j q_j through a (r is taken as constant);
              "lsq": g where |w| <= s n, ds = sum g (2 u - n - w / s inside, +-n outside) / sqrt(N n), N = weights
    shape     any; weights [O, ...]
    options   clip=False: the public code's unbounded grid, gradient g; it has no codes
    moments   after_step (weights): minus the mean over the input channels, then clip to [-1, 1]
    source    Chakraborty et al. 2019, arXiv 1906.01493; the pca-hybrid code
    differs   ties round up (that code rounds them as its torch does). With weight_scale="none" ordinary weights lie below
              2/3, so 2 bits behave like one: take max, std or lsq. compat="seed": weight gradients follow XNOR-Net's rule
              times (1 - 1/I) n_o, as there

    >>> Kbit(bits=2, slot="x")(torch.tensor([-5.0, -0.5, 0.0, 0.8]).double()).round(decimals=3).tolist()
    [-1.0, -0.333, 0.333, 1.0]
    >>> Kbit(bits=1)(torch.tensor([[1.0, -3.0]])).tolist()
    [[2.0, -2.0]]
    """

    step: nn.Parameter
    bits_range = "1-8"
    signed = True

    def __init__(
        self,
        bits: int = 2,
        clip: bool = True,
        weight_scale: str = "none",
        compat: str | None = None,
        *,
        slot: str = "w",
    ) -> None:
        super().__init__()
        self.bits = self.planes = self.storage_bits = check_bits("kbit", bits)
        self.clip, self.slot, self.top = clip, slot, 2**bits - 1
        self.weight_scale = check_word("kbit", "weight_scale", weight_scale, WEIGHT_SCALES)
        self.seed = check_compat("kbit", compat)
        self.learned = slot == "w" and weight_scale == "lsq"
        if not clip:
            self.planes, self.storage_bits = None, 32
        if self.learned:
            self.step = nn.Parameter(torch.tensor(1 / self.top))

    @classmethod
    def for_layer(cls, layer: nn.Module, **options: Any) -> Kbit:
        new = cls(**options)
        weight = weight_of(layer)
        if weight is not None:
            new.to(weight.device)
            if new.learned and weight.device.type != "meta" and weight.numel():
                with torch.no_grad():  # the grid then ends at 2 mean|w| for 2 bits, and farther out for more bits
                    step = wide(weight).abs().mean() * (math.sqrt(new.top + 1) / new.top)
                    new.step.copy_(torch.where(step > 0, step, new.step))
        return new

    def offers(self, moment: str) -> bool:
        if moment == "after_step":
            return self.slot == "w"
        return self.clip or moment not in ("encode", "whole")

    # -- the grid -------------------------------------------------------------------------------------------------
    def _odd(self, place: Tensor) -> Tensor:
        """Odd whole numbers 2 u - n of places on [-1, 1]."""
        if self.clip:
            place = place.clamp(-1.0, 1.0)
        return odd_levels(place, self.top)

    def _reach(self, fixed: Tensor, keep: Tensor | None) -> Tensor:
        """r of the docstring, [O, 1, ...] or a scalar; never 0."""
        if self.learned:
            return wide(self.step.detach()).abs().clamp_min(torch.finfo(torch.float32).tiny) * self.top
        if self.weight_scale == "none" or not fixed.numel():
            return fixed.new_ones(())
        axes = filter_axes(fixed, "filter")
        if self.weight_scale == "max":
            reach = kept_only(fixed, keep).abs().amax(axes, keepdim=True) if axes else fixed.abs()
        else:
            reach = 2 * mean_abs(kept_only(fixed, keep).square(), "filter", keep).sqrt()
        return torch.where(reach > 0, reach, torch.ones_like(reach))

    def _weight(self, w: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(w / r, odd numbers, size of one), without a graph."""
        fixed = wide(w.detach())
        reach = self._reach(fixed, keep)
        place = fixed / reach
        size = reach if self.learned else mean_abs(fixed, "filter", keep)
        return place, self._odd(place), size / self.top

    # -- the value ------------------------------------------------------------------------------------------------
    def forward(self, t: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.slot == "x":
            if self.clip:
                return odd_grid(t, self.top)
            return ste(t, self._odd(wide(t.detach())) * (1 / self.top))
        place, odd, unit = self._weight(t, keep)
        inside = place.abs() <= 1
        if self.learned:
            return self._learned(t, place, odd, unit, inside)
        latent = wide(t)
        if self.seed:
            factor = scalar((1 - 1 / t.shape[1]) * math.prod(t.shape[1:]), latent)
            latent = ste(latent, latent.detach(), factor)
            binary = mean_abs(latent, "filter", keep) * ste(latent, sign(latent.detach()), inside)
            return ste(binary, odd * unit).to(t.dtype)
        slope = (inside if self.clip else torch.ones_like(inside)) * (self.top / self._reach(latent.detach(), keep))
        return (mean_abs(latent, "filter", keep) / self.top * ste(latent, odd, slope)).to(t.dtype)

    def _learned(self, w: Tensor, place: Tensor, odd: Tensor, unit: Tensor, inside: Tensor) -> Tensor:
        value = ste(w, odd * unit, inside if self.clip else None)
        pull = torch.where(inside, odd - place * self.top, odd) / math.sqrt(max(1, w.numel()) * self.top)
        step = wide(self.step)
        size = ste(step, step.detach().abs(), sign(step.detach()))
        return value + ste(size.expand(w.shape), torch.zeros_like(pull), pull).to(w.dtype)

    def _codes(self, t: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """(odd numbers, size of one)."""
        if self.slot == "x":
            return self._odd(wide(t.detach())), scalar(1 / self.top, wide(t))
        _, odd, unit = self._weight(t, keep)
        return odd, unit

    def encode(self, t: Tensor, keep: Tensor | None = None) -> Coded:
        check_coded(self, "clip=False has a grid without ends")
        odd, unit = self._codes(t, keep)
        code = (torch.nan_to_num(odd, nan=-self.top) + self.top) / 2
        return uint_code(code, self.bits, 2 * unit, -self.top * unit)

    def whole(self, t: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        odd, unit = self._codes(t, keep)
        return odd.to(t.dtype), unit

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        weight.copy_(centered(weight, keep).clamp(-1, 1))
