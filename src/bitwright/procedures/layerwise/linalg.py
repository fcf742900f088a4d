"""Damping, the factor of an inverse, least squares on a support. Matrices are [..., D, D], float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError

STRONGEST = 1.0  # of the mean diagonal; beyond it the diagonal alone is taken
BYTES = 64 * 2**20  # of the matrices that are solved at once
BASE = 256  # width below which a triangular inverse is one call


@dataclass(frozen=True)
class Factor:
    """upper [..., D, D] with H^-1 = upper^T upper;   damping: the share of the mean diagonal that was added in the end;
    diagonal: whether no damping helped, so that H was taken as its diagonal"""

    upper: Tensor
    damping: float
    diagonal: bool = False

    def inverse(self) -> Tensor:
        return self.upper.mT @ self.upper


def live_mean(h: Tensor) -> Tensor:
    """Mean of the diagonal over inputs that are not always 0, [..., 1]; 1 where all are dead.

    >>> live_mean(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).item()
    2.0
    """
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    live = (diagonal > 0).sum(-1, keepdim=True)
    return torch.where(live > 0, diagonal.sum(-1, keepdim=True) / live.clamp_min(1), torch.ones_like(diagonal[..., :1]))


def damped(h: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) * I, the mean over live inputs; a dead input gets a 1 on its diagonal. A new tensor.

    >>> damped(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), 0.5).tolist()
    [[3.0, 0.0], [0.0, 1.0]]
    """
    out = h.clone()
    diagonal = out.diagonal(dim1=-2, dim2=-1)
    dead = diagonal <= 0
    diagonal += damping * live_mean(h)
    diagonal[dead] = 1.0
    return out


def check_damping(who: str, damping: float) -> None:
    """Errors: `InputError` unless it is a positive number."""
    if not 0 < damping <= STRONGEST:
        raise InputError(
            f"{who}: damping={damping}; possible: a share of the mean diagonal, above 0 and at most {STRONGEST:g}",
            code="option",
            given=str(damping),
            possible="(0, 1]",
        )


def inverse_factor(h: Tensor, damping: float = 0.01) -> Factor:
    """Upper U with (H + damping)^-1 = U^T U, from one Cholesky factorization.

    how   J reverses the order of rows. J H J = L L^T, so R = J L J is upper triangular with H = R R^T, and U = R^-1: the one
          upper factor of the inverse with a positive diagonal. U_ii^2 = [(H_{i:,i:})^-1]_ii
    ladder   where the factorization fails the damping rises tenfold up to 1; then H counts as its diagonal

    >>> h = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> u = inverse_factor(h, 1e-12).upper
    >>> torch.allclose(u, torch.linalg.cholesky(torch.linalg.inv(h), upper=True))
    True
    """
    step = damping
    while True:
        lower, info = torch.linalg.cholesky_ex(damped(h, step).flip(-1, -2))
        good = not bool(info.any()) and bool(torch.isfinite(lower.diagonal(dim1=-2, dim2=-1)).all())
        if good:
            upper = lower.flip(-1, -2)
            del lower
            return Factor(invert_upper_(upper), step)
        del lower
        if step >= STRONGEST:
            break
        step = min(STRONGEST, max(step * 10, 1e-8))
    diagonal = damped(h, STRONGEST).diagonal(dim1=-2, dim2=-1)
    return Factor(torch.diag_embed(diagonal.clamp_min(1e-300).rsqrt()), STRONGEST, diagonal=True)


