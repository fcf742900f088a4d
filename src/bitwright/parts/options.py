"""Checks of options, each written once for all parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from bitwright.errors import InputError
from bitwright.parts.moments import moment
from bitwright.parts.traits import title_of


def check_word(name: str, option: str, value: str, words: Sequence[str]) -> str:
    """`value` itself, or one clear line.

    >>> check_word("twn", "granularity", "filter", ("filter", "layer"))
    'filter'
    """
    if value not in words:
        raise InputError(
            f"part {name}: {option}={value!r} is none of {', '.join(words)}",
            code="option",
            given=str(value),
            possible=", ".join(words),
        )
    return value


def check_number(
    name: str, option: str, value: object, text: str = "a number", takes: Callable[[float], bool] = math.isfinite
) -> float:
    """`value` itself as a float, or one clear line saying `text`; never NaN.

    >>> check_number("fbs", "l1", 1, "0 or more", lambda v: v >= 0)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not takes(value):
        raise InputError(f"part {name}: {option}={value!r}; {text}", code="option", given=str(value), possible=text)
    return float(value)


def check_compat(name: str, compat: str | None) -> bool:
    """Whether the quirks of the public code are asked for.

    >>> check_compat("sign", None), check_compat("sign", "seed")
    (False, True)
    """
    return compat is not None and check_word(name, "compat", compat, ("seed",)) == "seed"


def check_coded(part: nn.Module, why: str) -> None:
    """`InputError` where a part with these options offers no code: one that `encode` made would hold other values."""
    if moment(part, "encode") is None:
        name = title_of(part)
        raise InputError(f"part {name}: {why}, so there is nothing to encode", code="no-code", given=name)
