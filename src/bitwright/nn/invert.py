"""Inverters, in the place of a norm in nets of 0/1 weights: without an inversion such a net could only count up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.fn.ste import ste


class HardInvert(nn.Module):
    """y = 1 - x: behind a step of counts, a NOR.

    gradient  -g
    shape     any
    source    Agrawal, Karlupia 2019, arXiv 1909.00052

    >>> HardInvert()(torch.tensor([0.0, 0.25, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


class SoftInvert(nn.Module):
    """Between x and 1 - x, learned: y = x (1 - t) + (1 - x) t with one number t for the layer.

    value     x (1 - 2 t) + t, the same in one multiply and one add; t is read as clip(t, 0, 1)
    gradient  dy/dx = 1 - 2 t, so 0 at t = 1/2;  dL/dt = sum of g (1 - 2 x), also where the clip holds t at an end
    shape     any
    keys      `invert`, the scalar t; starts from U(0, 1)
    moments   after_step: `bw.attach` puts t back into [0, 1] after each step of the optimizer that holds it, so Adam goes
              on from there; forward never writes to it
    source    Agrawal, Karlupia 2019, arXiv 1909.00052
    differs   the notebook writes the clipped t into the parameter in each forward, in evaluation too; compilers and
              functional calls would lose that

    >>> s = SoftInvert()
    >>> _ = s.invert.data.fill_(0.25)
    >>> s(torch.tensor([0.0, 1.0])).tolist()
    [0.25, 0.75]
    """

    def __init__(self) -> None:
        super().__init__()
        self.invert = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        t = ste(self.invert, self.invert.detach().clamp(0.0, 1.0))
        return x * (1 - 2 * t) + t

    @torch.no_grad()
    def after_step(self) -> None:
        self.invert.clamp_(0, 1)

    def extra_repr(self) -> str:
        return "" if self.invert.is_meta else f"invert={float(self.invert.detach()):.3f}"
