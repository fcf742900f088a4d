"""How a layer loses weights by optimal brain surgery, within a number of operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.procedures.layerwise.counts import lowest
from bitwright.procedures.layerwise.linalg import damped, inverse_factor
from bitwright.procedures.layerwise.obs import compensate, one_after_another, refreshed, scores, trace
from bitwright.procedures.layerwise.stats import LayerStats
from bitwright.procedures.layerwise.sweep import Fixed, sweep
from bitwright.procedures.layerwise.work import Solved

MANY = 8  # rounds that come close to one removal at a time
Rounds = int | Literal["obc", "auto"]


@dataclass
class Block:
    """One block of inputs of a layer, its rows flat."""

    raw: Tensor  # [G, d, d], H without damping
    group: Tensor  # [R]
    w: Tensor  # [R, d]
    dead: Tensor  # [R, d]
    free: Tensor  # [R, d], may be pruned: no bias, not pruned before
    columns: int  # without a bias
    damping: float
    inverse: Tensor | None = None
    diagonal: Tensor | None = None
    upper: Tensor | None = None

    @property
    def size(self) -> int:
        return self.raw.shape[-1]

    def exact(self, keep: Tensor) -> Tensor:
        """The best weights on a mask."""
        return compensate(damped(self.raw, self.damping), self.inverse, self.group, self.w, keep)


@dataclass(frozen=True)
class Surgery:
    """The settings of `l_obs`."""

    compensation: Literal["exact", "lobs"]
    rounds: Rounds
    scope: Literal["layer", "row"]
    damping: float
    flop_budget: float

    def prune(self, stats: LayerStats, count: int) -> Solved:
        """The layer with exactly `count` weights left; fewer where fewer were left before."""
        weight = stats.unit.filters
        gone = torch.zeros_like(weight, dtype=torch.bool) if stats.unit.mask is None else ~stats.unit.mask.bool()
        count = min(count, int((~gone).sum()))
        blocks = self._blocks(stats, gone)
        plan = choose(self.rounds, self.compensation, blocks, weight.numel() - count, self.flop_budget)
        if plan == "diagonal":
            keep = self._remaining(blocks, count, [_reciprocal(b) for b in blocks])
            new = [b.w.masked_fill(~k, 0) for b, k in zip(blocks, keep, strict=True)]
            return self._solved(stats, blocks, new, keep, "no compensation", 0.0)
        damping = self._factor(blocks, dense=plan != "sweep")
        if plan == "obc":
            keep = self._obc(blocks, count)
            new = [b.exact(k) for b, k in zip(blocks, keep, strict=True)]
        elif plan == "sweep":
            keep = self._remaining(blocks, count, [_diagonal(b) for b in blocks])
            new = [_swept(b, k) for b, k in zip(blocks, keep, strict=True)]
        elif self.compensation == "lobs":
            new, keep = self._lobs(blocks, count, int(plan))
        elif int(plan) == 1 and not bool(gone.any()):
            keep = self._remaining(blocks, count, [_diagonal(b) for b in blocks])
            new = [b.exact(k) for b, k in zip(blocks, keep, strict=True)]
        else:
            new, keep = self._rounds(blocks, count, int(plan))
        word = {"obc": "obc", "sweep": "sweep", "1": self.compensation}.get(plan, f"{self.compensation}, {plan} rounds")
        return self._solved(stats, blocks, new, keep, word, damping)

    def refit(self, stats: LayerStats) -> Solved:
        """The best weights on the mask that the layer has."""
        mask = stats.unit.mask
        assert mask is not None
        blocks = self._blocks(stats, ~mask.bool())
        keep = [b.free | ~_prunable(b) for b in blocks]
        plan = choose(1, "exact", blocks, mask.numel() - int(mask.sum()), self.flop_budget)
        if plan == "diagonal":
            new = [b.w.masked_fill(~k, 0) for b, k in zip(blocks, keep, strict=True)]
            return self._solved(stats, blocks, new, keep, "no compensation", 0.0)
        damping = self._factor(blocks, dense=plan == "1")
        new = [b.exact(k) if plan == "1" else _swept(b, k) for b, k in zip(blocks, keep, strict=True)]
        return self._solved(stats, blocks, new, keep, "exact" if plan == "1" else plan, damping)

    # -- the ways -------------------------------------------------------------------------------------------------
    def _rounds(self, blocks: list[Block], count: int, rounds: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each round keeps the same share of the weights left, which make up for the rest; then scores are taken anew."""
        keep = [b.free | ~_prunable(b) for b in blocks]
        w, diagonals = [b.w for b in blocks], [_diagonal(b) for b in blocks]
        start = sum(int((k & _prunable(b)).sum()) for k, b in zip(keep, blocks, strict=True))
        for r in range(rounds):
            if r or not all(bool(b.free[:, : b.columns].all()) for b in blocks):
                found = [
                    refreshed(damped(b.raw, b.damping), _dense(b), b.group, b.w, k)
                    for b, k in zip(blocks, keep, strict=True)
                ]
                w, diagonals = [f[0] for f in found], [f[1] for f in found]
            keep = self._remaining(blocks, _left(start, count, r + 1, rounds), diagonals, w, keep)
        return [b.exact(k) for b, k in zip(blocks, keep, strict=True)], keep

    def _lobs(self, blocks: list[Block], count: int, rounds: int) -> tuple[list[Tensor], list[Tensor]]:
        """As published: the inverse is never brought up to date."""
        diagonals = [_diagonal(b) for b in blocks]
        keep = [b.free | ~_prunable(b) for b in blocks]
        w = [b.w for b in blocks]
        start = sum(int((k & _prunable(b)).sum()) for k, b in zip(keep, blocks, strict=True))
        for r in range(1, rounds + 1):
            fresh = self._remaining(blocks, _left(start, count, r, rounds), diagonals, w, keep)
            order = [
                scores(v, d, b.dead, torch.ones_like(b.free)).masked_fill(~old, -1.0)
                for v, d, b, old in zip(w, diagonals, blocks, keep, strict=True)
            ]
            w = [
                one_after_another(_dense(b), b.group, v, k, o)
                for b, v, k, o in zip(blocks, w, fresh, order, strict=True)
            ]
            keep = fresh
        return w, keep

    def _obc(self, blocks: list[Block], count: int) -> list[Tensor]:
        """The order of removal of each row first, then the cheapest removals of all rows: losses rise along a row."""
        found = [trace(_dense(b), b.group, b.w, b.dead, b.free) for b in blocks]
        rising = []
        for order, loss in found:
            place = order.argsort(dim=1, stable=True)
            rise = loss.gather(1, place)
            rise = torch.where(torch.isfinite(rise), rise, torch.full_like(rise, torch.inf)).cummax(1).values
            # equal losses go in the order of the row
            rising.append(torch.empty_like(rise).scatter_(1, place, rise))
        score = [
            r * (1 + torch.finfo(r.dtype).eps * o.clamp_max(r.shape[1]))
            for r, (o, _) in zip(rising, found, strict=True)
        ]
        return _chosen(blocks, score, count, self.scope, [b.free | ~_prunable(b) for b in blocks])

    def _remaining(
        self,
        blocks: list[Block],
        count: int,
        diagonals: list[Tensor],
        w: list[Tensor] | None = None,
        keep: list[Tensor] | None = None,
    ) -> list[Tensor]:
        w = [b.w for b in blocks] if w is None else w
        keep = [b.free | ~_prunable(b) for b in blocks] if keep is None else keep
        free = [_prunable(b) for b in blocks]
        score = [scores(*args) for args in zip(w, diagonals, [b.dead for b in blocks], free, strict=True)]
        return _chosen(blocks, score, count, self.scope, keep)

    # -- the matrices ---------------------------------------------------------------------------------------------
    def _blocks(self, stats: LayerStats, gone: Tensor) -> list[Block]:
        out = []
        parts = zip(stats.h, stats.w, stats.split(gone, True), stats.dead(), strict=True)
        for i, (h, w, pruned, dead) in enumerate(parts):
            rows = w.shape[1]
            group = torch.arange(len(h), device=h.device).repeat_interleave(rows)
            has_bias = stats.bias and i == len(stats.h) - 1
            flat = pruned.reshape(len(group), -1).to(h.device)
            out.append(
                Block(h, group, w.reshape(len(group), -1), dead[group], ~flat, h.shape[-1] - has_bias, self.damping)
            )
        return out

    def _factor(self, blocks: list[Block], dense: bool) -> float:
        for block in blocks:
            found = inverse_factor(block.raw, self.damping)
            block.upper, block.damping = found.upper, found.damping
            if dense:
                block.inverse, block.upper = found.inverse(), None
                block.diagonal = block.inverse.diagonal(dim1=-2, dim2=-1)
        return max(block.damping for block in blocks)

    def _solved(
        self, stats: LayerStats, blocks: list[Block], new: list[Tensor], keep: list[Tensor], word: str, damping: float
    ) -> Solved:
        shaped = [n.reshape(w.shape) for n, w in zip(new, stats.w, strict=True)]
        mask = torch.cat([k[:, : b.columns] for k, b in zip(keep, blocks, strict=True)], 1)
        weight = stats.unit.filters
        return Solved(shaped, mask.reshape(weight.shape).to(weight.device), word, damping)


