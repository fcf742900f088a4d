"""Layer-wise optimal brain surgery: pruning without retraining."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from bitwright.procedures.layerwise.counts import SHARES, Shares, allocate, count_of, shares
from bitwright.procedures.layerwise.linalg import check_damping
from bitwright.procedures.layerwise.masks import put_masks
from bitwright.procedures.layerwise.prune import Surgery
from bitwright.procedures.layerwise.select import Unit, compressible
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits, visit_layers
from bitwright.procedures.layerwise.work import LayerReport, LayerwiseRun, Solved
from bitwright.procedures.registry import procedure
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.unwrap import unwrap

FLOPS = 1e12


@procedure("l_obs", verb="prune")
def l_obs(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    keep: Shares | None = None,
    sparsity: Shares | None = None,
    compensation: Literal["exact", "lobs"] = "exact",
    rounds: Annotated[int, Field(ge=1)] | Literal["obc", "auto"] = 1,
    scope: Literal["layer", "row", "global"] = "layer",
    damping: float = 0.01,
    inputs: Literal["compressed", "original"] = "compressed",
    norms: Literal["keep", "recalibrate"] = "keep",
    flop_budget: float = FLOPS,
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    latent: bool = False,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Prune each layer by second-order scores, from a few hundred unlabeled images; weights that stay make up for the rest.

    score     w_q^2 / [H^-1]_qq, H = mean of x x^T over what the layer reads: the rise of E, the mean squared change of the
              layer's output, if this weight alone goes and the others of its row make up for it
    keep      share of weights that stay, a number or a mapping by layer glob; a layer keeps exactly max(1, round(n keep)).
              A full name counts before globs, of several globs the last. Layers that no glob matches, and those with
              keep 1, are not touched. `sparsity` = 1 - keep, instead
    compensation   "exact": the best weights on the mask, H_SS w_S = (H w0)_S;   "lobs": as published, one update per
              weight with the inverse left as it is, which is one Gauss-Seidel sweep of that system
    rounds    scores are taken anew this often, which matters where most weights go; 8 come close to "obc", one weight at a time (Optimal Brain Compression);
              "auto": the best that `flop_budget` allows for each layer
    scope     where weights compete: "layer", "row" (each output unit keeps the same number), "global" (all layers: first
              each is pruned to a dozen shares on trial, then those are taken with the least sum of relative E; `keep` is the
              share of all together). With few weights left take "global", or give small layers and the last one a share of their
              own: one share for all leaves the last layer with a few weights a class, and the net loses most of its accuracy there
    damping   added to H, a share of its mean diagonal; rises tenfold where H cannot be factored
    inputs    H of what a layer reads after the layers pruned so far ("compressed"), or in the net as it was ("original")
    norms     "recalibrate": estimate the statistics of batch norms again at the end, from the same images. It pays with
              thousands of images; from a few hundred the new statistics are worse than the old ones, since outputs have hardly moved
    bias      absorbs error as a constant input, is never pruned
    limits    flop_budget: operations per layer, beyond it a cheaper way is taken (the report names it); max_rows,
              max_dim, seed: see `Limits`; tokens: argument of the model with the mask of real tokens
    journal   folder for finished layers: the same call after a kill continues after them. Removed at the end
    errors    no images, NaN images, keep outside of (0, 1], a layer never called, weights behind a quantizer unless
              `latent`. The net is then as it was
    source    Dong, Chen, Pan 2017, arXiv 1705.07565; Frantar, Alistarh 2022, arXiv 2208.11580 (obc)
    differs   columns in the order of the kernel (the public code mixes two), damping by the ladder, exact counts; the bias
              is folded in but kept

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = l_obs(net, [torch.randn(64, 8)], keep={"*": 0.5, "2": 0.25})
    >>> [(row.layer, row.kept) for row in report.rows], net[0].w.density()
    ([('0', 16), ('2', 2)], 0.5)
    """
    model = unwrap(model)
    check_damping("l_obs", damping)
    keeps, feed, limits = shares(model, "l_obs", keep, sparsity), list(batches), Limits(max_rows, max_dim, seed)
    units = units_below_one(model, "l_obs", keeps, latent)
    counts = {u.name: count_of(u.layer.weight.numel(), keeps[u.name]) for u in units}
    if scope == "global" and units:
        total = round(sum(u.layer.weight.numel() * keeps[u.name] for u in units))
        counts = allocate(_curves(model, feed, units, damping, flop_budget, limits, tokens), max(total, len(units)))
    surgery = Surgery(compensation, rounds, "row" if scope == "row" else "layer", damping, flop_budget)
    options = {"counts": counts, "surgery": str(surgery), "inputs": inputs, "limits": str(limits)}
    work = LayerwiseRun("l_obs", units, inputs, limits, True, norms, tokens, journal, options, cost_of)
    return work.run(model, feed, lambda stats: surgery.prune(stats, counts[stats.name]), put_found)


def units_below_one(model: nn.Module, who: str, keeps: dict[str, float], latent: bool) -> list[Unit]:
    """The units that lose weights; those that keep all are left out."""
    wanted = [exact_glob(name) for name, share in keeps.items() if share < 1]
    every = len(wanted) == len(compressible(model, who, latent=True, listing=True))
    return compressible(model, who, None if every else wanted, latent) if wanted else []


def cost_of(unit: Unit) -> float:
    """Relative cost of a layer, to estimate the time left: the factor dominates, then the rows."""
    columns = unit.filters[0].numel()
    return float(columns**3 + unit.filters.shape[0] * columns**2)


def put_found(model: nn.Module, found: dict[str, tuple[Unit, Solved]]) -> None:
    put_masks(model, {n: (u, s.keep) for n, (u, s) in found.items() if s.keep is not None}, "l_obs")


def _curves(
    model: nn.Module,
    feed: list[Any],
    units: list[Unit],
    damping: float,
    flop_budget: float,
    limits: Limits,
    tokens: str | None,
) -> dict[str, list[tuple[int, float]]]:
    """(weights kept, relative E) of every layer at a few shares, in one round each; the net is not changed."""
    found: dict[str, list[tuple[int, float]]] = {}
    once = Surgery("exact", 1, "layer", damping, flop_budget)

    def visit(stats: LayerStats) -> None:
        size = stats.layer.weight.numel()
        start = size if stats.unit.mask is None else int(stats.unit.mask.sum())
        counts = sorted(
            {count_of(size, share) for share in SHARES if count_of(size, share) < start} | {1}, reverse=True
        )
        solved = [(count, stats.relative(stats.error(once.prune(stats, count).new))) for count in counts]
        found[stats.name] = [(start, 0.0), *solved]

    visit_layers(model, feed, units, visit, who="l_obs", limits=limits, tokens=tokens)
    return found
