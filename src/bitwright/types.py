"""Frozen data that every floor shares: codes, layer facts, part facts. No behaviour beyond reading itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coded:
    """A tensor as weighted bits: value = offset + sum_p coef[p] * bit[p].

    bit     uint8 in {0, 1}, [planes, *shape]
    coef    [planes, ...] broadcastable to [planes, *shape]
    offset  broadcastable to shape

    The single bridge from training to kernels: kernels know planes, never method names.

    >>> c = Coded(torch.tensor([[1, 0]], dtype=torch.uint8), torch.tensor([[2.0]]), torch.tensor(-1.0))
    >>> c.value().tolist(), c.planes
    ([1.0, -1.0], 1)
    """

    bit: Tensor
    coef: Tensor
    offset: Tensor

    @property
    def planes(self) -> int:
        return self.bit.shape[0]

    def value(self) -> Tensor:
        """Summed in float64 and rounded once, so that many planes cost no more than one ulp."""
        total = self.offset.double() + (self.coef.double() * self.bit).sum(0)
        return total.to(self.coef.dtype)


@runtime_checkable
class Part(Protocol):
    """What sits in a slot. Only `forward` is required; the other moments are found by name (see parts/__init__)."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor: ...


@dataclass(frozen=True)
class PartInfo:
    """Registry row of one part (contract 2): where it fits, what it accepts, where it comes from."""

    name: str
    slots: tuple[str, ...]
    options: dict[str, Any]
    summary: str
    source: str
    bits: str
    packs: bool


@dataclass(frozen=True)
class LayerInfo:
    """Facts of one layer in execution order, made by `walk(model, example)`; cost, plan and report read only this.

    x_shape, y_shape   of one call, batch included
    macs               multiply-accumulates for ONE sample
    calls              how often the layer ran in the forward pass (macs already counts all of them)
    w_bits, x_bits     the paper's bits; None = unknown (counted as float)
    w_planes, x_planes planes of the code (kernel cost, BOPs); None = no code
    weight_bytes       storage_bits of the code, or 4 bytes a value
    """

    name: str
    kind: str
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    macs: int
    calls: int = 1
    w_part: str = "float"
    x_part: str = "float"
    w_bits: int | None = 32
    x_bits: int | None = 32
    w_planes: int | None = None
    x_planes: int | None = None
    weights: int = 0
    weight_bytes: float = 0.0
    float_bytes: float = 0.0
    density: float = 1.0
    notes: tuple[str, ...] = field(default=())


def scalar(value: float, like: Tensor) -> Tensor:
    """A 0-d tensor with the dtype and device of `like`."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)