def _left(start: int, count: int, r: int, rounds: int) -> int:
    """Weights after `r` of `rounds` on the way from `start` to `count`, by the same factor each time.

    >>> [_left(1000, 10, r, 2) for r in (1, 2)]
    [100, 10]
    """
    return count if r == rounds else max(count, round(start * (count / max(1, start)) ** (r / rounds)))


def choose(rounds: Rounds, compensation: str, blocks: list[Block], removed: int, budget: float) -> str:
    """The first that fits: what was asked for, fewer rounds, one round, a sweep, no compensation.

    "auto" asks for OBC. Operations: factor and inverse 2 D^3 per matrix; OBC 2 D^3 per row; a round p^2 D per row or less, the
    last 2/3 min(p, s)^3 per row, and what gathering the matrices costs; a sweep 2 D^2 per row
    """
    share = removed / max(1, sum(b.w.shape[0] * b.columns for b in blocks))
    gone = [share * b.columns for b in blocks]  # of each row, on the mean
    matrix = sum(2.0 * len(b.raw) * b.size**3 for b in blocks)
    obc = sum(2.0 * len(b.w) * b.size**3 for b in blocks)
    wanted = rounds if isinstance(rounds, int) else MANY
    # early rounds have removed less: a third of the last one, on the mean
    last = [min(p**2 * b.size, (b.size - p) ** 3 + p**3) for b, p in zip(blocks, gone, strict=True)]
    several = sum(wanted / 3 * len(b.w) * each for b, each in zip(blocks, last, strict=True))
    smaller = [p if compensation == "lobs" else min(p, b.columns - p) for b, p in zip(blocks, gone, strict=True)]
    cubic = 2 / 3 if compensation == "exact" else 0.0
    once = sum(len(b.w) * (8 * p**2 + cubic * p**3) for b, p in zip(blocks, smaller, strict=True))
    swept = sum(2.0 * len(b.w) * b.size**2 for b in blocks)
    if rounds in ("obc", "auto") and compensation == "exact" and matrix + obc + once <= budget:
        return "obc"
    if wanted > 1 and compensation == "lobs" and matrix + wanted * once <= budget:
        return str(wanted)
    if wanted > 1 and compensation == "exact" and matrix + several + once <= budget:
        return str(wanted)
    if matrix + once <= budget:
        return "1"
    return "sweep" if matrix + swept <= budget else "diagonal"


