"""Optimal brain surgery on the rows of one layer: which weights go, and how the others make up for them.

Everything is batched over rows, [R, d] with `group` [R] saying which of the matrices [G, d, d] is a row's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.procedures.layerwise.linalg import BYTES, solve_subsets

STEP = 32  # removals between two updates of a whole inverse


def scores(w: Tensor, diagonal: Tensor, dead: Tensor, free: Tensor) -> Tensor:
    """w^2 / [H^-1]_qq: by how much E rises if this weight alone goes. 0 at a dead input, inf where `free` says never.

    >>> scores(torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 0.5]]), torch.tensor([[False, False]]),
    ...        torch.tensor([[True, True]])).tolist()
    [[1.0, 2.0]]
    """
    value = torch.where(dead, torch.zeros_like(w), w.square() / diagonal)
    return torch.where(free, value, torch.full_like(value, torch.inf))


def compensate(h: Tensor, inverse: Tensor | None, group: Tensor, w: Tensor, keep: Tensor) -> Tensor:
    """The best weights on the support `keep`, by whichever of the two systems is smaller.

    value   H_SS v_S = (H w)_S;   or v = w - H^-1[:, P] c with ([H^-1]_PP) c = w_P. H is the damped one
    """
    kept = keep.sum(1)
    removed = keep.shape[1] - kept
    if inverse is not None and float((removed.double() ** 3).sum()) < float((kept.double() ** 3).sum()):
        c = solve_subsets(inverse, group, w, ~keep)
        new = w - times(c, inverse, group)
        return new.masked_fill_(~keep, 0)
    return solve_subsets(h, group, times(w, h, group), keep)


def one_after_another(inverse: Tensor, group: Tensor, w: Tensor, keep: Tensor, order: Tensor) -> Tensor:
    """L-OBS as published: weights go in `order`, each with the update of a single removal and the inverse left as it is.

    value   w - H^-1[:, P] c, (lower triangle of [H^-1]_PP) c = w_P: one Gauss-Seidel sweep of what `compensate` solves
    """
    c = solve_subsets(inverse, group, w, ~keep, order)
    return (w - times(c, inverse, group)).masked_fill_(~keep, 0)


def times(rows: Tensor, m: Tensor, group: Tensor) -> Tensor:
    """Each row times its own symmetric matrix; rows of one group lie together."""
    if len(m) == 1:
        return rows @ m[0]
    return (rows.reshape(len(m), -1, rows.shape[1]) @ m).reshape(rows.shape)


class Elimination:
    """Rows from which weights are removed in steps, the inverse on the rest kept up to date.

    Removing the set Q:  V = L^-1 A[Q, :] with A_QQ = L L^T;  w -= V^T L^-1 w_Q,  diag A -= sum V^2,  A -= V^T V,
    A the inverse as it is by then. Only the V are kept, A follows from them.

    w          [R, d], the best weights on what is left;   diagonal   of the inverse on what is left
    loss       [R], by how much E has risen (of the damped H)
    """

    def __init__(self, inverse: Tensor, group: Tensor, w: Tensor) -> None:
        self.inverse, self.group = inverse, group
        self.w = w.clone()
        self.diagonal = inverse.diagonal(dim1=-2, dim2=-1)[group].clone()
        self.loss = torch.zeros(len(w), dtype=w.dtype, device=w.device)
        self.steps: list[Tensor] = []

    def remove(self, removed: Tensor) -> None:
        """`removed` bool [R, d], none of which has gone before; each row may lose another number of weights."""
        sizes = removed.sum(1)
        most = int(sizes.max()) if len(sizes) else 0
        if not most:
            return
        q = (~removed).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        real = torch.arange(most, device=q.device) < sizes.unsqueeze(1)
        a = self.inverse[self.group.unsqueeze(1), q]  # [R, b, d]
        for v in self.steps:
            a -= v.gather(2, q.unsqueeze(1).expand(-1, v.shape[1], -1)).mT @ v
        a.masked_fill_(~real.unsqueeze(2), 0)
        pivot = a.gather(2, q.unsqueeze(1).expand(-1, most, -1)).masked_fill_(~real.unsqueeze(1), 0)
        pivot.diagonal(dim1=1, dim2=2)[~real] = 1.0
        lower = torch.linalg.cholesky(pivot)
        v = torch.linalg.solve_triangular(lower, a, upper=False)
        side = self.w.gather(1, q).masked_fill_(~real, 0).unsqueeze(2)
        c = torch.linalg.solve_triangular(lower, side, upper=False)
        self.w -= (v.mT @ c).squeeze(2)
        self.w.masked_fill_(removed, 0)
        self.diagonal -= v.square().sum(1)
        self.diagonal.clamp_min_(torch.finfo(self.w.dtype).tiny)
        self.loss += c.square().sum((1, 2))
        self.steps.append(v)


def trace(inverse: Tensor, group: Tensor, w: Tensor, dead: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Full OBC: from each row the cheapest weight goes, the inverse is updated, until only what is not `free` is left.

    returns   order int64 [R, d], position in the order of removal (d where it never goes); loss [R, d], by how much E rises
              when it goes
    """
    order = torch.full(w.shape, w.shape[1], dtype=torch.int64, device=w.device)
    loss = torch.full_like(w, torch.inf)
    each = max(1, BYTES // max(1, 8 * inverse.shape[-1] ** 2))
    for start in range(0, len(w), each):
        rows = slice(start, start + each)
        _trace(inverse[group[rows]].clone(), w[rows].clone(), dead[rows], free[rows].clone(), order[rows], loss[rows])
    return order, loss


def _trace(a: Tensor, w: Tensor, dead: Tensor, free: Tensor, order: Tensor, loss: Tensor) -> None:
    """a [R, d, d], each row's own inverse: brought up to date every `STEP` removals, by one product."""
    count = w.shape[1]
    row = torch.arange(len(w), device=w.device)
    diagonal = a.diagonal(dim1=1, dim2=2).clone()
    tiny = torch.finfo(w.dtype).tiny
    for start in range(0, int(free.sum(1).max()) if len(w) else 0, STEP):
        v = torch.zeros(len(w), STEP, count, dtype=w.dtype, device=w.device)
        for i in range(STEP):
            value = scores(w, diagonal, dead, free)
            q = value.argmin(1)
            rise = value[row, q]
            going = torch.isfinite(rise)
            if not bool(going.any()):
                break
            column = a[row, q] - (v[row, :, q].unsqueeze(1) @ v).squeeze(1)
            pivot = diagonal[row, q].clamp_min(tiny)
            step = torch.where(going, pivot.rsqrt(), torch.zeros_like(pivot)).unsqueeze(1)
            v[:, i] = column * step
            w -= v[:, i] * (w[row, q].unsqueeze(1) * step)
            diagonal = (diagonal - v[:, i].square()).clamp_min_(tiny)
            order[row[going], q[going]] = start + i
            loss[row[going], q[going]] = rise[going]
            free[row[going], q[going]] = False
            w[row[going], q[going]] = 0
        a.baddbmm_(v.mT, v, alpha=-1)
