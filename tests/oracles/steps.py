"""LSQ, PACT, the sign-magnitude grid and the hybrid nets' grid, one number at a time."""

from __future__ import annotations

import math

from oracles.weights import Rows, average, plus_minus


def lsq(v: float, step: float, low: int, high: int) -> tuple[float, float, float]:
    """(value, slope, share of the step's gradient): the integer, clipped, times the step."""
    place = v / step
    if place <= low:
        return low * step, 1.0 if place == low else 0.0, float(low)
    if place >= high:
        return high * step, 1.0 if place == high else 0.0, float(high)
    return round(place) * step, 1.0, round(place) - place


def lsq_all(t: Rows, g: Rows, steps: list[float], low: int, high: int, features: int) -> tuple[Rows, Rows, list[float]]:
    """(value, gradient, gradient of each row's step); the factor is 1 / sqrt(features * high)."""
    value, grad, own = [], [], []
    for row, sent, step in zip(t, g, steps, strict=True):
        seen = [lsq(v, step, low, high) for v in row]
        value.append([s[0] for s in seen])
        grad.append([s[1] * d for s, d in zip(seen, sent, strict=True)])
        own.append(math.fsum(s[2] * d for s, d in zip(seen, sent, strict=True)) / math.sqrt(features * high))
    return value, grad, own


def pact(v: float, level: float, bits: int) -> tuple[float, float, float]:
    """(value, slope, slope for the level): clip to [0, level], round on 2^bits - 1 steps of it."""
    n = 2**bits - 1
    kept = min(level, max(0.0, v))
    return round(kept * n / level) * level / n, 1.0 if 0 <= v <= level else 0.0, 1.0 if v >= level else 0.0


def sign_magnitude(v: float, largest: float, bits: int) -> tuple[float, float]:
    """The magnitude on 2^bits - 1 steps of the largest one, then the sign again."""
    n = 2**bits - 1
    m = round(min(1.0, abs(v) / largest) * n) / n
    return m * largest * plus_minus(v), 1.0 if abs(v) <= largest else 0.0


def odd_level(v: float, bits: int) -> float:
    """2 (floor(n (c + 1) / 2 + 1/2) / n - 1/2) with c = v clipped to [-1, 1]: ties go up, so 0 is plus."""
    n = 2**bits - 1
    c = min(1.0, max(-1.0, v))
    return 2 * (math.floor((c + 1) / 2 * n + 0.5) / n - 0.5)


def kbit_weights(w: Rows, g: Rows, bits: int, scale: str) -> tuple[Rows, Rows]:
    """a q(w / r); the gradient goes through the clipped level and through a = mean |w| of the filter."""
    value, grad = [], []
    for row, sent in zip(w, g, strict=True):
        a = average([abs(v) for v in row])
        r = {"none": 1.0, "max": max(abs(v) for v in row), "std": 2 * math.sqrt(average([v * v for v in row]))}[scale]
        q = [odd_level(v / r, bits) for v in row]
        pulled = math.fsum(d * x for d, x in zip(sent, q, strict=True)) / len(row)
        value.append([a * x for x in q])
        grad.append(
            [(a * d / r if abs(v) <= r else 0.0) + plus_minus(v) * pulled for v, d in zip(row, sent, strict=True)]
        )
    return value, grad


def twn(w: Rows, g: Rows, shared: bool, delta: float = 0.7) -> tuple[Rows, Rows]:
    """What is above delta * mean magnitude of its group becomes the mean of what is; the gradient passes."""
    value = []
    for row in w:
        group = [v for r in w for v in r] if shared else row
        d = delta * average([abs(v) for v in group])
        a = average([abs(v) for v in group if abs(v) > d])
        value.append([a if v > d else -a if v < -d else 0.0 for v in row])
    return value, [list(row) for row in g]