def _prunable(block: Block) -> Tensor:
    out = torch.ones_like(block.free)
    out[:, block.columns :] = False
    return out


def _diagonal(block: Block) -> Tensor:
    """Of the inverse, for each row."""
    if block.diagonal is None:
        assert block.upper is not None
        block.diagonal = block.upper.square().sum(-2)
    return block.diagonal[block.group]


def _reciprocal(block: Block) -> Tensor:
    """Stands for the diagonal of the inverse where H is not inverted: w^2 H_qq is the mean square of its own output."""
    return block.raw.diagonal(dim1=1, dim2=2)[block.group].clamp_min(torch.finfo(torch.float64).tiny).reciprocal()


def _dense(block: Block) -> Tensor:
    assert block.inverse is not None
    return block.inverse


def _swept(block: Block, keep: Tensor) -> Tensor:
    assert block.upper is not None
    shape = (len(block.raw), -1, block.w.shape[1])
    return sweep(block.upper, block.w.reshape(shape), block.columns, Fixed(~keep.reshape(shape).mT)).reshape(keep.shape)


def _chosen(blocks: list[Block], score: list[Tensor], count: int, scope: str, keep: list[Tensor]) -> list[Tensor]:
    """Keep-masks per block with exactly `count` weights: the highest scores; weights not in `keep` stay out."""
    flat = torch.cat(
        [s.masked_fill(~k, -torch.inf)[:, : b.columns] for s, k, b in zip(score, keep, blocks, strict=True)], 1
    )
    out = torch.zeros_like(flat, dtype=torch.bool)
    if scope == "layer":
        out = ~lowest(flat, flat.numel() - count)
    else:
        each, more = divmod(count, len(flat))
        stays = torch.full((len(flat), 1), each, device=flat.device)
        stays[:more] += 1
        rank = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        out = (rank >= flat.shape[1] - stays) & torch.isfinite(flat)
    masks, start = [], 0
    for block in blocks:
        mask = ~_prunable(block)
        mask[:, : block.columns] = out[:, start : start + block.columns]
        start += block.columns
        masks.append(mask)
    return masks
