"""Runs a part against an oracle in float64, in every memory layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Rows = list[list[float]]


def layouts(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of t [A, B, C, D] in five layouts; `expanded` repeats its first row."""
    yield "contiguous", t.contiguous()
    yield "channels_last", t.contiguous(memory_format=torch.channels_last)
    yield "transposed", t.transpose(0, 1).contiguous().transpose(0, 1)
    yield "sliced", torch.stack([t, torch.full_like(t, 7.0)], -1)[..., 0]
    yield "expanded", t[:1].expand_as(t)


def special(*shape: int, seed: int = 0) -> Tensor:
    """Random float64 with exact ties in it: 0, -0, 1, -1, 1/2, -1/2 and values beyond 1."""
    made = torch.Generator().manual_seed(seed)
    t = torch.randn(*shape, dtype=torch.float64, generator=made) * 0.8
    at = torch.randperm(t.numel(), generator=made)[:8]
    t.view(-1)[at] = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.75, -2.5], dtype=torch.float64)
    return t


def run(part: nn.Module, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(value, gradient of t, the gradient that was sent back)."""
    t = t.detach().requires_grad_()
    value = part(t)
    sent = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(5))
    value.backward(sent)
    assert t.grad is not None
    return value.detach(), t.grad, sent


def rows(t: Tensor) -> Rows:
    return t.reshape(t.shape[0], -1).tolist()


def close(label: str, got: Tensor, expected: Rows | list[float], tolerance: float = 1e-12) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(got.shape)
    gap = (got - wanted).abs().max().item()
    assert gap <= tolerance, f"{label}: differs from the oracle by {gap:.2e}"


def check_weights(part: nn.Module, oracle: Callable[[Rows, Rows], tuple[Rows, Rows]], t: Tensor) -> None:
    for label, form in layouts(t):
        value, grad, sent = run(part, form)
        expected, slope = oracle(rows(form), rows(sent))
        close(f"{label} value", value, expected)
        close(f"{label} gradient", grad, slope)


def check_inputs(
    part: nn.Module, oracle: Callable[[float], tuple[float, float]], t: Tensor, tolerance: float = 1e-12
) -> None:
    for label, form in layouts(t):
        value, grad, sent = run(part, form)
        expected = [oracle(v) for v in form.flatten().tolist()]
        close(f"{label} value", value.flatten(), [v for v, _ in expected], tolerance)
        close(
            f"{label} gradient",
            grad.flatten(),
            [s * g for (_, s), g in zip(expected, sent.flatten().tolist(), strict=True)],
            tolerance,
        )
