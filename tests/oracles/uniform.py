"""Uniform grids, one number at a time."""

from __future__ import annotations

import math


def grid(bits: int, low: float, high: float, kind: str) -> tuple[float, int, int, int]:
    """(step, zero point, lowest integer, highest integer) for values between low <= 0 and high >= 0.

    signed     symmetric integers, the largest magnitude on the last one
    unsigned   0 is the lowest, `high` the highest
    affine     2^bits points between low and high, moved so that 0 is one of them
    A range without a span has step 1.
    """
    if kind == "signed":
        m = 2 ** (bits - 1) - 1
        step = max(-low, high) / m
        return step or 1.0, 0, -m, m
    top = 2**bits - 1
    if kind == "unsigned":
        return high / top or 1.0, 0, 0, top
    step = (high - low) / top or 1.0
    return step, min(top, max(0, round(-low / step))), 0, top


def value(v: float, bits: int, low: float, high: float, kind: str) -> tuple[float, float]:
    """(quantized, slope): the gradient stops where the integer had to be clipped."""
    step, zero, least, most = grid(bits, low, high, kind)
    raw = round(v / step) + zero
    kept = min(most, max(least, raw))
    return (kept - zero) * step, 1.0 if kept == raw else 0.0


def largest(values: list[float]) -> tuple[float, float]:
    """Range that holds 0 and all values."""
    return min(0.0, *values), max(0.0, *values)


def least_error(values: list[float], bits: int, kind: str) -> tuple[float, float]:
    """Of the ranges 100 %, 96 %, ... 24 %, the one of least mean squared error; the widest of equals."""
    low, high = largest(values)
    errors = []
    for i in range(20):
        share = 1 - 0.04 * i
        misses = [(value(v, bits, low * share, high * share, kind)[0] - v) ** 2 for v in values]
        errors.append((math.fsum(misses), i, low * share, high * share))
    best = min(errors)
    return best[2], best[3]


def trimmed(values: list[float], share: float = 0.999) -> tuple[float, float]:
    """Each end at the value that `share` of all values do not exceed; 0 stays inside."""
    k = max(1, int(share * len(values) + 0.5))
    up = sorted(max(0.0, v) for v in values)[k - 1]
    down = sorted(max(0.0, -v) for v in values)[k - 1]
    return -down, up
