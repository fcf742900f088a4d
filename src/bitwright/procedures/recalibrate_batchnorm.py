"""Running statistics of batch norms, estimated again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bitwright.errors import BitwrightWarning
from bitwright.procedures.registry import procedure
from bitwright.procedures.report import Report
from bitwright.transforms.norm_statistics import RecalibratedNorm, estimate


@dataclass(frozen=True)
class Recalibration(Report):
    """Result of `recalibrate_batchnorm`: a row per norm."""

    rows: tuple[RecalibratedNorm, ...] = field(default=())

    @property
    def largest_shift(self) -> float:
        """Largest shift of a mean, in standard deviations, over all norms."""
        return max((row.shift for row in self.rows), default=0.0)

    @property
    def dead(self) -> list[str]:
        """Norms whose input is the same for every sample."""
        return [row.layer for row in self.rows if row.values and row.constant == row.channels]

    def cells(self) -> list[list[str]]:
        out = [["norm", "channels", "values", "mean moved by", "deviation changed by", "constant"]]
        for row in self.rows:
            numbers = [f"{row.values:,}", f"{row.shift:.3g} sd", f"{row.spread:.3g}x", str(row.constant)]
            out.append([row.layer, str(row.channels), *numbers])
        return out

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"largest_shift": self.largest_shift}


@procedure("recalibrate_batchnorm")
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Any]) -> Recalibration:
    """Estimates the running statistics of every batch norm again, in place, after the weights in front of it changed.

    value     running_mean, running_var: mean and unbiased variance of all values that the norm reads over all batches,
              each value with the same weight, so that a smaller last batch counts by its size. Sums in float64
    how       one pass. Norms normalize by the statistics of their batch, as in training, everything else evaluates; so
              what a deeper norm reads depends, a little, on which samples are in a batch together. A batch with one value
              per channel has no variance: it is normalized by the values so far
    batches   inputs, or (input, target) pairs; training data, not test data
    changes   only the statistics. Momentum, modes, gains, the random state stay; after an exception the statistics too.
              The two norms of a gate (`output_bn="dual"`) are not touched
    errors    no batches; fewer than two values per channel; a model without such norms
    source    Ioffe, Szegedy 2015, arXiv 1502.03167, algorithm 2 (population statistics after training)

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    >>> net[0].weight.data.fill_(2.0).item()
    2.0
    >>> report = recalibrate_batchnorm(net, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
    >>> net[1].running_mean.item(), net[1].running_var.item(), report.samples      # of 2, 4 and 12
    (6.0, 28.0, 3)
    """
    rows, samples = estimate(model, batches, "recalibrate_batchnorm")
    report = Recalibration("recalibrate_batchnorm", samples, rows)
    if report.dead:
        warnings.warn(
            f"recalibrate_batchnorm: {report.dead[0]} reads the same for every input. Are all weights "
            "of the layer before it off?",
            BitwrightWarning,
            stacklevel=2,
        )
    return report
