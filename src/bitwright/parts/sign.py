"""Binary activations with a choice of surrogate gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn import fast
from bitwright.fn.coded import sign_code, ternary_code
from bitwright.fn.ste import sign, ste
from bitwright.parts.options import check_compat
from bitwright.parts.registry import part
from bitwright.types import Coded, scalar

SURROGATES = ("clip", "approx", "identity", "swish")


def surrogate_slope(x: Tensor, surrogate: str, boundary: str) -> Tensor | None:
    """The slope that stands for that of a sign at x; None: 1 everywhere.

    >>> surrogate_slope(torch.tensor([0.25, 1.0, 2.0]), "approx", "closed")
    tensor([1.5000, 0.0000, 0.0000])
    """
    size = x.abs()
    if surrogate == "clip":
        return size <= 1 if boundary == "closed" else size < 1
    if surrogate == "approx":
        return torch.rsub(size, 2, alpha=2).clamp_min(0.0)
    if surrogate == "swish":
        z = (5 * x).clamp(-30.0, 30.0)  # the bump is below 1e-11 there; cosh would overflow in half precision
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        return 5 * (2 - z * torch.tanh(z / 2)) / (1 + torch.cosh(z))
    return None


@part("sign", "x")
class Sign(nn.Module):
    """Binary inputs {-1, +1}: +1 where x >= 0.

    value     +1 if x >= 0 (so -0.0 too), else -1
    gradient  clip: g * 1[|x| <= 1] (open: < 1);  approx: g * (2 - 2|x|) * 1[|x| < 1];  identity: g;
              swish: g * b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)), b = 5
    shape     any
    source    clip: Rastegari et al. 2016, arXiv 1603.05279; approx: Liu et al. 2018, arXiv 1808.00278;
              swish: Darabi et al. 2018, arXiv 1812.11800
    differs   torch.sign(0) = 0 in the public codes is a third value that no bit can hold; here it is +1. compat="seed" keeps
              the 0 (two planes) and passes the gradient where |x| < 1, whatever the surrogate

    >>> Sign()(torch.tensor([-0.3, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0]
    """

    bits = planes = storage_bits = 1
    signed = True

    def __init__(self, surrogate: str = "clip", boundary: str = "closed", compat: str | None = None) -> None:
        super().__init__()
        if surrogate not in SURROGATES:
            raise InputError(f"part sign: surrogate={surrogate!r} is none of {', '.join(SURROGATES)}", code="option")
        if boundary not in ("closed", "open"):
            raise InputError(f"part sign: boundary={boundary!r} is neither closed nor open", code="option")
        self.surrogate, self.boundary = surrogate, boundary
        self.seed = check_compat("sign", compat)
        self.local_gradient = self.seed or surrogate in ("clip", "approx")  # the gradient is 0 beyond 1
        if self.seed:
            self.surrogate, self.boundary = "clip", "open"
            self.planes = self.storage_bits = 2

    def slope(self, x: Tensor) -> Tensor | None:
        return surrogate_slope(x, self.surrogate, self.boundary)

    def forward(self, x: Tensor) -> Tensor:
        if self.seed:
            return ste(x, self.hard(x.detach()), self.slope(x.detach()))
        return fast.sign(x, self.surrogate, self.boundary == "open", self.slope)

    def hard(self, x: Tensor) -> Tensor:
        return torch.sign(x) + 0 * x.clamp(-1.0, 1.0) if self.seed else sign(x)  # NaN stays NaN

    def encode(self, x: Tensor) -> Coded:
        one = scalar(1.0, x)
        return ternary_code(x > 0, x < 0, one, one) if self.seed else sign_code(x, one)

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.hard(x.detach()), scalar(1.0, x)
