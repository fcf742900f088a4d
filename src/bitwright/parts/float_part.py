"""The part `float`: an empty slot."""

from __future__ import annotations

from torch import Tensor, nn

from bitwright.parts.registry import SLOTS, part


@part("float", *SLOTS)
class Float(nn.Module):
    """Leaves the slot empty, exactly what PyTorch does; overrides an earlier rule.

    value     t
    gradient  g
    shape     any
    source    none needed
    differs   a layer never holds it: `make_slot` turns it into an empty slot

    >>> import torch
    >>> Float()(torch.tensor([0.3])).shape
    torch.Size([1])
    """

    bits = 32

    def forward(self, t: Tensor, keep: Tensor | None = None) -> Tensor:
        return t
