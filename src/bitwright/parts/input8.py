"""The first layer's pixels as exact 8-bit codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightWarning, InputError, nearest
from bitwright.fn.coded import uint_code
from bitwright.fn.pixels import PIXELS
from bitwright.fn.ste import ste
from bitwright.parts.registry import part
from bitwright.types import Coded, scalar

MEASURED = "measured"


@part("input8", "x")
class Input8(nn.Module):
    """Pixels as exact uint8 codes k, normalized on the integer grid.

    value     (k - z_c) * step, z_c = round(255 mean_c), step = 1 / (255 std), std averaged over the channels
    gradient  g where 0 <= x <= 1, times 1 / std
    shape     [N, C, ...]; takes uint8 codes k, or floats k / 255
    options   mean, std: a number, or one per channel. mean alone: the name of a data set ("cifar10", "mnist", ...), or
              "measured": those of the pixels that `bw.calibrate` shows, 0 and 1 before it; one mean in a Linear layer.
              If the named data set has another number of channels than the layer, they are measured too, with a warning
    source    the 8-bit first layer of Esser et al. 2020, arXiv 1902.08153, section 3
    differs   from float normalization: the mean is rounded to a whole code and all channels share one step, because the
              layer's sum of products stays an integer only then, and zero padding stays exact

    >>> Input8(mean=0.5)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).double().round(decimals=3).tolist()
    [[[[-0.502, 0.498]]]]
    """

    zero: Tensor
    width: Tensor
    bits = planes = storage_bits = 8
    signed = False
    source_codes = True  # reads the network's input: convert lets uint8 tensors in

    def __init__(self, mean: float | Sequence[float] | str = 0.0, std: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        self.measured = mean == MEASURED
        if isinstance(mean, str):
            mean, std = _named(mean, std)
        means = torch.tensor([mean] if isinstance(mean, (int, float)) else list(mean), dtype=torch.float64)
        stds = torch.tensor([std] if isinstance(std, (int, float)) else list(std), dtype=torch.float64)
        if not bool((stds > 0).all()) or not bool(((means >= 0) & (means <= 1)).all()):
            raise InputError(f"part input8: mean={mean!r}, std={std!r}; mean lies in 0..1, std above 0", code="option")
        self._step = float(1 / (255 * stds.mean()))
        self.register_buffer("zero", (255 * means).round().float(), persistent=self.measured)
        if self.measured:
            self.register_buffer("width", stds.mean().float())  # the one std of all channels
            self._sums: tuple[int, Tensor | float, Tensor | float] = (0, 0.0, 0.0)

    @classmethod
    def for_layer(
        cls, layer: nn.Module, mean: float | Sequence[float] | str = 0.0, std: float | Sequence[float] = 1.0
    ) -> Input8:
        new = cls(mean, std)
        width = getattr(layer, "in_channels", None)
        if isinstance(mean, str) and not new.measured and new.zero.numel() not in (1, width):
            given = f"{width} channels" if width else f"a {type(layer).__name__} layer"
            warnings.warn(
                f"input8: mean and std of {mean} are for {new.zero.numel()} channels, not for {given}: measured by "
                "bw.calibrate, 0 and 1 before it. Or write mean = [..], std = [..], one per channel",
                BitwrightWarning,
                stacklevel=2,
            )
            new = cls(MEASURED)
        if new.measured and width:
            new.zero = new.zero.expand(width).clone()
        if width is not None and new.zero.numel() not in (1, width):
            raise InputError(
                f"part input8: {new.zero.numel()} means for {width} channels. Give one number, or mean = [..], std = [..] "
                f'with {width} values, or mean = "{MEASURED}"',
                code="option",
            )
        return new.to(next(layer.parameters()).device)

    def offers(self, name: str) -> bool:
        return name != "observe" or self.measured

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Mean and std of all pixels shown so far, by exact sums."""
        if not x.numel():
            return
        channels = self.zero.numel()
        k = self.codes(x).double().cpu()
        k = k.reshape(-1, 1) if channels == 1 else k.movedim(1, -1).reshape(-1, channels)
        count, total, square = self._sums
        self._sums = count, total, square = count + len(k), total + k.sum(0), square + k.square().sum(0)
        mean = torch.as_tensor(total) / count
        std = (torch.as_tensor(square) / count - mean**2).clamp_min(0).sqrt() / 255
        self.zero.copy_(mean.round())
        self.width.copy_(torch.where(std > 0, std, torch.ones_like(std)).mean())  # a constant channel: no division by 0

    @property
    def step(self) -> Tensor | float:
        return 1 / (255 * self.width) if self.measured else self._step

    def _unit(self, like: Tensor) -> Tensor:
        step = self.step
        return step.to(like) if isinstance(step, Tensor) else scalar(step, like)

    def _per_channel(self, t: Tensor) -> Tensor:
        return self.zero if self.zero.numel() == 1 else self.zero.reshape(-1, *[1] * (t.dim() - 2))

    def codes(self, x: Tensor) -> Tensor:
        return x.float() if x.dtype == torch.uint8 else (x.float().clamp(0.0, 1.0) * 255).round()

    def forward(self, x: Tensor) -> Tensor:
        # [1] against [N, C, ...] broadcasts either way; a full vector needs the channel axis
        value = (self.codes(x.detach()) - self._per_channel(x)) * self.step
        if x.dtype == torch.uint8:
            return value.to(self.zero.dtype)  # the dtype of the net, since the input is bytes
        return ste(x, value.to(x.dtype), ((x.detach() >= 0) & (x.detach() <= 1)) * (255 * self.step))

    def encode(self, x: Tensor) -> Coded:
        like = self.zero
        zero = self._per_channel(x)
        return uint_code(torch.nan_to_num(self.codes(x)), 8, self._unit(like), -zero * self.step)

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.zero.dtype if x.dtype == torch.uint8 else x.dtype
        return (self.codes(x.detach()) - self._per_channel(x)).to(kept), self._unit(self.zero)


def _named(name: str, std: float | Sequence[float]) -> tuple[float | Sequence[float], float | Sequence[float]]:
    """Mean and std of a data set; neutral ones where they are still to be measured."""
    if std != 1.0:
        raise InputError(f"part input8: mean={name!r} names the std too; leave std={std!r} out", code="option")
    if name == MEASURED:
        return 0.0, 1.0
    if name not in PIXELS:
        known = (*PIXELS, MEASURED)
        raise InputError(
            f"part input8: mean={name!r}.{nearest(name, known)} Possible: numbers, or {', '.join(known)}",
            code="option",
            given=name,
            possible=", ".join(known),
        )
    return PIXELS[name]
