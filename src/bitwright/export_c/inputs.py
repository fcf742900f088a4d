"""How pixels become what the first layer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError


@dataclass(frozen=True)
class Pixels:
    """Pixel k of channel c is k / 255, or, with a mean and a deviation of the data set, (k / 255 - mean) / std.

    That is computed as `k * scale - offset`, each step rounded, as `bw.data` does.
    """

    scale: Tensor | None = None
    offset: Tensor | None = None

    @staticmethod
    def of(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Pixels:
        if mean is None and std is None:
            return Pixels()
        if mean is None or std is None or len(mean) != channels or len(std) != channels:
            raise InputError(
                f"export c: mean={mean}, std={std}; possible: both, with {channels} numbers each", code="export-pixels"
            )
        average, deviation = (torch.tensor([float(v) for v in values], dtype=torch.float64) for values in (mean, std))
        return Pixels((1 / (255 * deviation)).float(), (average / deviation).float())

    def floats(self, x: Tensor) -> Tensor:
        """uint8 [N, C, ...] -> what the net reads."""
        if self.scale is None or self.offset is None:
            return x.float() / 255
        view = (-1, *[1] * (x.dim() - 2))
        return x.float() * self.scale.view(view) - self.offset.view(view)

    def table(self, channels: int) -> Tensor:
        """The number of each pixel value: float32 [256, channels]."""
        return self.floats(torch.arange(256, dtype=torch.uint8)[:, None].expand(256, channels))
