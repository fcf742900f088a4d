"""Accuracy and loss of a net on a data set: one function for training, `bitwright eval` and the report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitwright.training.work import Work, counting, gates_of
from bitwright.transforms.forward import evaluating

if TYPE_CHECKING:
    from bitwright.data import Images
    from bitwright.training.losses import Loss


@dataclass(frozen=True)
class Evaluation:
    """loss, top1, top5 are means over `images`; top5 is 1 where there are at most five classes.

    said, confidence   per image: the class with the largest output, and its softmax probability
    work               of a net with gates, if it was to be counted
    """

    loss: float
    top1: float
    top5: float
    images: int
    said: Tensor
    confidence: Tensor
    work: Work | None = None


def evaluate(
    model: nn.Module,
    images: Images,
    loss: Loss | None = None,
    *,
    batch: int = 500,
    normalize: bool = True,
    channels_last: bool = False,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
    count: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """In eval mode, in float32, without leaving a trace in the model.

    loss          (outputs, labels) -> mean. [default: cross entropy]
    rank, world   each process takes its slice; loss and accuracy are those of all, said and confidence its own
    count         also what a net with gates computes, image by image; its answers and counts then depend on no batch
    check         called between batches; may raise to end it
    """
    from torchmetrics.classification import MulticlassAccuracy

    loss = loss or nn.functional.cross_entropy
    device = torch.device(device)
    classes, seen, total = len(images.classes), 0, torch.zeros((), dtype=torch.float64, device=device)
    top1: MulticlassAccuracy | None = None
    top5: MulticlassAccuracy | None = None
    said, confidence = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)]
    watching = counting(model) if count and gates_of(model) else nullcontext()
    with evaluating(model), watching as ledger:
        for x, y in images.batches(
            batch, normalize=normalize, device=device, channels_last=channels_last, rank=rank, world=world
        ):
            check()
            if not len(y):
                continue
            outputs = (model(x) if ledger is None else ledger.answers(model, x)).float()
            if top1 is None or top5 is None:
                width = max(classes, outputs.shape[1])
                make = {"num_classes": width, "average": "micro", "sync_on_compute": False}
                top1 = MulticlassAccuracy(**make).to(device)
                top5 = MulticlassAccuracy(**make, top_k=min(5, outputs.shape[1])).to(device)
            top1.update(outputs, y)
            top5.update(outputs, y)
            total += loss(outputs, y).double() * len(y)
            seen += len(y)
            sure, best = outputs.softmax(1).max(1)
            said.append(best.cpu())
            confidence.append(sure.cpu())
    right = [0.0 if m is None else float(m.compute()) * seen for m in (top1, top5)]
    sums = torch.tensor([float(total), *right, float(seen)], dtype=torch.float64, device=device)
    if world > 1:
        torch.distributed.all_reduce(sums)
    loss_sum, right1, right5, n = sums.tolist()
    n = max(n, 1.0)
    # a float32 mean times the count is off by less than half an image: rounding gives the exact count back
    work = None if ledger is None else ledger.work(alone=world == 1)
    return Evaluation(
        loss_sum / n, round(right1) / n, round(right5) / n, int(n), torch.cat(said), torch.cat(confidence), work
    )
