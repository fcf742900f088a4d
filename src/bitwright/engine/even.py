"""Even ladders: a quantizer whose thresholds are those of a rounding, so that one multiply or divide gives the code; and
quantizers of one threshold, which one comparison decides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

STEPS = 4  # float32 neighbors tried on each side of the value that the spacing suggests


@dataclass(frozen=True)
class EvenGrid:
    """kind "multiply": code = rint(y * value) + base, "divide": rint(y / value) + base, both kept in low..high; rint goes
    from a half to the even number. "step": high where y >= value, else low."""

    value: float
    kind: Literal["multiply", "divide", "step"]
    base: int
    low: int
    high: int

    def codes(self, y: Tensor) -> Tensor:
        """int64 codes of float32 values; NaN becomes 0.

        >>> EvenGrid(2.0, "multiply", 1, 0, 3).codes(torch.tensor([-5.0, 0.0, 0.75, 9.0, torch.nan])).tolist()
        [0, 1, 3, 3, 0]
        """
        value = torch.tensor(self.value, dtype=torch.float32)
        if self.kind == "step":
            return torch.where(y >= value, self.high, torch.where(y.isnan(), 0, self.low))
        place = y / value if self.kind == "divide" else y * value
        inside = place.clamp(self.low - self.base, self.high - self.base)
        return torch.where(y.isnan(), 0, inside.nan_to_num().round().to(torch.int64) + self.base)


def even_grid(thresholds: Tensor) -> EvenGrid | None:
    """The grid that gives the codes of one ascending ladder [L] for every float, or None.

    Rounding, multiplying and clamping never fall as y rises, so two floats a threshold prove it: the code changes exactly
    between the float below and the threshold itself.

    >>> above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))  # a half itself goes to 0, the even number
    >>> even_grid(torch.stack([above, torch.tensor(1.5)]))
    EvenGrid(value=1.0, kind='divide', base=0, low=0, high=2)
    """
    if thresholds.dim() != 1 or thresholds.isnan().any() or bool((thresholds == torch.inf).any()):
        return None
    inside = thresholds[thresholds.isfinite()].float()
    count, low = inside.numel(), int((thresholds == -torch.inf).sum())
    if count == 1:
        return EvenGrid(float(inside[0]), "step", 0, low, low + 1)
    if count < 1:
        return None
    step = float(inside[-1].double() - inside[0].double()) / (count - 1)
    if not (math.isfinite(step) and step > 0):
        return None
    base = low + 1 - math.floor(float(inside[0]) / step + 0.75)  # the first threshold lies at a half
    if abs(base) > 255:
        return None
    want = torch.arange(low + 1, low + count + 1)
    halves = want.double() - base - 0.5  # thresholds in steps; the one farthest from 0 tells the step best
    far = int(halves.abs().argmax())
    step = float(inside[far].double() / halves[far])
    if not step > 0:
        return None
    below = torch.nextafter(inside, torch.tensor(-torch.inf))
    kinds: tuple[tuple[Literal["divide", "multiply"], float], ...] = (("divide", step), ("multiply", 1 / step))
    for kind, guess in kinds:
        for value in _near(guess):
            grid = EvenGrid(value, kind, base, low, low + count)
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
