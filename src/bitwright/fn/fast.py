"""Quantizers with their training gradients: one native pass where it can be, plain torch everywhere else.

The plain version (`*_composed`) is the definition: what compilers, exporters, transforms, other devices and other types
get, and what the native one is tested against. Float32 values are equal bit for bit, and so are gradients of x and w;
sums over many elements (of a scale, a step, a range) are kept in double there and in float32 here. bfloat16 is computed
in float32 and rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.fn import fused
from bitwright.fn.ste import sign as plain_sign
from bitwright.fn.ste import ste, ste2
from bitwright.types import scalar


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def sign(x: Tensor, surrogate: str, is_open: bool, slope: Callable[[Tensor], Tensor | None]) -> Tensor:
    """Sign with the gradient of a surrogate: clip, approx, identity, or another whose formula is `slope`.

    >>> sign(torch.tensor([-0.3, 0.0]), "identity", False, lambda x: None).tolist()
    [-1.0, 1.0]
    """
    if not fused.takes(x):
        return ste(x, plain_sign(x), slope(x.detach()))
    if not fused.needs_graph(x):
        return fused.sign_value(x)[0]
    if surrogate == "clip":
        return fused.ClipSign.apply(x, is_open)
    if surrogate == "identity":
        return fused.IdentitySign.apply(x)
    return fused.ApproxSign.apply(x) if surrogate == "approx" else fused.SlopeSign.apply(x, slope)


def step(x: Tensor, threshold: float, on: float | Tensor, off: float) -> Tensor:
    """on where x >= threshold, else off; NaN stays. Gradient g, unchanged. on may be a tensor of one element.

    >>> step(torch.tensor([0.2, 0.5, 1.0]), 0.5, 2.0, 0.0).tolist()
    [0.0, 2.0, 2.0]
    """
    if not fused.takes(x):
        return step_composed(x, threshold, on, off)
    threshold = float(scalar(threshold, x))  # compared in the type of x, as plain torch does
    if fused.needs_graph(x):
        return fused.Step.apply(x, threshold, float(on), off)
    return fused.step_value(x, threshold, float(on), off)


def step_composed(x: Tensor, threshold: float, on: float | Tensor, off: float) -> Tensor:
    """The definition of `step`."""
    fixed = x.detach()
    value = torch.where(fixed >= threshold, on if isinstance(on, Tensor) else scalar(on, x), scalar(off, x))
    return ste(x, torch.where(fixed.isnan(), fixed, value.to(x.dtype)))


def binary_weight(w: Tensor, gradient: str, one_scale: bool = False) -> Tensor | None:
    """mean|w| sign(w), the mean over each filter or, with `one_scale`, over all; None where only plain torch can.

    gradient  exact: through the mean as well; clip: g 1[|w| <= 1]; identity: g

    >>> binary_weight(torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64), "exact") is None
    True
    """
    if not fused.takes(w):
        return None
    rows = fused.filters_of(w)
    if rows is None:
        return None
    if not fused.needs_graph(w):
        return fused.binary_value(w, one_scale, rows, None)[0]
    if gradient == "identity":
        return fused.PlainBinary.apply(w, one_scale, rows)
    return fused.Binary.apply(w, one_scale, gradient == "exact", rows)


def dorefa_weight(w: Tensor, top: int) -> Tensor | None:
    """2 q(tanh(w) / (2 max) + 1/2) - 1 on top + 1 levels; None where only plain torch can."""
    if not fused.takes(w) or not w.numel():
        return None
    return fused.Dorefa.apply(w, top) if fused.needs_graph(w) else fused.dorefa_value(w, top)[0]


@functools.lru_cache(64)
def _constant(value: float) -> Tensor:
    return torch.tensor(value)


def clip_round(x: Tensor, high: Tensor | float, levels: int) -> Tensor:
    """x clipped to [0, high] and rounded to `levels` equal steps; a tensor `high` of one element may learn (PACT).

    value     round(clip(x, 0, high) * (levels / high)) * (high / levels), half to even
    gradient  x: g where 0 <= x <= high;  high: sum of g where x >= high

    >>> clip_round(torch.tensor([-1.0, 0.3, 0.6, 9.0]), 1.0, 2).tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    if not fused.takes(x) or (isinstance(high, Tensor) and type(high) not in (Tensor, torch.nn.Parameter)):
        return clip_round_composed(x, high, levels)
    edge = high if isinstance(high, Tensor) else _constant(float(high))
    if fused.needs_graph(x, edge):
        return fused.ClipRound.apply(x, edge, levels)
    return fused.clip_value(x, edge.float(), levels, None, None)


