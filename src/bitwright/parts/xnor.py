"""XNOR-Net weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import sign_code, ternary_code
from bitwright.fn.fast import binary_weight
from bitwright.fn.ste import sign, ste
from bitwright.parts.options import check_compat
from bitwright.parts.registry import part
from bitwright.parts.scale import centered, mean_abs, warn_flat, weight_of
from bitwright.types import Coded, scalar

CENTER = ("project", "graph", "off")


@part("xnor", "w")
class Xnor(nn.Module):
    """Binary weights {-a, +a} with latents centered over the input channels and clipped.

    value     a * sign(w), a = mean|w| per filter
    gradient  as bwn; center="graph" also goes through the clip and the subtraction of the mean
    shape     [O, I, ...]; the mean is over I, one per (o, position)
    options   center: "project" moves the latents after each step (the public code), "graph" centers and
              clips in forward and leaves the latents alone, "off". Off by itself where I = 1: it would zero every weight
    moments   after_step centers (project), then clips to [-1, 1] (project, off)
    source    Rastegari et al. 2016, arXiv 1603.05279; XNOR-Net-PyTorch (jiecaoyu), util.py
    differs   projection runs once per optimizer step, never in evaluation; gradients are not multiplied by
              (1 - 1/I) n 1e9, which Adam cancels and which only made weight decay ineffective: use `bw.param_groups`.
              compat="seed": sign(0) = 0, a third value; gradients times (1 - 1/I) n, as the MNIST and CIFAR-10 scripts
              (0 where I = 1: such a layer never learned there); the 1e9 of the ImageNet script is left out

    >>> w = torch.tensor([[0.5, 1.5]])
    >>> Xnor().after_step(w); w.tolist()
    [[-0.5, 0.5]]
    >>> Xnor()(w).tolist()
    [[-0.5, 0.5]]
    """

    bits = planes = storage_bits = 1
    projects = True  # after_step twice is after_step once, where nothing was clipped

    def __init__(self, center: str = "project", compat: str | None = None) -> None:
        super().__init__()
        if center not in CENTER:
            raise InputError(f"part xnor: center={center!r} is none of {', '.join(CENTER)}", code="option")
        self.center, self.seed = center, check_compat("xnor", compat)
        if self.seed:
            self.planes = self.storage_bits = 2

    @classmethod
    def for_layer(cls, layer: nn.Module, center: str = "project", compat: str | None = None) -> Xnor:
        new = cls(center, compat)
        latent = weight_of(layer)
        if latent is not None:
            warn_flat("xnor", layer, latent if center == "off" else centered(latent), latent)
        return new

    def latent(self, w: Tensor, keep: Tensor | None) -> Tensor:
        return centered(w, keep).clamp(-1.0, 1.0) if self.center == "graph" else w

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.seed:
            w = ste(w, w.detach(), scalar((1 - 1 / w.shape[1]) * math.prod(w.shape[1:]), w))
        w = self.latent(w, keep)
        fast = binary_weight(w, "exact") if keep is None and not self.seed else None
        if fast is not None:
            return fast
        hard = torch.sign(w.detach()) if self.seed else sign(w)
        return mean_abs(w, "filter", keep) * ste(w, hard, w.detach().abs() <= 1)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        w = self.latent(w.detach(), keep)
        size = mean_abs(w, "filter", keep)
        return ternary_code(w > 0, w < 0, size, size) if self.seed else sign_code(w, size)

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w = self.latent(w.detach(), keep)
        return torch.sign(w) if self.seed else sign(w), mean_abs(w, "filter", keep)

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        if self.center == "graph":
            return  # forward centers and clips; the latents stay as the optimizer left them
        if self.center == "project":
            weight.copy_(centered(weight, keep))
        weight.clamp_(-1, 1)
