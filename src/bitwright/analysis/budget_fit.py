"""How evaluation is made to spend a budget: channels added one by one, or all thresholds shifted together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CLOSE = 0.005  # share of the budget; a smaller distance counts as reached
FIRST, FURTHEST = 0.125, 1024.0  # shifts tried, in standard deviations of a partial sum
HALVINGS, ROUNDS = 20, 3


def fit_channels(gates: dict[str, Any], work: Callable[[], float], prices: Callable[[], dict[str, float]]) -> None:
    """Sets each layer's `keep` to the most that fits.

    All layers begin at one block of channels and are raised block by block, always the layer with the smallest share (of
    equal shares the one with the finest steps), until the next step would overshoot. What is left then goes to further
    blocks that fit, the most expensive first.

    work     work / target - 1 with the shares as they are set
    prices   layer -> a lower bound of what one more block of it adds to that, as measured by the last `work`
    """
    blocks = {name: gate.outputs // gate.block for name, gate in gates.items()}
    order = sorted((k / n, 1 / n, name) for name, n in blocks.items() for k in range(2, n + 1))

    def choose(kept: dict[str, int]) -> None:
        for name, gate in gates.items():
            gate.set_keep(kept[name] / blocks[name])

    def put(kept: dict[str, int]) -> float:
        choose(kept)
        return work()

    def first(steps: int) -> dict[str, int]:
        kept = dict.fromkeys(gates, 1)
        for _, _, name in order[:steps]:
            kept[name] += 1
        return kept

    if put(first(len(order))) <= 0:
        return
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if put(first(middle)) > 0 else (middle, high)
    kept = first(low)
    left = -put(kept)
    for _ in range(ROUNDS):
        before, price = left, prices()
        for name in sorted(gates, key=lambda name: -price[name]):
            if left >= CLOSE and kept[name] < blocks[name] and price[name] <= left:
                more = {**kept, name: kept[name] + 1}
                over = put(more)
                if over <= 0:
                    kept, left = more, -over
        if left == before:
            break
    choose(kept)


def root(error: Callable[[float], float]) -> float:
    """Where a falling function is nearest to zero: from 0 outward until its sign turns, then by halves.

    >>> round(root(lambda at: 5 - at), 2), root(lambda at: 0.001 - at), root(lambda at: 1.0 if at < 3 else -0.1) >= 3
    (5.0, 0.0, True)
    """
    tried = {0.0: error(0.0)}

    def off(at: float) -> float:
        return tried.setdefault(at, error(at))

    if abs(tried[0.0]) < CLOSE:
        return 0.0
    side = 1.0 if tried[0.0] > 0 else -1.0
    inner, outer = 0.0, side * FIRST
    while off(outer) * side > 0 and abs(outer) < FURTHEST:
        inner, outer = outer, outer * 2
    for _ in range(HALVINGS):
        if min(map(abs, tried.values())) < CLOSE / 2:
            break
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if off(middle) * side > 0 else (inner, middle)
    return min(tried, key=lambda at: abs(tried[at]))
