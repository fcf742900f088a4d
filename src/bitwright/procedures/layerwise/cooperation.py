"""The masks of two nets that choose their weights together: one call after every step of any loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.parts.mask import Mask
from bitwright.procedures.layerwise.counts import Shares, count_of, lowest, shares
from bitwright.procedures.layerwise.linalg import check_damping
from bitwright.procedures.layerwise.masks import put_masks
from bitwright.procedures.layerwise.paired import inverse_diagonals, pairs
from bitwright.procedures.layerwise.select import Unit
from bitwright.transforms.facts import links_of
from bitwright.transforms.unwrap import unwrap

Score = Literal["magnitude", "obs"]
Normalize = Literal["none", "layer_l2", "rank"]
WORDS: dict[str, tuple[str, ...]] = {"score": ("magnitude", "obs"), "normalize": ("none", "layer_l2", "rank")}


@dataclass(frozen=True)
class CoPrunedRow:
    """One layer of the target. common   weights that stay in both nets"""

    layer: str
    weights: int
    kept: int
    common: int


class CoPrune(nn.Module):
    """Masks of a source and a target net, drawn anew from their weights: one call after every step of any loop.

    value     per layer the k = max(1, round(n keep)) highest of S stay; of equal ones the last
              source  S = N(s(w_source));   target  S = alpha N(s(w_source)) + (1 - alpha) N(s(w_target))
              score="magnitude": s(w) = |w|;  "obs": s(w) = w^2 / [H^-1]_qq, H the mean of x x^T over what the layer reads
              normalize: N divides nothing ("none"; for "obs" by the mean over the layer), by the root mean square over the layer
              ("layer_l2", which makes two nets of different norms comparable), or takes the rank, 0 to 1 ("rank")
    gradient  straight through the masks (`mask` with grow=True): pruned weights go on learning and may come back
    options   keep: a number or a mapping by layer glob, of both nets; biases stay. alpha: share of the source, may be set between
              steps. refresh_every: steps between two draws; freeze_after: steps after which the masks stay as they are and
              pruned weights learn no more (None: until `finish`). latent: take weights behind a quantizer by their latents
              source_batches, target_batches: images for "obs", whose H is taken once, from the nets as they come (`measure`
              takes it again)
    state     its state dict holds the count of steps, alpha, and whether the masks are final; the masks are in the `mask` parts of the nets, saved with them
    errors    layers of other shapes or missing in the source; a keep, an alpha outside of their range; "obs" without images
    source    Chen et al. 2019, IJCAI, Cooperative Pruning in Cross-Domain Deep Neural Network Compression, and its code
    differs   exactly k weights stay (the public code keeps k - 1, and none where all are equal); the target is its own net, not
              a copy of the source

    >>> source, target = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2))
    >>> pruner = CoPrune(source, target, keep=0.5, alpha=1.0)
    >>> torch.equal(source[0].w.mask, target[0].w.mask), target[0].w.density()
    (True, 0.5)
    >>> pruner.step()           # behind optimizer.step(): weights of the target that changed places
    0
    """

    count: Tensor
    share: Tensor
    finished: Tensor

    def __init__(
        self,
        source: nn.Module,
        target: nn.Module,
        keep: Shares,
        *,
        alpha: float = 0.7,
        score: Score = "magnitude",
        normalize: Normalize = "none",
        refresh_every: int = 1,
        freeze_after: int | None = None,
        source_batches: Iterable[Any] | None = None,
        target_batches: Iterable[Any] | None = None,
        damping: float = 0.01,
        latent: bool = False,
    ) -> None:
        super().__init__()
        for option, value in (("score", score), ("normalize", normalize)):
            if value not in WORDS[option]:
                listing = ", ".join(WORDS[option])
                raise InputError(f"co_prune: {option}={value!r}; possible: {listing}", code="option", possible=listing)
        for option, value in (("refresh_every", refresh_every), ("freeze_after", freeze_after)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"co_prune: {option}={value!r}; possible: 1 and more", code="option", given=str(value))
        check_damping("co_prune", damping)
        self.score, self.normalize, self.damping = score, normalize, damping
        self.refresh_every, self.freeze_after = refresh_every, freeze_after
        self._nets = (unwrap(source), unwrap(target))  # a tuple: no child modules, their state is their own
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_follow)
        self.alpha = alpha
        keeps = {n: k for n, k in shares(self._nets[1], "co_prune", keep, None).items() if k < 1}
        if not keeps:
            raise InputError("co_prune: keep=1 for every layer, so that there is nothing to choose", code="option")
        self._pairs = pairs(*self._nets, list(keeps), "co_prune", latent)
        self.counts = {unit.name: count_of(unit.layer.weight.numel(), keeps[unit.name]) for _, unit in self._pairs}
        self._inverse: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        if score == "obs":
            self.measure(source_batches, target_batches)
        self.swaps, self.source_swaps = 0, 0
        for net, units in zip(self._nets, zip(*self._pairs, strict=True), strict=True):
            full = {unit.name: (unit, torch.ones_like(unit.filters, dtype=torch.bool)) for unit in units}
            put_masks(net, full, "co_prune")
        # `put_masks` may have replaced the layers
        self._pairs = pairs(*self._nets, list(keeps), "co_prune", latent)
        self._grow()
        self.draw()

    @property
    def alpha(self) -> float:
        return float(self.share)

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.check(value)
        self.share.fill_(value)

    @staticmethod
    def check(alpha: float) -> None:
        """Errors: `InputError` for an alpha outside of 0 to 1."""
        if not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise InputError(f"co_prune: alpha={alpha!r}; possible: 0 to 1", code="option", given=str(alpha))

    @property
    def frozen(self) -> bool:
        return bool(self.finished)

    def measure(self, source_batches: Iterable[Any] | None, target_batches: Iterable[Any] | None) -> None:
        """H of both nets as they are now, for score="obs": inputs, or (input, target) pairs."""
        if source_batches is None or target_batches is None:
            raise InputError(
                'co_prune: score="obs" reads images of both domains; give source_batches and target_batches',
                code="batches-none",
            )
        mine, theirs = [unit for unit, _ in self._pairs], [unit for _, unit in self._pairs]
        self._inverse = (
            inverse_diagonals(self._nets[0], source_batches, mine, self.damping, "co_prune"),
            inverse_diagonals(self._nets[1], target_batches, theirs, self.damping, "co_prune"),
        )

    @torch.no_grad()
    def step(self) -> int:
        """Draws the masks anew when it is time; returns how many weights of the target were exchanged for others."""
        self.swaps = self.source_swaps = 0
        if self.frozen:
            return 0
        self.count += 1
        last = self.freeze_after is not None and int(self.count) >= self.freeze_after
        if last or int(self.count) % self.refresh_every == 0:
            self.draw()
        if last:
            self.finish()
        return self.swaps

    @torch.no_grad()
    def draw(self) -> None:
        """Both masks of every layer from the weights as they are; `swaps`, `source_swaps` say how many changed."""
        self.swaps = self.source_swaps = 0
        for mine, theirs in self._pairs:
            one, two = self._scored(mine, 0), self._scored(theirs, 1)
            self.source_swaps += self._put(mine, one)
            self.swaps += self._put(theirs, self.alpha * one + (1 - self.alpha) * two)

    def finish(self) -> None:
        """The masks stay as they are: pruned weights learn no more, and both nets are like any pruned net."""
        self.finished.fill_(1)
        self._grow()

    def rows(self) -> tuple[CoPrunedRow, ...]:
        """Weights, those that stay, and those that stay in both nets, per layer."""
        found = []
        for mine, theirs in self._pairs:
            one, two = _mask(mine.layer).mask.bool(), _mask(theirs.layer).mask.bool()
            found.append(CoPrunedRow(theirs.name, two.numel(), int(two.sum()), int((one & two).sum())))
        return tuple(found)

    def _grow(self) -> None:
        for pair in self._pairs:
            for unit in pair:
                for module in unit.modules:
                    _mask(module).grow = not self.frozen

    def _scored(self, unit: Unit, net: int) -> Tensor:
        w = unit.filters.float()
        if self._inverse is None:
            return normalized(w.abs(), self.normalize)
        inverse = self._inverse[net][unit.name].to(w.device)
        score = (w.reshape(len(inverse), -1, inverse.shape[-1]).square() * inverse).reshape(w.shape)
        return normalized(score / _or_one(score.mean()), self.normalize)

    def _put(self, unit: Unit, score: Tensor) -> int:
        """Writes the mask of one weight; returns how many weights are new in it."""
        mask = ~lowest(score, score.numel() - self.counts[unit.name])
        before = _mask(unit.layer).mask.bool()
        for module in unit.modules:
            _mask(module).mask.copy_(mask)
        return int((mask & ~before).sum())


def normalized(score: Tensor, how: str) -> Tensor:
    """N of the docstring of `CoPrune`.

    >>> normalized(torch.tensor([3.0, 4.0, 0.0, 0.0]), "layer_l2").tolist()
    [1.2000000476837158, 1.600000023841858, 0.0, 0.0]
    >>> normalized(torch.tensor([5.0, 9.0, 5.0]), "rank").tolist()
    [0.0, 1.0, 0.5]
    """
    if how == "layer_l2":
        return score / _or_one(score.square().mean().sqrt())
    if how == "rank":
        rank = score.flatten().argsort(stable=True).argsort().to(score.dtype)
        return (rank / max(1, score.numel() - 1)).reshape(score.shape)
    return score


def _or_one(size: Tensor) -> Tensor:
    """A layer of zeros divides by 1."""
    return torch.where(size > 0, size, torch.ones_like(size))


def _follow(pruner: CoPrune, keys: Any) -> None:
    """After a state is loaded: masks that were final stay final."""
    pruner._grow()


def _mask(layer: Any) -> Mask:
    return next(link for link in links_of(layer.w) if isinstance(link, Mask))
