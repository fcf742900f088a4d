"""Wrappers that only call the one module they hold, and how to look through them."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

_HOLDERS: tuple[Any, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# module and class of wrappers, and where they keep their net: looked up among the loaded modules, because importing them
# costs seconds, and a model can hold a wrapper only after it was imported
_LOADED = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("lightning.fabric.wrappers", "_FabricModule", "module"),
    ("lightning_fabric.wrappers", "_FabricModule", "module"),
)
_LIGHTNING = ("lightning.pytorch.core.module", "pytorch_lightning.core.module")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's net inside `DataParallel`, `DistributedDataParallel`, `torch.compile`, `AveragedModel`, Fabric's wrapper,
    and inside a LightningModule without a forward of its own that holds one net; nested wrappers too.

    A wrapper that does more than pass its arguments on (hooks, a forward of its own) is returned as it is.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> unwrap(nn.DataParallel(net)) is net, unwrap(torch.compile(nn.DataParallel(net), backend="eager")) is net, unwrap(net) is net
    (True, True, True)
    """
    while not hooked(model):
        held = _held(model)
        if held is None or held is model:
            break
        model = held
    return model


def _held(model: Any) -> nn.Module | None:
    """The module that this wrapper passes its arguments on to; None if it is no such wrapper."""
    if isinstance(model, _HOLDERS):
        return model.module
    for module, name, attribute in _LOADED:
        if (cls := _class(module, name)) is not None and isinstance(model, cls):
            return getattr(model, attribute)
    for module in _LIGHTNING:
        cls = _class(module, "LightningModule")
        if cls is not None and isinstance(model, cls) and type(model).forward is cls.forward:
            nets = [child for child in model.children() if any(True for _ in child.parameters())]
            return nets[0] if len(nets) == 1 and not model._parameters else None
    return None


def _class(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
