"""Ranges for uniform grids: how large is `large`? Plain functions, no state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.parts.scale import wide

PERCENTILE = 0.999
OBSERVERS = ("max", "ema", "percentile", "mse")


def rows(t: Tensor, channels: bool) -> Tensor:
    """[C, n] for one range per channel (axis 0), [1, n] for one range."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:])) if channels else t.reshape(1, -1)


def limits(t: Tensor, observer: str, levels: int, grid: str, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(low, high) of each row of t [R, n]; low <= 0 <= high always, so that 0 is on the grid.

    max, ema     smallest and largest value
    percentile   on each side of 0 the largest 0.1 % of the magnitudes are left out
    mse          of 20 shrunken ranges the one with the least mean squared rounding error on the `grid`:
                 "signed" (symmetric about 0), "unsigned" or "affine"
    keep         1 where an entry counts (t is 0 elsewhere)
    An empty row gives (0, 0).
    """
    t = wide(t.detach())
    if t.shape[1] == 0:
        return t.new_zeros(t.shape[0]), t.new_zeros(t.shape[0])
    low, high = t.amin(1).clamp_max(0.0), t.amax(1).clamp_min(0.0)
    if observer == "percentile":
        low, high = -_percentile(-t, keep), _percentile(t, keep)
    elif observer == "mse":
        best = torch.full_like(high, torch.inf)
        best_low, best_high = low, high
        for i in range(20):
            share = 1 - 0.04 * i
            step, zero = _step(low * share, high * share, levels, grid)
            floor = -(levels // 2) if grid == "signed" else 0
            code = ((t / step[:, None]).round() + zero[:, None]).clamp(floor, floor + levels - 1)
            error = ((code - zero[:, None]) * step[:, None] - t).square().mean(1)
            better = error < best
            best = torch.where(better, error, best)
            best_low = torch.where(better, low * share, best_low)
            best_high = torch.where(better, high * share, best_high)
        low, high = best_low, best_high
    return low, high


def _percentile(t: Tensor, keep: Tensor | None) -> Tensor:
    """The PERCENTILE-th smallest of the kept values of each row, 0 where that is negative."""
    if keep is None:
        k = max(1, int(PERCENTILE * t.shape[1] + 0.5))
        return t.clamp_min(0).kthvalue(k, dim=1).values
    count = keep.bool().sum(1)
    k = (PERCENTILE * count.double() + 0.5).long().clamp_min(1)
    ranked = torch.where(keep.bool(), t.clamp_min(0), -torch.ones_like(t)).sort(1).values  # pruned ones first
    at = (t.shape[1] - count + k - 1).clamp_max(t.shape[1] - 1)
    return ranked.gather(1, at[:, None]).squeeze(1).clamp_min(0)


def _step(low: Tensor, high: Tensor, levels: int, grid: str) -> tuple[Tensor, Tensor]:
    """(step, zero point); a row without a span has step 1."""
    span = {
        "signed": torch.maximum(-low, high) / (levels // 2),
        "unsigned": high / (levels - 1),
        "affine": (high - low) / (levels - 1),
    }[grid]
    step = torch.where(span > 0, span, torch.ones_like(span))
    return step, (-low / step).round().clamp(0, levels - 1) if grid == "affine" else torch.zeros_like(step)
