"""Layer-wise quantization to a few levels, from a few hundred unlabeled images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bitwright.fn.levels import level_grid
from bitwright.procedures.l_obs import cost_of
from bitwright.procedures.layerwise.cascade import Cascade
from bitwright.procedures.layerwise.masks import put_codebooks
from bitwright.procedures.layerwise.on_levels import RHOS, Quadratic, best_levels
from bitwright.procedures.layerwise.select import Unit, compressible
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits
from bitwright.procedures.layerwise.work import LayerReport, Solved, Work
from bitwright.procedures.recalibrate_batchnorm import estimate
from bitwright.procedures.registry import procedure
from bitwright.transforms.batch_norms import batch_norms
from bitwright.transforms.unwrap import unwrap


@procedure("l_dnq")
def l_dnq(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    levels: str = "ternary",
    per_channel: bool = False,
    cascade: bool = True,
    layers: list[str] | None = None,
    rho: Annotated[float, Field(gt=0)] | list[float] | None = None,
    iterations: Annotated[int, Field(ge=0)] = 100,
    sweeps: Annotated[int, Field(ge=0)] = 20,
    epochs: Annotated[int, Field(ge=0)] = 10,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    norms: Literal["recalibrate", "keep"] = "recalibrate",
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Put each layer's weights on a few levels times a scale, from what the layer reads; layers still real make up for it.

    value      s q with q of the level set and s > 0, one s per layer or per output unit; lands in the part `codebook`
    levels     "ternary", "pow2:N" (0 and powers of two of both signs), "uniform:N" (whole numbers); N counts levels
    """
    model = unwrap(model)
    grid = torch.tensor(level_grid(levels), dtype=torch.float64)
    feed = list(batches)
    units = compressible(model, "l_dnq", layers)
    rhos = RHOS if rho is None else tuple(rho) if isinstance(rho, (list, tuple)) else (rho,)
    limits = Limits(max_rows, max_dim, seed)
    options = {"levels": levels, "per_channel": per_channel, "cascade": cascade, "rho": rhos, "limits": str(limits)}
    work = Work("l_dnq", units, "compressed", limits, True, norms, tokens, journal, options, cost_of)

    def solve(stats: LayerStats) -> Solved:
        return _solve(stats, grid, per_channel, rhos, iterations, sweeps)

    def finish(net: nn.Module, found: dict[str, tuple[Unit, Solved]]) -> None:
        tensors = {n: (u, levels, None, s.tensors) for n, (u, s) in found.items()}
        put_codebooks(net, tensors, "l_dnq", "filter" if per_channel else "layer")

    if cascade:
        inputs = [one[0] if isinstance(one, (tuple, list)) else one for one in feed]
        follow = Cascade.of(model, inputs, epochs, lr, seed)
        done: set[int] = set()

        def after(stats: LayerStats, solved: Solved) -> None:
            done.add(id(stats.layer.weight))
            if norms == "recalibrate" and batch_norms(model):
                estimate(model, inputs, "l_dnq")
            first, last = follow.fit(model, done, len(done))
            print(stats.name, solved.method, first, last, flush=True)

        work.after = after
    return work.run(model, feed, solve, finish)


def _solve(
    stats: LayerStats, grid: Tensor, per_channel: bool, rhos: Iterable[float], iterations: int, sweeps: int
) -> Solved:
    weight: Tensor = stats.layer.weight
    h, w = list(stats.h), torch.cat(stats.w, -1)
    means = None
    if stats.bias:  # the bias, a float, makes up for the mean: what is left is the covariance
        last = h[-1]
        means = last[..., :-1, -1:]
        h[-1] = last[..., :-1, :-1] - means @ means.mT
        w = w[..., :-1]
    mask = stats.unit.mask
    keep = None if mask is None else mask.bool().reshape(w.shape).to(w.device)
    problem = Quadratic(h, w, grid.to(w), not per_channel, keep)
    found = best_levels(problem, tuple(rhos), iterations, sweeps)
    scale = found.scale.float() if weight.dtype != torch.float64 else found.scale
    new = problem.grid[found.index] * scale.double()
    if means is not None:
        change = (w - new)[..., -means.shape[-2] :] @ means
        new = torch.cat([new, torch.cat(stats.w, -1)[..., -1:] + change], -1)
    sizes = [one.shape[-1] for one in stats.w]
    index = found.index.reshape(weight.shape).to(weight.device, torch.uint8)
    kept = scale.reshape(-1) if per_channel else scale.reshape(-1)[:1]
    method = f"{len(grid)} levels, rho {found.rho:g}" if found.rho else f"{len(grid)} levels"
    return Solved(
        list(new.split(sizes, -1)), None if mask is None else mask.bool(), method, 0.0, {"index": index, "scale": kept}
    )
