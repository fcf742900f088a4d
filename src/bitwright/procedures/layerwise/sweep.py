"""One pass over the columns of a weight from left to right: each is fixed, and the columns after it make up for the change.

SparseGPT fixes some to 0, GPTQ all to a grid.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

BLOCK = 128


class Fix(Protocol):
    """The rule by which columns are fixed."""

    def begin(self, start: int, block: Tensor, diagonal: Tensor) -> None:
        """Before a block of columns: `block` [G, b, O] as they are by then, `diagonal` [G, b] of the factor."""
        ...

    def value(self, column: int, rest: Tensor) -> Tensor:
        """[G, O] that column `column` becomes; `rest` [G, n, O] is the block from this column on, as it is by then."""
        ...


def sweep(upper: Tensor, w: Tensor, columns: int, fix: Fix, block: int = BLOCK) -> Tensor:
    """The new weight [G, O, d], float64.

    upper     [G, d, d], H^-1 = upper^T upper
    columns   how many are fixed, from the first on; the rest (a bias) only makes up for them
    update    err = (w_i - q_i) / U_ii;  w_j -= err U_ij for j > i, later blocks by one product per block
    source    Frantar, Alistarh 2023, arXiv 2301.00774; Frantar et al. 2022, arXiv 2210.17323
    """
    w = w.clone()
    for a in range(0, columns, block):
        b = min(a + block, columns)
        part = w[..., a:b].mT.contiguous()  # [G, b, O]: a column is one stretch of memory
        u = upper[..., a:b, a:b]
        diagonal = u.diagonal(dim1=-2, dim2=-1)
        errors = torch.empty_like(part)
        fix.begin(a, part, diagonal)
        for i in range(b - a):
            q = fix.value(a + i, part[:, i:])
            errors[:, i] = (part[:, i] - q) / diagonal[:, i : i + 1]
            part[:, i] = q
            if i + 1 < b - a:
                part[:, i + 1 :].addcmul_(u[:, i, i + 1 :].unsqueeze(2), errors[:, i].unsqueeze(1), value=-1)
        w[..., a:b] = part.mT
        w[..., b:] -= errors.mT @ upper[..., a:b, b:]
    return w


class Prune:
    """Zeros: the lowest w^2 / U_ii^2 of each block of columns, over all rows, `removed` in the whole layer.

    gone   bool [G, columns, O]: pruned before, which stays so and counts
    """

    def __init__(self, columns: int, removed: int, gone: Tensor) -> None:
        self.columns, self.removed, self.gone = columns, removed, gone
        self.pruned = torch.zeros_like(gone)
        self.done = 0

    def begin(self, start: int, block: Tensor, diagonal: Tensor) -> None:
        end = start + block.shape[1]
        cells = block.numel()
        before = self.gone[:, start:end]
        later = int(self.gone[:, end:].sum())
        due = round(self.removed * end / self.columns) - self.done
        least = max(int(before.sum()), self.removed - self.done - (self.gone[:, end:].numel()))
        most = min(cells, self.removed - self.done - later)
        count = min(max(due, least), most)
        score = block.square() / diagonal.square().unsqueeze(2)
        score = torch.where(before, torch.full_like(score, -torch.inf), score)
        order = score.mT.reshape(-1).argsort(stable=True)[:count]  # ties by the index in the weight
        chosen = torch.zeros(cells, dtype=torch.bool, device=block.device)
        chosen[order] = True
        self.pruned[:, start:end] = chosen.reshape(block.mT.shape).mT
        self.done += count

    def value(self, column: int, rest: Tensor) -> Tensor:
        return rest[:, 0].masked_fill(self.pruned[:, column], 0)


class PrunePattern:
    """Zeros: of each `of` consecutive columns all but the `kept` with the highest w^2 / U_ii^2, chosen when the pass gets there."""

    def __init__(self, columns: int, kept: int, of: int, gone: Tensor, period: int) -> None:
        self.columns, self.kept, self.of, self.gone, self.period = columns, kept, of, gone, period
        self.pruned = torch.zeros_like(gone)

    def begin(self, start: int, block: Tensor, diagonal: Tensor) -> None:
        self.start, self.diagonal = start, diagonal

    def value(self, column: int, rest: Tensor) -> Tensor:
        place = column % self.period  # groups begin again with each tap of a kernel
        if place % self.of == 0:
            size = min(self.of, self.period - place)
            at = column - self.start
            score = rest[:, :size].square() / self.diagonal[:, at : at + size].square().unsqueeze(2)
            score = torch.where(self.gone[:, column : column + size], torch.full_like(score, -torch.inf), score)
            worst = score.argsort(dim=1, stable=True)[:, : size - -(-size * self.kept // self.of)]
            self.pruned[:, column : column + size].scatter_(1, worst, True)
            self.pruned[:, column : column + size] |= self.gone[:, column : column + size]
        return rest[:, 0].masked_fill(self.pruned[:, column], 0)


class Fixed:
    """Zeros by a mask that is given, bool [G, columns, O] of what goes."""

    def __init__(self, pruned: Tensor) -> None:
        self.pruned = pruned

    def begin(self, start: int, block: Tensor, diagonal: Tensor) -> None:
        pass

    def value(self, column: int, rest: Tensor) -> Tensor:
        return rest[:, 0].masked_fill(self.pruned[:, column], 0)
