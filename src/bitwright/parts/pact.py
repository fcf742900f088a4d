"""PACT: parameterized clipping activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn import fast
from bitwright.fn.coded import uint_code
from bitwright.fn.ste import ste, ste2
from bitwright.parts.bits import check_bits
from bitwright.parts.options import check_coded, check_compat
from bitwright.parts.ranges import limits, rows
from bitwright.parts.registry import part
from bitwright.parts.scale import wide
from bitwright.types import Coded

LEAST = 1e-3  # alpha below it would flip or erase the grid


@part("pact", "x")
class Pact(nn.Module):
    """k-bit inputs on [0, a] with a learned clipping level a, on a's own grid.

    value     round(y (2^k - 1) / a) a / (2^k - 1), y = clip(x, 0, a)
    gradient  dx = g where 0 <= x <= a, else 0;   da = sum of g where x >= a
    shape     any; a a scalar
    options   alpha: where a starts; decay: weight decay of a alone, `bw.param_groups` and `bw.attach` give it a group
    moments   observe (`bw.calibrate`): a = the value that 99.9 % of the inputs do not exceed, averaged over the batches;
              for a start from a float net
    source    Choi et al. 2018, arXiv 1805.06085, section 3
    differs   the paper's L2 term on a is the decay of its group. Below 0.001 a counts as 0.001. compat="seed" clips only and
              has no codes, because dnn-gating rounds in the next conv, by the batch's maximum: add `sign_magnitude`
              with scale="batch_max"; da then wants x > a

    >>> Pact(bits=2, alpha=6.0)(torch.tensor([-1.0, 1.2, 4.0, 9.0])).tolist()
    [0.0, 2.0, 4.0, 6.0]
    """

    alpha: nn.Parameter
    seen: Tensor
    bits_range = "1-8"
    signed = False
    begins_at_zero = True  # a ReLU in front changes nothing

    def __init__(self, bits: int = 4, alpha: float = 10.0, decay: float = 1e-4, compat: str | None = None) -> None:
        super().__init__()
        if not LEAST <= alpha < float("inf"):
            raise InputError(f"part pact: alpha={alpha!r}; it starts at {LEAST} or more", code="option")
        if not decay >= 0:
            raise InputError(f"part pact: decay={decay!r}; it is 0 or more", code="option")
        self.bits = self.planes = self.storage_bits = check_bits("pact", bits)
        self.seed = check_compat("pact", compat)
        if self.seed:
            self.planes, self.storage_bits = None, 32
        self.top, self.decay = 2**bits - 1, decay
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # calibration batches seen so far

    def offers(self, moment: str) -> bool:
        return not (self.seed and moment in ("encode", "whole"))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Averages the 99.9 % level over batches; a batch without a positive value changes nothing."""
        if not x.numel():
            return
        high = limits(rows(x, False), "percentile", self.top + 1, "unsigned")[1].reshape(()).to(self.alpha.dtype)
        mixed = torch.where(self.seen == 0, high, self.alpha + (high - self.alpha) / (self.seen + 1))
        self.alpha.copy_(torch.where(high > 0, mixed, self.alpha))
        self.seen.add_((high > 0).to(self.seen.dtype))

    def _level(self) -> Tensor:
        return wide(self.alpha.detach()).clamp_min(LEAST)

    def _code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = self._level()
        clipped = torch.minimum(wide(x.detach()).clamp_min(0.0), level)
        return (clipped * (self.top / level)).round(), level / self.top

    def forward(self, x: Tensor) -> Tensor:
        alpha = wide(self.alpha)
        level = ste(alpha, self._level())  # alpha's gradient does not stop at LEAST
        if not self.seed:
            return fast.clip_round(x, level, self.top)
        fixed, edge = wide(x.detach()), level.detach()
        value = torch.minimum(fixed.clamp_min(0.0), edge)
        return ste2(x, level, value, (fixed >= 0) & (fixed <= edge), fixed > edge)

    def encode(self, x: Tensor) -> Coded:
        check_coded(self, 'compat="seed" clips and does not round')
        code, step = self._code(x)
        return uint_code(torch.nan_to_num(code), self.bits, step, torch.zeros_like(step))

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code, step = self._code(x)
        return code.to(x.dtype), step
