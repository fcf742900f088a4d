"""The first layer's pixels as exact 8-bit codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import uint_code
from bitwright.fn.ste import ste
from bitwright.parts.registry import part
from bitwright.types import Coded, scalar


@part("input8", "x")
class Input8(nn.Module):
    """Pixels as exact uint8 codes k, normalized on the integer grid.

    value     (k - z_c) * step, z_c = round(255 mean_c), step = 1 / (255 std), std averaged over the channels
    gradient  g where 0 <= x <= 1, times 1 / std
    shape     [N, C, ...]; takes uint8 codes k, or floats k / 255
    options   mean, std: a number, or one per channel
    source    the 8-bit first layer of Esser et al. 2020, arXiv 1902.08153, section 3
    differs   from float normalization: the mean is rounded to a whole code and all channels share one step, because the
              layer's sum of products stays an integer only then, and zero padding stays exact

    >>> Input8(mean=0.5)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).double().round(decimals=3).tolist()
    [[[[-0.502, 0.498]]]]
    """

    zero: Tensor
    bits = 8
    planes = 8
    storage_bits = 8
    signed = False
    source_codes = True  # reads the network's input: convert lets uint8 tensors in

    def __init__(self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        means = torch.tensor([mean] if isinstance(mean, (int, float)) else list(mean), dtype=torch.float64)
        stds = torch.tensor([std] if isinstance(std, (int, float)) else list(std), dtype=torch.float64)
        if not bool((stds > 0).all()) or not bool(((means >= 0) & (means <= 1)).all()):
            raise InputError(f"part input8: mean={mean!r}, std={std!r}; mean lies in 0..1, std above 0", code="option")
        self.step = float(1 / (255 * stds.mean()))
        self.register_buffer("zero", (255 * means).round().float(), persistent=False)

    @classmethod
    def for_layer(
        cls, layer: nn.Module, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0
    ) -> Input8:
        new = cls(mean, std)
        width = getattr(layer, "in_channels", None)
        if width is not None and new.zero.numel() not in (1, width):
            raise InputError(f"part input8: {new.zero.numel()} means for {width} channels", code="option")
        return new.to(next(layer.parameters()).device)

    def _per_channel(self, t: Tensor) -> Tensor:
        return self.zero if self.zero.numel() == 1 else self.zero.reshape(-1, *[1] * (t.dim() - 2))

    def codes(self, x: Tensor) -> Tensor:
        return x.float() if x.dtype == torch.uint8 else (x.float().clamp(0, 1) * 255).round()

    def forward(self, x: Tensor) -> Tensor:
        # [1] against [N, C, ...] broadcasts either way; a full vector needs the channel axis
        value = (self.codes(x.detach()) - self._per_channel(x)) * self.step
        if x.dtype == torch.uint8:
            return value.to(self.zero.dtype)  # of the net: bytes have no dtype of their own to keep
        return ste(x, value.to(x.dtype), ((x.detach() >= 0) & (x.detach() <= 1)) * (255 * self.step))

    def encode(self, x: Tensor) -> Coded:
        like = self.zero
        zero = self._per_channel(x)
        return uint_code(torch.nan_to_num(self.codes(x)), 8, scalar(self.step, like), -zero * self.step)

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.zero.dtype if x.dtype == torch.uint8 else x.dtype
        return (self.codes(x.detach()) - self._per_channel(x)).to(kept), scalar(self.step, self.zero)
