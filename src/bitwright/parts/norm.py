"""BatchNorm in front of a quantizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.parts.registry import part
from bitwright.parts.scale import width_of


@part("norm", "x")
class Norm(nn.Module):
    """BatchNorm over the input channels, before a quantizer; `convert` folds it into the thresholds.

    value     (x - mean_c) / sqrt(var_c + eps) * weight_c + bias_c
    gradient  that of batch normalization
    shape     [N, C, ...], or [..., C] in front of a Linear layer
    options   eps, momentum as in torch; features = C where no layer tells it
    source    Rastegari et al. 2016, arXiv 1603.05279, section 3.2 (block order norm, sign, conv)
    differs   the public code clamps the gain to 0.01; here a negative gain flips the threshold instead

    >>> n = Norm(features=2).eval()
    >>> n(torch.ones(1, 2, 1, 1)).flatten().round(decimals=3).tolist()
    [1.0, 1.0]
    """

    running_mean: Tensor
    running_var: Tensor
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, features: int | None = None, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if features is None:
            raise InputError("part norm: needs features=N, or a layer to read it from", code="norm-features")
        self.eps, self.momentum, self.last = eps, momentum, False
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    @classmethod
    def for_layer(cls, layer: nn.Module, features: int | None = None, eps: float = 1e-5, momentum: float = 0.1) -> Norm:
        width = features or width_of(layer)
        new = cls(width, eps, momentum)
        new.last = isinstance(layer, nn.Linear)
        like = next(layer.parameters())
        # torch's batch_norm takes float32 statistics beside half inputs, but not beside double ones
        return new.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.last and x.dim() > 2  # Linear on [N, T, C]: features are the last axis
        if not self.training:
            scale, add = self.constants()
            shape = (-1,) if self.last or x.dim() < 2 else (-1, *[1] * (x.dim() - 2))
            return x * scale.to(x.dtype).reshape(shape) + add.to(x.dtype).reshape(shape)
        flat = x.flatten(0, -2) if rows else x
        out = F.batch_norm(
            flat, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )
        return out.view_as(x) if rows else out

    def constants(self) -> tuple[Tensor, Tensor]:
        """(scale, add) of evaluation, [C] each: made in float64, rounded once. One multiply, one add, so that the
        packed net meets the very same numbers on every machine."""
        rate = self.weight.double() / torch.sqrt(self.running_var.double() + self.eps)
        add = self.bias.double() - self.running_mean.double() * rate
        kept = self.weight.dtype if self.weight.dtype == torch.float64 else torch.float32
        return rate.to(kept), add.to(kept)
