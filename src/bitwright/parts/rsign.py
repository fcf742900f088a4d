"""RSign of ReActNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.fn.coded import sign_code
from bitwright.fn.ste import sign, ste
from bitwright.parts.registry import part
from bitwright.parts.scale import width_of
from bitwright.types import Coded, scalar


@part("rsign", "x")
class Rsign(nn.Module):
    """Binary inputs {-1, +1} with a learned shift per channel.

    value     +1 if x + b_c >= 0, else -1
    gradient  dx = g (2 - 2|z|) where |z| < 1, z = x + b_c, else 0;   db_c = sum of dx over batch and space
    shape     [N, C, ...], or [..., C] before a Linear layer; `.shift` [C] starts at 0, no weight decay
    options   features = C where no layer tells it; without either one shift serves all channels
    source    Liu et al. 2020, arXiv 2003.03488, section 4.2; surrogate: arXiv 1808.00278
    differs   sign(0) = +1; the public code decays the shifts in its first step, because they have four axes there

    >>> r = Rsign(features=2)
    >>> _ = r.shift.data.copy_(torch.tensor([0.5, -0.5]))
    >>> r(torch.tensor([[-0.3, 0.3]])).tolist()
    [[1.0, -1.0]]
    """

    shift: nn.Parameter
    bits = planes = storage_bits = 1
    signed = True

    def __init__(self, features: int | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features or 1))
        self.last = False

    @classmethod
    def for_layer(cls, layer: nn.Module, features: int | None = None) -> Rsign:
        new = cls(features or width_of(layer))
        new.last = isinstance(layer, nn.Linear)
        like = next(layer.parameters())
        return new.to(like.device, like.dtype)

    def moved(self, x: Tensor) -> Tensor:
        shape = (-1,) if self.last or x.dim() < 2 else (-1, *[1] * (x.dim() - 2))
        return x + self.shift.to(x.dtype).reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        z = self.moved(x)
        fixed = z.detach()
        return ste(z, sign(fixed), torch.rsub(fixed.abs(), 2, alpha=2).clamp_min(0.0))

    def encode(self, x: Tensor) -> Coded:
        return sign_code(self.moved(x).detach(), scalar(1.0, x))

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return sign(self.moved(x).detach()), scalar(1.0, x)
