"""Optimal brain surgery on the rows of one layer: which weights go, and how the others make up for them.

Everything is batched over rows, [R, d] with `group` [R] saying which of the matrices [G, d, d] is a row's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.procedures.layerwise.linalg import BYTES, solve_subsets, subsets

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


def refreshed(h: Tensor, inverse: Tensor, group: Tensor, w: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The best weights on the support `keep`, and the diagonal of the inverse on it: [R, d] each.

    value   diag (H_SS)^-1;   or diag H^-1 - sum V^2, V = L^-1 H^-1[P, :], [H^-1]_PP = L L^T: whichever is less work
    """
    new = compensate(h, inverse, group, w, keep)
    kept, removed = keep.sum(1).double(), (~keep).sum(1).double()
    diagonal = inverse.diagonal(dim1=-2, dim2=-1)[group].clone()
    if float((removed.square() * keep.shape[1]).sum()) < float((kept**3).sum()):
        for part in subsets(inverse, group, ~keep, extra=keep.shape[1]):
            side = inverse[group[part.rows].unsqueeze(1), part.at].masked_fill_(~part.real.unsqueeze(2), 0)
            v = torch.linalg.solve_triangular(torch.linalg.cholesky(part.matrix), side, upper=False)
            diagonal[part.rows] -= v.square().sum(1)
    else:
        for part in subsets(h, group, keep):
            found = torch.cholesky_inverse(torch.linalg.cholesky(part.matrix)).diagonal(dim1=1, dim2=2)
            diagonal[part.rows] = diagonal[part.rows].scatter(1, part.at, found)
    return new, diagonal.clamp_min_(torch.finfo(w.dtype).tiny)


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
