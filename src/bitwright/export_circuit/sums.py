"""Weighted sums of bits as gates: the sum itself, and whether it reaches a constant.

`total(b, terms)` adds by full adders, column by column: three bits of one weight become a bit of the same and one of the double.
Whether a sum reaches T needs no comparator: with 2^k - T added, that is bit k of the sum, and constant bits make adders cheap.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from bitwright.export_circuit.gates import FALSE, TRUE, Builder


@dataclass(frozen=True)
class Sum:
    """offset + step * S, S the sum of weight * bit over `terms` (literal, weight); all weights and the step are positive."""

    terms: tuple[tuple[int, int], ...]
    offset: int
    step: int

    @property
    def most(self) -> int:
        """The largest S that may occur."""
        return sum(weight for _, weight in self.terms)


def weighted(items: Iterable[tuple[int, int]], offset: int = 0) -> Sum:
    """The sum of weight * bit for any weights. A bit that comes twice is one term, -w * bit is w * (1 - bit) - w, and what all
    weights share is the step.

    >>> weighted([(2, 2), (4, -2), (TRUE, 5)])
    Sum(terms=((2, 1), (5, 1)), offset=3, step=2)
    """
    found: dict[int, int] = {}
    for lit, weight in items:
        if lit & 1:
            lit, weight, offset = lit ^ 1, -weight, offset + weight
        found[lit] = found.get(lit, 0) + weight
    found.pop(FALSE, None)
    terms = []
    for lit, weight in sorted(found.items()):
        if weight < 0:
            lit, weight, offset = lit ^ 1, -weight, offset + weight
        if weight:
            terms.append((lit, weight))
    step = math.gcd(*(weight for _, weight in terms)) or 1
    return Sum(tuple((lit, weight // step) for lit, weight in terms), offset, step)


def reaches(b: Builder, what: Sum, bound: int) -> int:
    """Whether the sum is at least `bound`."""
    need, most = -((what.offset - bound) // what.step), what.most  # rounded up
    if need <= 0:
        return TRUE
    if need > most:
        return FALSE
    literals, ones = [lit for lit, _ in what.terms], most == len(what.terms)
    if need == 1:
        return b.any(literals)
    if need > most - min(weight for _, weight in what.terms):
        return b.all(literals)
    if ones and need == 2:
        return two_of(b, literals)
    if ones and need == most - 1:  # not two of them are 0
        return two_of(b, [lit ^ 1 for lit in literals]) ^ 1
    k = max(need - 1, most - need).bit_length()
    return total(b, what.terms, (1 << k) - need)[k]


def two_of(b: Builder, literals: list[int]) -> int:
    """Whether at least two are 1. Of each half: is there one, are there two?"""
    heap = [(b.level[x >> 1], x, FALSE) for x in literals]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, one, two), (_, other, more) = heapq.heappop(heap), heapq.heappop(heap)
        here = b.either(b.either(two, more), b.both(one, other))
        some = b.either(one, other)
        heapq.heappush(heap, (max(b.level[some >> 1], b.level[here >> 1]), some, here))
    return heap[0][2]


def total(b: Builder, terms: Iterable[tuple[int, int]], constant: int = 0) -> list[int]:
    """The bits of constant + the sum of weight * bit, lowest first; enough of them for the largest sum.

    >>> b = Builder(3)
    >>> len(total(b, [(2, 1), (4, 1), (6, 1)])), b.net.counts()
    (2, {'and': 2, 'nor': 1, 'xor': 2})
    """
    items = [*terms, (TRUE, constant)]
    width = max(1, sum(weight for _, weight in items).bit_length())
    columns: list[list[tuple[int, int]]] = [[] for _ in range(width)]
    for lit, weight in items:
        for k in range(weight.bit_length()):
            if weight >> k & 1:
                columns[k].append((b.level[lit >> 1], lit))
    bits = []
    for k, column in enumerate(columns):
        heapq.heapify(column)  # what is ready first is added first
        while len(column) > 1:
            x, y = heapq.heappop(column)[1], heapq.heappop(column)[1]
            z = heapq.heappop(column)[1] if column else FALSE
            here, carry = b.add(x, y, z)
            heapq.heappush(column, (b.level[here >> 1], here))
            if carry != FALSE:
                heapq.heappush(columns[k + 1], (b.level[carry >> 1], carry)) if k + 1 < width else None
        bits.append(column[0][1] if column else FALSE)
    return bits