def clip_round_composed(x: Tensor, high: Tensor | float, levels: int) -> Tensor:
    """The definition of `clip_round`."""
    fixed = _wide(x.detach())
    if not isinstance(high, Tensor):
        value = (fixed.clamp(0.0, float(high)) * (levels / high)).round() * (high / levels)
        return ste(x, value, (fixed >= 0) & (fixed <= high))
    edge = _wide(high.detach()).reshape(())
    value = (torch.minimum(fixed.clamp_min(0.0), edge) * (levels / edge)).round() * (edge / levels)
    return ste2(x, high, value, (fixed >= 0) & (fixed <= edge), fixed >= edge)


def odd_grid(x: Tensor, top: int) -> Tensor:
    """top + 1 odd levels on [-1, 1], no zero among them; ties round up.

    value     (2 u - top) / top, u = floor((clip(x, -1, 1) + 1) / 2 top + 1/2)
    gradient  g where |x| <= 1, else 0

    >>> [round(v, 3) for v in odd_grid(torch.tensor([-5.0, -0.1, 0.0, 2.0]), 3).tolist()]
    [-1.0, -0.333, 0.333, 1.0]
    """
    if not fused.takes(x):
        return odd_grid_composed(x, top)
    return fused.OddGrid.apply(x, top) if fused.needs_graph(x) else fused.odd_value(x, top)


def odd_grid_composed(x: Tensor, top: int) -> Tensor:
    """The definition of `odd_grid`."""
    fixed = _wide(x.detach())
    return ste(x, odd_levels(fixed.clamp(-1.0, 1.0), top) * (1 / top), fixed.abs() <= 1)


def odd_levels(place: Tensor, top: int) -> Tensor:
    """Odd whole numbers 2 u - top of places on [-1, 1], and beyond."""
    return 2 * torch.floor((place + 1) * (top / 2) + 0.5) - top


def lsq(x: Tensor, step: Tensor, low: float, high: float, axis: int = 0, factor: float = 1.0) -> Tensor:
    """Learned step size: s * round(clip(x / s, low, high)), s = |step|, never 0.

    step      one element, or one per index of `axis` of x, in any shape
    gradient  x: g where low <= x / s <= high
              step: its sign * factor * sum of g times low (x / s <= low), high (x / s >= high), else round(v) - v

    >>> lsq(torch.tensor([-9.0, 0.8, 2.6]), torch.tensor(0.5), -2, 1).tolist()
    [-1.0, 0.5, 0.5]
    """
    if not fused.takes(x) or type(step) not in (Tensor, torch.nn.Parameter):
        return lsq_composed(x, step, low, high, axis, factor)
    if fused.needs_graph(x, step):
        return fused.Lsq.apply(x, step, float(low), float(high), axis, factor)
    return fused.lsq_value(x, step, float(low), float(high), axis)[0]


def lsq_composed(x: Tensor, step: Tensor, low: float, high: float, axis: int = 0, factor: float = 1.0) -> Tensor:
    """The definition of `lsq`."""
    spread = fused.along(step, x, axis)
    spread = ste(spread, fused.size_of(spread), plain_sign(spread.detach()))
    fixed, size = _wide(x.detach()), _wide(spread.detach())
    value = (fixed / size).clamp(float(low), float(high)).round() * size
    slope_x, slope_step = fused.lsq_slopes(fixed, size, low, high)
    return ste2(x, spread, value, slope_x, slope_step * factor)
