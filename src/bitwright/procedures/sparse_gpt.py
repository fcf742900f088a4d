"""Pruning in one pass over the columns of each layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.procedures.l_obs import cost_of, put_found, units_below_one
from bitwright.procedures.layerwise.counts import Shares, count_of, pattern_of, shares
from bitwright.procedures.layerwise.linalg import check_damping, inverse_factor
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits
from bitwright.procedures.layerwise.sweep import BLOCK, Prune, PrunePattern, sweep
from bitwright.procedures.layerwise.work import LayerReport, LayerwiseRun, Solved
from bitwright.procedures.registry import procedure
from bitwright.transforms.unwrap import unwrap


@procedure("sparse_gpt", verb="prune")
def sparse_gpt(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    keep: Shares | None = None,
    sparsity: Shares | None = None,
    pattern: Literal["2:4", "4:8"] | None = None,
    damping: float = 0.01,
    inputs: Literal["compressed", "original"] = "compressed",
    norms: Literal["keep", "recalibrate"] = "keep",
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    latent: bool = False,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Prune each layer in one pass from left to right (SparseGPT): the fast way, for the widest layers too.

    score     w^2 / U_ii^2 when the pass gets there, H^-1 = U^T U;  per block of 128 columns, over all rows
    update    w_j -= (w_i / U_ii) U_ij for the columns j that are still to come
    pattern   "2:4": 2 of each 4 consecutive input channels stay (at each tap of a kernel), "4:8"; instead of keep.
              A last group of r keeps half, rounded up
    others    keep, sparsity, damping, inputs, norms, limits, journal, errors: those of `l_obs`; the counts are exact too
    cost      D^3 + O D^2 operations per layer of D inputs and O outputs
    source    Frantar, Alistarh 2023, arXiv 2301.00774
    differs   exact counts (the public code removes one more), convolutions by their patches

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = sparse_gpt(net, [torch.randn(64, 8)], pattern="2:4")
    >>> net[0].w.mask.reshape(4, 2, 4).sum(2).unique().tolist()
    [2]
    """
    model = unwrap(model)
    check_damping("sparse_gpt", damping)
    keeps, limits = shares(model, "sparse_gpt", keep, sparsity, pattern), Limits(max_rows, max_dim, seed)
    units = units_below_one(model, "sparse_gpt", keeps, latent)
    counts = {u.name: count_of(u.layer.weight.numel(), keeps[u.name]) for u in units}
    options = {"counts": counts, "pattern": pattern, "damping": damping, "inputs": inputs, "limits": str(limits)}
    work = LayerwiseRun("sparse_gpt", units, inputs, limits, True, norms, tokens, journal, options, cost_of)

    def solve(stats: LayerStats) -> Solved:
        return _prune(
            stats, counts[stats.name], None if pattern is None else pattern_of("sparse_gpt", pattern), damping
        )

    return work.run(model, batches, solve, put_found)


def _prune(stats: LayerStats, count: int, pattern: tuple[int, int] | None, damping: float) -> Solved:
    weight = stats.unit.filters
    gone = torch.zeros_like(weight, dtype=torch.bool) if stats.unit.mask is None else ~stats.unit.mask.bool()
    removed = max(weight.numel() - count, int(gone.sum()))
    if pattern and len(stats.h) > 1:
        raise InputError(
            f"sparse_gpt: {stats.name} has {stats.columns:,} inputs, more than max_dim, and a pattern needs them in one "
            f"block; give max_dim={stats.columns + 1}",
            code="option",
            layer=stats.name,
        )
    new, pruned, used, done, seen = [], [], damping, 0, 0
    for h, w, lost in zip(stats.h, stats.w, stats.split(gone, bias=True), strict=True):
        has_bias = stats.bias and len(new) == len(stats.h) - 1
        columns = h.shape[-1] - has_bias
        lost = lost[..., :columns].to(h.device)
        order = _by_taps(stats, columns, pattern, h.device, has_bias)
        found = inverse_factor(h[:, order][:, :, order] if pattern else h, damping)
        used = max(used, found.damping)
        rows = w[..., order] if pattern else w
        before = (lost[..., order[:columns]] if pattern else lost).mT
        if pattern:
            kept, of = pattern
            period = max(1, stats.unit.filters.shape[1])
            fix: Prune | PrunePattern = PrunePattern(columns, kept, of, before, period)
            block = BLOCK if period % of == 0 else period
        else:
            seen += lost.numel()
            due = min(max(round(removed * seen / weight.numel()) - done, int(lost.sum())), lost.numel())
            done += due
            fix, block = Prune(columns, due, before), BLOCK
        swept = sweep(found.upper, rows, columns, fix, block)
        del found
        mask = fix.pruned.mT
        if pattern:
            back = order.argsort()
            swept, mask = swept[..., back], mask[..., back[:columns]]
        new.append(swept)
        pruned.append(mask)
    keep = ~torch.cat(pruned, -1).reshape(weight.shape).to(weight.device)
    return Solved(new, keep, "sweep", used)


def _by_taps(
    stats: LayerStats, columns: int, pattern: tuple[int, int] | None, device: torch.device, has_bias: bool
) -> Tensor:
    """Columns by tap, then channel, so that the groups of a pattern lie together; a bias stays last."""
    taps = stats.columns // max(1, stats.unit.filters.shape[1])
    order = torch.arange(columns, device=device)
    if pattern is not None and taps > 1:
        order = order.reshape(-1, taps).T.flatten()
    return torch.cat([order, order.new_tensor([columns])]) if has_bias else order
