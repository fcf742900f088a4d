"""Frozen data that every floor shares: codes, layer facts, part facts. No behavior beyond values computed from it."""

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
        coef, planes = self.coef.double(), self.planes
        if 1 < planes <= 8 and all(torch.equal(coef[p], coef[0] * (1 << p)) for p in range(1, planes)):
            code = self.bit[0].clone()  # binary digits: one multiplication instead of one for each plane
            for p in range(1, planes):
                code |= self.bit[p] << p
            total = coef[0] * code
        else:
            total = coef[0] * self.bit[0]
            for p in range(1, planes):
                total = total + coef[p] * self.bit[p]
        return (self.offset.double() + total).to(self.coef.dtype)


@runtime_checkable
class Part(Protocol):
    """What sits in a slot. Only `forward` is required; the other moments are found by name (see parts/__init__)."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor: ...


@dataclass(frozen=True)
class PartInfo:
    """Registry row of one part: where it fits, what it accepts, where it comes from."""

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


@dataclass(frozen=True)
class Site:
    """One call of a layer, as accounting sees it; multiply-accumulates of it follow from these numbers alone.

    positions   outputs per channel and sample (a transposed convolution: inputs)
    places      outputs per channel and sample, always: what a gate decides on
    taps        weights of one filter per input channel (kernel area)
    w_bits, x_bits   factors of the bit operations: planes of the codes, 32 for floats
    """

    positions: int
    taps: int
    groups: int
    inputs: int
    outputs: int
    w_bits: int = 32
    x_bits: int = 32
    places: int = -1

    def __post_init__(self) -> None:
        if self.places < 0:
            object.__setattr__(self, "places", self.positions)

    def share(self, products: Tensor) -> Tensor:
        """Products counted once per output -> products done: outputs of a transposed convolution get the mean number,
        though those between two inputs meet fewer taps. Whole numbers, rounded down."""
        if self.places == self.positions:
            return products
        return (products.long() * self.positions // max(1, self.places)).to(products.dtype)

    @property
    def fan(self) -> int:
        """Inputs that one output channel reads."""
        return self.inputs // self.groups

    @property
    def dense(self) -> int:
        """Multiply-accumulates for one sample with nothing left out."""
        return self.positions * self.taps * self.fan * self.outputs

    def active(self, mask: Tensor | None, samples: int) -> Tensor:
        """Inputs that can be non-zero, float64 [samples, groups, fan]; None: all. Sums of it stay whole numbers."""
        if mask is None:
            return torch.ones(samples, self.groups, self.fan, dtype=torch.float64)
        return mask.reshape(samples, self.groups, self.fan).double()


@dataclass(frozen=True)
class Spent:
    """Work of one call, per sample, int64 [samples]; overhead is part of macs and bops.

    comparisons   what the decisions themselves cost: one compare per output, no multiply
    """

    macs: Tensor
    bops: Tensor
    overhead: Tensor
    comparisons: Tensor


def scalar(value: float, like: Tensor) -> Tensor:
    """A 0-d tensor with the dtype and device of `like`."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)