def invert_upper_(r: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix, in place, by halves: nearly all of it is matrix products.

    >>> invert_upper_(torch.tensor([[2.0, 1.0], [0.0, 4.0]])).tolist()
    [[0.5, -0.125], [0.0, 0.25]]
    """
    n = r.shape[-1]
    if n <= BASE:
        eye = torch.eye(n, dtype=r.dtype, device=r.device).expand_as(r)
        r.copy_(torch.linalg.solve_triangular(r, eye, upper=True))
        return r
    half = n // 2
    a, b, c = r[..., :half, :half], r[..., :half, half:], r[..., half:, half:]
    invert_upper_(a)
    invert_upper_(c)
    b.copy_(torch.matmul(a @ b, c).neg_())
    return r


@dataclass(frozen=True)
class Subsets:
    """M_CC of some rows of like size. rows [n];   at [n, b], the columns C of each;   real [n, b], False where it is
    padded to the size of the largest;   matrix [n, b, b], padded with the identity"""

    rows: Tensor
    at: Tensor
    real: Tensor
    matrix: Tensor


def subsets(m: Tensor, group: Tensor, chosen: Tensor, order: Tensor | None = None, extra: int = 0) -> Iterator[Subsets]:
    """M_CC for each row and its own set C, in pieces of at most 64 MB; rows with an empty set are left out.

    m        [G, d, d], of which `group` [R] names each row's own;   chosen   bool [R, d]
    order    C sorted by these numbers; else by index;   extra   columns of other matrices that a piece must have room for
    """
    sizes = chosen.sum(1)
    place = (~chosen).to(torch.float64)  # chosen ones first; among them by order, else by index
    if order is not None:
        rank = order.argsort(dim=1, stable=True).argsort(dim=1)
        place = place + rank / (2 * rank.shape[1])
    place = place.argsort(dim=1, stable=True)
    for rows in _alike(sizes, extra):
        most = int(sizes[rows].max())
        if not most:
            continue
        at, g = place[rows][:, :most], group[rows]
        real = torch.arange(most, device=m.device) < sizes[rows].unsqueeze(1)
        part = m[g[:, None, None], at.unsqueeze(2), at.unsqueeze(1)]
        part.masked_fill_(~(real.unsqueeze(2) & real.unsqueeze(1)), 0)
        part.diagonal(dim1=1, dim2=2)[~real] = 1.0
        yield Subsets(rows, at, real, part)


def solve_subsets(m: Tensor, group: Tensor, right: Tensor, chosen: Tensor, order: Tensor | None = None) -> Tensor:
    """x [R, d], 0 outside of `chosen`, with M_CC x_C = right_C for each row and its own set C.

    order   given: only the lower triangle of M_CC in the order of these numbers is solved, the same as updates of one
            weight after another
    """
    out = torch.zeros_like(right)
    for part in subsets(m, group, chosen, order):
        side = right[part.rows].gather(1, part.at).masked_fill_(~part.real, 0).unsqueeze(2)
        if order is None:
            found = torch.cholesky_solve(side, torch.linalg.cholesky(part.matrix))
        else:
            found = torch.linalg.solve_triangular(part.matrix.tril(), side, upper=False)
        values = found.squeeze(2).masked_fill_(~part.real, 0)
        out[part.rows] = torch.zeros_like(right[part.rows]).scatter(1, part.at, values)
    return out


def woodbury_update(inverse: Tensor, rows: Tensor, count: int) -> Tensor:
    """(A^-1 + X^T X / N)^-1 from A^-1, for a few more rows X of N in all: the published recursion, in blocks. For tests and
    streams; the factor of the whole sum is faster.

    >>> woodbury_update(torch.eye(1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64), 2).item()
    0.5
    """
    ax = inverse @ rows.mT
    inner = count * torch.eye(len(rows), dtype=inverse.dtype, device=inverse.device) + rows @ ax
    return inverse - ax @ torch.linalg.solve(inner, ax.mT)


def _alike(sizes: Tensor, extra: int = 0) -> list[Tensor]:
    """Rows of like size together, as many as fit in 64 MB."""
    order = sizes.argsort(stable=True)
    out, start = [], 0
    ordered = sizes[order].tolist()
    while start < len(ordered):
        end = start + 1
        while end < len(ordered) and (end + 1 - start) * ordered[end] * (ordered[end] + extra) * 8 <= BYTES:
            end += 1
        out.append(order[start:end])
        start = end
    return out
