"""Inputs that are 0 or 1: a step with a surrogate gradient, for nets that become circuits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.fn.ste import ste
from bitwright.parts.options import check_number, check_word
from bitwright.parts.registry import part
from bitwright.parts.sign import SURROGATES, surrogate_slope
from bitwright.types import Coded, scalar


@part("heaviside", "x")
class Heaviside(nn.Module):
    """One-bit inputs {0, 1}: 1 where x >= threshold.

    value     1 if x >= threshold, else 0
    gradient  with z = x - threshold, half of what `sign` passes at z, so that 2 h - 1 learns as that sign does:
              clip: g / 2 * 1[|z| <= 1] (open: < 1);  approx: g (1 - |z|) * 1[|z| < 1];
              swish: g b / 2 (2 - b z tanh(b z / 2)) / (1 + cosh(b z)), b = 5;
              identity: g, not halved: the slope of whatever stands in front, e.g. a tanh, decides
    shape     any
    options   threshold: 0 behind a BatchNorm; 0.5 for pixels in [0, 1], or inputs that are bits already, which 0 would
              make all 1
    source    Hubara et al. 2016, arXiv 1602.02830, section 1.3 (clip); a BatchNorm and this step are an integer threshold
    differs   1 at the threshold itself, where the public codes have 0 (sign) or a half; NaN stays NaN in training

    >>> Heaviside()(torch.tensor([-0.3, 0.0, 2.0])).tolist()
    [0.0, 1.0, 1.0]
    """

    bits = planes = storage_bits = 1

    def __init__(self, threshold: float = 0.0, surrogate: str = "clip", boundary: str = "closed") -> None:
        super().__init__()
        self.threshold = check_number("heaviside", "threshold", threshold, "a finite number")
        self.surrogate = check_word("heaviside", "surrogate", surrogate, SURROGATES)
        self.boundary = check_word("heaviside", "boundary", boundary, ("closed", "open"))
        self.signed = self.threshold <= 0  # behind a ReLU such a step is 1 everywhere
        self.local_gradient = self.threshold == 0 and surrogate in ("clip", "approx")  # the gradient is 0 beyond 1

    def forward(self, x: Tensor) -> Tensor:
        fixed = x.detach()
        value = torch.maximum(self.bit(fixed).to(x.dtype), fixed.clamp_max(0.0))  # the second wins only where NaN
        slope = surrogate_slope(fixed - self.threshold, self.surrogate, self.boundary)
        return ste(x, value, None if slope is None else 0.5 * slope)

    def bit(self, x: Tensor) -> Tensor:
        return x >= self.threshold

    def encode(self, x: Tensor) -> Coded:
        return Coded(self.bit(x.detach()).to(torch.uint8)[None], scalar(1.0, x)[None], scalar(0.0, x))

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fixed = x.detach()
        return torch.maximum(self.bit(fixed).to(x.dtype), fixed.clamp_max(0.0)), scalar(1.0, x)
