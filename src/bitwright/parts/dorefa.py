"""DoReFa-Net: weights and activations (the gradient quantizer is a part of its own)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.fn.coded import sign_code, uint_code
from bitwright.fn.fast import binary_weight, clip_round, dorefa_weight
from bitwright.fn.ste import sign, ste
from bitwright.parts.bits import check_bits
from bitwright.parts.options import check_compat
from bitwright.parts.registry import part
from bitwright.parts.scale import kept_only, mean_abs, wide
from bitwright.types import Coded, scalar


@part("dorefa_w", "w")
class DorefaW(nn.Module):
    """k-bit weights on 2^k odd levels of [-1, 1] over tanh(w); k = 1: {-E, +E}, E = mean|w| of the layer.

    value     k = 1: E sign(w);  k > 1: 2 q_k(t / (2 m) + 1/2) - 1, t = tanh(w), m = max|t| over the layer,
              q_k(r) = round(r (2^k - 1)) / (2^k - 1)
    gradient  k = 1: g;  k > 1: g (1 - t^2) / m, m taken as constant
    shape     any
    source    Zhou et al. 2016, arXiv 1606.06160, section 2.3
    differs   m is detached (tensorpack lets the gradient of the largest weight through); a layer of zeros gives
              exactly 0, where the public codes divide 0 by 0; k = 1 is the paper's. compat="seed": the formula of k > 1
              serves k = 1 too, -1 or +1 without E, and w = 0 gives -1

    >>> DorefaW(bits=1)(torch.tensor([1.0, -3.0])).tolist()
    [2.0, -2.0]
    >>> DorefaW(bits=2)(torch.tensor([9.0, -9.0, 0.2]).double()).round(decimals=3).tolist()
    [1.0, -1.0, 0.333]
    """

    bits_range = "1-8"

    def __init__(self, bits: int = 1, compat: str | None = None) -> None:
        super().__init__()
        self.scaled_sign = bits == 1 and not check_compat("dorefa_w", compat)
        self.bits = self.planes = self.storage_bits = check_bits("dorefa_w", bits)
        self.top = 2**bits - 1

    def unit(self, w: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(position on [0, 1], slope, alive): alive is 0 for a layer of zeros, whose value is then exactly 0."""
        t = torch.tanh(wide(w.detach()))
        seen = kept_only(t, keep)
        peak = seen.abs().max() if t.numel() else t.new_zeros(())
        alive = (peak > 0).to(t.dtype)
        peak = torch.where(peak > 0, peak, torch.ones_like(peak))
        return (t / (2 * peak) + 0.5).clamp(0.0, 1.0), (1 - t * t) / peak, alive

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None:
            fast = binary_weight(w, "identity", one_scale=True) if self.scaled_sign else dorefa_weight(w, self.top)
            if fast is not None:
                return fast
        if self.scaled_sign:
            return ste(w, mean_abs(w.detach(), "layer", keep) * sign(w.detach()))
        unit, slope, alive = self.unit(w, keep)
        return ste(w, ((unit * self.top).round() * (2 / self.top) - 1) * alive, slope)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        if self.scaled_sign:
            return sign_code(w, mean_abs(w.detach(), "layer", keep))
        unit, _, alive = self.unit(w, keep)
        code = uint_code((unit * self.top).round(), self.bits, (2 / self.top) * alive, -alive)
        return Coded(code.bit, code.coef.to(w.dtype), code.offset.to(w.dtype))

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.scaled_sign:
            return sign(w.detach()), mean_abs(w.detach(), "layer", keep)
        unit, _, alive = self.unit(w, keep)
        return ((unit * self.top).round() * 2 - self.top).to(w.dtype), (alive / self.top).to(w.dtype)


@part("dorefa_a", "x")
class DorefaA(nn.Module):
    """k-bit inputs on 2^k - 1 equal steps of [0, 1].

    value     round(clip(x, 0, 1) (2^k - 1)) / (2^k - 1), round half to even
    gradient  g where 0 <= x <= 1, else 0
    shape     any
    source    Zhou et al. 2016, arXiv 1606.06160, section 2.4
    differs   k = 1 has its threshold at 1/2, as the formula says (one public code returns 1 for any x > 0)

    >>> DorefaA(bits=2)(torch.tensor([-1.0, 0.3, 0.6, 9.0]).double()).round(decimals=3).tolist()
    [0.0, 0.333, 0.667, 1.0]
    """

    bits_range = "1-8"
    signed = False
    begins_at_zero = True  # a ReLU in front changes nothing

    def __init__(self, bits: int = 2) -> None:
        super().__init__()
        self.bits = self.planes = self.storage_bits = check_bits("dorefa_a", bits)
        self.top = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return clip_round(x, 1.0, self.top)

    def encode(self, x: Tensor) -> Coded:
        code = torch.nan_to_num((wide(x).clamp(0.0, 1.0) * self.top).round())
        return uint_code(code, self.bits, scalar(1 / self.top, x), scalar(0.0, x))

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (wide(x.detach()).clamp(0.0, 1.0) * self.top).round().to(x.dtype), scalar(1 / self.top, x)
