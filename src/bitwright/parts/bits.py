"""One check for every part with a `bits` option."""

from __future__ import annotations

from bitwright.errors import InputError


def check_bits(name: str, bits: int, low: int = 1, high: int = 8) -> int:
    """`bits` itself, or one clear line.

    >>> check_bits("dorefa_a", 2)
    2
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= high:
        raise InputError(
            f"part {name}: bits={bits!r}; takes {low}..{high}, or 32 for float", code="bits", given=str(bits)
        )
    return bits
