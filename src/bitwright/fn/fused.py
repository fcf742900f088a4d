"""The native training kernels as autograd functions; `fast.py` chooses between them and plain torch.

A call is one ctypes call; nothing here copies a tensor that is dense in memory, in whatever order of dimensions.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from bitwright.fn.library import open_core

_P, _I = c_void_p, c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bw_sign_forward": (c_int, [_P, _P, _P, _I, c_int, c_int, c_int]),
    "bw_step_forward": (c_int, [_P, _P, _I, c_float, c_float, c_float, c_int, c_int]),
    "bw_mask_backward": (c_int, [_P, _P, _P, _I, c_int, c_int]),
    "bw_approx_backward": (c_int, [_P, _P, _P, _I, c_int, c_int]),
    "bw_clip_forward": (c_int, [_P, _P, _P, _P, _I, _P, _I, c_int, c_int]),
    "bw_odd_forward": (c_int, [_P, _P, _P, _I, _I, c_int, c_int]),
    "bw_clip_backward": (c_int, [_P, _P, _P, _P, _P, _I, c_int, c_int]),
    "bw_lsq_forward": (c_int, [_P, _P, _P, _I, _I, _I, c_float, c_float, c_int, c_int]),
    "bw_lsq_backward": (c_int, [_P, _P, _P, _P, _P, _I, _I, _I, c_float, c_float, c_float, c_int, c_int]),
    "bw_binary_forward": (c_int, [_P, _P, _P, _P, _I, _I, c_int, c_int, c_int]),
    "bw_binary_backward": (c_int, [_P, _P, _P, _P, _I, _I, c_int, c_int, c_int, c_int]),
    "bw_dorefa_forward": (c_int, [_P, _P, _P, _I, _I, c_int, c_int]),
    "bw_dorefa_backward": (c_int, [_P, _P, _P, _P, _I, c_int, c_int]),
}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_PLAIN = (Tensor, nn.Parameter)  # not their subclasses: fake, batched, sharded tensors have no memory of their own
_ALONE = 32768  # elements below which a second thread does not pay
_enabled = os.environ.get("BITWRIGHT_FUSED", "1") != "0"


@functools.cache
def _library() -> ctypes.CDLL | None:
    return open_core(_SIGNATURES)[0]


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Uses the native kernels or not, within the block (the environment's BITWRIGHT_FUSED=0 is the start value).

    >>> with switched(False):
    ...     takes(torch.zeros(2))
    False
    """
    global _enabled
    before, _enabled = _enabled, on
    try:
        yield
    finally:
        _enabled = before


def takes(x: Tensor) -> bool:
    """Whether the native kernels do x: eager, on the CPU, float32 or bfloat16, under no transform.

    The one place that chooses by device: CUDA would take torch.compile of the composed functions here.
    """
    if torch.compiler.is_compiling():  # first: compilers must see nothing of what follows
        return False
    return (
        _enabled
        and type(x) in _PLAIN
        and x.dtype in _DTYPES
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and not _transformed()
        and _library() is not None
    )


def readable(t: Tensor) -> bool:
    """Whether a branch may look at the value of t: eager, with memory of its own, under no transform.

    >>> readable(torch.zeros(()))
    True
    """
    if torch.compiler.is_compiling():
        return False
    return type(t) in _PLAIN and not t.is_meta and not _transformed()


def _transformed() -> bool:
    """A functorch transform, forward mode, a dispatch mode (fake tensors, tracing to FX) or jit tracing is active."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _takes_gradient(grad: Tensor) -> bool:
    """`takes`, and no batch of gradients (`is_grads_batched`), which looks like a plain tensor but has no memory."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return takes(grad) and not (functorch.is_legacy_batchedtensor(grad) or functorch.is_functorch_wrapped_tensor(grad))


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


def needs_graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def call(name: str, *arguments: Any) -> None:
    lib = _library()
    assert lib is not None
    if getattr(lib, name)(*arguments):
        raise RuntimeError(f"native core: {lib.bw_last_error().decode()}")


def _threads(n: int) -> int:
    return 1 if n < _ALONE else torch.get_num_threads()


