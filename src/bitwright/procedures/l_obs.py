"""Layer-wise optimal brain surgery: pruning without retraining."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bitwright.procedures.layerwise.counts import Shares, count_of, shares, spread_counts
from bitwright.procedures.layerwise.linalg import check_damping, inverse_factor
from bitwright.procedures.layerwise.masks import put_masks
from bitwright.procedures.layerwise.prune import Surgery
from bitwright.procedures.layerwise.select import Unit, compressible
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits, visit_layers
from bitwright.procedures.layerwise.work import LayerReport, Solved, Work
from bitwright.procedures.registry import procedure
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.unwrap import unwrap

FLOPS = 5e12


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
    norms: Literal["recalibrate", "keep"] = "recalibrate",
    flop_budget: float = FLOPS,
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    latent: bool = False,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Prune each layer by second-order scores; what stays makes up for what goes, from a few hundred unlabeled images.

    score     w_q^2 / [H^-1]_qq, H = mean of x x^T over what the layer reads: by how much E, the mean squared change of the
              layer's output, rises if this weight alone goes and the others of its row make up for it
    keep      share of weights that stay, a number or a mapping by layer glob; a layer keeps exactly max(1, round(n keep)).
              `sparsity` = 1 - keep, instead. Layers that no glob matches, and those with keep 1, are not touched
    compensation   "exact": the best weights on the mask, H_SS w_S = (H w0)_S;   "lobs": as published, one update per
              weight with the inverse left as it is, which is one Gauss-Seidel sweep of that system
    rounds    scores are taken anew this often; 8 come close to "obc", one weight at a time (Optimal Brain Compression);
              "auto": the best that `flop_budget` allows for each layer
    scope     where scores compete: "layer", "row" (each output unit keeps the same number), "global" (all layers, E
              relative to what a layer puts out; `keep` is then the share of them together)
    damping   added to H, a share of its mean diagonal; rises tenfold where H cannot be factored
    inputs    H of what a layer reads behind the layers pruned so far ("compressed"), or in the net as it was ("original")
    norms     estimate the statistics of batch norms again at the end, from the same images
    bias      absorbs error as a constant input, is never pruned
    limits    flop_budget: operations per layer, beyond it a cheaper way is taken (the report names it); max_rows,
              max_dim, seed: see `Limits`; tokens: argument of the model with the mask of real tokens
    journal   folder for finished layers: the same call after a kill goes on behind them. Gone at the end
    errors    no images, NaN images, keep outside of (0, 1], a layer never called, weights behind a quantizer unless
              `latent`. The net is then as it was
    source    Dong, Chen, Pan 2017, arXiv 1705.07565; Frantar, Alistarh 2022, arXiv 2208.11580 (obc)
    differs   columns in the order of the kernel (the public code mixes two), damping by the ladder, exact counts; the bias
              is folded in but kept

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
        counts = spread_counts(_scores(model, feed, units, damping, limits, tokens), {n: keeps[n] for n in counts})
    surgery = Surgery(compensation, rounds, "row" if scope == "row" else "layer", damping, flop_budget)
    options = {"counts": counts, "surgery": str(surgery), "inputs": inputs, "limits": str(limits)}
    work = Work("l_obs", units, inputs, limits, True, norms, tokens, journal, options, cost_of)
    return work.run(model, feed, lambda stats: surgery.prune(stats, counts[stats.name]), put_found)


def units_below_one(model: nn.Module, who: str, keeps: dict[str, float], latent: bool) -> list[Unit]:
    """The units that lose weights; those that keep all are not even looked at."""
    wanted = [exact_glob(name) for name, share in keeps.items() if share < 1]
    every = len(wanted) == len(compressible(model, who, latent=True, listing=True))
    return compressible(model, who, None if every else wanted, latent) if wanted else []


def cost_of(unit: Unit) -> float:
    """For the time left: the factor dominates, then the rows."""
    columns = unit.layer.weight[0].numel()
    return float(columns**3 + unit.layer.weight.shape[0] * columns**2)


def put_found(model: nn.Module, found: dict[str, tuple[Unit, Solved]]) -> None:
    put_masks(model, {n: (u, s.keep) for n, (u, s) in found.items() if s.keep is not None}, "l_obs")


def _scores(
    model: nn.Module, feed: list[Any], units: list[Unit], damping: float, limits: Limits, tokens: str | None
) -> dict[str, Tensor]:
    """Of every weight, by how much E rises over what its layer puts out; the net is not changed."""
    found: dict[str, Tensor] = {}

    def visit(stats: LayerStats) -> None:
        pieces = []
        for h, w, dead in zip(stats.h, stats.w, stats.dead(), strict=True):
            diagonal = inverse_factor(h, damping).upper.square().sum(-2).unsqueeze(1)
            pieces.append(torch.where(dead.unsqueeze(1), torch.zeros_like(w), w.square() / diagonal))
        flat = torch.cat(pieces, -1)[..., : stats.columns]
        found[stats.name] = (flat.reshape(stats.layer.weight.shape) / max(stats.energy, 1e-300)).float()

    visit_layers(model, feed, units, visit, who="l_obs", limits=limits, tokens=tokens)
    return found
