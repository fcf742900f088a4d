"""Running statistics of batch norms, from data: one pass, every value with the same weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.transforms.batch_norms import batch_norms, norms_training, rows_of
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.unwrap import unwrap

CONSTANT = 1e-3  # of eps; earlier norms magnify rounding, so that 0 itself would be too strict


@dataclass(frozen=True)
class RecalibratedNorm:
    """One norm.

    values     per channel: samples times positions; 0: the norm was not called and keeps what it had
    shift      largest |new mean - old mean| over its channels, in old standard deviations
    spread     largest factor, either way, between new and old standard deviation
    constant   channels whose new variance is below a thousandth of eps, so that the norm's output stays within 0.03 of its
               mean: what follows them hardly depends on the input. It is 0, up to rounding, if all weights
               in front are off
    """

    layer: str
    channels: int
    values: int
    shift: float
    spread: float
    constant: int


def estimate(model: nn.Module, batches: Iterable[Any], who: str) -> tuple[tuple[RecalibratedNorm, ...], int]:
    """Sets the running statistics of every batch norm to those of `batches`: (a row per norm, number of samples)."""
    model = unwrap(model)
    norms = batch_norms(model)
    if not norms:
        raise InputError(
            f"{who}: the model has no batch norm with running statistics, so there is nothing to estimate",
            code="norms-none",
        )
    moments, samples, passes = _collect(model, norms, batches)
    if not samples:
        raise InputError(f"{who}: no batches. Give at least one batch of inputs", code="batches-none")
    single = next((n for n, m in moments.items() if m.count == 1), None)
    if single is not None:
        raise InputError(
            f"{who}: {single} read one value per channel; a variance needs two. Give more samples",
            code="norms-values",
            layer=single,
        )
    return tuple(_put(name, norm, moments[name], passes) for name, norm in norms.items()), samples


class Moments:
    """Count, mean and sum of squared deviations per channel; pieces of any size merge exactly (Chan et al. 1983).

    >>> m = Moments()
    >>> m.add(torch.tensor([[1.0], [2.0]])); m.add(torch.tensor([[6.0]]))
    >>> m.count, m.mean.tolist(), m.variance.tolist()
    (3, [3.0], [7.0])
    """

    mean: Tensor
    square: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """More rows, [n, C]."""
        n = rows.shape[0]
        if not n:
            return
        rows = rows.detach().double()
        mean = rows.mean(0)
        square = (rows - mean).square().sum(0)
        if not self.count:
            self.mean, self.square = mean, square
        else:
            total, apart = self.count + n, mean - self.mean
            self.square = self.square + square + apart.square() * (self.count * n / total)
            self.mean = self.mean + apart * (n / total)
        self.count += n

    @property
    def variance(self) -> Tensor:
        """Unbiased; 0 for a single row."""
        return self.square / max(1, self.count - 1)


def _collect(
    model: nn.Module, norms: dict[str, nn.Module], batches: Iterable[Any]
) -> tuple[dict[str, Moments], int, int]:
    """(what each norm reads, samples, batches); the model is as before."""
    moments = {name: Moments() for name in norms}
    samples = passes = 0

    def watch(name: str) -> Callable[..., None]:
        def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows, found = rows_of(norm, next(iter((*args, *kwargs.values())))), moments[name]
            found.add(rows)
            several = len(rows) > 1
            norm.training = several
            if not several:
                _write(norm, found)

        return hook

    handles = [norm.register_forward_pre_hook(watch(name), with_kwargs=True) for name, norm in norms.items()]
    try:
        with evaluating(model), norms_training(model):
            for batch in batches:
                inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
                first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
                if len(first):
                    run_model(model, inputs)
                    samples, passes = samples + len(first), passes + 1
    finally:
        for handle in handles:
            handle.remove()
    return moments, samples, passes


@torch.no_grad()
def _write(norm: nn.Module, found: Moments) -> None:
    for key, value in (("running_mean", found.mean), ("running_var", found.variance)):
        buffer = getattr(norm, key)
        assert isinstance(buffer, Tensor)
        buffer.copy_(value)


def _put(name: str, norm: nn.Module, found: Moments, passes: int) -> RecalibratedNorm:
    """New statistics into a norm, and how far that is from the old ones."""
    old_mean, old_var = (getattr(norm, key).detach().double() for key in ("running_mean", "running_var"))
    channels = old_mean.numel()
    if not found.count:
        return RecalibratedNorm(name, channels, 0, 0.0, 1.0, 0)
    eps = float(getattr(norm, "eps", 0.0))
    old, new = (old_var + eps).sqrt(), (found.variance + eps).sqrt()
    shift = (found.mean - old_mean).abs() / old
    spread = torch.maximum(new / old, old / new)
    _write(norm, found)
    counter = getattr(norm, "num_batches_tracked", None)
    if isinstance(counter, Tensor):
        counter.fill_(passes)
    constant = found.variance <= CONSTANT * eps
    return RecalibratedNorm(name, channels, found.count, _number(shift), _number(spread), int(constant.sum()))


def _number(values: Tensor) -> float:
    return float(values.max()) if values.numel() else math.nan