def _dense(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with memory that has no gaps (x itself where it has none), and an empty tensor of the same strides."""
    y = torch.empty_like(x)
    return (x, y) if y.stride() == x.stride() else (torch.empty_like(x).copy_(x), y)


def _in_order_of(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
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
    if not _takes_gradient(grad):
        return grad * _spread(mask, 1, grad.numel(), grad, strides)
    grad = _in_order_of(grad, strides)
    out = torch.empty_like(grad)
    n = grad.numel()
    code = _DTYPES[grad.dtype]
    call("bw_mask_backward", grad.data_ptr(), mask.data_ptr(), out.data_ptr(), n, code, _threads(n))
    return out


# -- sign


def sign_value(x: Tensor, mask: Tensor | None = None, is_open: bool = False) -> tuple[Tensor, Tensor]:
    """(sign(x), x with dense memory); fills the mask of the clipped slope."""
    x, y = _dense(x)
    n = x.numel()
    bits = None if mask is None else mask.data_ptr()
    call("bw_sign_forward", x.data_ptr(), y.data_ptr(), bits, n, _DTYPES[x.dtype], is_open, _threads(n))
    return y, x


class _OneBit(torch.autograd.Function):
    """Of one tensor and one setting; saves one bit per element: where the gradient passes."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _masked(grad_outputs[0], ctx.saved_tensors[0], ctx.strides), None


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

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0]


class ApproxSign(torch.autograd.Function):
    """sign with slope max(0, 2 - 2|x|). Saves x itself, as the convolution it stands in for would have: no copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, x = sign_value(x)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        (x,) = ctx.saved_tensors
        if not _takes_gradient(grad):
            return grad * torch.rsub(x.abs(), 2, alpha=2).clamp_min(0)
        grad = _in_order_of(grad, x.stride())
        out = torch.empty_like(grad)
        n = grad.numel()
        code = _DTYPES[x.dtype]
        call("bw_approx_backward", grad.data_ptr(), x.data_ptr(), out.data_ptr(), n, code, _threads(n))
        return out


class SlopeSign(torch.autograd.Function):
    """sign with any slope, computed from x in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        y, x = sign_value(x)
        ctx.save_for_backward(x)
        ctx.slope = slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        return grad * ctx.slope(ctx.saved_tensors[0]).to(grad.dtype), None


# -- step


def step_value(x: Tensor, threshold: float, on: float, off: float) -> Tensor:
    """on where x >= threshold, else off."""
    x, y = _dense(x)
    n = x.numel()
    call("bw_step_forward", x.data_ptr(), y.data_ptr(), n, threshold, on, off, _DTYPES[x.dtype], _threads(n))
    return y


class Step(torch.autograd.Function):
    """A step with slope 1: saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float, on: float, off: float) -> Tensor:
        return step_value(x, threshold, on, off)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0], None, None, None


# -- clip and round


def clip_value(x: Tensor, high: Tensor, levels: int, inside: Tensor | None, above: Tensor | None) -> Tensor:
    x, y = _dense(x)
    n = x.numel()
    call(
        "bw_clip_forward", x.data_ptr(), y.data_ptr(), None if inside is None else inside.data_ptr(),
        None if above is None else above.data_ptr(), n, high.data_ptr(), levels, _DTYPES[x.dtype], _threads(n),
    )  # fmt: skip
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

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        inside, *rest = ctx.saved_tensors
        to_x = _masked(grad, inside, ctx.strides) if ctx.needs_input_grad[0] else None
        if not rest:
            return to_x, None, None
        shape, dtype = ctx.high
        if not _takes_gradient(grad):
            total = (grad.float() * _spread(rest[0], 1, grad.numel(), grad, ctx.strides)).sum()
            return to_x, total.to(dtype).reshape(shape), None
        grad = _in_order_of(grad, ctx.strides)
        n = grad.numel()
        total = torch.empty(shape)
        call(
            "bw_clip_backward", grad.data_ptr(), None, rest[0].data_ptr(), None, total.data_ptr(), n,
            _DTYPES[grad.dtype], _threads(n),
        )  # fmt: skip
        return to_x, total.to(dtype), None


# -- odd levels


def odd_value(x: Tensor, top: int, inside: Tensor | None = None) -> Tensor:
    x, y = _dense(x)
    n = x.numel()
    bits = None if inside is None else inside.data_ptr()
    call("bw_odd_forward", x.data_ptr(), y.data_ptr(), bits, n, top, _DTYPES[x.dtype], _threads(n))
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


def along(step: Tensor, x: Tensor, axis: int) -> Tensor:
    """A step per index of `axis`, in the shape that broadcasts over x."""
    shape = [1] * x.dim()
    if step.numel() > 1:
        shape[axis] = -1
    return step.reshape(shape)


def size_of(step: Tensor) -> Tensor:
    """|step| without a graph, never 0: the smallest normal number changes no other value."""
    fixed = step.detach()
    return fixed.abs().clamp_min(torch.finfo(fixed.dtype).tiny)


def lsq_slopes(x: Tensor, step: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Of the value in x (a mask) and in the step."""
    v = x / step
    slope = torch.where(v <= low, low, v.round() - v)
    return (v >= low) & (v <= high), torch.where(v >= high, high, slope)


