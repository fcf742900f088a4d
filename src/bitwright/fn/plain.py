"""The definitions: quantizers with their training gradients in plain torch.

They are what compilers, exporters, transforms, other devices and other types get, and what the native calls are tested
against. bfloat16 is computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.fn.ste import sign, ste, ste2
from bitwright.types import scalar


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def step_composed(x: Tensor, threshold: float, on: float | Tensor, off: float) -> Tensor:
    """The definition of `step`."""
    fixed = x.detach()
    value = torch.where(fixed >= threshold, on if isinstance(on, Tensor) else scalar(on, x), scalar(off, x))
    return ste(x, torch.where(fixed.isnan(), fixed, value.to(x.dtype)))


def clip_round_composed(x: Tensor, high: Tensor | float, levels: int) -> Tensor:
    """The definition of `clip_round`."""
    fixed = _wide(x.detach())
    if not isinstance(high, Tensor):
        value = (fixed.clamp(0.0, float(high)) * (levels / high)).round() * (high / levels)
        return ste(x, value, (fixed >= 0) & (fixed <= high))
    edge = _wide(high.detach()).reshape(())
    value = (torch.minimum(fixed.clamp_min(0.0), edge) * (levels / edge)).round() * (edge / levels)
    return ste2(x, high, value, (fixed >= 0) & (fixed <= edge), fixed >= edge)


def odd_grid_composed(x: Tensor, top: int) -> Tensor:
    """The definition of `odd_grid`."""
    fixed = _wide(x.detach())
    return ste(x, odd_levels(fixed.clamp(-1.0, 1.0), top) * (1 / top), fixed.abs() <= 1)


def odd_levels(place: Tensor, top: int) -> Tensor:
    """Odd whole numbers 2 u - top of places on [-1, 1], and beyond."""
    return 2 * torch.floor((place + 1) * (top / 2) + 0.5) - top


def lsq_composed(x: Tensor, step: Tensor, low: float, high: float, axis: int = 0, factor: float = 1.0) -> Tensor:
    """The definition of `lsq`."""
    spread = along(step, x, axis)
    spread = ste(spread, step_size(spread), sign(spread.detach()))
    fixed, size = _wide(x.detach()), _wide(spread.detach())
    value = (fixed / size).clamp(float(low), float(high)).round() * size
    slope_x, slope_step = lsq_slopes(fixed, size, low, high)
    return ste2(x, spread, value, slope_x, slope_step * factor)


def along(step: Tensor, x: Tensor, axis: int) -> Tensor:
    """A step per index of `axis`, in the shape that broadcasts over x."""
    shape = [1] * x.dim()
    if step.numel() > 1:
        shape[axis] = -1
    return step.reshape(shape)


def step_size(step: Tensor) -> Tensor:
    """|step| without a graph, never 0: the smallest normal number changes no other value."""
    fixed = step.detach()
    return fixed.abs().clamp_min(torch.finfo(fixed.dtype).tiny)


def lsq_slopes(x: Tensor, step: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Slopes of the value: in x (a mask) and in the step."""
    v = x / step
    slope = torch.where(v <= low, low, v.round() - v)
    return (v >= low) & (v <= high), torch.where(v >= high, high, slope)
