"""Pruning by the size of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.procedures.l_obs import units_below_one
from bitwright.procedures.layerwise.counts import (
    Shares,
    by_pattern,
    count_of,
    lowest,
    pattern_of,
    shares,
    spread_counts,
)
from bitwright.procedures.layerwise.masks import put_masks
from bitwright.procedures.layerwise.select import Unit
from bitwright.procedures.registry import procedure
from bitwright.procedures.report import Report
from bitwright.transforms.unwrap import unwrap

Ramp = Literal["constant", "cubic", "linear", "exponential"]


@dataclass(frozen=True)
class PrunedRow:
    """One layer. energy   share of the sum of squared weights that is kept"""

    layer: str
    weights: int
    kept: int
    energy: float


@dataclass(frozen=True)
class PruneReport(Report):
    """A row per pruned layer."""

    rows: tuple[PrunedRow, ...] = ()

    @property
    def kept(self) -> float:
        """Share of the weights of all rows that is left."""
        weights = sum(row.weights for row in self.rows)
        return sum(row.kept for row in self.rows) / weights if weights else 1.0

    def cells(self) -> list[list[str]]:
        out = [["layer", "weights", "kept", "energy kept"]]
        for r in self.rows:
            out.append([r.layer, f"{r.weights:,}", f"{100 * r.kept / r.weights:.1f} %", f"{100 * r.energy:.1f} %"])
        return out

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"kept": self.kept}


@procedure("magnitude", verb="prune")
def magnitude(
    model: nn.Module,
    *,
    keep: Shares | None = None,
    sparsity: Shares | None = None,
    scope: Literal["layer", "global", "erk"] = "layer",
    pattern: Literal["2:4", "4:8"] | None = None,
    schedule: Ramp = "constant",
    at: Annotated[float, Field(ge=0, le=1)] = 1.0,
    latent: bool = False,
) -> PruneReport:
    """Prune the smallest weights; it needs no images, but further training to recover accuracy.

    keep      share of weights that stay, a number or a mapping by layer glob; a layer keeps exactly max(1, round(n keep)).
              `sparsity` = 1 - keep, instead
    scope     "layer": each layer keeps its share; "global": one threshold for all; "erk": denser where a layer is small,
              density proportional to (n_in + n_out + kernel sides) / (n_in n_out kernel area)
    pattern   "2:4": the 2 largest of each 4 consecutive input channels stay, "4:8"; instead of keep
    schedule, at   sparsity at the place `at` in [0, 1] of a ramp from 0 to the final one, for pruning in steps with
              training between: "cubic" 1 - (1 - at)^3, "linear" at, "exponential" 1 - keep^at, "constant" 1
    mask      a pruned weight stays pruned in the next step; the mask hides the latent weight and does not change it,
              so `reconstruct` can use it
    errors    keep outside of (0, 1], both or none of keep and sparsity, a glob that matches no layer
    source    Han et al. 2015, arXiv 1506.02626; Zhu, Gupta 2017, arXiv 1710.01878 (cubic); Evci et al. 2020,
              arXiv 1911.11134 (erk)

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [magnitude(net, keep=0.2, schedule="cubic", at=t).rows[0].kept for t in (0.25, 0.5, 1.0)]
    [17, 10, 6]
    """
    model = unwrap(model)
    keeps = shares(model, "magnitude", keep, sparsity, pattern)
    if schedule != "constant" and pattern is not None:
        raise InputError(f"magnitude: pattern={pattern!r} has one sparsity; leave schedule out", code="option")
    keeps = {name: 1 - ramp(schedule, at, 1 - share) for name, share in keeps.items()}
    units = units_below_one(model, "magnitude", keeps, latent)
    keeps = {unit.name: keeps[unit.name] for unit in units}
    sizes = {unit.name: _sizes(unit) for unit in units}
    if scope == "erk":
        keeps = erk({unit.name: tuple(unit.filters.shape) for unit in units}, keeps)
    counts = {name: count_of(size.numel(), keeps[name]) for name, size in sizes.items()}
    if scope == "global" and units:
        counts = spread_counts(sizes, keeps)
    masks: dict[str, tuple[Unit, Tensor]] = {}
    rows = []
    for unit in units:
        size = sizes[unit.name]
        if pattern is None:
            mask = ~lowest(size, size.numel() - counts[unit.name])
        else:
            mask = by_pattern(size, *pattern_of("magnitude", pattern))
        mask &= torch.isfinite(size)
        masks[unit.name] = (unit, mask)
        weight = unit.filters.double()
        whole = float(weight.square().sum())
        energy = float(weight[mask].square().sum()) / whole if whole else 1.0
        rows.append(PrunedRow(unit.name, size.numel(), int(mask.sum()), energy))
    put_masks(model, masks, "magnitude")
    return PruneReport("magnitude", 0, tuple(rows))


def ramp(schedule: Ramp, at: float, final: float) -> float:
    """Sparsity at a place of the ramp.

    >>> [round(ramp(kind, 0.5, 0.75), 4) for kind in ("constant", "cubic", "linear", "exponential")]
    [0.75, 0.6562, 0.375, 0.5]
    """
    if schedule == "cubic":
        return final * (1 - (1 - at) ** 3)
    if schedule == "linear":
        return final * at
    return 1 - (1 - final) ** at if schedule == "exponential" else final


def erk(shapes: dict[str, tuple[int, ...]], keeps: dict[str, float]) -> dict[str, float]:
    """Densities by layer shape [O, I, *kernel] that keep as many weights in all; none above 1.

    >>> {n: round(d, 3) for n, d in erk({"a": (10, 10), "b": (100, 100)}, {"a": 0.1, "b": 0.1}).items()}
    {'a': 0.918, 'b': 0.092}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = sum(sizes[name] * keeps[name] for name in shapes)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        room = budget - sum(sizes[name] for name in full)
        scale = room / max(sum(raw[n] * sizes[n] for n in shapes if n not in full), 1e-12)
        over = {name for name in shapes if name not in full and scale * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else scale * raw[name] for name in shapes}
        full |= over


def _sizes(unit: Unit) -> Tensor:
    """|w|; below every weight where it is pruned already."""
    size = unit.filters.abs().float()
    return size if unit.mask is None else size.masked_fill(~unit.mask.bool(), -torch.inf)
