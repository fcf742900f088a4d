"""The best weights on a few levels for what a layer reads: alternating directions, then one weight at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bitwright.fn.levels import fit_scale, nearest_level, thresholds

RHOS = (0.3, 1.0, 3.0)  # of the mean diagonal of H
GAIN = 1e-6  # a smaller share of the error is no improvement
PATIENCE = 10
PROJECTIONS = 10
BLOCK = 128  # columns whose changes are gathered for one matrix product


@dataclass(frozen=True)
class OnLevels:
    """value = scale * level.   index [G, R, D] positions in the grid;   scale [G, R, 1], float64, all equal for one scale;
    rho   the share of the mean diagonal that won; 0: rounding did;   sweeps   of the descent"""

    index: Tensor
    scale: Tensor
    rho: float
    sweeps: int


class Quadratic:
    """E(V) = tr((V - W) H (V - W)^T), H positive semidefinite, on levels times a scale.

    h      [G, d, d] for each block of inputs, float64; inputs of two blocks count as uncorrelated
    w      [G, R, D], float64: G groups of R rows, D = sum of d
    grid   sorted levels;   shared   one scale for all rows, else one for each;   keep [G, R, D]: where 0, the level is 0
    """

    def __init__(
        self, h: Sequence[Tensor], w: Tensor, grid: Tensor, shared: bool = True, keep: Tensor | None = None
    ) -> None:
        self.h, self.w, self.grid, self.shared = list(h), w, grid.to(w), shared
        ends = [0]
        for block in self.h:
            ends.append(ends[-1] + block.shape[-1])
        self.places = list(pairwise(ends))
        self.keep = None if keep is None else keep.bool()
        self.zero = int((grid == 0).nonzero())
        self.hw = self.times(w)
        self.energy = self.total((self.hw * w).sum(-1, keepdim=True))

    def each(self, v: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """V times a matrix for each block of inputs."""
        return torch.cat([v[..., a:b] @ one for (a, b), one in zip(self.places, matrices, strict=True)], -1)

    def times(self, v: Tensor) -> Tensor:
        """V H."""
        return self.each(v, self.h)

    def total(self, per_row: Tensor) -> Tensor:
        """[G, R, 1] summed over the rows that share a scale, in the same shape."""
        return per_row.sum().expand_as(per_row) if self.shared else per_row

    def error(self, v: Tensor) -> Tensor:
        """E of the rows that share each scale, [G, R, 1]."""
        change = v - self.w
        return self.total((self.times(change) * change).sum(-1, keepdim=True)).clamp_min(0)

    def index(self, place: Tensor) -> Tensor:
        """Nearest levels of weights in units of the scale."""
        found = nearest_level(place, self.grid)
        return found if self.keep is None else torch.where(self.keep, found, self.zero)

    def refit(self, q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of least E for levels q, <q, H w> / <q, H q>, or the one before where that is not above 0; and its E."""
        top = self.total((q * self.hw).sum(-1, keepdim=True))
        below = self.total((self.times(q) * q).sum(-1, keepdim=True))
        good = (top > 0) & (below > 0)
        scale = torch.where(good, top / torch.where(good, below, 1.0), scale)
        return scale, (self.energy + scale * (scale * below - 2 * top)).clamp_min(0)

    @staticmethod
    def inverses(h: Sequence[Tensor], r: Tensor) -> list[Tensor]:
        """(H + r)^-1 for each block."""
        out = []
        for one in h:
            step = r.reshape(-1, 1).clamp_min(1e-300).expand(one.shape[:2])
            out.append(torch.cholesky_inverse(torch.linalg.cholesky(one + torch.diag_embed(step))))
        return out

    def mean_diagonal(self) -> Tensor:
        """Over inputs that are not always 0, [G, 1, 1]."""
        diagonal = torch.cat([h.diagonal(dim1=-2, dim2=-1) for h in self.h], -1)
        live = (diagonal > 0).sum(-1).clamp_min(1)
        return (diagonal.sum(-1) / live).reshape(-1, 1, 1)

    def rounded(self) -> OnLevels:
        """Nearest levels for the scale of least squared error, whatever the layer reads."""
        w = self.w if self.keep is None else torch.where(self.keep, self.w, 0.0)
        rows = w.reshape(1, -1) if self.shared else w.flatten(0, 1)
        scale = fit_scale(rows, self.grid).reshape(-1, 1).expand(w.shape[0] * w.shape[1], 1).reshape(*w.shape[:2], 1)
        return OnLevels(self.index(w / scale), scale.clone(), 0.0, 0)

    def value(self, found: OnLevels) -> Tensor:
        return self.grid[found.index] * found.scale


def best_levels(problem: Quadratic, rhos: Sequence[float] = RHOS, iterations: int = 100, sweeps: int = 20) -> OnLevels:
    """Levels and scales of small E: the best of rounding and of ADMM with each rho (for each scale), then polished.

    Never worse than rounding. Scaling what the layer reads changes nothing; permuting its inputs permutes the result. An
    input that is always 0 gets the nearest level of its weight.
    source   Chen et al. 2019 (AAAI); rho follows the mean of the diagonal, where the published code takes its first entry
    """
    start = problem.rounded()
    if not (iterations or sweeps) or not bool((problem.mean_diagonal() > 0).any()):
        return start
    best = start
    least = problem.error(problem.value(start))
    for rho in rhos:
        found = admm(problem, start, rho, iterations)
        error = problem.error(problem.value(found))
        better = error < least * (1 - GAIN)
        best, least = _mixed(best, found, better), torch.where(better, error, least)
    return _with_dead(problem, _polished(problem, best, sweeps))


