"""Input quantizers and surrogates of the sign, one number at a time: (value, slope)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def dorefa(v: float, bits: int) -> tuple[float, float]:
    """q_k(clip(v, 0, 1)), round half to even; the clip passes a gradient on [0, 1], ends included."""
    n = 2**bits - 1
    return round(min(1.0, max(0.0, v)) * n) / n, 1.0 if 0 <= v <= 1 else 0.0


def sign(v: float, surrogate: str, boundary: str = "closed") -> tuple[float, float]:
    """clip: the hard tanh. approx: x (2 - |x|) inside (-1, 1). swish: slope of the SignSwish, beta = 5."""
    value = -1.0 if v < 0 else 1.0
    if surrogate == "identity":
        return value, 1.0
    if surrogate == "clip":
        return value, 1.0 if abs(v) < 1 or (boundary == "closed" and abs(v) == 1) else 0.0
    if surrogate == "approx":
        return value, 2 - 2 * abs(v) if abs(v) < 1 else 0.0
    return value, sign_swish_slope(v)


def sign_swish(v: float, beta: float = 5.0) -> float:
    """2 s(bx) (1 + bx (1 - s(bx))) - 1 with the logistic s (Darabi et al. 2018, equation 3)."""
    s = 1 / (1 + math.exp(-beta * v))
    return 2 * s * (1 + beta * v * (1 - s)) - 1


def sign_swish_slope(v: float, beta: float = 5.0) -> float:
    """By a central difference of fourth order; good to about 1e-9."""
    h = 1e-3
    near = sign_swish(v + h, beta) - sign_swish(v - h, beta)
    far = sign_swish(v + 2 * h, beta) - sign_swish(v - 2 * h, beta)
    return (8 * near - far) / (12 * h)


def pixel(v: float, mean: float, stds: Sequence[float], byte: bool = False) -> tuple[float, float]:
    """(k - round(255 mean)) / (255 std), one std for all channels: their average."""
    std = math.fsum(stds) / len(stds)
    k = v if byte else round(min(1.0, max(0.0, v)) * 255)
    return (k - round(255 * mean)) / (255 * std), 1 / std if 0 <= v <= 1 else 0.0
