"""The batch norms of a model: which there are, and how to run them on the statistics of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitwright.parts.gate_norm import FreeNorm
from bitwright.parts.norm import Norm

BATCH_NORMS = (_BatchNorm, FreeNorm, Norm)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> norm that keeps running statistics, each module once; those in slots and gates too.

    >>> list(batch_norms(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))))
    ['1']
    """
    found = ((n, m) for n, m in model.named_modules() if isinstance(m, BATCH_NORMS))
    return {n: m for n, m in found if getattr(m, "running_mean", None) is not None}


def rows_of(norm: nn.Module, x: Tensor) -> Tensor:
    """[values, channels] of what a norm reads: its channels are axis 1, or the last one in front of a Linear layer.

    >>> import torch
    >>> rows_of(nn.BatchNorm2d(3), torch.zeros(2, 3, 4, 5)).shape
    torch.Size([40, 3])
    """
    axis = -1 if getattr(norm, "last", False) else 1
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


@contextmanager
def norms_training(model: nn.Module) -> Iterator[None]:
    """Norms in training mode, all else as it is; their buffers and flags are put back.

    Copied always: torch's kernel moves running statistics unseen by autograd, so no version tells that they moved.
    """
    found = [m for m in model.modules() if isinstance(m, BATCH_NORMS)]
    flags = [m.training for m in found]
    saved = [(buffer, buffer.clone()) for module in found for buffer in module.buffers()]
    for module in found:
        module.train()
    try:
        yield
    finally:
        for module, flag in zip(found, flags, strict=True):
            module.train(flag)
        for buffer, value in saved:
            buffer.copy_(value)
