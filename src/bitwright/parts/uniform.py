"""Plain uniform quantization to b true bits, with its observers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import uint_code
from bitwright.fn.kernels import readable
from bitwright.fn.ste import ste
from bitwright.parts.bits import check_bits
from bitwright.parts.ranges import OBSERVERS, limits, rows
from bitwright.parts.registry import part
from bitwright.parts.scale import kept_only, wide, width_of
from bitwright.types import Coded


@part("uniform", "w", "x")
class Uniform(nn.Module):
    """b-bit uniform grid: value = step * integer, the integer clipped to b bits.

    value     signed, symmetric: step * clip(round(t / step), -m, m), m = 2^(b-1) - 1, step = max|t| / m;
              unsigned: step * clip(round(t / step), 0, 2^b - 1), step = max(t) / (2^b - 1);
              symmetric=False: step * (clip(round(t / step) + z, 0, 2^b - 1) - z), z the integer zero point
    gradient  g where the rounded integer needs no clipping (so half a step beyond the ends), 0 elsewhere
    shape     w [O, ...]; x [N, C, ...], or [..., C] before a Linear layer; granularity="channel" gives one step
              per axis-0 row of w, per channel of x
    moments   observe: inputs keep their range in buffers `low`, `high`. "max" keeps the largest seen, "ema" averages with
              momentum 0.1 (training batches count too), "percentile" drops the top 0.1 %, "mse" takes the
              range of least rounding error. The first training batch sets a range that was not calibrated.
              Weights need none: their range is read off the weight itself, each time
    source    Krishnamoorthi 2018, arXiv 1806.08342, sections 2.1 and 3.1
    differs   the symmetric grid leaves out -2^(b-1), so that +max and -max are both exact

    >>> Uniform(bits=3, slot="w")(torch.tensor([[3.0, -1.2, 0.4]])).tolist()
    [[3.0, -1.0, 0.0]]
    """

    low: Tensor
    high: Tensor
    seen: Tensor
    bits_range = "1-8"

    def __init__(
        self,
        bits: int = 8,
        signed: bool | None = None,
        symmetric: bool = True,
        granularity: str = "tensor",
        observer: str = "max",
        *,
        slot: str = "w",
    ) -> None:
        super().__init__()
        self.bits = self.planes = self.storage_bits = check_bits("uniform", bits)
        self.signed = (slot == "w") if signed is None else signed
        if granularity not in ("tensor", "channel"):
            raise InputError(f"part uniform: granularity={granularity!r} is neither tensor nor channel", code="option")
        if observer not in OBSERVERS:
            raise InputError(f"part uniform: observer={observer!r} is none of {', '.join(OBSERVERS)}", code="option")
        if slot == "w" and observer == "ema":
            raise InputError(
                "part uniform: observer='ema' serves inputs; weights take max, percentile or mse", code="option"
            )
        if self.signed and symmetric and bits == 1:
            raise InputError(
                "part uniform: bits=1 signed has only the level 0; use bwn or sign", code="bits", given="1"
            )
        self.symmetric, self.granularity, self.observer, self.slot = symmetric, granularity, observer, slot
        self.last = False
        if slot == "x":
            self.register_buffer("low", torch.full((1,), -1.0 if self.signed else 0.0))
            self.register_buffer("high", torch.ones(1))
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # batches seen so far; 0 = a guess

    @classmethod
    def for_layer(cls, layer: nn.Module, *, slot: str = "w", **options: Any) -> Uniform:
        new = cls(**options, slot=slot)
        if slot == "x":
            width = width_of(layer)
            new.last = isinstance(layer, nn.Linear)
            if new.granularity == "channel" and isinstance(width, int):
                new.low, new.high = new.low.expand(width).clone(), new.high.expand(width).clone()
            new.to(next(layer.parameters()).device)
        return new

    @property
    def levels(self) -> int:
        """Points of the grid."""
        return 2**self.bits - 1 if self.signed and self.symmetric else 2**self.bits

    # -- ranges ---------------------------------------------------------------------------------------------------
    def _measure(self, t: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        per_channel = self.granularity == "channel"
        if self.slot == "x" and per_channel:
            t = t.movedim(-1 if self.last else 1, 0) if t.dim() > 1 else t[:, None]
        grid = "affine" if not self.symmetric else "signed" if self.signed else "unsigned"
        kept = None if keep is None else rows(keep, per_channel)
        low, high = limits(rows(kept_only(t, keep), per_channel), self.observer, self.levels, grid, kept)
        return (low.to(self.low.dtype), high.to(self.low.dtype)) if self.slot == "x" else (low, high)

    def observe(self, t: Tensor) -> None:
        """One calibration batch widens (max, percentile, mse) or averages (ema) the range of inputs."""
        if self.slot == "w" or not t.numel():
            return
        with torch.no_grad():
            low, high = self._measure(t)
            fresh = self.seen == 0
            if self.observer == "ema":
                mixed_low, mixed_high = torch.lerp(self.low, low, 0.1), torch.lerp(self.high, high, 0.1)
            else:
                mixed_low, mixed_high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.low.copy_(torch.where(fresh, low, mixed_low))
            self.high.copy_(torch.where(fresh, high, mixed_high))
            self.seen.add_(1)

    def _first_batch(self, t: Tensor) -> None:
        """Training: `ema` follows every batch, the others take the first one if nothing was calibrated.

        Where a branch may look at data, the others measure only that batch. Compiled code measures every batch, and
        drops what the later ones give.
        """
        if not t.numel():
            return
        if self.observer == "ema":
            self.observe(t)
            return
        if readable(self.seen) and bool(self.seen):
            return
        with torch.no_grad():
            low, high = self._measure(t)
            fresh = self.seen == 0
            self.low.copy_(torch.where(fresh, low, self.low))
            self.high.copy_(torch.where(fresh, high, self.high))
            self.seen.copy_(torch.where(fresh, torch.ones_like(self.seen), self.seen))

    # -- the grid -------------------------------------------------------------------------------------------------
    def _grid(self, t: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, float, float]:
        """(step, zero point, smallest code, largest code); step and zero broadcast over t."""
        if self.slot == "x":
            low, high = self.low, self.high
            shape = (1, -1, *[1] * (t.dim() - 2)) if t.dim() > 1 and not self.last else (-1,)
        else:
            low, high = self._measure(t, keep)
            shape = (-1, *[1] * (t.dim() - 1))
        if low.numel() == 1:
            low, high = low.reshape(()), high.reshape(())
        else:
            low, high = low.reshape(shape), high.reshape(shape)
        top = 2**self.bits - 1
        if not self.symmetric:
            step = (high - low) / top
            step = torch.where(step > 0, step, torch.ones_like(step))
            return step, (-low / step).round().clamp(0.0, float(top)), 0.0, float(top)
        if self.signed:
            half = self.levels // 2
            step = torch.maximum(-low, high) / half
            return torch.where(step > 0, step, torch.ones_like(step)), torch.zeros_like(step), -float(half), float(half)
        step = high / top
        return torch.where(step > 0, step, torch.ones_like(step)), torch.zeros_like(step), 0.0, float(top)

    def forward(self, t: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.training and self.slot == "x":
            self._first_batch(t)
        fixed = wide(t.detach())
        step, zero, floor, top = self._grid(fixed, keep)
        raw = (fixed / step).round() + zero
        value = (raw.clamp(floor, top) - zero) * step
        return ste(t, value, (raw >= floor) & (raw <= top))

    def encode(self, t: Tensor, keep: Tensor | None = None) -> Coded:
        fixed = wide(t.detach())
        step, zero, floor, top = self._grid(fixed, keep)
        code = torch.nan_to_num((fixed / step).round() + zero, nan=floor).clamp(floor, top) - floor
        return uint_code(code, self.bits, step, (floor - zero) * step)

    def whole(self, t: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fixed = wide(t.detach())
        step, zero, floor, top = self._grid(fixed, keep)
        return (((fixed / step).round() + zero).clamp(floor, top) - zero).to(t.dtype), step
