"""Which optimizer really steps? Wrappers (SAM, Lookahead, those of trainers) hold the one that does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bitwright.errors import InputError


def steppers(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of torch inside `given`, innermost first, and itself at the end where it is one.

    An optimizer counts if its `step` runs hooks: a subclass that never calls `super().__init__()` does not.

    >>> from torch.optim.lr_scheduler import ConstantLR
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> steppers(ConstantLR(sgd)) == steppers(sgd) == [sgd]
    True
    """
    found = list(_inside(given, set()))
    if not found:
        raise InputError(
            f"attach: {type(given).__name__} is no optimizer of torch and holds none: no step of it can be seen. Give the "
            "torch.optim.Optimizer whose step() moves the weights",
            code="attach-optimizer",
            given=type(given).__name__,
            possible="the torch.optim.Optimizer whose step() moves the weights",
        )
    return found


def _inside(given: Any, seen: set[int]) -> Iterator[torch.optim.Optimizer]:
    if id(given) in seen or not hasattr(given, "__dict__"):
        return
    seen.add(id(given))
    for value in vars(given).values():
        each = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else (value,)
        for one in each:
            if isinstance(one, torch.optim.Optimizer):
                yield from _inside(one, seen)
    if isinstance(given, torch.optim.Optimizer) and hasattr(given, "_optimizer_step_post_hooks"):
        yield given


def held_by(optimizer: Any) -> set[int]:
    """Ids of the parameters in the groups of an optimizer."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
