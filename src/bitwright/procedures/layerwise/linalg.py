"""Damping, the factor of an inverse, least squares on a support. Matrices are [..., D, D], float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError

STRONGEST = 1.0  # of the mean diagonal; beyond it the diagonal alone is taken
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


def solve_support(h: Tensor, w: Tensor, keep: Tensor) -> Tensor:
    """The best weights on a support: minimizes (v - w) H (v - w)^T over v that are 0 where `keep` is False.

    value    H_SS v_S = (H w)_S for each row and its own S
    shapes   h [D, D] positive definite, w [O, D], keep bool [O, D]

    >>> h = torch.tensor([[4.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    >>> solve_support(h, torch.ones(1, 2, dtype=torch.float64), torch.tensor([[True, False]])).tolist()
    [[1.5, 0.0]]
    """
    out = torch.zeros_like(w)
    right = w @ h
    sizes = keep.sum(1)
    order = sizes.argsort(stable=True)
    start = 0
    while start < len(order):
        # rows of like size together: as many as fit in 64 MB
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(sizes[order[end]]) ** 2 * 8 <= 64 * 2**20:
            end += 1
        rows = order[start:end]
        most = int(sizes[rows[-1]])
        if most:
            place = (~keep[rows]).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
            real = torch.arange(most, device=w.device) < sizes[rows].unsqueeze(1)
            part = h[place.unsqueeze(2), place.unsqueeze(1)]
            part = torch.where(
                real.unsqueeze(2) & real.unsqueeze(1), part, torch.zeros((), dtype=h.dtype, device=h.device)
            )
            part.diagonal(dim1=1, dim2=2)[~real] = 1.0
            side = torch.where(real, right[rows].gather(1, place), torch.zeros((), dtype=h.dtype, device=h.device))
            found = torch.cholesky_solve(side.unsqueeze(2), torch.linalg.cholesky(part)).squeeze(2)
            values = torch.zeros_like(w[rows]).scatter(1, place, torch.where(real, found, torch.zeros_like(found)))
            out[rows] = values
        start = end
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
