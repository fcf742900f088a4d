"""The mask that pruners leave behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.ste import ste
from bitwright.parts.from_file import ShapesFromFile
from bitwright.parts.registry import part
from bitwright.parts.scale import weight_of


@part("mask", "w")
class Mask(ShapesFromFile):
    """Pruned weights: value w where the mask is 1, exactly 0 elsewhere.

    value     w * mask
    gradient  g * mask (a pruned weight does not move);   grow=True: g, so that pruned weights go on learning behind a
              mask that is drawn anew (`part.grow = False` later ends that)
    shape     any; `.mask` has the shape of the weight, outputs first (uint8 0/1, part of the state dict)
    storage   1 bit a weight, ANDed into the planes of the quantizer beside it
    source    Han et al. 2015, arXiv 1506.02626, section 3
    differs   always acts last in a chain and is kept out of the other parts' statistics

    >>> m = Mask(torch.tensor([1, 0]))
    >>> m(torch.tensor([3.0, 4.0])).tolist(), m.density()
    ([3.0, 0.0], 0.5)
    """

    mask: Tensor
    from_file = ("mask",)
    bits = 32
    storage_bits = 1

    def __init__(self, mask: Tensor | None = None, grow: bool = False) -> None:
        super().__init__()
        self._grow = grow
        self.register_buffer("mask", torch.ones(()).to(torch.uint8) if mask is None else mask.to(torch.uint8))

    @classmethod
    def for_layer(cls, layer: nn.Module, mask: Tensor | None = None, grow: bool = False) -> Mask:
        seen = weight_of(layer)
        if seen is None:
            raise InputError(f"part mask: {type(layer).__name__} has no weight to mask", code="mask-layer")
        if mask is None:
            return cls(torch.ones(seen.shape, dtype=torch.uint8, device=seen.device), grow)
        if mask.shape != seen.shape:
            raise InputError(f"part mask: mask {tuple(mask.shape)} for weights {tuple(seen.shape)}", code="mask-shape")
        return cls(mask.to(seen.device), grow)

    @property
    def grow(self) -> bool:
        return self._grow

    @grow.setter
    def grow(self, value: bool) -> None:
        self._grow = value
        spec = self.__dict__.get("spec")
        if spec is not None:  # what a saved recipe says
            spec.pop("grow", None)
            spec.update({"grow": True} if value else {})

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        # where, not multiply: a pruned weight is 0 even if the latent is inf
        value = torch.where(self.mask.bool(), w, torch.zeros((), dtype=w.dtype, device=w.device))
        return ste(w, value) if self.grow else value

    def density(self) -> float:
        return float(self.mask.float().mean())
