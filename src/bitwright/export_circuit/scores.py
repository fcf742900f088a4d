"""What a net answers for each sum of its last layer, as whole numbers in the same order.

Behind the last layer may stand a scale, a norm or a tanh, and each class may have its own. They are run on every sum that can occur,
and the answers of all classes are ranked together: equal answers have equal ranks, so that ties stay ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bitwright.export_circuit.choice import Bus, argmax, look_up
from bitwright.export_circuit.gates import Builder
from bitwright.export_circuit.sums import Sum, total, weighted

Answer = Callable[[Tensor], Tensor]  # whole sums int64 [n, classes] -> what the net answers for them


def best_class(b: Builder, sums: Sequence[Sum], answer: Answer) -> Bus:
    """The class with the largest answer, the first of equal ones."""
    values = _values(sums, answer)
    direction = _same_order(sums, values)
    if direction:
        return argmax(b, _aligned(b, sums, direction))
    _, ranks = np.unique(np.concatenate(values), return_inverse=True)
    ends = np.cumsum([len(v) for v in values])[:-1]
    tables = [part.tolist() for part in np.split(ranks, ends)]
    return argmax(b, [look_up(b, total(b, s.terms), t) for s, t in zip(sums, tables, strict=True)])


def entries(sums: Sequence[Sum]) -> int:
    """How many sums of all classes there are."""
    return sum(s.most + 1 for s in sums)


def _values(sums: Sequence[Sum], answer: Answer) -> list[np.ndarray]:
    """Of each class its answer for every S from 0 to the largest."""
    count = 1 + max(s.most for s in sums)
    columns = [s.offset + s.step * torch.arange(count).clamp(max=s.most) for s in sums]
    with torch.no_grad():
        found = answer(torch.stack(columns, 1)).double().numpy()
    return [found[: s.most + 1, c] for c, s in enumerate(sums)]


def _same_order(sums: Sequence[Sum], values: Sequence[np.ndarray]) -> int:
    """1: all classes answer by one function of the sum, which only rises; -1: which only falls; 0: they do not."""
    found: dict[int, float] = {}
    for s, column in zip(sums, values, strict=True):
        for k, value in enumerate(column.tolist()):
            if found.setdefault(s.offset + s.step * k, value) != value:
                return 0
    steps = np.diff([found[i] for i in sorted(found)])
    return 1 if bool((steps > 0).all()) else -1 if bool((steps < 0).all()) else 0


def _aligned(b: Builder, sums: Sequence[Sum], direction: int) -> list[Bus]:
    """The sums themselves (or the negative ones) above the smallest of all, in steps that all share."""
    turned = [weighted([(x, direction * s.step * w) for x, w in s.terms], direction * s.offset) for s in sums]
    base = min(s.offset for s in turned)
    step = math.gcd(*(s.step for s in turned if s.terms), *(s.offset - base for s in turned)) or 1
    return [total(b, [(x, s.step * w // step) for x, w in s.terms], (s.offset - base) // step) for s in turned]
