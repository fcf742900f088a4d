"""One check for every part with an option that is a word."""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.errors import InputError


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


def check_compat(name: str, compat: str | None) -> bool:
    """Whether the quirks of the public code are asked for.

    >>> check_compat("sign", None), check_compat("sign", "seed")
    (False, True)
    """
    return compat is not None and check_word(name, "compat", compat, ("seed",)) == "seed"
