"""Any monotone quantizer as a sorted list of thresholds, found by running the real operation, not by a formula.

Floats: bisection over the ordered bit patterns of float32, so each threshold is THE smallest float that reaches the
level. Integers: the operation runs on every reachable integer (or, beyond 2^16 of them, by bisection).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ENUMERATE = 1 << 16


class NotMonotone(ValueError):
    """The operation goes up and down: it cannot become thresholds. The text names where."""


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
    reached has threshold NaN-free +inf (only x = +inf could reach it), one that always holds has -inf.

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
