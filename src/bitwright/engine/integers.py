"""From `Coded` to integers: which whole numbers does a weight take, and what is one unit worth per channel?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bitwright.engine.reference import whole_numbers
from bitwright.fn.coded import planes_of
from bitwright.transforms.packs import MAX_PLANES
from bitwright.types import Coded


class NotInteger(ValueError):
    """The codes cannot be written as small integers times one scale per channel; the text is the reason."""


@dataclass(frozen=True)
class Term:
    """Part of a weight: value_o = unit[o] * (zero + sum_q mult[q] * bit[planes[q]]); most weights are one term."""

    planes: tuple[int, ...]
    mult: tuple[int, ...]
    zero: int
    unit: Tensor  # float64 [O]

    @property
    def code(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        return self.planes, self.mult, self.zero


MAX_RATIO = 1024  # of two steps of one term: integers stay small, sums fit 32 bits; 8 bits need 255


def _per_channel(t: Tensor, channels: int, what: str) -> Tensor:
    """[..broadcast..] with at most axis 0 of size > 1 -> float64 [O]."""
    flat = t.detach().double()
    if flat.numel() == 1:
        return flat.reshape(1).expand(channels)
    if flat.dim() == 0 or flat.shape[0] != flat.numel():
        raise NotInteger(f"{what} varies inside a filter")
    return flat.reshape(-1).expand(channels)


def _ratio(a: Tensor, b: Tensor) -> Fraction | None:
    """a / b as one small fraction for all channels, or None. Channels where both are 0 say nothing."""
    live = b != 0
    if bool((a[~live] != 0).any()):
        return None
    if not bool(live.any()):
        return Fraction(0)
    r = a[live] / b[live]
    if float(r.abs().max()) > MAX_RATIO:
        return None
    first = Fraction(float(r[0])).limit_denominator(4)
    spread = float((r - float(first)).abs().max())
    # coefficients are float32: their ratios carry two roundings
    return first if spread <= 1e-6 * max(1.0, abs(float(first))) else None


def weight_terms(code: Coded) -> list[Term]:
    """Splits a coded weight [O, ...] into terms whose coefficients are integer multiples of one unit per channel.

    BWN {-a, +a} is one term: zero -1, mult 2, unit a. TTQ {-n, 0, +p} is two: p and n have no common unit.

    >>> bit = torch.tensor([[[1], [0]]], dtype=torch.uint8)
    >>> one = Coded(bit, torch.tensor([[[1.0], [3.0]]]), torch.tensor([[-0.5], [-1.5]]))
    >>> [(t.mult, t.zero, t.unit.tolist()) for t in weight_terms(one)]
    [((2,), -1, [0.5, 1.5])]
    """
    channels = code.bit.shape[1]
    coefs = [_per_channel(code.coef[p], channels, "the step") for p in range(code.planes)]
    offset = _per_channel(code.offset, channels, "the offset")
    left = list(range(code.planes))
    pending = bool((offset != 0).any())
    terms: list[Term] = []
    while left:
        lead = left[0]
        ratios = {p: r for p in left if (r := _ratio(coefs[p], coefs[lead])) is not None}
        shift = _ratio(offset, coefs[lead]) if pending else None
        scale = math.lcm(*(r.denominator for r in [*ratios.values(), shift or Fraction(0)]))
        unit = coefs[lead] / scale
        zero = int(shift * scale) if shift is not None else 0
        pending = pending and shift is None
        picked = tuple(ratios)
        terms.append(Term(picked, tuple(int(ratios[p] * scale) for p in picked), zero, unit.clone()))
        left = [p for p in left if p not in ratios]
    if pending:
        raise NotInteger("the offset is no multiple of a step, the same one in every filter")
    return terms


def storable(code: Coded) -> tuple[Tensor, list[Term]]:
    """(bits [planes, O, ...], terms) as a file holds them: at most 8 planes.

    A mask over an 8-bit grid is a ninth plane; where the levels fit, the same integers are written with 8.

    >>> import bitwright as bw
    >>> part = bw.make_part("uniform", bits=8, slot="w")
    >>> storable(part.encode(torch.linspace(-1, 1, 9).reshape(3, 3)))[0].shape
    torch.Size([8, 3, 3])
    """
    terms = weight_terms(code)
    if code.planes <= MAX_PLANES:
        return code.bit, terms
    if len(terms) == 1:
        whole = whole_numbers(code.bit, *terms[0].code).to(torch.int64)
        low = int(whole.min()) if whole.numel() else 0
        step = max(1, int(np.gcd.reduce((whole - low).reshape(-1).numpy())))
        levels = int((whole - low).max()) // step if whole.numel() else 0
        if levels < 1 << MAX_PLANES:
            bit = planes_of((whole - low) // step, MAX_PLANES)
            places = tuple(range(MAX_PLANES))
            return bit, [Term(places, tuple(step << p for p in places), low, terms[0].unit)]
    raise NotInteger(f"{code.planes} planes; bit kernels take 1 to {MAX_PLANES}")
