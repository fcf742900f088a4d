"""The optimizer of a stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.experiment.schema import OPTIMIZER_OPTIONS, Optimizer
from bitwright.transforms import param_groups

_CLASSES: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
}


def make_optimizer(model: nn.Module, spec: Optimizer, where: str = "optimizer") -> torch.optim.Optimizer:
    """Over `bw.param_groups(model, lr, weight_decay)`, so every trainable parameter is in exactly one group.

    Errors   `InputError` for an option that this optimizer does not have

    >>> from bitwright.experiment.schema import Optimizer
    >>> type(make_optimizer(nn.Linear(2, 2), Optimizer(name="sgd", momentum=0.9))).__name__
    'SGD'
    """
    options: dict[str, Any] = {}
    for key, takers in OPTIMIZER_OPTIONS.items():
        value = getattr(spec, key)
        if not value:  # 0, False, None: torch's own default
            continue
        if spec.name not in takers:
            owns = ", ".join(option for option, names in OPTIMIZER_OPTIONS.items() if spec.name in names)
            raise InputError(
                f"{where}: {spec.name} has no {key} (given {value}). It takes: {owns}",
                code="optimizer-option",
                given=key,
                possible=owns,
            )
        options[key] = value
    if options.get("nesterov") and not spec.momentum:
        raise InputError(f"{where}: nesterov needs momentum above 0. try: momentum=0.9", code="optimizer-option")
    groups = param_groups(model, spec.lr, spec.weight_decay)
    if not groups:
        raise InputError(f"{where}: nothing learns, every parameter is frozen", code="optimizer-empty")
    for group in groups:
        group["base_lr"] = spec.lr
    return _CLASSES[spec.name](groups, lr=spec.lr, **options)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """The rate of every group is its own base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
