"""How an example is given to a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


@dataclass
class Call:
    """One call of a model: what stands in the parentheses.

    An example, and every batch to verify on, is one of: a tensor (the only argument), a tuple (the positional
    arguments, whatever they hold), a dict (the keyword arguments); any other structure with tensors in it is the only
    argument.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any) -> Call:
        if isinstance(example, tuple):
            return cls(example)
        if isinstance(example, dict):
            return cls((), example)
        return cls((example,))

    def __call__(self, model: Callable[..., Any]) -> Any:
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with every tensor changed."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Call(tree_map(one, self.args), tree_map(one, self.kwargs))

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    @property
    def images(self) -> int:
        """Samples of the batch: the first axis of the first tensor."""
        return next((int(t.shape[0]) for t in self.tensors if t.dim()), 1)

    def in_order(self, model: nn.Module) -> Call:
        """Keyword arguments as positional ones, where the signature of `forward` says which is which."""
        if not self.kwargs:
            return self
        try:
            bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        except (TypeError, ValueError):
            return self
        return self if bound.kwargs else Call(bound.args)


def as_is(t: Tensor) -> Tensor:
    return t


def as_floats(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t


def as_pixels(t: Tensor) -> Tensor:
    """uint8 pixels as packed nets read them."""
    return t.float() / 255 if t.dtype == torch.uint8 else as_floats(t)
