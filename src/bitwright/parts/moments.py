"""Typed access to the optional moments (methods) of a part; `traits.py` is the same for what it states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

# encode    the value as bits and tables (`Coded`)                     whole     the value as (whole numbers, one unit)
# after_step  moves the latent weight, after every optimizer step       penalty  a term of the loss
# observe     data that calibration shows it      density  share of the work done at most
# bind        is told which optimizer moves its weight       release  and that the steps of that optimizer are followed no longer
# constants  (scale, add) of evaluation: a norm in front of a quantizer
# start     first latents in place of the weights of a float layer, drawn once, by `apply` or a layer's constructor
# succeed   take over from a part of the same kind that sat here before          spent   work of one call of a gate
# saliencies  how important a gate finds each channel      deviation, set_keep  what a budget measures and moves a gate by


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
