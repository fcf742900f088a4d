"""How many weights stay: `keep` or `sparsity`, by layer or over the net; N of every M."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.procedures.layerwise.select import compressible, per_layer

Share = Annotated[float, Field()]
Shares = Share | dict[str, Share]  # a number, or a mapping by layer glob

PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}


def count_of(weights: int, keep: float) -> int:
    """A layer keeps exactly max(1, round(n keep)) of its n weights.

    >>> count_of(10, 0.25), count_of(10, 0.01), count_of(10, 1)
    (2, 1, 10)
    """
    return max(1, round(weights * keep))


def shares(model: nn.Module, who: str, keep: Any, sparsity: Any, pattern: str | None = None) -> dict[str, float]:
    """Name of a unit -> share kept, for the layers that `keep` or `sparsity` names.

    errors   both or none given; a share outside of (0, 1]; a glob that matches no layer
    """
    if pattern is not None:
        if keep is not None or sparsity is not None:
            raise InputError(
                f"{who}: pattern={pattern!r} says how much is kept; leave keep and sparsity out", code="option"
            )
        kept, of = pattern_of(who, pattern)
        return {unit.name: kept / of for unit in compressible(model, who, listing=True)}
    if (keep is None) == (sparsity is None):
        word = "both keep and sparsity are" if keep is not None else "neither keep nor sparsity is"
        raise InputError(f"{who}: {word} given; give the share to keep, keep=0.5, or sparsity=0.5", code="option")
    value, name = (keep, "keep") if keep is not None else (sparsity, "sparsity")
    for one in value.values() if isinstance(value, Mapping) else [value]:
        share = one if name == "keep" else 1 - one
        if not 0 < share <= 1:
            room = "above 0 and at most 1" if name == "keep" else "at least 0 and below 1"
            raise InputError(f"{who}: {name}={one}; possible: {room}", code="option", given=str(one), possible=room)
    table = per_layer(model, who, name, value)
    return {layer: float(v if name == "keep" else 1 - v) for layer, v in table.items()}


def pattern_of(who: str, pattern: str) -> tuple[int, int]:
    """(kept, of) of "2:4" or "4:8"."""
    if pattern not in PATTERNS:
        raise InputError(
            f"{who}: pattern={pattern!r}; possible: {', '.join(PATTERNS)}",
            code="option",
            given=str(pattern),
            possible=", ".join(PATTERNS),
        )
    return PATTERNS[pattern]


def lowest(score: Tensor, count: int) -> Tensor:
    """True at the `count` lowest scores; of equal ones those that come first go first.

    >>> lowest(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), 2).tolist()
    [[False, True], [True, False]]
    """
    out = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    out[score.flatten().argsort(stable=True)[:count]] = True
    return out.reshape(score.shape)


def by_pattern(score: Tensor, kept: int, of: int) -> Tensor:
    """Keep-mask [O, I, ...] with the `kept` best of each `of` consecutive input channels, for each tap of a kernel.

    A last group of r channels keeps ceil(r kept / of).

    >>> by_pattern(torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0]]), 2, 4).tolist()
    [[False, True, True, False, True]]
    """
    flat = score.reshape(*score.shape[:2], -1).transpose(1, 2)  # [O, taps, I]
    out = torch.zeros(flat.shape, dtype=torch.bool, device=score.device)
    for start in range(0, flat.shape[-1], of):
        group = flat[..., start : start + of]
        stay = -(-group.shape[-1] * kept // of)
        best = group.argsort(dim=-1, stable=True)[..., group.shape[-1] - stay :]
        out[..., start : start + of].scatter_(-1, best, True)
    return out.transpose(1, 2).reshape(score.shape)


def spread_counts(scores: dict[str, Tensor], keep: dict[str, float]) -> dict[str, int]:
    """How many each layer keeps where one threshold holds for all: scores of every weight, the highest stay.

    value    in all max(1, round(sum n keep)); every layer keeps one at least

    >>> spread_counts({"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([5.0, 6.0])}, {"a": 0.5, "b": 0.5})
    {'a': 1, 'b': 1}
    >>> spread_counts({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0, 6.0, 7.0])}, {"a": 0.6, "b": 0.6})
    {'a': 1, 'b': 2}
    """
    total = max(1, round(sum(scores[n].numel() * k for n, k in keep.items())))
    total = max(total, len(keep))
    firm = {n: int(scores[n].flatten().argmax()) for n in keep}
    flat = torch.cat([scores[n].flatten().float() for n in keep])
    start, out, forced = 0, {}, []
    for n in keep:
        forced.append(start + firm[n])
        start += scores[n].numel()
    flat[forced] = torch.inf
    chosen = ~lowest(flat, flat.numel() - total)
    start = 0
    for n in keep:
        end = start + scores[n].numel()
        out[n] = int(chosen[start:end].sum())
        start = end
    return out
