"""The decision of a gate, 0 or 1 with a slope to learn from, and the sum that follows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Gate(torch.autograd.Function):
    """Saves v alone: only backward needs the sigmoid. The backward pass can itself be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, slope: float, sparse: bool) -> Tensor:
        return v.clamp(0.0, 1.0).ceil()  # two vectorized passes, and a NaN stays; a comparison would need five

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.slope, ctx.sparse = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (v,) = ctx.saved_tensors
        soft = torch.sigmoid(v * ctx.slope)
        grad = torch.ops.aten.sigmoid_backward(grad_outputs[0], soft) * ctx.slope
        if ctx.sparse:  # where v >= 0
            grad = torch.ops.aten.threshold_backward(grad, torch.sign(v), -0.5)
        return grad, None, None


def gate(v: Tensor, slope: float, sparse: bool = False) -> Tensor:
    """1 where v > 0, else 0; the gradient is that of sigmoid(slope v), the exact bump slope s (1 - s).

    sparse   the gradient passes only where v >= 0: what a gate skips is then never needed, in backward either
    NaN      stays NaN: neither on nor off

    >>> v = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    >>> on = gate(v, 2.0, sparse=True)
    >>> on.tolist()
    [0.0, 0.0, 1.0]
    >>> on.sum().backward()
    >>> [round(g, 3) for g in v.grad.tolist()]
    [0.0, 0.5, 0.21]
    """
    return _Gate.apply(v, slope, sparse)


def halves(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(base, rest) [N, O, ...] of the partial sums [N, 2 O, ...] over either half of the inputs, by channels: rest of the second
    half of the outputs, base of the first; base of the second, rest of the first. So the base is one piece.

    >>> [t.flatten().tolist() for t in halves(torch.arange(8.0).reshape(1, 8))]
    [[2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 0.0, 1.0]]
    """
    half = sums.shape[1] // 4
    return sums[:, half : 3 * half], torch.cat([sums[:, 3 * half :], sums[:, :half]], 1)


class _AddWhereOn(torch.autograd.Function):
    """The value selects, so that 0 times infinity is never computed; the gradient is that of base + on rest."""

    generate_vmap_rule = True

    @staticmethod
    def forward(base: Tensor, on: Tensor, rest: Tensor) -> Tensor:
        # rest where on > 0 or NaN, else 0: one vectorized pass in every type, which a where with its mask is not
        return torch.addcmul(base, on, torch.ops.aten.threshold_backward(rest, on, 0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        on, rest = ctx.saved_tensors
        grad = grad_outputs[0]
        return grad, grad * rest if ctx.needs_input_grad[1] else None, grad * on if ctx.needs_input_grad[2] else None


def add_where_on(base: Tensor, on: Tensor, rest: Tensor) -> Tensor:
    """base + on rest for on 0 or 1; exactly base where on is 0, whatever rest is: what is skipped cannot matter.

    The gradient is that of base + on rest, to on too where it is 0. NaN in base or on stays.

    >>> on = torch.tensor([0.0, 1.0])
    >>> add_where_on(torch.ones(2), on, torch.tensor([float("inf"), 2.0])).tolist()
    [1.0, 3.0]
    """
    return _AddWhereOn.apply(base, on, rest)
