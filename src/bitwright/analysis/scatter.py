"""Count, mean and scatter matrix of what a layer reads or puts out, over any number of batches and processes, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-13  # square of the rounding error of float32


class Scatter:
    """Count, mean and scatter matrix of rows that come in pieces; two pieces merge exactly (Chan et al. 1983).

    scatter   sum (x - mean)(x - mean)^T = X^T X - n mean mean^T, [C, C], kept centered so that a large mean costs no digits
    product   number type of the product of one piece; the sums over pieces are float64 always. None: that of the rows
    groups    number of independent scatters of equal size, [G, C, C]; rows are [G, n, C]. 0: one, without that axis

    >>> s = Scatter(1)
    >>> s.add(torch.tensor([[1.0], [2.0]])); s.add(torch.tensor([[6.0]]))
    >>> s.count, s.mean.tolist(), s.scatter.tolist()
    (3, [3.0], [[14.0]])
    """

    def __init__(
        self,
        channels: int,
        device: torch.device | str = "cpu",
        groups: int = 0,
        product: torch.dtype | None = torch.float64,
    ) -> None:
        self.count, self.product = 0, product
        lead = (groups,) if groups else ()
        self.mean = torch.zeros(*lead, channels, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(*lead, channels, channels, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """More rows, [n, C] or [G, n, C]."""
        if rows.shape[-2]:
            rows = rows.detach() if self.product is None else rows.detach().to(self.product)
            # twice, as a product: the second pass recovers what float32 lost in the first, and both are fast
            ones = rows.new_full((1, rows.shape[-2]), 1 / rows.shape[-2])
            about = ones @ rows
            centered = rows - about
            mean = (about.double() + (ones @ centered).double()).squeeze(-2)
            self._merge(rows.shape[-2], mean, centered.mT @ centered)

    def merged(self, other: Scatter) -> Scatter:
        """Both together; neither is changed."""
        new = Scatter(
            self.mean.shape[-1], self.mean.device, 0 if self.mean.dim() == 1 else len(self.mean), self.product
        )
        for piece in (self, other):
            if piece.count:
                new._merge(piece.count, piece.mean, piece.scatter)
        return new

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        apart = (mean - self.mean) * (self.count * count / total) ** 0.5
        # in place: the scatter of a wide layer takes most of the memory
        self.scatter.add_(scatter)
        if self.count:
            self.scatter.addcmul_(apart.unsqueeze(-1), apart.unsqueeze(-2))
        self.mean = self.mean + (mean - self.mean) * (count / total)
        self.count = total

    def spectrum(self) -> Tensor:
        """Variances along the principal axes, [C], largest first, on the CPU; rounding below zero becomes zero.

        All zero where they sum to less than the rounding error of float32 at this mean: nothing varies there.
        """
        if self.scatter.trace() <= ROUNDING * self.count * self.mean.square().sum():
            return torch.zeros(len(self.mean), dtype=torch.float64)
        found = torch.linalg.eigvalsh(self.scatter.cpu()).flip(0).clamp_min(0)
        return found / max(1, self.count)


def gathered(pieces: Sequence[Scatter]) -> list[Scatter]:
    """The pieces of all processes together, the same on each; as they are where there is one process."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(pieces)
    world = dist.get_world_size()
    out = []
    for piece in pieces:
        flat = torch.cat([piece.mean.new_tensor([piece.count]), piece.mean, piece.scatter.flatten()])
        ranks = [torch.empty_like(flat) for _ in range(world)]
        dist.all_gather(ranks, flat)
        whole = Scatter(piece.mean.numel(), piece.mean.device)
        n = piece.mean.numel()
        for found in ranks:
            if found[0] > 0:
                whole._merge(int(found[0]), found[1 : n + 1], found[n + 1 :].reshape(n, n))
        out.append(whole)
    return out


def everywhere(here: bool) -> bool:
    """Whether it is true in every process; all must ask."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return here
    least = torch.tensor(int(here))
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return bool(least)


def halves_of(x: Tensor) -> Tensor:
    """Which of two disjoint subsets each sample belongs to, bool [N]: by its values, so that neither the order of the
    samples nor the batches nor the process that sees them matters.

    >>> x = torch.rand(1000, 3)
    >>> bool((halves_of(x)[::2] == halves_of(x[::2])).all()), 400 < halves_of(x).sum().item() < 600
    (True, True)
    """
    flat = x.detach().to(torch.float32).contiguous().flatten(1).view(torch.int32).to(torch.int64)
    place = torch.arange(1, flat.shape[1] + 1, device=x.device) * 0x9E3779B1 + 1  # odd multipliers of a fixed mixer
    mixed = (flat * place).sum(1)
    mixed = (mixed ^ (mixed >> 29)) * 0x5851F42D4C957F2D
    return ((mixed >> 40) & 1).bool()
