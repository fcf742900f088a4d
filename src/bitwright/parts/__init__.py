"""Floor 1: parts, one file per method. A new one: write its file, add its module to the list below, write its test.

The optional moments of a part are found by name (`moments.py`); this package registers the ones we ship.
"""

from __future__ import annotations

import sys
from types import ModuleType

from bitwright.parts import (  # noqa: F401  (importing a module registers its parts)
    binaryconnect,
    bireal,
    bwn,
    channel_gate,
    codebook,
    dorefa,
    dorefa_g,
    dropout,
    fbs,
    float_part,
    heaviside,
    input8,
    kbit,
    lsq,
    mask,
    metaquant,
    norm,
    pact,
    precision_gate,
    rsign,
    sign,
    sign_magnitude,
    ttq,
    twn,
    uniform,
    xnor,
    xnor_k,
    zero_one,
)
from bitwright.parts.chain import Chain
from bitwright.parts.moments import moment
from bitwright.parts.registry import forget, make_part, make_slot, options_of, part, part_class, parts
from bitwright.types import PartInfo

__all__ = ["Chain", "forget", "make_part", "make_slot", "moment", "options_of", "part", "part_class", "parts"]


class _Callable(ModuleType):
    """`bw.parts()` and `from bitwright.parts import part` are both public, so the package itself can be called."""

    def __call__(self) -> dict[str, PartInfo]:
        return parts()


sys.modules[__name__].__class__ = _Callable
