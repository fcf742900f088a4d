"""Mean magnitude of weights, the scale of every 1-bit method, with a slope that is never 0."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightWarning
from bitwright.fn.ste import sign


def wide(t: Tensor) -> Tensor:
    """float32 for half types, unchanged otherwise: sums over a filter are taken here."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def kept_only(t: Tensor, keep: Tensor | None) -> Tensor:
    """`t` with exact zeros at pruned entries: where, not multiply, because a pruned latent may be inf."""
    return t if keep is None else torch.where(keep.bool(), t, torch.zeros((), dtype=t.dtype, device=t.device))


def filter_axes(w: Tensor, granularity: str) -> tuple[int, ...]:
    """Axes to reduce over: all but the first for "filter", all for "layer"."""
    return tuple(range(1 if granularity == "filter" else 0, w.dim()))


def mean_abs(w: Tensor, granularity: str = "filter", keep: Tensor | None = None) -> Tensor:
    """mean|w| with keepdim, over kept entries only; [O, 1, ...] or [1, 1, ...].

    gradient  sign(w) / n with sign(0) = +1, where autograd of abs would give 0 and a zero filter would never recover.
    An empty or fully pruned filter gives 0.

    >>> mean_abs(torch.tensor([[1.0, -2.0, 3.0]])).item()
    2.0
    """
    axes = filter_axes(w, granularity)
    size = wide(w) * sign(wide(w).detach())
    # in double where there are doubles: the float32 result then hardly ever depends on the order of the sum, so
    # layouts, threads and the native kernels (fn/fast.py) give the same scale
    exact = torch.float64 if w.is_cpu or w.is_cuda else size.dtype
    if keep is None:
        count = max(1, w.numel() // max(1, w.shape[0])) if granularity == "filter" else max(1, w.numel())
        total = size.sum(axes, keepdim=True, dtype=exact) if axes else size
        return (total / count).to(w.dtype)
    total, kept = kept_only(size, keep), keep.to(size.dtype)
    if axes:  # sum over no axes would sum over all
        total, kept = total.sum(axes, keepdim=True, dtype=exact), kept.sum(axes, keepdim=True)
    return (total / kept.clamp_min(1)).to(w.dtype)


def centered(w: Tensor, keep: Tensor | None = None) -> Tensor:
    """w [O, I, ...] minus its mean over I, kept entries only. With one input nothing would be left: unchanged.

    >>> centered(torch.tensor([[0.5, 1.5]])).tolist()
    [[-0.5, 0.5]]
    """
    if w.dim() < 2 or w.shape[1] == 1:
        return w
    if keep is None:
        return w - wide(w).mean(1, keepdim=True).to(w.dtype)
    total = kept_only(wide(w), keep).sum(1, keepdim=True)
    mean = total / keep.to(total.dtype).sum(1, keepdim=True).clamp_min(1)
    return torch.where(keep.bool(), w - mean.to(w.dtype), w)


def weight_of(layer: nn.Module) -> Tensor | None:
    """The weight as parts see it: axis 0 is the output channel, in a transposed convolution too."""
    slot_weight = getattr(layer, "slot_weight", None)
    seen = slot_weight() if callable(slot_weight) else getattr(layer, "weight", None)
    return seen.detach() if isinstance(seen, Tensor) else None


def width_of(layer: nn.Module) -> int | None:
    """Input channels or features of a layer, None where it has neither.

    >>> width_of(nn.Linear(3, 2)), width_of(nn.ReLU())
    (3, None)
    """
    return getattr(layer, "in_channels", None) or getattr(layer, "in_features", None)


def warn_flat(name: str, layer: nn.Module, w: Tensor, latent: Tensor) -> None:
    """Warns where a filter of w [O, ...], made from `latent`, is zero: its value is 0 everywhere.

    Equal weights minus their mean are zero only up to rounding; that is why 1e-6 is allowed.
    """
    if w.device.type == "meta" or w.dim() < 2 or not w.numel():
        return
    slack = 0 if w is latent else 1e-6 * latent.abs().amax()
    flat = int((w.abs().amax(filter_axes(w, "filter")) <= slack).sum())
    if flat:
        warnings.warn(
            f"part {name}: {flat} of {w.shape[0]} filters of {type(layer).__name__} are zero (after "
            "centering, if that is on), so their outputs are 0 until their gradients separate them",
            BitwrightWarning,
            stacklevel=3,
        )
