"""Quantizers and gates with their training gradients: a native pass (`fused.py`, `fused_gate.py`) where it can be, else plain
torch (`plain.py`, `gate.py`).

Float32 values of the two are equal bit for bit, and so are gradients of x and w; sums over many elements (of a scale, a
step, a range) are kept in double in the native pass and in float32 in plain torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.fn import fused
from bitwright.fn.fused_gate import GatedSum, SplitCode, dense, moments
from bitwright.fn.kernels import needs_graph, takes
from bitwright.fn.plain import clip_round_composed, lsq_composed, odd_grid_composed, step_composed
from bitwright.fn.ste import sign as plain_sign
from bitwright.fn.ste import ste
from bitwright.types import scalar


def sign(x: Tensor, surrogate: str, is_open: bool, slope: Callable[[Tensor], Tensor | None]) -> Tensor:
    """Sign with the gradient of a surrogate: clip, approx, identity, or another whose formula is `slope`.

    >>> sign(torch.tensor([-0.3, 0.0]), "identity", False, lambda x: None).tolist()
    [-1.0, 1.0]
    """
    if not takes(x):
        return ste(x, plain_sign(x), slope(x.detach()))
    if not needs_graph(x):
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
    if not takes(x):
        return step_composed(x, threshold, on, off)
    threshold = float(scalar(threshold, x))  # compared in the type of x, as plain torch does
    if needs_graph(x):
        return fused.StepAt.apply(x, threshold, float(on), off)
    return fused.step_value(x, threshold, float(on), off)


def binary_weight(w: Tensor, gradient: str, one_scale: bool = False) -> Tensor | None:
    """mean|w| sign(w), the mean over each filter or, with `one_scale`, over all; None where only plain torch can.

    gradient  exact: through the mean as well; clip: g 1[|w| <= 1]; identity: g

    >>> binary_weight(torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64), "exact") is None
    True
    """
    if not takes(w):
        return None
    rows = fused.filters_of(w)
    if rows is None:
        return None
    if not needs_graph(w):
        return fused.binary_value(w, one_scale, rows, None)[0]
    if gradient == "identity":
        return fused.PlainBinary.apply(w, one_scale, rows)
    return fused.Binary.apply(w, one_scale, gradient == "exact", rows)


def dorefa_weight(w: Tensor, top: int) -> Tensor | None:
    """2 q(tanh(w) / (2 max) + 1/2) - 1 on top + 1 levels; None where only plain torch can."""
    if not takes(w) or not w.numel():
        return None
    return fused.Dorefa.apply(w, top) if needs_graph(w) else fused.dorefa_value(w, top)[0]


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
    if not takes(x) or (isinstance(high, Tensor) and type(high) not in (Tensor, torch.nn.Parameter)):
        return clip_round_composed(x, high, levels)
    edge = high if isinstance(high, Tensor) else _constant(float(high))
    if needs_graph(x, edge):
        return fused.ClipRound.apply(x, edge, levels)
    return fused.clip_value(x, edge.float(), levels, None, None)


def odd_grid(x: Tensor, top: int) -> Tensor:
    """top + 1 odd levels on [-1, 1], no zero among them; ties round up.

    value     (2 u - top) / top, u = floor((clip(x, -1, 1) + 1) / 2 top + 1/2)
    gradient  g where |x| <= 1, else 0

    >>> [round(v, 3) for v in odd_grid(torch.tensor([-5.0, -0.1, 0.0, 2.0]), 3).tolist()]
    [-1.0, -0.333, 0.333, 1.0]
    """
    if not takes(x):
        return odd_grid_composed(x, top)
    return fused.OddGrid.apply(x, top) if needs_graph(x) else fused.odd_value(x, top)


def lsq(x: Tensor, step: Tensor, low: float, high: float, axis: int = 0, factor: float = 1.0) -> Tensor:
    """Learned step size: s * round(clip(x / s, low, high)), s = |step|, never 0.

    step      one element, or one per index of `axis` of x, in any shape
    gradient  x: g where low <= x / s <= high
              step: its sign * factor * sum of g times low (x / s <= low), high (x / s >= high), else round(v) - v

    >>> lsq(torch.tensor([-9.0, 0.8, 2.6]), torch.tensor(0.5), -2, 1).tolist()
    [-1.0, 0.5, 0.5]
    """
    if not takes(x) or type(step) not in (Tensor, torch.nn.Parameter):
        return lsq_composed(x, step, low, high, axis, factor)
    if needs_graph(x, step):
        return fused.LearnedStep.apply(x, step, float(low), float(high), axis, factor)
    return fused.lsq_value(x, step, float(low), float(high), axis)[0]


def takes_gate(base: Tensor, rest: Tensor | None, threshold: Tensor) -> bool:
    """Whether the native calls do the sum of a gate; without `rest`, base holds both (`gate.halves`)."""
    if not takes(base) or not base.numel() or type(threshold) not in (Tensor, torch.nn.Parameter) or not dense(base):
        return False
    return rest is None or (takes(rest) and rest.dtype == base.dtype and rest.stride() == base.stride())


def split_code(x: Tensor, unit: Tensor | None, bits: int, one: float) -> tuple[Tensor, Tensor] | None:
    """(high, low), high + low = x = k unit: high the multiples of `one` in whole k, cut towards zero, with the gradient of x;
    low without one. |k| < 2^bits. None where only plain torch can, and where bfloat16 does not tell one k from the next.

    >>> split_code(torch.tensor([0.5], dtype=torch.float64), torch.tensor(0.5), 4, 4.0) is None
    True
    """
    if bits > 7 and x.dtype == torch.bfloat16:
        return None
    if unit is None or unit.numel() != 1 or not (takes(x) and takes(unit.float()) and dense(x)):
        return None
    return SplitCode.apply(x, unit.float(), one)


__all__ = [
    "GatedSum", "binary_weight", "clip_round", "dorefa_weight", "lsq", "moments", "odd_grid", "sign", "split_code", "step",
    "takes_gate",
]  # fmt: skip
