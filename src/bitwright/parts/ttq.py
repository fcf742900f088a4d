"""Trained ternary quantization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import ternary_code
from bitwright.fn.ste import ste
from bitwright.parts.options import check_compat
from bitwright.parts.registry import part
from bitwright.parts.scale import kept_only
from bitwright.types import Coded, scalar


@part("ttq", "w")
class Ttq(nn.Module):
    """Trained ternary weights {-n, 0, +p} with learned p and n.

    value     p if w > d, -n if w < -d, else 0;   d = threshold * max|w| over the tensor
    gradient  dw = g * (p, 1 or n by region);   dp = sum of g where w > d;   dn = -(sum of g where w < -d)
    shape     w any; p, n scalars (no weight decay: see `bw.param_groups`)
    options   init: "mean" starts p and n at the mean size of the weights they stand for (read from the layer),
              "one" at 1 as the authors' code
              grid: 0 leaves p and n as they are; with 127 both become whole multiples of max(|p|, |n|) / 127 (gradient of the
              rounding: 1), so that a layer whose inputs are codes is one product of integers when packed, and not two
    moments   observe (`bw.calibrate`): with init="mean" reads p and n again, for weights that were loaded after `bw.apply`
    source    Zhu et al. 2017, arXiv 1612.01064, section 3
    differs   the paper prints dn without its minus, so n would raise the loss; latents are not divided by max|w| first
              (no public code does it). compat="seed": p and n start at random in 0..1, their gradients are means over all
              weights instead of sums, and the latents below -d get -n g, which raises the loss

    >>> Ttq()(torch.tensor([[-1.0, 0.01, 0.5]])).tolist()
    [[-1.0, 0.0, 1.0]]
    """

    p: nn.Parameter
    n: nn.Parameter
    bits = planes = storage_bits = 2

    def __init__(self, threshold: float = 0.05, init: str = "mean", compat: str | None = None, grid: int = 0) -> None:
        super().__init__()
        if init not in ("mean", "one"):
            raise InputError(f"part ttq: init={init!r} is neither mean nor one", code="option")
        if not 0 <= threshold < 1:  # below 0 the regions overlap, from 1 on both are empty
            raise InputError(f"part ttq: threshold={threshold!r}; it lies in 0..1, below 1", code="option")
        if not (isinstance(grid, int) and 0 <= grid <= 127):
            raise InputError(f"part ttq: grid={grid!r}; it is 0 (none) or a whole number up to 127", code="option")
        self.threshold, self.init, self.grid = threshold, init, grid
        self.seed = check_compat("ttq", compat)
        start = torch.rand(2) if self.seed else torch.ones(2)
        self.p, self.n = nn.Parameter(start[0].clone()), nn.Parameter(start[1].clone())

    @classmethod
    def for_layer(
        cls, layer: nn.Module, threshold: float = 0.05, init: str = "mean", compat: str | None = None, grid: int = 0
    ) -> Ttq:
        new = cls(threshold, init, compat, grid)
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            new.to(weight.device)
            if weight.device.type != "meta":
                new.observe(weight)
        return new

    @torch.no_grad()
    def observe(self, w: Tensor) -> None:
        """Sets p and n from weights; a side without weights keeps its value."""
        if self.init != "mean" or self.seed or not w.numel():
            return
        for scale, region in zip((self.p, self.n), self.regions(w), strict=True):
            if region.any():
                scale.copy_(w[region].float().abs().mean())

    def regions(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fixed = kept_only(w.detach(), keep)
        d = self.threshold * fixed.abs().max() if w.numel() else fixed.new_zeros(())
        return fixed > d, fixed < -d

    def scales(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(p, n) as the weights get them."""
        p, n = self.p, self.n
        if self.grid:
            step = torch.maximum(p.detach().abs(), n.detach().abs()) / self.grid
            step = torch.where(step > 0, step, torch.ones_like(step))
            p, n = (ste(v, (v.detach() / step).round() * step) for v in (p, n))
        return p.to(dtype), n.to(dtype)

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        up, down = self.regions(w, keep)
        p, n = self.scales(w.dtype)
        slope = torch.where(up, p, torch.where(down, -n if self.seed else n, torch.ones_like(p))).detach()
        if self.seed:
            share = scalar(1 / max(1, w.numel()), w)
            p, n = ste(p, p.detach(), share), ste(n, n.detach(), share)
        return p * up - n * down + ste(w, torch.zeros_like(w), slope)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        up, down = self.regions(w, keep)
        p, n = self.scales(w.dtype)
        return ternary_code(up, down, p.detach(), n.detach())
