"""Typed access to the optional moments of a part (contract 3). The only place that asks `has it got one?`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

# encode    the value as bits and tables (`Coded`)                     whole     the value as (whole numbers, one unit)
# after_step, penalty, observe, density, bind: see contract of a part in ARCHITECTURE.md
# start     first latents in place of the weights of a float layer, drawn once, by `apply` or a layer's constructor
# succeed   take over from a part of the same kind that sat here before          spent   work of one call of a gate
MOMENTS = ("encode", "whole", "start", "after_step", "penalty", "observe", "density", "bind", "succeed", "spent")


def moment(part: nn.Module | None, name: str) -> Callable[..., Any] | None:
    """The method `name` of a part, or None where it has none. A chain answers for its links.

    >>> import bitwright as bw
    >>> moment(bw.make_part("dropout"), "encode") is None
    True
    """
    if part is None:
        return None
    offers = getattr(part, "offers", None)  # Chain: has every method, offers only what its links have
    if offers is not None and not offers(name):
        return None
    found = getattr(part, name, None)
    return found if callable(found) else None
