"""Ranges for uniform grids: how large is `large`? Plain functions, no state."""

from __future__ import annotations

import torch
from torch import Tensor

PERCENTILE = 0.999
OBSERVERS = ("max", "ema", "percentile", "mse")


def rows(t: Tensor, channels: bool) -> Tensor:
    """[C, n] for one range per channel (axis 0), [1, n] for one range."""
    return t.reshape(t.shape[0], -1) if channels else t.reshape(1, -1)


def limits(t: Tensor, observer: str, levels: int, two_sided: bool) -> tuple[Tensor, Tensor]:
    """(low, high) of each row of t [R, n]; low <= 0 <= high always, so that 0 is on the grid.

    max, ema     smallest and largest value
    percentile   the 0.1 % largest magnitudes are left out
    mse          of 20 shrunken ranges the one with the least mean squared rounding error
    An empty row gives (0, 0).
    """
    t = t.detach().float()
    if t.shape[1] == 0:
        return t.new_zeros(t.shape[0]), t.new_zeros(t.shape[0])
    low, high = t.amin(1).clamp_max(0), t.amax(1).clamp_min(0)
    if observer == "percentile":
        k = max(1, int(PERCENTILE * t.shape[1] + 0.5))
        low = -((-t).clamp_min(0)).kthvalue(k, dim=1).values
        high = t.clamp_min(0).kthvalue(k, dim=1).values
    elif observer == "mse":
        best = torch.full_like(high, torch.inf)
        best_low, best_high = low, high
        for i in range(20):
            share = 1 - 0.04 * i
            step = _step(low * share, high * share, levels, two_sided)
            floor = -(levels // 2) if two_sided else 0
            code = (t / step[:, None]).round().clamp(floor, floor + levels - 1)
            error = (code * step[:, None] - t).square().mean(1)
            better = error < best
            best = torch.where(better, error, best)
            best_low = torch.where(better, low * share, best_low)
            best_high = torch.where(better, high * share, best_high)
        low, high = best_low, best_high
    return low, high


def _step(low: Tensor, high: Tensor, levels: int, two_sided: bool) -> Tensor:
    span = torch.maximum(-low, high) / (levels // 2) if two_sided else high / (levels - 1)
    return torch.where(span > 0, span, torch.ones_like(span))
