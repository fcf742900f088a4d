"""Weights on a grid of few bits without retraining."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.levels import fit_scale, fit_scale_zero, level_grid, nearest_level
from bitwright.procedures.l_obs import cost_of
from bitwright.procedures.layerwise.linalg import check_damping, inverse_factor
from bitwright.procedures.layerwise.masks import put_codebooks
from bitwright.procedures.layerwise.select import Unit, compressible, per_layer
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits
from bitwright.procedures.layerwise.sweep import BLOCK, sweep
from bitwright.procedures.layerwise.work import LayerReport, LayerwiseRun, Solved
from bitwright.procedures.registry import procedure
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.unwrap import unwrap

Bits = Annotated[int, Field(ge=2, le=8)]


@procedure("gptq", verb="quantize")
def gptq(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    bits: Bits | dict[str, Bits] = 4,
    act_order: bool = True,
    group: Annotated[int, Field(ge=1)] | None = None,
    asymmetric: bool = False,
    damping: float = 0.01,
    inputs: Literal["compressed", "original"] = "compressed",
    norms: Literal["keep", "recalibrate"] = "keep",
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Round each layer's weights to 2^bits whole numbers times a scale, one column after another; later ones make up for it.

    value      s q with q from -2^(bits-1) to 2^(bits-1) - 1, one s > 0 per output unit; lands in the part `codebook`
    asymmetric   s (q - z): a zero z, one of the numbers q, beside each s, for weights that lie to one side of 0; packed,
              each weight takes a bit more
    update     as in `sparse_gpt`, the error being w - s q
    bits       2 to 8, a number or a mapping by layer glob ({"*": 4, "conv1": 8}); other layers stay float
    act_order  columns by falling mean square of their input, so that the most used ones are rounded while all others can
               still make up for it
    group      one scale for each so many weights of a row; with act_order fitted before the pass, else when the pass gets
               to the group
    scale      of least squared rounding error; without groups fitted again to the least E when all numbers are chosen
    mask       a pruned layer keeps its mask, exact zeros
    bias       absorbs error as a constant input, stays float
    others     damping, inputs, norms, limits, journal, errors: those of `l_obs`
    source     Frantar et al. 2022, arXiv 2210.17323
    differs    scales fitted by least squares, not by the largest weight; symmetric grids unless asked for; convolutions by their patches

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = gptq(net, [torch.randn(64, 8)], bits=3)
    >>> net[0]
    Linear(in_features=8, out_features=4, bias=True, w=codebook)
    """
    model = unwrap(model)
    check_damping("gptq", damping)
    table = per_layer(model, "gptq", "bits", bits)
    for name, one in table.items():
        if isinstance(one, bool) or not isinstance(one, int) or not 2 <= one <= 8:
            raise InputError(
                f"gptq: bits={one} for {name}; possible: 2 to 8", code="option", layer=name, given=str(one)
            )
    every = len(table) == len(compressible(model, "gptq", latent=True, listing=True))
    units = compressible(model, "gptq", None if every else [exact_glob(name) for name in table])
    limits = Limits(max_rows, max_dim, seed)
    options = {
        "bits": table,
        "order": act_order,
        "group": group,
        "asymmetric": asymmetric,
        "damping": damping,
        "inputs": inputs,
        "limits": str(limits),
    }
    work = LayerwiseRun("gptq", units, inputs, limits, True, norms, tokens, journal, options, cost_of)

    def finish(net: nn.Module, found: dict[str, tuple[Unit, Solved]]) -> None:
        put_codebooks(
            net, {n: (u, f"uniform:{2 ** table[n]}", group, s.tensors) for n, (u, s) in found.items()}, "gptq"
        )

    return work.run(
        model, batches, lambda stats: _quantize(stats, table[stats.name], act_order, group, asymmetric, damping), finish
    )


