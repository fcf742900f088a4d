"""BinaryConnect weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import sign_code
from bitwright.fn.ste import sign, ste
from bitwright.parts.options import check_coded, check_word
from bitwright.parts.registry import part
from bitwright.parts.scale import wide
from bitwright.types import Coded, scalar


@part("binaryconnect", "w")
class BinaryConnect(nn.Module):
    """Binary weights {-H, +H}, the same size everywhere; drawn at random in training if `stochastic`.

    value     deterministic: H if w >= 0, else -H;
              stochastic, in training: H with probability clip((w / H + 1) / 2, 0, 1), else -H
    gradient  g, unchanged
    shape     any
    options   scale = H. evaluate: what evaluation uses, "sign" (deterministic values) or "latent" (the real weights, which
              have no codes); "auto" is the paper's choice, sign if deterministic, latent if stochastic
    moments   after_step clips the latent to [-H, H]
    source    Courbariaux et al. 2015, arXiv 1511.00363, sections 2.2 to 2.6
    differs   the public code multiplies updates by 1 / sqrt(1.5 / (fan in + fan out)) and starts from U(-H, H): give the
              layer a learning rate and a start of your own. Ranks of a parallel run draw different values

    >>> BinaryConnect(0.5)(torch.tensor([0.1, -2.0, 0.0])).tolist()
    [0.5, -0.5, 0.5]
    """

    bits = planes = storage_bits = 1
    projects = True  # after_step twice is after_step once

    def __init__(self, scale: float = 1.0, stochastic: bool = False, evaluate: str = "auto") -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise InputError(f"part binaryconnect: scale={scale!r}; it is a size above 0", code="option")
        check_word("binaryconnect", "evaluate", evaluate, ("auto", "sign", "latent"))
        self.scale, self.stochastic = float(scale), stochastic
        self.latent = evaluate == "latent" or (evaluate == "auto" and stochastic)
        if self.latent:
            self.planes, self.storage_bits = None, 32

    def offers(self, moment: str) -> bool:
        """No codes where evaluation uses the real weights."""
        return not (self.latent and moment in ("encode", "whole"))

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        fixed = w.detach()
        if not self.training and self.latent:
            return w
        if self.training and self.stochastic:
            share = (wide(fixed) / self.scale + 1) / 2  # NaN draws -H, but stays NaN by the product below
            drawn = torch.where(torch.rand_like(share) < share, 1.0, -1.0).to(share.dtype)
            return ste(w, drawn * sign(share).abs() * self.scale)
        return ste(w, sign(fixed) * self.scale)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        check_coded(self, "evaluation uses the real weights")
        return sign_code(w, scalar(self.scale, w))

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sign(w.detach()), scalar(self.scale, w)

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        weight.clamp_(-self.scale, self.scale)
