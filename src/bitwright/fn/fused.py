"""The native calls: training kernels as autograd functions. `fast.py` chooses between them and `plain.py`.

Nothing here copies a tensor that is dense in memory, in whatever order of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitwright.fn.kernels import launch, takes_gradient
from bitwright.fn.plain import along, lsq_slopes, step_size


def filters_of(w: Tensor) -> tuple[int, int] | None:
    """(filters, weights of one) of a weight whose filters are rows of its memory, else None."""
    n = w.numel()
    if n == 0 or w.dim() == 0:
        return None
    rows = w.shape[0]
    if rows > 1 and w.stride(0) * rows != n:
        return None
    if not w.is_contiguous() and torch.empty_like(w).stride() != w.stride():
        return None
    return rows, n // rows


def _once(function: Callable[..., Any]) -> Any:
    """A backward pass that has no second derivative."""
    return staticmethod(once_differentiable(function))


def _dense(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with memory that has no gaps (x itself where it has none), and an empty tensor of the same strides."""
    y = torch.empty_like(x)
    return (x, y) if y.stride() == x.stride() else (torch.empty_like(x).copy_(x), y)


def in_order_of(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    if grad.stride() == strides:
        return grad
    return torch.empty_strided(grad.shape, strides, dtype=grad.dtype).copy_(grad)


def _words(n: int) -> Tensor:
    return torch.empty((n + 63) // 64, dtype=torch.int64)


def _spread(mask: Tensor, rows: int, count: int, like: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The bits of [rows] masks of `count` bits as 0.0 and 1.0, in plain torch: for gradients that no kernel can take."""
    flat = ((mask[:, None] >> torch.arange(64)) & 1).reshape(rows, -1)[:, :count]
    return flat.flatten().to(like.dtype).as_strided(like.shape, strides)


def _masked(grad: Tensor, mask: Tensor, strides: tuple[int, ...]) -> Tensor:
    if not takes_gradient(grad):
        return grad * _spread(mask, 1, grad.numel(), grad, strides)
    grad = in_order_of(grad, strides)
    out = torch.empty_like(grad)
    launch("bw_mask_backward", grad, mask, out, grad.numel(), like=grad)
    return out


# -- sign


def sign_value(x: Tensor, mask: Tensor | None = None, is_open: bool = False) -> tuple[Tensor, Tensor]:
    """(sign(x), x with dense memory); fills the mask of the clipped slope."""
    x, y = _dense(x)
    launch("bw_sign_forward", x, y, mask, x.numel(), like=x, option=(is_open,))
    return y, x


class _OneBit(torch.autograd.Function):
    """A function of one tensor and one setting; saves one bit per element: where the gradient passes."""

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _masked(grad, ctx.saved_tensors[0], ctx.strides), None


class ClipSign(_OneBit):
    """sign with slope 1[|x| <= 1] or 1[|x| < 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, is_open: bool) -> Tensor:
        mask = _words(x.numel())
        y, _ = sign_value(x, mask, is_open)
        ctx.save_for_backward(mask)
        ctx.strides = y.stride()
        return y


class IdentitySign(torch.autograd.Function):
    """sign with slope 1: saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sign_value(x)[0]

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


class ApproxSign(torch.autograd.Function):
    """sign with slope max(0, 2 - 2|x|). Saves x itself, as the convolution it stands in for would have: no copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, x = sign_value(x)
        ctx.save_for_backward(x)
        return y

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if not takes_gradient(grad):
            return grad * torch.rsub(x.abs(), 2, alpha=2).clamp_min(0)
        grad = in_order_of(grad, x.stride())
        out = torch.empty_like(grad)
        launch("bw_approx_backward", grad, x, out, grad.numel(), like=x)
        return out


class SlopeSign(torch.autograd.Function):
    """sign with any slope, computed from x in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        y, x = sign_value(x)
        ctx.save_for_backward(x)
        ctx.slope = slope
        return y

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.slope(ctx.saved_tensors[0]).to(grad.dtype), None


# -- step


def step_value(x: Tensor, threshold: float, on: float, off: float) -> Tensor:
    """on where x >= threshold, else off."""
    x, y = _dense(x)
    launch("bw_step_forward", x, y, x.numel(), threshold, on, off, like=x)
    return y


class StepAt(torch.autograd.Function):
    """A step with slope 1: saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float, on: float, off: float) -> Tensor:
        return step_value(x, threshold, on, off)

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None, None


# -- clip and round


def clip_value(x: Tensor, high: Tensor, levels: int, inside: Tensor | None, above: Tensor | None) -> Tensor:
    x, y = _dense(x)
    launch("bw_clip_forward", x, y, inside, above, x.numel(), high, levels, like=x)
    return y


class ClipRound(torch.autograd.Function):
    """Saves one bit per element, two where `high` learns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: Tensor, levels: int) -> Tensor:
        inside = _words(x.numel())
        above = _words(x.numel()) if ctx.needs_input_grad[1] else None
        y = clip_value(x, high.float(), levels, inside, above)
        ctx.save_for_backward(inside, *([] if above is None else [above]))
        ctx.strides, ctx.high = y.stride(), (high.shape, high.dtype)
        return y

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        inside, *rest = ctx.saved_tensors
        to_x = _masked(grad, inside, ctx.strides) if ctx.needs_input_grad[0] else None
        if not rest:
            return to_x, None, None
        shape, dtype = ctx.high
        if not takes_gradient(grad):
            total = (grad.float() * _spread(rest[0], 1, grad.numel(), grad, ctx.strides)).sum()
            return to_x, total.to(dtype).reshape(shape), None
        grad = in_order_of(grad, ctx.strides)
        total = torch.empty(shape)
        launch("bw_clip_backward", grad, None, rest[0], None, total, grad.numel(), like=grad)
        return to_x, total.to(dtype), None


# -- odd levels


def odd_value(x: Tensor, top: int, inside: Tensor | None = None) -> Tensor:
    x, y = _dense(x)
    launch("bw_odd_forward", x, y, inside, x.numel(), top, like=x)
    return y


class OddGrid(_OneBit):
    """Slope 1[|x| <= 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: int) -> Tensor:
        inside = _words(x.numel())
        y = odd_value(x, top, inside)
        ctx.save_for_backward(inside)
        ctx.strides = y.stride()
        return y


# -- learned steps


def _runs(x: Tensor, step: Tensor, axis: int) -> tuple[int, int, int, Tensor]:
    """Dense x as [outer][channels][inner] of its memory, and a step for each of these channels."""
    n, flat = x.numel(), step.detach().float().contiguous().flatten()
    channels = flat.numel()
    if channels == 1 or n == 0:
        return 1, channels, n // channels, flat
    inner = x.stride(axis)
    if 1 < inner < 64:  # short runs: as if every place of a run were a channel
        flat, channels, inner = flat.repeat_interleave(inner), channels * inner, 1
    return n // (channels * inner), channels, inner, flat


def lsq_value(x: Tensor, step: Tensor, low: float, high: float, axis: int) -> tuple[Tensor, Tensor]:
    x, y = _dense(x)
    outer, channels, inner, steps = _runs(x, step_size(step), axis)
    launch("bw_lsq_forward", x, steps, y, outer, channels, inner, low, high, like=x)
    return y, x


class LearnedStep(torch.autograd.Function):
    """Saves x and the step: the step's gradient needs the rounding error of every element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, axis: int, factor: float) -> Tensor:
        y, x = lsq_value(x, step, low, high, axis)
        ctx.save_for_backward(x, step)
        ctx.options = low, high, axis, factor
        return y

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, step = ctx.saved_tensors
        low, high, axis, factor = ctx.options
        size = step_size(step)
        if not takes_gradient(grad):
            slope_x, slope_step = lsq_slopes(x.float(), along(size.float(), x, axis), low, high)
            to_step = (grad.float() * slope_step * factor).sum_to_size(along(size, x, axis).shape)
            to_x = grad * slope_x
        else:
            grad = in_order_of(grad, x.stride())
            to_x = torch.empty_like(x)
            outer, channels, inner, steps = _runs(x, size, axis)
            to_step = torch.empty_like(steps)
            launch("bw_lsq_backward", grad, x, steps, to_x, to_step, outer, channels, inner, low, high, factor, like=x)
            if channels != step.numel():
                to_step = to_step.view(step.numel(), -1).sum(1)
        to_step = to_step.to(step.dtype).reshape(step.shape)
        if bool((step < 0).any()):  # rare: a step is positive at first
            to_step = torch.where(step < 0, -to_step, to_step)
        return to_x, to_step, None, None, None, None


# -- weights


def binary_value(w: Tensor, one_scale: bool, rows: tuple[int, int], bits: Tensor | None) -> tuple[Tensor, Tensor]:
    """(mean|w| sign(w), scales [filters])."""
    y, scales = torch.empty_like(w), torch.empty(rows[0])
    launch("bw_binary_forward", w, y, scales, bits, *rows, one_scale, like=w)
    return y, scales


class Binary(torch.autograd.Function):
    """mean|w| sign(w). exact: the gradient goes through the mean too; else it is g 1[|w| <= 1]. Saves two bits per weight."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, one_scale: bool, exact: bool, rows: tuple[int, int]) -> Tensor:
        bits = torch.empty(rows[0], 2, (rows[1] + 63) // 64, dtype=torch.int64)
        y, scales = binary_value(w, one_scale, rows, bits)
        ctx.save_for_backward(bits, scales)
        ctx.options = one_scale, exact, rows, y.stride()
        return y

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        bits, scales = ctx.saved_tensors
        one_scale, exact, rows, strides = ctx.options
        if not takes_gradient(grad):
            plus, small = (_spread(bits[:, i].flatten(), rows[0], rows[1], grad, strides) for i in (0, 1))
            if not exact:
                return grad * small, None, None, None
            signs, scale = 2 * plus - 1, scales.to(grad.dtype).reshape(-1, *[1] * (grad.dim() - 1))
            axes = tuple(range(0 if one_scale else 1, grad.dim()))
            total = (grad * signs).sum(axes, keepdim=True) if axes else grad * signs
            return grad * scale * small + signs * (total / (rows[1] * (rows[0] if one_scale else 1))), None, None, None
        grad = in_order_of(grad, strides)
        out = torch.empty_like(grad)
        launch("bw_binary_backward", grad, scales, bits, out, *rows, exact, one_scale, like=grad)
        return out, None, None, None


class PlainBinary(torch.autograd.Function):
    """mean|w| sign(w) with slope 1: saves nothing."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, one_scale: bool, rows: tuple[int, int]) -> Tensor:
        return binary_value(w, one_scale, rows, None)[0]

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


def dorefa_value(w: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(value, tanh(w) in float32, its peak)."""
    w, y = _dense(w)
    t, peak = torch.tanh(w.float()), torch.empty(())
    launch("bw_dorefa_forward", t, y, peak, w.numel(), top, like=w)
    return y, t, peak


class Dorefa(torch.autograd.Function):
    """The odd levels over tanh(w)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, top: int) -> Tensor:
        y, t, peak = dorefa_value(w, top)
        ctx.save_for_backward(t, peak)
        return y

    @_once
    def backward(ctx: Any, grad: Tensor) -> Any:
        t, peak = ctx.saved_tensors
        if not takes_gradient(grad):
            return grad * ((1 - t * t) / peak).to(grad.dtype), None
        grad = in_order_of(grad, t.stride())
        out = torch.empty_like(grad)
        launch("bw_dorefa_backward", grad, t, peak, out, grad.numel(), like=grad)
        return out, None
