"""DoReFa-Net: gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitwright.fn.noise import centered_noise
from bitwright.parts.bits import check_bits
from bitwright.parts.registry import part
from bitwright.parts.scale import wide


class _Backward(torch.autograd.Function):
    """Identity forward; the gradient is quantized with the noise that (stream, count) stand for."""

    @staticmethod
    def forward(y: Tensor, stream: Tensor, count: Tensor, top: int) -> Tensor:
        return y.clone()  # the output must own its memory: an in-place ReLU may follow

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        _, stream, count, ctx.top = inputs
        ctx.save_for_backward(stream, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        stream, count = ctx.saved_tensors
        return quantized(grad, centered_noise(stream, count, grad.shape), ctx.top), None, None, None


def quantized(grad: Tensor, noise: Tensor, top: int) -> Tensor:
    """f(g) of the docstring below, `noise` uniform on (-1/2, 1/2)."""
    if not grad.numel():
        return grad
    wider = wide(grad)
    axes = tuple(range(1, grad.dim()))
    peak = 2 * (wider.abs().amax(axes, keepdim=True) if axes else wider.abs())
    # a sample of zeros stays zero; inf and nan go through, so that a gradient scaler sees them
    safe = torch.where(peak == 0, torch.ones_like(peak), peak)
    place = (wider / safe + 0.5 + noise.to(wider.dtype) / top).clamp(0, 1)
    return (peak * ((place * top).round() / top - 0.5)).to(grad.dtype)


@part("dorefa_g", "g")
class DorefaG(nn.Module):
    """k-bit gradients with noise, right on average: the output passes, its gradient is quantized per sample.

    value     y
    gradient  f(g) = 2 m (q_k(clip(g / (2 m) + 1/2 + N, 0, 1)) - 1/2), m = max|g| of the sample, N uniform on
              +-1/2 / (2^k - 1), q_k(r) = round(r (2^k - 1)) / (2^k - 1); the mean of f(g) over N is g. A sample of zeros
              gives 0. In evaluation the gradient is g
    shape     [N, ...]
    state     the generator is two integers in the state dict, `stream` (drawn when the part is made, so layers differ) and
              `count` (forward passes in training): a resumed run draws the same noise
    source    Zhou et al. 2016, arXiv 1606.06160, section 2.5
    differs   tensorpack divides 0 by 0 for a sample without gradient. Ranks of a parallel run draw different noise

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> y = torch.zeros(1, 3, requires_grad=True)
    >>> DorefaG(bits=1)(y).backward(torch.tensor([[2.0, -2.0, 0.1]]))
    >>> y.grad[0, :2].tolist(), y.grad[0, 2].abs().item()       # 0.1 becomes 2 a bit more often than -2
    ([2.0, -2.0], 2.0)
    """

    stream: Tensor
    count: Tensor
    bits_range = "1-8"

    def __init__(self, bits: int = 6) -> None:
        super().__init__()
        self.bits = check_bits("dorefa_g", bits)
        self.top = 2**bits - 1
        self.register_buffer("stream", torch.randint(1 << 31, ()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def for_layer(cls, layer: nn.Module, bits: int = 6) -> DorefaG:
        return cls(bits).to(next(layer.parameters()).device)

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return y
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        count = self.count.clone()
        self.count.add_(1)
        return _Backward.apply(y, self.stream + rank, count, self.top)
