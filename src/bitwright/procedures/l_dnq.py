"""Layer-wise quantization to a few levels, from a few hundred unlabeled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from bitwright.procedures.layerwise.select import Unit, compressible, per_layer
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits, inputs_of
from bitwright.procedures.layerwise.work import LayerReport, LayerwiseRun, Solved
from bitwright.procedures.recalibrate_batchnorm import estimate
from bitwright.procedures.registry import procedure
from bitwright.transforms.batch_norms import batch_norms
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.unwrap import unwrap

Positive = Annotated[float, Field(gt=0)]


@procedure("l_dnq", verb="quantize")
def l_dnq(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    levels: str | dict[str, str] = "ternary",
    per_channel: bool = False,
    cascade: bool = True,
    rho: Positive | list[Positive] | None = None,
    iterations: Annotated[int, Field(ge=0)] = 100,
    sweeps: Annotated[int, Field(ge=0)] = 20,
    epochs: Annotated[int, Field(ge=0)] = 5,
    lr: Positive = 1e-2,
    norms: Literal["recalibrate", "keep"] = "recalibrate",
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Put each layer's weights on a few levels times a scale, chosen for what it reads; float layers make up for it.

    value      s q, q in the level set, s > 0: one per layer, or with `per_channel` one per output unit; lands in the part
               `codebook`. Minimizes E = tr((s q - w) H (s q - w)^T), H = mean of x x^T over what the layer reads: the mean
               squared change of its output
    levels     "ternary", "pow2:N" (0 and powers of two of both signs), "uniform:N" (whole numbers); N counts levels. Also a
               mapping by layer glob ({"*": "ternary", "conv1": "uniform:16"}); layers that no glob matches stay float
    how        ADMM from rounding, with r = rho mean(diag H), for each `rho` (default 0.3, 1 and 3), every s the best one under
               H; the best result, then sweeps over single weights while E falls. With iterations=0 and sweeps=0: rounding to
               the nearest levels, which knows nothing of the images
    cascade    after each layer the weights that are still float, the biases and the gains of the norms learn the answers of the
               net as it was: SGD with momentum 0.9 and rate `lr` on their squared distance over their variance, at most
               `epochs` passes over the images, in evaluation mode; no labels. A step that did not help is taken back
    bias       absorbs error, stays float
    mask       a pruned layer keeps its mask, exact zeros
    norms      "recalibrate": running statistics are estimated again after each layer and at the end
    others     limits, journal, errors: those of `l_obs`
    source     Chen et al. 2019 (AAAI), Deep neural network quantization via layer-wise optimization using limited training data
    differs    r follows the mean of the diagonal, not its first entry; stops are relative; ties round away from 0;
               patches of a convolution in the order of its kernel; the bias is not quantized; the net as it was
               evaluates while it is imitated

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = l_dnq(net, [torch.randn(64, 8)], levels="pow2:7")
    >>> net[0], net[0].quantized_weight().unique().numel() <= 7
    (Linear(in_features=8, out_features=4, bias=True, w=codebook), True)
    """
    model = unwrap(model)
    table = per_layer(model, "l_dnq", "levels", levels)
    grids = {name: torch.tensor(level_grid(one), dtype=torch.float64) for name, one in table.items()}
    every = len(table) == len(compressible(model, "l_dnq", latent=True, listing=True))
    units = compressible(model, "l_dnq", None if every else [exact_glob(name) for name in table])
    feed = inputs_of(model, batches, "l_dnq")
    rhos = RHOS if rho is None else tuple(rho) if isinstance(rho, (list, tuple)) else (rho,)
    limits = Limits(max_rows, max_dim, seed)
    options = {
        "levels": table, "per_channel": per_channel, "rhos": rhos, "iterations": iterations, "sweeps": sweeps,
        "cascade": [epochs, lr] if cascade else None, "norms": norms, "limits": str(limits),
    }  # fmt: skip
    work = LayerwiseRun("l_dnq", units, "compressed", limits, True, norms, tokens, journal, options, cost_of)

    def solve(stats: LayerStats) -> Solved:
        return _solve(stats, grids[stats.name], per_channel, rhos, iterations, sweeps)

    def finish(net: nn.Module, found: dict[str, tuple[Unit, Solved]]) -> None:
        tensors: dict[str, tuple[Unit, str, int | None, dict[str, Tensor]]]
        tensors = {n: (u, table[n], None, s.tensors) for n, (u, s) in found.items()}
        put_codebooks(net, tensors, "l_dnq", "filter" if per_channel else "layer")

    if not cascade:
        return work.run(model, feed, solve, finish)
    follow = _Follow(
        model, Cascade.of(model, feed, epochs, lr, seed), feed, norms == "recalibrate", journal is not None
    )
    work.after = follow.after
    work.resumed = follow.resumed
    with _whole(model):
        return work.run(model, feed, solve, finish)


