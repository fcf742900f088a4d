"""From spectra to counts, and from counts to the layers that get more bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from bitwright.errors import InputError, nearest

COUNTS = ("below", "needed")


def cumulative(spectrum: Tensor) -> Tensor:
    """Share of the variance in the first j components, [C]; zeros where there is no variance.

    >>> cumulative(torch.tensor([3.0, 1.0, 0.0])).tolist()
    [0.75, 1.0, 1.0]
    """
    wide = spectrum.double()
    total = wide.sum()
    return wide.cumsum(0) / total if total > 0 else torch.zeros_like(wide)


def components(shares: Tensor | Sequence[float], threshold: float = 0.99, count: str = "below") -> int:
    """How many components a cumulative curve has at a threshold.

    count   "below": #{c_j < threshold}, as the published code counts; "needed": one more, so many that together they
            reach the threshold. No variance at all: 0 in both

    >>> components([0.5, 0.9, 0.995, 1.0]), components([0.5, 0.9, 0.995, 1.0], count="needed")
    (2, 3)
    """
    curve = torch.as_tensor(shares, dtype=torch.float64)
    if not curve.numel() or float(curve[-1]) == 0:
        return 0
    below = min(int((curve < threshold).sum()), curve.numel() - 1)
    return below + (count == "needed")


def rises(
    counts: Mapping[str, int], before: Mapping[str, str], widths: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Per layer the rise over its predecessor: of counts, or of counts per channel with `widths`.

    A layer without a predecessor among the counted ones has no rise.

    >>> rises({"a": 14, "b": 23}, {"b": "a"})
    {'b': 9.0}
    """

    def size(name: str) -> float:
        return counts[name] / widths[name] if widths is not None else float(counts[name])

    return {name: size(name) - size(before[name]) for name in counts if before.get(name) in counts}


def select_layers(
    counts: Mapping[str, int],
    before: Mapping[str, str],
    delta: float = 2,
    relative: float | None = None,
    widths: Mapping[str, int] | None = None,
    budget: float | None = None,
    weights: Mapping[str, int] | None = None,
    always: Iterable[str] = (),
    never: Iterable[str] = (),
) -> list[str]:
    """The significant layers, in the order of `counts`.

    before     layer -> its predecessor; a layer that is not in it is not significant
    delta      least rise of the count;   relative   instead: least rise of count / channels (needs `widths`)
    budget     instead: the largest rises, as long as they hold at most this share of all `weights`
    always     globs of layers that are in whatever they count;   never   ... that are out

    >>> select_layers({"a": 14, "b": 23, "c": 24}, {"b": "a", "c": "b"})
    ['b']
    """
    rise = rises(counts, before, widths if relative is not None else None)
    forced, barred = _matching("always", always, counts), _matching("never", never, counts)
    both = sorted(forced & barred)
    if both:
        raise InputError(
            f"pca: {both[0]} is both in always and in never; possible: one of them",
            code="option",
            layer=both[0],
            given="always, never",
            possible="always or never",
        )
    if budget is None:
        least = delta if relative is None else relative
        # counts / channels are rounded: a rise of exactly 1/16 must count in spite of rounding
        chosen = {name for name, r in rise.items() if r >= least - 1e-12} | forced
    else:
        chosen = _within(budget, rise, dict(weights or {}), forced, barred)
    return [name for name in counts if name in chosen and name not in barred]


def _within(
    budget: float, rise: Mapping[str, float], weights: Mapping[str, int], forced: set[str], barred: set[str]
) -> set[str]:
    """The largest rises first; one that does not fit any more is passed over. Equal rises: the earlier layer."""
    left = budget * sum(weights.values()) - sum(weights[name] for name in forced)
    chosen = set(forced)
    for name in sorted(rise, key=lambda n: -rise[n]):
        if rise[name] > 0 and name not in chosen | barred and weights[name] <= left:
            chosen.add(name)
            left -= weights[name]
    return chosen


def _matching(option: str, globs: Iterable[str], names: Iterable[str]) -> set[str]:
    names, found = list(names), set[str]()
    for glob in [globs] if isinstance(globs, str) else globs:
        hit = {name for name in names if fnmatchcase(name, glob)}
        if not hit:
            raise InputError(
                f"pca: {option}={glob!r} is no analyzed layer.{nearest(glob, names)} There are: "
                f"{names[0]} to {names[-1]}",
                code="recipe-nomatch",
                given=glob,
                possible=", ".join(names),
            )
        found |= hit
    return found
