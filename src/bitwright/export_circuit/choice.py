"""The largest of several whole numbers, and a table that gives a whole number for another."""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.export_circuit.gates import FALSE, Builder

Bus = list[int]  # literals, lowest bit first


def larger(b: Builder, x: Bus, y: Bus) -> int:
    """Whether x > y, for whole numbers without sign. Halves are compared at the same time: the lower one counts where the upper
    ones are equal."""
    width = max(len(x), len(y))
    x, y = ([*bus, *[FALSE] * (width - len(bus))] for bus in (x, y))
    parts = [
        (b.both(p, q ^ 1), b.xor(p, q) ^ 1) for p, q in zip(x, y, strict=True)
    ]  # (larger, equal), lowest bit first
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        joined = [(b.either(m, b.both(e, more)), b.both(e, equal)) for (more, equal), (m, e) in pairs]
        parts = joined + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0][0]


def choose(b: Builder, s: int, x: Bus, y: Bus) -> Bus:
    """x where s is 1, else y."""
    width = max(len(x), len(y))
    x, y = ([*bus, *[FALSE] * (width - len(bus))] for bus in (x, y))
    return [b.choose(s, p, q) for p, q in zip(x, y, strict=True)]


def argmax(b: Builder, buses: Sequence[Bus]) -> Bus:
    """The place of the largest number, the first one where several are equal. One number: 0."""
    index_bits = max(1, (len(buses) - 1).bit_length())
    left = [(bus, [i >> k & 1 for k in range(index_bits)]) for i, bus in enumerate(buses)]
    while len(left) > 1:
        pairs = []
        for (x, at), (y, behind) in zip(left[::2], left[1::2], strict=False):
            second = larger(b, y, x)
            pairs.append((choose(b, second, y, x), choose(b, second, behind, at)))
        left = pairs + ([left[-1]] if len(left) % 2 else [])
    return left[0][1]


def look_up(b: Builder, at: Bus, table: Sequence[int]) -> Bus:
    """table[at]; what lies beyond the table never comes, and may give anything."""
    width = max(1, max(table).bit_length())
    return [_bit(b, at, [value >> k & 1 for value in table], {}) for k in range(width)]


def _bit(b: Builder, at: Bus, column: list[int], made: dict[tuple[int, ...], int]) -> int:
    """One bit of a table as a tree of choices, from the highest bit of `at` down; equal parts are made once."""
    if len(set(column)) == 1:
        return column[0]
    half = 1 << len(at) - 1
    if len(column) <= half:
        return _bit(b, at[:-1], column, made)
    key = tuple(column)
    if key not in made:
        low, high = column[:half], column[half:]
        alike = high + low[len(high) :]  # what never comes is as in the other half, where all of it is, else one value
        high = alike if alike == low else high + high[-1:] * (half - len(high))
        made[key] = b.choose(at[-1], _bit(b, at[:-1], high, made), _bit(b, at[:-1], low, made))
    return made[key]
