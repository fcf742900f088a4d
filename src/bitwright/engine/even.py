"""Even ladders: a quantizer whose thresholds are those of a rounding, so that one multiply or divide gives the code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 4  # float32 neighbors tried on each side of the value that the spacing suggests


@dataclass(frozen=True)
class Grid:
    """code = rint(y * value) + base, or rint(y / value) + base with `divide`, kept in low..high; rint goes to the even
    number from a half."""

    value: float
    divide: bool
    base: int
    low: int
    high: int

    def codes(self, y: Tensor) -> Tensor:
        """int64 codes of float32 values; NaN becomes `low`.

        >>> Grid(2.0, False, 1, 0, 3).codes(torch.tensor([-5.0, 0.0, 0.75, 9.0, torch.nan])).tolist()
        [0, 1, 3, 3, 0]
        """
        value = torch.tensor(self.value, dtype=torch.float32)
        place = y / value if self.divide else y * value
        inside = place.clamp(self.low - self.base, self.high - self.base)
        return torch.nan_to_num(inside, nan=float(self.low - self.base)).round().to(torch.int64) + self.base


def even_grid(thresholds: Tensor) -> Grid | None:
    """The grid that gives the codes of one ascending ladder [L] for every float, or None.

    Rounding, multiplying and clamping never fall as y rises, so two floats a threshold prove it: the code changes exactly
    between the float below and the threshold itself.

    >>> even_grid(torch.tensor([0.25, 0.75, 1.25]))
    Grid(value=0.5, divide=True, base=0, low=0, high=3)
    """
    if thresholds.dim() != 1 or thresholds.isnan().any():
        return None
    inside = thresholds[thresholds.isfinite()].float()
    count, low = inside.numel(), int((thresholds == -torch.inf).sum())
    if count < 2:
        return None
    step = float(inside[-1].double() - inside[0].double()) / (count - 1)
    if not (math.isfinite(step) and step > 0):
        return None
    base = low + 1 - math.floor(float(inside[0]) / step + 0.75)  # the first threshold lies at a half
    if abs(base) > 255:
        return None
    want = torch.arange(low + 1, low + count + 1)
    below = torch.nextafter(inside, torch.tensor(-torch.inf))
    for divide, guess in ((True, step), (False, 1 / step)):
        for value in _near(guess):
            grid = Grid(value, divide, base, low, low + count)
            if torch.equal(grid.codes(inside), want) and torch.equal(grid.codes(below), want - 1):
                return grid
    return None


def _near(guess: float) -> list[float]:
    """Float32 numbers around a guess, nearest first."""
    found, up, down = [torch.tensor(guess, dtype=torch.float32)], torch.tensor(torch.inf), torch.tensor(0.0)
    above = below = found[0]
    for _ in range(STEPS):
        above, below = torch.nextafter(above, up), torch.nextafter(below, down)
        found += [above, below]
    return [float(v) for v in found if v > 0 and v.isfinite()]
