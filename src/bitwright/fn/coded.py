"""Builders of `Coded`: every part that encodes uses one of these, so that the layout is written once."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.types import Coded


def _lead(v: Tensor, like: Tensor) -> Tensor:
    """[planes] -> [planes, 1, 1, ...] so that it broadcasts over [planes, *shape]."""
    return v.reshape(-1, *[1] * like.dim())


def planes_of(code: Tensor, bits: int) -> Tensor:
    """Binary digits of a non-negative integer tensor, least significant plane first: uint8 [bits, *shape].

    >>> planes_of(torch.tensor([0, 1, 2, 3]), 2).tolist()
    [[0, 1, 0, 1], [0, 0, 1, 1]]
    """
    code = code.to(torch.uint8 if bits <= 8 else torch.int32)
    return torch.stack([((code >> p) & 1).to(torch.uint8) for p in range(bits)])


def sign_code(x: Tensor, scale: Tensor) -> Coded:
    """{-scale, +scale} as one plane: bit = 1 where x >= 0."""
    return Coded((x >= 0).to(torch.uint8)[None], (2 * scale)[None], -scale)


def uint_code(code: Tensor, bits: int, step: Tensor, offset: Tensor) -> Coded:
    """offset + step * code with code in 0 .. 2^bits - 1; step a scalar or per channel."""
    digits = _lead(torch.tensor([float(1 << p) for p in range(bits)], dtype=step.dtype, device=step.device), code)
    return Coded(planes_of(code, bits), digits * step, offset)


def ternary_code(up: Tensor, down: Tensor, high: Tensor, low: Tensor) -> Coded:
    """{-low, 0, +high} as two planes: where `up`, where `down`."""
    bit = torch.stack([up, down]).to(torch.uint8)
    shape = (1,) * up.dim()
    coef = torch.stack(
        [high.expand(shape) if high.dim() == 0 else high, -(low.expand(shape) if low.dim() == 0 else low)]
    )
    return Coded(bit, coef, torch.zeros((), dtype=coef.dtype, device=coef.device))


def masked_code(code: Coded, keep: Tensor) -> Coded:
    """`code` where keep is set, 0 elsewhere.

    The mask is ANDed into every plane. An offset would survive where all bits are 0, so it becomes one more plane,
    the mask itself.

    >>> c = masked_code(sign_code(torch.tensor([1.0, -1.0]), torch.tensor(0.5)), torch.tensor([True, False]))
    >>> c.value().tolist()
    [0.5, 0.0]
    """
    keep = keep.to(torch.uint8)
    bit = code.bit * keep
    if not bool((code.offset != 0).any()):
        return Coded(bit, code.coef, code.offset)
    shape = (1,) * keep.dim()
    offset = code.offset.expand(shape) if code.offset.dim() == 0 else code.offset
    coef = code.coef.expand(code.coef.shape[0], *offset.shape) if code.coef.shape[1:] != offset.shape else code.coef
    return Coded(torch.cat([bit, keep[None]]), torch.cat([coef, offset[None]]), torch.zeros_like(code.offset))