def admm(problem: Quadratic, start: OnLevels, rho: float, iterations: int = 100) -> OnLevels:
    """W = (H + r)^-1 (H w + r (G - U)),  G = nearest levels of W + U,  U += W - G;  r = rho * mean(diag H).

    Each G is judged with the scale that is best for it under H; the best is kept. Ends after 10 rounds without one better by
    a millionth of its error, so neither the unit of the images nor that of the weights matters.
    """
    r = rho * problem.mean_diagonal()
    inverse = Quadratic.inverses(problem.h, r)
    pulled = problem.each(problem.hw, inverse)
    best, least = start, problem.error(problem.value(start))
    scale, g, u, waited = start.scale, problem.value(start), torch.zeros_like(problem.w), 0
    for _ in range(iterations):
        v = pulled + r * problem.each(g - u, inverse) + u
        index, scale = _projected(problem, v, scale)
        q = problem.grid[index]
        g = scale * q
        u = v - g
        fit, error = problem.refit(q, scale)
        better = error < least * (1 - GAIN)
        best = _mixed(best, OnLevels(index, fit, rho, 0), better)
        least = torch.where(better, error, least)
        waited = 0 if bool(better.any()) else waited + 1
        if waited >= PATIENCE:
            break
    return best


def descend(problem: Quadratic, found: OnLevels) -> tuple[OnLevels, bool]:
    """One sweep over the inputs, all rows at once: each weight moves to the level that is best while the others stay. E only
    falls. Also whether a level changed. Inputs with the largest diagonal come first, so the order in the layer has no effect."""
    index = found.index.clone()
    residual = problem.hw - problem.times(problem.value(found))
    changed = False
    for (a, b), h in zip(problem.places, problem.h, strict=True):
        for group, one in enumerate(h):
            order = one.diagonal().sort(descending=True, stable=True)[1]
            order = order[one.diagonal()[order] > 0]
            keep = None if problem.keep is None else problem.keep[group, :, a:b].mT[order].contiguous()
            some, moved = _sweep(
                one[order[:, None], order],
                (residual[group, :, a:b].mT)[order].contiguous(),
                index[group, :, a:b].mT[order].contiguous(),
                found.scale[group, :, 0],
                problem.grid,
                keep,
            )
            index[group, :, a + order] = some.mT
            changed |= moved
    return OnLevels(index, found.scale, found.rho, found.sweeps + 1), changed


def _sweep(
    h: Tensor, residual: Tensor, index: Tensor, scale: Tensor, grid: Tensor, keep: Tensor | None
) -> tuple[Tensor, bool]:
    """residual (w - value) H, index and keep [d, R], a row for each input;   scale [R]"""
    changed, edges = False, thresholds(grid)
    rest, inverse = residual / scale, h.diagonal().reciprocal()  # in units of the scale
    for start in range(0, h.shape[0], BLOCK):
        stop = min(start + BLOCK, h.shape[0])
        near, moves = rest[start:stop], torch.zeros_like(rest[start:stop])
        for i, j in enumerate(range(start, stop)):
            old = grid[index[j]]
            new = torch.bucketize(torch.add(old, near[i], alpha=float(inverse[j])), edges, right=True)
            if keep is not None:
                new = torch.where(keep[j], new, index[j])
            if torch.equal(new, index[j]):
                continue
            changed, index[j] = True, new
            moves[i] = grid[new] - old
            near[i + 1 :] -= h[j, j + 1 : stop, None] * moves[i]
        rest[stop:] -= h[stop:, start:stop] @ moves
    return index, changed


def _polished(problem: Quadratic, found: OnLevels, sweeps: int) -> OnLevels:
    """Sweeps and refits of the scale by turns, while a level changes."""
    for _ in range(sweeps):
        found, changed = descend(problem, _refitted(problem, found))
        if not changed:
            break
    return _refitted(problem, found)


def _refitted(problem: Quadratic, found: OnLevels) -> OnLevels:
    return OnLevels(found.index, problem.refit(problem.grid[found.index], found.scale)[0], found.rho, found.sweeps)


def _projected(problem: Quadratic, v: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Levels and scale nearest to v, by turns."""
    index = problem.index(v / scale)
    for _ in range(PROJECTIONS):
        q = problem.grid[index]
        size = problem.total(q.square().sum(-1, keepdim=True))
        fit = problem.total((v * q).sum(-1, keepdim=True)) / size.clamp_min(1)
        scale = torch.where(fit > 0, fit, scale)
        again = problem.index(v / scale)
        if torch.equal(again, index):
            break
        index = again
    return index, scale


def _mixed(one: OnLevels, other: OnLevels, better: Tensor) -> OnLevels:
    """Rows of `other` where it is better."""
    if not bool(better.any()):
        return one
    return OnLevels(
        torch.where(better, other.index, one.index),
        torch.where(better, other.scale, one.scale),
        other.rho,
        other.sweeps,
    )


def _with_dead(problem: Quadratic, found: OnLevels) -> OnLevels:
    """The weight of an input that is always 0 costs nothing: it gets its nearest level."""
    dead = torch.cat([h.diagonal(dim1=-2, dim2=-1) <= 0 for h in problem.h], -1).unsqueeze(1)
    if not bool(dead.any()):
        return found
    near = problem.index(problem.w / found.scale)
    return OnLevels(torch.where(dead, near, found.index), found.scale, found.rho, found.sweeps)