def _quantize(
    stats: LayerStats, bits: int, act_order: bool, group: int | None, asymmetric: bool, damping: float
) -> Solved:
    if group is not None and len(stats.h) > 1:
        raise InputError(
            f"gptq: {stats.name} has {stats.columns:,} inputs, more than max_dim, and groups of weights need them in one "
            f"block; give max_dim={stats.columns + 1}",
            code="option",
            layer=stats.name,
        )
    weight = stats.unit.filters
    grid = torch.tensor(level_grid(f"uniform:{2**bits}"), dtype=torch.float64, device=stats.h[0].device)
    mask = stats.unit.mask
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.bool()
    width = group or stats.columns
    fit = fit_scale_zero if asymmetric else _symmetric
    scale, zero = _scales(torch.cat(stats.w, -1)[..., : stats.columns], width, grid, fit)  # [G, O/G, groups]
    new, chosen, used, start = [], [], damping, 0
    for h, w, stays in zip(stats.h, stats.w, stats.split(kept, bias=True), strict=True):
        columns = h.shape[-1] - (stats.bias and len(new) == len(stats.h) - 1)
        order = torch.arange(h.shape[-1], device=h.device)
        if act_order:  # one order for all groups of a convolution: their matrices stay one batch
            size = h.diagonal(dim1=-2, dim2=-1).mean(0)[:columns]
            order[:columns] = size.argsort(descending=True, stable=True)
        found = inverse_factor(h[:, order][:, :, order] if act_order else h, damping)
        used = max(used, found.damping)
        place = (order[:columns] + start) // width
        fresh = width if group and not act_order else 0
        fix = _Round(grid, scale, zero, place, stays[..., order[:columns]].to(h.device), fresh, fit)
        block = BLOCK if not group or act_order else group * max(1, BLOCK // group)
        swept = sweep(found.upper, w[..., order], columns, fix, block)
        del found
        back = order.argsort()
        new.append(swept[..., back])
        chosen.append(fix.index[..., back[:columns]])
        start += columns
    if group is None and len(new) == 1:
        new[0] = _refit(stats.h[0], stats.w[0], grid[chosen[0].long()] - zero, scale, stats.bias)
    index = torch.cat(chosen, -1).reshape(weight.shape).to(weight.device)
    tensors = {"index": index, "scale": scale.reshape(weight.shape[0], -1).to(weight.device)}
    if asymmetric:
        tensors["zero"] = zero.reshape(weight.shape[0], -1).to(weight.device)
    return Solved(new, None if mask is None else kept, f"{bits} bits", used, tensors)


Fit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _symmetric(rows: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    return fit_scale(rows, grid), rows.new_zeros(rows.shape[0])


def _scales(w: Tensor, width: int, grid: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
    """Least squares, a scale and a zero per `width` weights of each row."""
    short = -w.shape[-1] % width
    pieces = nn.functional.pad(w, (0, short)).reshape(-1, width)  # zeros change no fit
    scale, zero = fit(pieces, grid)
    return scale.reshape(*w.shape[:2], -1), zero.reshape(*w.shape[:2], -1)


def _refit(h: Tensor, w: Tensor, q: Tensor, scale: Tensor, bias: bool) -> Tensor:
    """The scales (in place) and biases of least E for numbers that are chosen: s = q H w / q H q, or the two by two system with
    the bias. A scale that would not stay positive keeps its old value."""
    if bias:
        q = torch.cat([q, torch.zeros_like(q[..., :1])], -1)
    qh, wh = q @ h, w @ h
    qq, qw = (qh * q).sum(-1), (qh * w).sum(-1)
    qb, bb, wb = qh[..., -1], h[:, -1:, -1], wh[..., -1]  # of the input that is 1, the last one where there is a bias
    best = (qw * bb - qb * wb) / (qq * bb - qb * qb) if bias else qw / qq
    good = torch.isfinite(best) & (best > 0)
    scale[..., 0] = torch.where(good, best, scale[..., 0])
    new = q * scale
    if bias:
        new[..., -1] = (wb - qb * scale[..., 0]) / bb
    return new


class _Round:
    """Nearest level of each weight, s (q - z); 0 where it is pruned.

    scale, zero   [G, O, groups];   place   group of weights that each column belongs to;   stays   bool [G, O, columns]
    fresh   width of the groups whose scales are fitted when the pass gets there; 0: all are there already
    """

    def __init__(
        self, grid: Tensor, scale: Tensor, zero: Tensor, place: Tensor, stays: Tensor, fresh: int, fit: Fit
    ) -> None:
        self.grid, self.scale, self.zero, self.fit = grid, scale, zero, fit
        self.place, self.stays, self.fresh = place, stays, fresh
        self.index = torch.zeros(stays.shape, dtype=torch.uint8, device=stays.device)

    def begin(self, start: int, block: Tensor, diagonal: Tensor) -> None:
        pass

    def value(self, column: int, rest: Tensor) -> Tensor:
        at = int(self.place[column])
        if self.fresh and column % self.fresh == 0:
            group = rest[:, : self.fresh].mT
            for kept, found in zip(
                (self.scale, self.zero), self.fit(group.reshape(-1, group.shape[-1]), self.grid), strict=True
            ):
                kept[..., at] = found.reshape(group.shape[:2])
        scale, zero = self.scale[..., at], self.zero[..., at]
        index = nearest_level(rest[:, 0] / scale + zero, self.grid)
        index = torch.where(self.stays[..., column], index, (zero - self.grid[0]).long())
        self.index[..., column] = index.to(torch.uint8)
        return (self.grid[index] - zero) * scale
