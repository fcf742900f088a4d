"""One layer-wise procedure: every layer through a solver, all of it or nothing, with a row for each and a journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitwright.procedures.layerwise.bounds import Net
from bitwright.procedures.layerwise.journal import Journal
from bitwright.procedures.layerwise.select import Unit
from bitwright.procedures.layerwise.stats import LayerStats, Limits, visit_layers
from bitwright.procedures.report import Report
from bitwright.transforms.batch_norms import batch_norms
from bitwright.transforms.geometry import from_rows
from bitwright.transforms.norm_statistics import estimate
from bitwright.transforms.unwrap import unwrap


@dataclass
class Solved:
    """What a solver makes of one layer.

    new       the weight as blocks, like `LayerStats.w`
    keep      bool of the weight's shape; None: no weight was pruned
    method    how it was done, in a word;   damping   that was used in the end
    tensors   more results by name, kept in the journal and given back
    """

    new: list[Tensor]
    keep: Tensor | None = None
    method: str = ""
    damping: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    kept        weights that are not pruned
    error       E: mean squared change of the layer's output per position, summed over outputs, for the inputs it was solved on;
                after rounding to the weight's number type
    relative    E over the mean square of the output
    rows        of inputs that it was solved on;   positions   outputs per channel and sample
    """

    layer: str
    weights: int
    kept: int
    error: float
    relative: float
    method: str
    damping: float
    rows: int
    positions: float
    seconds: float


@dataclass(frozen=True)
class LayerReport(Report):
    """A row per layer, and how the layers of the net are connected (`error_bound` reads that)."""

    rows: tuple[LayerRow, ...] = ()
    net: Net | None = field(default=None, repr=False, compare=False)

    @property
    def kept(self) -> float:
        """Share of the weights of all rows that is left."""
        weights = sum(row.weights for row in self.rows)
        return sum(row.kept for row in self.rows) / weights if weights else 1.0

    def cells(self) -> list[list[str]]:
        out = [["layer", "weights", "kept", "E", "relative E", "method", "damping", "rows", "seconds"]]
        for r in self.rows:
            share = f"{100 * r.kept / r.weights:.1f} %"
            numbers = [f"{r.error:.3g}", f"{100 * r.relative:.2g} %", r.method, f"{r.damping:g}", f"{r.rows:,}"]
            out.append([r.layer, f"{r.weights:,}", share, *numbers, f"{r.seconds:.2f}"])
        return out

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"kept": self.kept}


@dataclass
class LayerwiseRun:
    """The settings that all layer-wise procedures share."""

    who: str
    units: list[Unit]
    inputs: Literal["compressed", "original"] = "compressed"
    limits: Limits = field(default_factory=Limits)
    bias: bool = True
    norms: Literal["recalibrate", "keep"] = "recalibrate"
    tokens: str | None = None
    journal: str | os.PathLike[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    cost: Callable[[Unit], float] | None = None
    # called after a layer is written, may change more of the net; called with the journal's layers, before the others
    after: Callable[[LayerStats, Solved], None] | None = None
    resumed: Callable[[dict[str, tuple[Unit, Solved]]], None] | None = None

    def run(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        solve: Callable[[LayerStats], Solved],
        finish: Callable[[nn.Module, dict[str, tuple[Unit, Solved]]], None],
    ) -> LayerReport:
        """Solves every unit, then `finish` puts masks and parts in. After an error the net is as it was."""
        model = unwrap(model)
        feed = list(batches)
        if not self.units:  # every layer keeps all of its weights
            return LayerReport(self.who, 0)
        before = [(p, p.detach().clone()) for unit in self.units for p in unit.latents]
        rows: dict[str, LayerRow] = {}
        found: dict[str, tuple[Unit, Solved]] = {}
        journal = None if self.journal is None else Journal(self.journal, self.who, self.options, before)
        samples = 0
        # E on inputs of compressed layers takes the gain of the old weights, E on the old inputs that of the new ones
        net = Net(model, feed) if self.inputs == "compressed" else None

        def visit(stats: LayerStats) -> None:
            start = time.perf_counter()
            solved = solve(stats)
            stats.write(solved.new)
            if solved.keep is not None:
                _zero(stats.layer, solved.keep)
            rows[stats.name] = _row(stats, solved, time.perf_counter() - start)
            solved.new = []  # frees the memory; the net has the weight
            if self.after is not None:
                self.after(stats, solved)
            found[stats.name] = (stats.unit, solved)
            if journal is not None:
                journal.write(stats.name, stats.unit, solved, rows[stats.name])

        try:
            left = self.units if journal is None else journal.resume(self.units, rows, found, LayerRow, Solved)
            if self.resumed is not None:
                self.resumed(found)
            if left:
                samples = visit_layers(
                    model, feed, left, visit, who=self.who, inputs=self.inputs, bias=self.bias, limits=self.limits,
                    tokens=self.tokens, cost=self.cost, fresh=self.after is not None,
                )  # fmt: skip
            net = net or Net(model, feed)
            finish(model, found)
        except BaseException:
            with torch.no_grad():
                for parameter, value in before:
                    parameter.copy_(value)
            raise
        if self.norms == "recalibrate" and batch_norms(model):
            estimate(model, feed, self.who)
        if journal is not None:
            journal.remove()
        ordered = tuple(rows[unit.name] for unit in self.units)
        return LayerReport(self.who, samples, ordered, net)


def _zero(layer: Any, keep: Tensor) -> None:
    with torch.no_grad():
        layer.weight.masked_fill_(~from_rows(layer, keep), 0)


def _row(stats: LayerStats, solved: Solved, seconds: float) -> LayerRow:
    weights = stats.layer.weight.numel()
    kept = weights if solved.keep is None else int(solved.keep.sum())
    error = stats.error()
    return LayerRow(
        stats.name, weights, kept, error, stats.relative(error), solved.method, solved.damping, stats.rows,
        stats.positions, seconds,
    )  # fmt: skip
