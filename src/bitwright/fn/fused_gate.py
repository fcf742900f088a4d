"""The sum of a gate as native calls. `fast.py` chooses between them and the functions of `gate.py`, which are the definition."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.fn.fused import in_order_of
from bitwright.fn.gate import add_where_on, gate, halves
from bitwright.fn.kernels import launch, takes_gradient


def dense(t: Tensor) -> bool:
    return t.stride() == torch.empty_like(t).stride()


def outputs_of(base: Tensor, rest: Tensor | None, last: bool) -> tuple[int, int, int, bool]:
    """(outer, channels, inner, halves): the outputs in order of memory; without `rest`, base holds both (see `halves`)."""
    axis = -1 if last else 1
    wide, n = base.shape[axis], base.numel()
    inner = n if wide == 1 else base.stride(axis)
    channels = wide if rest is not None else wide // 2
    return n // max(1, wide * inner), channels, inner, rest is None


def moments(base: Tensor, rest: Tensor | None, last: bool) -> tuple[int, Tensor, Tensor]:
    """(values per channel, mean of each channel of the base, its mean square around 0), in float64."""
    outer, channels, inner, both = outputs_of(base, rest, last)
    sums = torch.empty(2, channels, dtype=torch.float64)
    launch("bw_gate_moments", base, sums, outer, channels, inner, both, like=base)
    mean, square = sums / (outer * inner)
    return outer * inner, mean, square


class GatedSum(torch.autograd.Function):
    """(y, on) of a base, its rest and thresholds; on is None unless asked for. Saves base and rest alone.

    rates   (mean, 1 / deviation, eps) of the base's own batch: the gradient passes through them as well. None: raw units
    """

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, rest: Tensor | None, threshold: Tensor, rates: Any, slope: float, sparse: bool, last: bool,
        asks: bool,
    ) -> Any:  # fmt: skip
        outer, channels, inner, both = shape = outputs_of(base, rest, last)
        y = torch.empty_like(base.narrow(1, 0, channels) if both else base)
        on = torch.empty_like(y, dtype=torch.float32) if asks else None
        mean, rate, eps = (None, None, 0.0) if rates is None else rates
        limits = threshold.float().contiguous()
        second = base if rest is None else rest
        launch("bw_gate_forward", base, second, mean, rate, limits, y, on, outer, channels, inner, both, like=base)
        ctx.save_for_backward(base, rest, threshold)
        ctx.rates, ctx.eps, ctx.shape, ctx.strides = (mean, rate), eps, shape, y.stride()
        ctx.slope, ctx.sparse, ctx.last, ctx.asks = slope, sparse, last, asks
        return (y, on) if asks else y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad, to_on = grad_outputs if ctx.asks else (grad_outputs[0], None)
        base, rest, threshold = ctx.saved_tensors
        if torch.is_grad_enabled() or not takes_gradient(grad):
            return (*_by_definition(ctx, base, rest, threshold, grad, to_on), *[None] * 5)
        outer, channels, inner, both = ctx.shape
        grad = in_order_of(grad, ctx.strides)
        to_on = None if to_on is None else in_order_of(to_on, ctx.strides)
        to_base = torch.empty_like(base)
        to_rest = to_base if rest is None else torch.empty_like(rest)
        limits, to_threshold = threshold.float().contiguous(), torch.empty(channels)
        launch(
            "bw_gate_backward", grad, to_on, base, base if rest is None else rest, *ctx.rates, limits, to_base, to_rest,
            to_threshold, outer, channels, inner, both, ctx.slope, ctx.sparse, like=base,
        )  # fmt: skip
        return to_base, None if rest is None else to_rest, to_threshold.to(threshold.dtype), *[None] * 5


def _by_definition(
    ctx: Any, base: Tensor, rest: Tensor | None, threshold: Tensor, grad: Tensor, to_on: Tensor | None
) -> list[Tensor | None]:
    """Gradients by plain torch, which can themselves be differentiated and taken in batches."""
    learns = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(base.device.type, enabled=False):
        held = [t if t is None or learns else t.detach().requires_grad_() for t in (base, rest, threshold)]
        first, other, limit = held
        assert first is not None and limit is not None
        if other is None:
            first, other = halves(first)
        z = first.float()
        if ctx.rates[0] is not None:
            flat = z.flatten(0, -2) if ctx.last else z
            z = F.batch_norm(flat, None, None, training=True, eps=ctx.eps).reshape(z.shape)
        limit = limit if ctx.last else limit.reshape(-1, *[1] * (z.dim() - 2))
        on = gate(z - limit, ctx.slope, ctx.sparse)
        outputs, grads = [add_where_on(first, on.to(first.dtype), other)], [grad]
        if to_on is not None:
            outputs, grads = [*outputs, on], [*grads, to_on]
        wanted = [t for t in held if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=learns, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in held]


class SplitCode(torch.autograd.Function):
    """(high, low) of a tensor of whole numbers times a unit: high has its gradient, low has none. Saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Tensor, one: float) -> tuple[Tensor, Tensor]:
        high, low = torch.empty_like(x), torch.empty_like(x)
        launch("bw_split_forward", x, high, low, x.numel(), unit, one, like=x)
        ctx.mark_non_differentiable(low)
        return high, low

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0], None, None