class _Follow:
    """The cascade after each layer, and what a journal keeps of it: everything that still learns."""

    def __init__(self, model: nn.Module, cascade: Cascade, feed: list[Any], recalibrate: bool, kept: bool) -> None:
        self.model, self.cascade, self.feed, self.kept = model, cascade, feed, kept
        self.recalibrate = recalibrate and bool(batch_norms(model))
        self.done: dict[str, int] = {}  # unit -> id of its weight
        self.last: Solved | None = None

    def after(self, stats: LayerStats, solved: Solved) -> None:
        self.done[stats.name] = id(stats.layer.weight)
        if self.recalibrate:
            estimate(self.model, self.feed, "l_dnq")
        self.cascade.fit(self.model, set(self.done.values()), len(self.done))
        if self.kept:
            if self.last is not None:
                _forget(self.last)
            gone = set(self.done.values())
            state = {name: value for name, value in _state(self.model).items() if id(value) not in gone}
            solved.tensors |= {f"net.{name}": value.detach().clone() for name, value in state.items()}
            solved.tensors["turn"] = torch.tensor(len(self.done))
            self.last = solved

    @torch.no_grad()
    def resumed(self, found: dict[str, tuple[Unit, Solved]]) -> None:
        """The net as the last finished layer left it."""
        if not found:
            return
        self.done = {name: id(unit.layer.weight) for name, (unit, _) in found.items()}
        latest = max((solved for _, solved in found.values()), key=lambda solved: int(solved.tensors["turn"]))
        state = _state(self.model)
        for key, value in latest.tensors.items():
            if key.startswith("net."):
                state[key[4:]].copy_(value)
        for _, solved in found.values():
            _forget(solved)


def _forget(solved: Solved) -> None:
    solved.tensors = {key: value for key, value in solved.tensors.items() if not key.startswith("net.")}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the statistics of the norms."""
    norms = {f"{n}.{key}": value for n, norm in batch_norms(model).items() for key, value in norm.named_buffers()}
    return dict(model.named_parameters()) | norms


@contextmanager
def _whole(model: nn.Module) -> Iterator[None]:
    """After an exception all of it is as it was."""
    before = [(value, value.detach().clone()) for value in _state(model).values()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for now, value in before:
                now.copy_(value)
        raise


def _solve(
    stats: LayerStats, grid: Tensor, per_channel: bool, rhos: Sequence[float], iterations: int, sweeps: int
) -> Solved:
    weight = stats.unit.filters
    h, flat, means = list(stats.h), torch.cat(stats.w, -1), None
    w = flat
    if stats.bias:  # the bias makes up for the mean of the error, so that the weights only face the covariance
        last = h[-1]
        means = last[..., :-1, -1:]
        h[-1] = last[..., :-1, :-1] - means @ means.mT
        w = flat[..., :-1]
    mask = stats.unit.mask
    keep = None if mask is None else mask.bool().reshape(w.shape).to(w.device)
    problem = Quadratic(h, w, grid.to(w), not per_channel, keep)
    found = best_levels(problem, rhos, iterations, sweeps)
    scale = found.scale if weight.dtype == torch.float64 else found.scale.float()
    value = problem.grid[found.index] * scale.double()
    new = value
    if means is not None:
        new = torch.cat([value, flat[..., -1:] + (w - value)[..., -means.shape[-2] :] @ means], -1)
    tensors = {
        "index": found.index.reshape(weight.shape).to(weight.device, torch.uint8),
        "scale": (scale.reshape(-1) if per_channel else scale.reshape(-1)[0]).to(weight.device),
    }
    rounded, error = (float(problem.error(v)[:, :, 0].sum()) for v in (problem.value(problem.rounded()), value))
    method = f"{rounded / error:.1f}x below rounding" if error > 0 else "as rounding"
    blocks = list(new.split([one.shape[-1] for one in stats.w], -1))
    return Solved(blocks, None if mask is None else mask.bool(), method, 0.0, tensors)
