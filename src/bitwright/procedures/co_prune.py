"""Co-Prune: two nets of one topology, one with much data, help each other choose the weights that stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import InputError, Negative
from bitwright.procedures.layerwise.cooperation import CoPrune, CoPrunedRow, Normalize, Score
from bitwright.procedures.layerwise.counts import Shares
from bitwright.procedures.layerwise.progress import Meter
from bitwright.procedures.report import Report
from bitwright.transforms import attach, param_groups, penalty
from bitwright.transforms.unwrap import unwrap

SLACK = 1.5  # tolerance at the smallest rate, which a few divisions by ten do not meet exactly


@dataclass(frozen=True)
class CoPruneStage:
    """The epochs with one alpha. loss   of the target, in its best epoch;   accuracy   there, None without `val`
    swaps   weights of the target that changed places, per step"""

    alpha: float
    epochs: int
    loss: float
    accuracy: float | None
    swaps: float


@dataclass(frozen=True)
class CoPruneReport(Report):
    """A row per layer of the target; `stages` one per alpha."""

    rows: tuple[CoPrunedRow, ...] = ()
    stages: tuple[CoPruneStage, ...] = ()

    @property
    def kept(self) -> float:
        """Share of the weights of all rows that is left."""
        return sum(row.kept for row in self.rows) / sum(row.weights for row in self.rows)

    def cells(self) -> list[list[str]]:
        out = [["layer", "weights", "kept", "also kept in the source"]]
        for r in self.rows:
            out.append(
                [r.layer, f"{r.weights:,}", f"{100 * r.kept / r.weights:.2f} %", f"{100 * r.common / r.kept:.1f} %"]
            )
        return out

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"kept": self.kept, "stages": [asdict(stage) for stage in self.stages]}


def co_prune(
    source: nn.Module,
    target: nn.Module,
    source_batches: Iterable[Any],
    target_batches: Iterable[Any],
    keep: Shares,
    alpha: tuple[float, ...] = (0.7, 0.5, 0.3),
    score: Score = "magnitude",
    *,
    normalize: Normalize = "none",
    refresh_every: int = 1,
    freeze_after: int | None = None,
    epochs: int = 100,
    lr: float = 1e-3,
    min_lr: float = 1e-6,
    patience: int = 3,
    val: Iterable[Any] | None = None,
    latent: bool = False,
) -> CoPruneReport:
    """Prune a target net that has few images with the help of a source net that has many, training both.

    batches   (inputs, labels) pairs of each domain, read again every epoch: lists or loaders. An epoch ends with the shorter
    alpha     stages: share of the source's weights in the target's choice (`CoPrune`). Each begins with new Adam optimizers at
              `lr`, from the best epoch of the stage before it
    rate      falls to a tenth, for both nets, if the target's loss has not fallen for `patience` epochs; a stage ends when
              it gets to `min_lr`, or after `epochs`
    best      the epoch with the highest accuracy of the target on `val`, (inputs, labels) pairs that are no test images; without
              it, with the lowest training loss of the target
    watching  `bw.procedures.watching` is told each stage
    others    as in `CoPrune`; freeze_after counts steps over all stages. Both nets are left pruned, in the modes they had
    errors    no batches, batches without labels, a loss that is not finite (`Negative`), and those of `CoPrune`
    source    Chen et al. 2019, IJCAI, and its public code
    differs   the public code takes the best epoch by its test images

    >>> source, target = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2))
    >>> batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
    >>> report = co_prune(source, target, batches, batches, keep=0.5, alpha=(0.5,), epochs=2)
    >>> report.rows[0].kept, target[0].w.grow
    (4, False)
    """
    if not alpha:
        raise InputError("co_prune: alpha is empty; give one share per stage, such as (0.7, 0.5, 0.3)", code="option")
    feeds = (_feed(source_batches, "source_batches"), _feed(target_batches, "target_batches"))
    tests = None if val is None else _feed(val, "val")
    for each in alpha:  # before any work
        CoPrune.check(each)
    pruner = CoPrune(
        source, target, keep, alpha=alpha[0], score=score, normalize=normalize, refresh_every=refresh_every,
        freeze_after=freeze_after, source_batches=feeds[0], target_batches=feeds[1], latent=latent,
    )  # fmt: skip
    nets = (unwrap(source), unwrap(target))
    modes = [net.training for net in nets]
    stages, samples = [], 0
    names = [f"stage {i}, alpha {share:g}" for i, share in enumerate(alpha)]
    meter = Meter("co_prune", dict.fromkeys(names, 1.0))
    for name, share in zip(names, alpha, strict=True):
        meter.begin(name)
        pruner.alpha = share
        if not pruner.frozen:
            pruner.draw()
        stage, seen = _stage(pruner, nets, feeds, tests, epochs, lr, min_lr, patience)
        stages.append(stage)
        samples = max(samples, seen)
        meter.end(name)
    meter.finish()
    pruner.finish()
    for net, mode in zip(nets, modes, strict=True):
        net.train(mode)
    return CoPruneReport("co_prune", samples, pruner.rows(), tuple(stages))


def _stage(
    pruner: CoPrune, nets: tuple[nn.Module, nn.Module], feeds: tuple[Any, Any], tests: Any, epochs: int, lr: float,
    min_lr: float, patience: int,
) -> tuple[CoPruneStage, int]:  # fmt: skip
    """(result of one alpha, images of the target in an epoch); both nets are then as in its best epoch."""
    optimizers = [torch.optim.Adam(param_groups(net, lr, 0.0)) for net in nets]
    handles = [attach(net, optimizer) for net, optimizer in zip(nets, optimizers, strict=True)]
    lowest_loss, waited, steps, swaps, best, done = math.inf, 0, 0, 0, None, 0
    images = 0
    while done < epochs:
        done, total, images = done + 1, 0.0, 0
        for net in nets:
            net.train()
        for pair in zip(*feeds, strict=False):
            losses = [_learn(*each) for each in zip(nets, optimizers, pair, strict=True)]
            steps, swaps = steps + 1, swaps + pruner.step()
            count = len(pair[1][1])
            total, images = total + losses[1] * count, images + count
        loss = total / images
        accuracy = None if tests is None else _accuracy(nets[1], tests)
        rank = -loss if accuracy is None else accuracy
        if best is None or rank > best[0]:
            best = (rank, loss, accuracy, [copy.deepcopy(net.state_dict()) for net in nets])
        waited = 0 if loss < lowest_loss else waited + 1
        lowest_loss = min(lowest_loss, loss)
        if waited == patience:
            waited = 0
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.1
            if optimizers[1].param_groups[0]["lr"] < SLACK * min_lr:
                break
    assert best is not None
    for net, state in zip(nets, best[3], strict=True):
        net.load_state_dict(state)
    for handle in handles:
        handle.remove()
    return CoPruneStage(pruner.alpha, done, best[1], best[2], swaps / steps), images


def _learn(net: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> float:
    x, y = _placed(net, batch)
    loss = F.cross_entropy(net(x), y) + penalty(net)
    if not torch.isfinite(loss):
        raise Negative(
            f"co_prune: the loss became {loss.item()}. Give a smaller rate, such as lr=1e-4", code="train-nan"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _accuracy(net: nn.Module, batches: Any) -> float:
    net.eval()
    right = count = 0
    for batch in batches:
        x, y = _placed(net, batch)
        right, count = right + int((net(x).argmax(1) == y).sum()), count + len(y)
    return right / max(1, count)


def _placed(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    device = next(net.parameters()).device
    return batch[0].to(device), batch[1].to(device)


def _feed(batches: Iterable[Any], option: str) -> Any:
    """Batches that can be read again and again; the first one is checked."""
    feed = list(batches) if isinstance(batches, Iterator) else batches
    first = next(iter(feed), None)
    if first is None:
        raise InputError(
            f"co_prune: {option} is empty; give at least one batch of (inputs, labels)", code="batches-none"
        )
    if not isinstance(first, (tuple, list)) or len(first) != 2 or not all(isinstance(t, Tensor) for t in first):
        raise InputError(
            f"co_prune: {option} gives {type(first).__name__}; training needs (inputs, labels) pairs",
            code="batches-pairs",
        )
    return feed
