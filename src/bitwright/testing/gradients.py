"""Laws of the gradient."""

from __future__ import annotations

import torch

from bitwright.testing.case import Case, inputs
from bitwright.testing.law import finite, law, require


@law("gradients are finite, and not all zero at the slot")
def gradient(case: Case) -> None:
    for kind in ("conv", "linear"):
        layer = case.layer(kind).train()
        x = inputs(kind, batch=8).requires_grad_()
        y = layer(x)
        (y * torch.randn_like(y)).sum().backward()
        part = case.of(layer)
        own = {f"part.{k}": p.grad for k, p in part.named_parameters()}
        seen = {
            "w": {"weight": layer.weight.grad},
            "b": {"bias": layer.bias.grad if layer.bias is not None else None},
        }
        at_slot = {**seen.get(case.slot, {"input": x.grad}), **own}
        for key, grad in at_slot.items():
            require(grad is None or finite(grad), f"{kind}: gradient of {key} is not finite")
        alive = [k for k, grad in at_slot.items() if grad is not None and bool((grad != 0).any())]
        require(bool(alive), f"{kind}: no gradient at {', '.join(at_slot)}")


def _encodes(case: Case) -> bool:
    return case.slot in ("w", "x", "b") and case.has("encode") is not None


@law("a second derivative is refused, not wrong", _encodes)
def double_backward(case: Case) -> None:
    t = case.tensor().requires_grad_()
    value = case.build().train()(t)
    (first,) = torch.autograd.grad(value.square().sum(), t, create_graph=True)
    try:
        first.sum().backward()
    except RuntimeError as error:
        require("twice" in str(error) or "once_differentiable" in str(error), f"unclear refusal: {error}")
    else:
        require(False, "the second derivative of a step function was computed without an error")
