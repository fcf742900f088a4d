"""Noise from a counter: the same numbers for the same key, on every device, under every compiler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """A 32-bit word as int32 holds it."""
    return word - (1 << 32) if word >= 1 << 31 else word


FIRST, SECOND = _signed(0x7FEB352D), _signed(0x846CA68B)  # hash-prospector's lowbias32: bias 0.17 of 2^-32
SPREAD = _signed(0x9E3779B1)  # 2^32 / golden ratio, odd: neighbors land far apart


def _mix(x: Tensor) -> Tensor:
    """int32 -> int32, one to one; every bit of the input moves every bit of the output. Products wrap around."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * FIRST
    x = (x ^ ((x >> 15) & 0x1FFFF)) * SECOND
    return x ^ ((x >> 16) & 0xFFFF)


def centered_noise(stream: Tensor, count: Tensor, shape: Sequence[int]) -> Tensor:
    """float32 of `shape`, uniform on (-1/2, 1/2): number i of draw `count` of `stream` (two 0-d int64 tensors).

    A generator whose whole state is two integers can live in buffers: checkpoints keep it, and no graph breaks on it.

    >>> one = centered_noise(torch.tensor(7), torch.tensor(0), [3])
    >>> bool((one == centered_noise(torch.tensor(7), torch.tensor(0), [3])).all())
    True
    """
    key = _mix(_mix(stream.to(torch.int32)) ^ (count.to(torch.int32) * SPREAD))
    place = torch.arange(math.prod(shape), dtype=torch.int32, device=stream.device) * SPREAD
    word = (_mix(place ^ key) >> 9) & 0x7FFFFF  # 23 bits: + 1/2 is still exact in float32
    return ((word.to(torch.float32) + 0.5) * 2.0**-23 - 0.5).reshape(shape)
