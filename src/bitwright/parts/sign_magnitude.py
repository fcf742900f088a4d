"""The uniform grid of dnn-gating: b bits of magnitude and a sign beside them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.fn.coded import sign_code, uint_code
from bitwright.fn.ste import ste
from bitwright.parts.bits import check_bits
from bitwright.parts.options import check_coded, check_compat, check_word
from bitwright.parts.registry import part
from bitwright.parts.scale import kept_only, weight_of, wide
from bitwright.types import Coded, scalar

FOLLOW = 0.1  # share of the way to the maximum of each training batch


@part("sign_magnitude", "w", "x")
class SignMagnitude(nn.Module):
    """b magnitude bits and a sign: 2^(b+1) - 1 levels, so b + 1 true bits.

    value     m s sign(t), m = round(clip(|t| / s, 0, 1) (2^b - 1)) / (2^b - 1), s the largest magnitude
    gradient  g where |t| <= s, else 0
    shape     any; s one number per tensor
    options   scale: where s comes from. Weights: "max" is read off the weight each time, "static" is kept from the start or
              the last calibration. Inputs: "max" follows the maxima of training batches (a tenth of the way each), since
              one outlier would leave two bits nothing but zeros; "static" is set by calibration alone (the first training
              batch, without calibration). "batch_max" is the maximum of the tensor itself, in evaluation too: a result
              then depends on its batch, so inputs have no codes
    moments   observe: the largest magnitude of calibration batches
    source    cornell-zhang/dnn-gating, utils: the quantizer under precision gating (Zhang et al. 2020, arXiv 2002.07136)
    differs   bits is the paper's b; planes and storage_bits are b + 1. compat="seed": s has 1e-7 added, the gradient is g
              everywhere but 0 where t is 0; b = 1 gives -1 or +1 (0 gives -1) with gradient g; weights: value and
              gradient times sqrt(1 / n), n = weights of a filter (the code counts the inputs of all groups)

    >>> SignMagnitude(bits=2)(torch.tensor([3.0, -1.4, 0.2])).tolist()
    [3.0, -1.0, 0.0]
    """

    high: Tensor
    seen: Tensor
    bits_range = "1-8"
    signed = True
    fits_nonnegative = (
        True  # behind a ReLU, as in dnn-gating, all 2^b magnitudes are in use and only the sign bit is unused
    )

    def __init__(self, bits: int = 4, scale: str = "max", compat: str | None = None, *, slot: str = "w") -> None:
        super().__init__()
        self.bits = check_bits("sign_magnitude", bits)
        self.scale = check_word("sign_magnitude", "scale", scale, ("max", "static", "batch_max"))
        self.slot, self.seed = slot, check_compat("sign_magnitude", compat)
        self.binary = self.seed and bits == 1
        self.planes = self.storage_bits = 1 if self.binary else bits + 1
        if not self.offers("encode"):
            self.planes, self.storage_bits = None, 32
        self.top = 2**bits - 1
        self.kept = scale == "static" or (slot == "x" and scale == "max")  # s is state, not a property of the tensor
        if self.kept:
            self.register_buffer("high", torch.ones(()))
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # batches seen so far; 0 = a guess

    @classmethod
    def for_layer(cls, layer: nn.Module, *, slot: str = "w", **options: Any) -> SignMagnitude:
        new = cls(**options, slot=slot)
        weight = weight_of(layer)
        if weight is not None:
            new.to(weight.device)
            if slot == "w" and weight.device.type != "meta":
                new.observe(weight)
        return new

    def offers(self, moment: str) -> bool:
        """No codes where a sample's grid depends on its batch."""
        loose = self.slot == "x" and self.scale == "batch_max" and not self.binary
        return not (loose and moment in ("encode", "whole"))

    # -- the scale ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def observe(self, t: Tensor) -> None:
        self._note(t, 1.0)

    def _note(self, t: Tensor, rate: float) -> None:
        """Moves s towards the peak of t by `rate`; 1 only widens, 0 only if nothing was seen before. A peak that is not
        finite changes nothing. No branch on data."""
        if not self.kept or not t.numel():
            return
        peak = t.detach().abs().max().to(self.high.dtype)
        fresh = (self.seen == 0) | (self.slot == "w")
        later = torch.maximum(self.high, peak) if rate == 1 else self.high + rate * (peak - self.high)
        wider = torch.where(fresh, peak, later)
        fits = torch.isfinite(peak)
        self.high.copy_(torch.where(fits, wider, self.high))
        self.seen.add_(fits.to(self.seen.dtype))

    def _grid(self, t: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(t as the grid sees it, its whole number, size of one, s), without a graph."""
        fixed = wide(kept_only(t.detach(), keep))
        if self.kept:
            size = wide(self.high)
        else:
            size = fixed.abs().max() if fixed.numel() else fixed.new_zeros(())
        if self.seed:
            size = size + 1e-7
        unit = torch.where(size > 0, size / self.top, torch.ones_like(size))
        return fixed, (fixed / unit).round().clamp(float(-self.top), float(self.top)), unit, size

    def _one_bit(self, t: Tensor) -> Tensor:
        return scalar(math.sqrt(1 / max(1, math.prod(t.shape[1:]))) if self.slot == "w" else 1.0, t)

    # -- the value ------------------------------------------------------------------------------------------------
    def forward(self, t: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.training and self.slot == "x":
            self._note(t, FOLLOW if self.scale == "max" else 0.0)
        if self.binary:
            plus = torch.where(t.detach() > 0, 1.0, -1.0).to(t.dtype) + 0 * t.detach().clamp(-1.0, 1.0)  # NaN stays
            scale = self._one_bit(t)
            return ste(t, plus * scale, scale)
        fixed, code, unit, size = self._grid(t, keep)
        return ste(t, code * unit, fixed != 0 if self.seed else fixed.abs() <= size)

    def encode(self, t: Tensor, keep: Tensor | None = None) -> Coded:
        check_coded(self, 'scale="batch_max" makes the grid of an input depend on its batch')
        if self.binary:
            return sign_code(torch.where(t.detach() > 0, 1.0, -1.0), self._one_bit(t))
        _, code, unit, _ = self._grid(t, keep)
        code = torch.nan_to_num(code, nan=-self.top) + self.top
        return uint_code(code, self.bits + 1, unit, -self.top * unit)

    def whole(self, t: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.binary:
            return torch.where(t.detach() > 0, 1.0, -1.0).to(t.dtype), self._one_bit(t)
        _, code, unit, _ = self._grid(t, keep)
        return code.to(t.dtype), unit
