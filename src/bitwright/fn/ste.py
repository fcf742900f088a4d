"""The one custom gradient of the library: a value with another function's slope."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Ste(torch.autograd.Function):
    """setup_context keeps the function free of Python state, so torch.compile traces it whole."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, slope: Tensor | None) -> Tensor:
        return y.clone()  # the output must own its memory: an in-place ReLU may follow

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        slope = inputs[2]
        ctx.has_slope = slope is not None
        ctx.save_for_backward(*([] if slope is None else [slope]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        return (grad * ctx.saved_tensors[0] if ctx.has_slope else grad), None, None


def ste(x: Tensor, y: Tensor, slope: Tensor | None = None) -> Tensor:
    """Value of `y`, gradient of `x` times `slope` (1 where not given). First derivatives only.

    `slope` may be a mask (clipped straight-through estimator), a scale or a bump (ApproxSign).
    The value is exactly `y`: unlike `soft + (hard - soft).detach()` nothing is rounded on the way.

    >>> x = torch.tensor([0.5, 2.0], requires_grad=True)
    >>> ste(x, sign(x), x.detach().abs() <= 1).sum().backward()
    >>> x.grad.tolist()
    [1.0, 0.0]
    """
    if slope is not None:
        slope = slope.to(x.dtype)
    return _Ste.apply(x, y.to(x.dtype), slope)


class _Ste2(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, p: Tensor, y: Tensor, slope_x: Tensor, slope_p: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[3:])
        ctx.p_shape, ctx.p_dtype = inputs[1].shape, inputs[1].dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        slope_x, slope_p = ctx.saved_tensors
        to_p = (grad.to(slope_p.dtype) * slope_p).sum_to_size(ctx.p_shape).to(ctx.p_dtype)
        return grad * slope_x, to_p, None, None, None


def ste2(x: Tensor, p: Tensor, y: Tensor, slope_x: Tensor, slope_p: Tensor) -> Tensor:
    """Value of `y`; gradient of `x` times `slope_x`, and of a parameter `p` (a step, a range), which broadcasts over x.

    >>> x, p = torch.tensor([0.5, 3.0]), torch.tensor(2.0, requires_grad=True)
    >>> ste2(x, p, x.clamp(max=2.0), x < 2, x >= 2).sum().backward()
    >>> p.grad.item()
    1.0
    """
    wide = slope_p.to(p.dtype if p.dtype == torch.float64 else torch.float32)
    return _Ste2.apply(x, p, y.to(x.dtype), slope_x.to(x.dtype), wide)


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, -1 elsewhere; never 0, because a zero would need a third level. NaN stays NaN.

    Training must see a NaN, so it is passed on; packed codes store -1 for it.

    >>> sign(torch.tensor([-0.0, 0.0, -2.0])).tolist()
    [1.0, 1.0, -1.0]
    """
    plus = (x >= 0).to(x.dtype) * 2 - 1
    return torch.maximum(plus, x.clamp_max(-1.0))  # only a NaN wins; where() is not vectorized in bfloat16
