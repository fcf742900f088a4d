"""What a choice of layers is compared with: none, all, random ones and one end of the net, at equal extra bits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

DRAWS = 400  # orders tried per random set


def layer_sets(
    chosen: Sequence[str], weights: Mapping[str, int], count: int = 3, seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """Name -> layers of k bits: "pca", "binary", "kbit", "random-0" ..., "first-heavy", "last-heavy".

    Extra bits are proportional to the weights of the layers. A random set is the one of 400 seeded orders, each filled
    greedily, whose weights come closest to those of `chosen`; duplicates are not taken, so a
    small net may have fewer. The heavy sets take layers from one end as long as they fit.

    >>> sets = layer_sets(["b"], {"a": 2, "b": 2, "c": 2}, count=1)
    >>> sets["kbit"], sets["first-heavy"], sets["random-0"] in (("a",), ("c",))
    (('a', 'b', 'c'), ('a',), True)
    """
    names = list(weights)
    budget = sum(weights[n] for n in chosen)
    sets: dict[str, tuple[str, ...]] = {"pca": _sorted(chosen, names), "binary": (), "kbit": tuple(names)}
    taken = set(sets.values())
    rng = random.Random(seed)
    for _ in range(count):
        best: tuple[str, ...] | None = None
        for _ in range(DRAWS):
            found = _sorted(_filled(rng.sample(names, len(names)), weights, budget), names)
            if found not in taken and (best is None or _gap(found, weights, budget) < _gap(best, weights, budget)):
                best = found
                if _gap(found, weights, budget) == 0:
                    break
        if best is None:
            break
        sets[f"random-{sum(k.startswith('random') for k in sets)}"] = best
        taken.add(best)
    sets["first-heavy"] = _sorted(_filled(names, weights, budget), names)
    sets["last-heavy"] = _sorted(_filled(names[::-1], weights, budget), names)
    return sets


def _filled(order: Sequence[str], weights: Mapping[str, int], budget: int) -> list[str]:
    found, left = [], budget
    for name in order:
        if weights[name] <= left:
            found.append(name)
            left -= weights[name]
    return found


def _gap(layers: Sequence[str], weights: Mapping[str, int], budget: int) -> int:
    return budget - sum(weights[n] for n in layers)


def _sorted(layers: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in names if n in layers)