def lsq_value(x: Tensor, step: Tensor, low: float, high: float, axis: int) -> tuple[Tensor, Tensor]:
    x, y = _dense(x)
    outer, channels, inner, steps = _runs(x, size_of(step), axis)
    call(
        "bw_lsq_forward", x.data_ptr(), steps.data_ptr(), y.data_ptr(), outer, channels, inner, low, high,
        _DTYPES[x.dtype], _threads(x.numel()),
    )  # fmt: skip
    return y, x


class Lsq(torch.autograd.Function):
    """Saves x and the step: the step's gradient needs the rounding error of every element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, axis: int, factor: float) -> Tensor:
        y, x = lsq_value(x, step, low, high, axis)
        ctx.save_for_backward(x, step)
        ctx.options = low, high, axis, factor
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        x, step = ctx.saved_tensors
        low, high, axis, factor = ctx.options
        size = size_of(step)
        if not _takes_gradient(grad):
            slope_x, slope_step = lsq_slopes(x.float(), along(size.float(), x, axis), low, high)
            to_step = (grad.float() * slope_step * factor).sum_to_size(along(size, x, axis).shape)
            to_x = grad * slope_x
        else:
            grad = _in_order_of(grad, x.stride())
            to_x = torch.empty_like(x)
            outer, channels, inner, steps = _runs(x, size, axis)
            to_step = torch.empty_like(steps)
            call(
                "bw_lsq_backward", grad.data_ptr(), x.data_ptr(), steps.data_ptr(), to_x.data_ptr(),
                to_step.data_ptr(), outer, channels, inner, low, high, factor, _DTYPES[x.dtype], _threads(x.numel()),
            )  # fmt: skip
            if channels != step.numel():
                to_step = to_step.view(step.numel(), -1).sum(1)
        to_step = to_step.to(step.dtype).reshape(step.shape)
        if bool((step < 0).any()):  # hardly ever: a step begins positive
            to_step = torch.where(step < 0, -to_step, to_step)
        return to_x, to_step, None, None, None, None


# -- weights


def binary_value(w: Tensor, one_scale: bool, rows: tuple[int, int], bits: Tensor | None) -> tuple[Tensor, Tensor]:
    """(mean|w| sign(w), scales [filters])."""
    y, scales = torch.empty_like(w), torch.empty(rows[0])
    call(
        "bw_binary_forward", w.data_ptr(), y.data_ptr(), scales.data_ptr(), None if bits is None else bits.data_ptr(),
        *rows, one_scale, _DTYPES[w.dtype], _threads(w.numel()),
    )  # fmt: skip
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

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        bits, scales = ctx.saved_tensors
        one_scale, exact, rows, strides = ctx.options
        if not _takes_gradient(grad):
            plus, small = (_spread(bits[:, i].flatten(), rows[0], rows[1], grad, strides) for i in (0, 1))
            if not exact:
                return grad * small, None, None, None
            signs, scale = 2 * plus - 1, scales.to(grad.dtype).reshape(-1, *[1] * (grad.dim() - 1))
            axes = tuple(range(0 if one_scale else 1, grad.dim()))
            total = (grad * signs).sum(axes, keepdim=True) if axes else grad * signs
            return grad * scale * small + signs * (total / (rows[1] * (rows[0] if one_scale else 1))), None, None, None
        grad = _in_order_of(grad, strides)
        out = torch.empty_like(grad)
        call(
            "bw_binary_backward", grad.data_ptr(), scales.data_ptr(), bits.data_ptr(), out.data_ptr(), *rows, exact,
            one_scale, _DTYPES[grad.dtype], _threads(grad.numel()),
        )  # fmt: skip
        return out, None, None, None


class PlainBinary(torch.autograd.Function):
    """mean|w| sign(w) with slope 1: saves nothing."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, one_scale: bool, rows: tuple[int, int]) -> Tensor:
        return binary_value(w, one_scale, rows, None)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0], None, None


def dorefa_value(w: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(value, tanh(w) in float32, its peak)."""
    w, y = _dense(w)
    t, peak = torch.tanh(w.float()), torch.empty(())
    n = w.numel()
    call("bw_dorefa_forward", t.data_ptr(), y.data_ptr(), peak.data_ptr(), n, top, _DTYPES[w.dtype], _threads(n))
    return y, t, peak


class Dorefa(torch.autograd.Function):
    """The odd levels over tanh(w)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, top: int) -> Tensor:
        y, t, peak = dorefa_value(w, top)
        ctx.save_for_backward(t, peak)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        t, peak = ctx.saved_tensors
        if not _takes_gradient(grad):
            return grad * ((1 - t * t) / peak).to(grad.dtype), None
        grad = _in_order_of(grad, t.stride())
        out = torch.empty_like(grad)
        n = grad.numel()
        code = _DTYPES[grad.dtype]
        call("bw_dorefa_backward", grad.data_ptr(), t.data_ptr(), peak.data_ptr(), out.data_ptr(), n, code, _threads(n))
        return out, None
