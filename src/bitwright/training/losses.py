"""Losses by name, and what a teacher adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from bitwright import usercode
from bitwright.errors import InputError, unknown

if TYPE_CHECKING:
    from bitwright.experiment.schema import Stage

Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = ("cross_entropy", "squared_hinge", "mse")


def make_loss(stage: Stage, index: int = 0, *, smoothing: bool = True, home: usercode.Home | None = None) -> Loss:
    """(outputs [N, C], labels [N]) -> scalar; `smoothing=False` for evaluation; `home` of the experiment."""
    name = stage.loss
    if stage.label_smoothing and name != "cross_entropy":
        raise InputError(
            f"stage {index}: label_smoothing serves loss cross_entropy only, not {name}", code="loss-smoothing"
        )
    if name == "cross_entropy":
        amount = stage.label_smoothing if smoothing else 0.0
        return lambda outputs, labels: F.cross_entropy(outputs, labels, label_smoothing=amount)
    if name == "squared_hinge":
        return squared_hinge
    if name == "mse":
        return squared_error
    if usercode.is_own(name):
        return _own(name, index, home or usercode.Home())
    raise unknown(f"stage {index}: unknown loss {name!r}", name, NAMES, code="loss-unknown", more=", file.py:fn")


def squared_hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean of max(0, 1 - t o)^2 over images and classes; t is +1 for the right class, -1 for the others.

    >>> import torch
    >>> squared_hinge(torch.tensor([[0.5, -2.0]]), torch.tensor([0])).item()     # (0.5^2 + 0) / 2
    0.125
    """
    target = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) * 2 - 1
    return (1 - target * outputs).clamp_min(0).square().mean()


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean of (o - t)^2 over images and classes; t is 1 for the right class, 0 for the others.

    >>> import torch
    >>> squared_error(torch.tensor([[0.5, 1.0]]), torch.tensor([0])).item()     # (0.25 + 1) / 2
    0.625
    """
    return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))


def distilled(loss: Tensor, student: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """(1 - weight) * loss + weight * T^2 * KL(teacher || student), both softened by T; mean over images."""
    soft = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * loss + weight * temperature**2 * soft


def _own(name: str, index: int, home: usercode.Home) -> Loss:
    function = home.find(name, f"stage {index}: loss")

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        value = function(outputs, labels)
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"stage {index}: loss {name}: gave {given}, not a scalar tensor", code="loss-own")
        return value.reshape(())

    return loss
