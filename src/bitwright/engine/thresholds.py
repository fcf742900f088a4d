"""Any monotone quantizer as a sorted list of thresholds, found by running the real operation, not by a formula.

Floats: bisection over the ordered bit patterns of float32, so each threshold is THE smallest float that reaches the
level. Integers: bisection, too; up to 2^16 reachable ones are then tried one by one.

An even ladder has the thresholds of a rounding, so that one multiply or divide gives the code; a quantizer of one threshold
is one comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bitwright.engine import reference

ENUMERATE = 1 << 16
STEPS = 4  # float32 neighbors tried on each side of the value that the spacing suggests


class NotMonotone(ValueError):
    """The operation goes up and down: it cannot become thresholds. The text names where."""


def code_after(steps: list[Any], table: Tensor, flip: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The code of what the steps make of x [n, C]: what `float_thresholds` takes."""

    def code(x: Tensor) -> Tensor:
        for f in steps:
            x = f(x)
        return reference.quantize(x, table, flip, True)

    return code


def _ordered_to_float(code: Tensor) -> Tensor:
    """int64 in order -> float32 in the same order (the usual sign-magnitude flip)."""
    bits = torch.where(code >= 0, code, -code - 1 + (1 << 31))
    bits = torch.where(bits >= (1 << 31), bits - (1 << 32), bits)
    return bits.to(torch.int32).view(torch.float32)


_TOP = int(torch.tensor(float("inf")).view(torch.int32))  # ordered code of +inf
_BOTTOM = -_TOP - 1  # of -inf


def float_thresholds(code: Callable[[Tensor], Tensor], levels: int, channels: int) -> tuple[Tensor, Tensor]:
    """(thresholds float32 [C, L], flip bool [C]) of a monotone `code`: float32 [n, C] -> integers 0..L [n, C].

    Count of x >= threshold is the code; a channel with flip counts down: code = L - count. A level that is never
    reached has threshold +inf (only x = +inf could reach it), one that always holds has -inf.

    >>> t, flip = float_thresholds(lambda x: (x >= 0.1).long(), 1, 1)
    >>> t.item() == torch.tensor(0.1).item(), flip.item()
    (True, False)
    """
    ends = torch.tensor([[-torch.inf], [torch.inf]]).expand(2, channels)
    first, last = code(ends).long()
    flip = first > last

    want = torch.arange(1, levels + 1)[:, None].expand(levels, channels)
    low = torch.full((levels, channels), _BOTTOM, dtype=torch.int64)  # not yet known to reach
    high = torch.full((levels, channels), _TOP, dtype=torch.int64)  # reaches, or nothing does

    def reached(at: Tensor) -> Tensor:
        return _count(code(_ordered_to_float(at)), levels, flip) >= want

    found = torch.where(reached(low), low, _bisected(reached, low, high))
    return _ordered_to_float(found).T.contiguous() + 0.0, flip  # + 0.0 makes -0.0 a plain 0


def _count(code: Tensor, levels: int, flip: Tensor) -> Tensor:
    return torch.where(flip, levels - code.long(), code.long())


def _bisected(reached: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The smallest place above `low` that is reached, or `high`; all at once."""
    while bool((high - low > 1).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        yes = reached(middle)
        low, high = torch.where(yes, low, middle), torch.where(yes, middle, high)
    return high


def integer_thresholds(
    code: Callable[[Tensor], Tensor], levels: int, low: Tensor, high: Tensor, enumerate_up_to: int = ENUMERATE
) -> tuple[Tensor, Tensor]:
    """(thresholds int32 [L, C], flip bool [C]) of `code`: int64 [n, C] -> 0..L, monotone on [low_c, high_c].

    Never reached: 2^31 - 1. Errors: `NotMonotone`, checked on every integer where there are at most `enumerate_up_to` of them.

    >>> t, flip = integer_thresholds(lambda i: (i.float() * 2 - 3 >= 0).long(), 1, torch.tensor([-5]), torch.tensor([5]))
    >>> t.tolist(), flip.tolist()
    ([[2]], [False])
    """
    ends = code(torch.stack([low, high])).long()
    flip, never = ends[0] > ends[1], 2**31 - 1
    want = torch.arange(1, levels + 1)[:, None].expand(levels, low.numel())

    def count(i: Tensor) -> Tensor:
        return _count(code(i), levels, flip)

    places = (low - 1).expand_as(want), (high + 1).expand_as(want)  # one below, where the operation may hold, too
    found = torch.maximum(_bisected(lambda i: count(i) >= want, *places), low)
    found = torch.where(found > high, never, found)
    span = int((high - low).max()) + 1
    rows, block = found.T.contiguous(), max(1, (1 << 22) // max(1, low.numel()))
    for start in range(0, span, block) if span <= enumerate_up_to else ():
        i = torch.minimum(low + torch.arange(start, min(span, start + block))[:, None], high)
        off = torch.searchsorted(rows, i.T.contiguous(), right=True) != count(i).T
        if bool(off.any()):
            c = int(off.any(1).nonzero()[0])
            raise NotMonotone(f"channel {c} goes up and down between {int(low[c])} and {int(high[c])}")
    return found.to(torch.int32), flip


# -- even ladders ---------------------------------------------------------------------------------------------
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
    places = torch.tensor(sorted(range(STEPS, -STEPS - 1, -1), key=abs), dtype=torch.int32)
    around = (torch.tensor(guess, dtype=torch.float32).view(torch.int32) + places).view(torch.float32)
    return [v for v in around.tolist() if 0 < v < math.inf]
