"""A copy of a user's model, whatever its forward keeps on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model) -> Model:
    """`copy.deepcopy`, which never fails on what a forward keeps on its module. The model is left as it was.

    A kept result of a computation (a feature map, a loss, the weight that a hook works out) is detached in the copy.
    What cannot be copied at all (a lock, an open file) is shared with the copy.

    >>> import torch
    >>> net = nn.Linear(2, 2)
    >>> net.last = net(torch.zeros(1, 2))    # copy.deepcopy raises RuntimeError now
    >>> copy_model(net).last.requires_grad, net.last.requires_grad
    (False, True)
    """
    memo: dict[int, Any] = {}
    with _Detached():
        try:
            return copy.deepcopy(model, memo)
        except Exception:  # an object's own copy method may raise anything
            memo = _shared(model)
            return copy.deepcopy(model, memo)


class _Detached(TorchFunctionMode):
    """Inside, deepcopy of a tensor that is no leaf of its graph gives a leaf with the same values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _shared(model: nn.Module) -> dict[int, Any]:
    """A memo by which deepcopy shares the attributes that cannot be copied."""
    memo: dict[int, Any] = {}
    modules = {id(m): m for m in model.modules()}
    for module in model.modules():
        for key, value in module.__dict__.items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(modules))  # an attribute that refers to the net must not copy the net again
            except Exception:
                memo[id(value)] = value
    return memo
