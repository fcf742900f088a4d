"""What a row of the table of strangers holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Example = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Stranger:
    """One architecture.

    build     the net, with fresh weights
    example   samples -> the arguments of its forward
    recipes   one with 1-bit weights and inputs or what comes nearest to it for this net, and one with float or 8-bit inputs
    """

    name: str
    build: Callable[[], nn.Module]
    example: Example
    recipes: tuple[str, str] = ("w1a1", "bwn")

    def inputs(self, count: int) -> Any:
        """A batch as `plan`, `apply` and `convert` take it: the tensor, or a tuple where forward takes several."""
        given = self.example(count)
        return given[0] if len(given) == 1 else given


def image(channels: int = 3, size: int = 32) -> Example:
    return lambda n: (torch.randn(n, channels, size, size),)


def signal(channels: int, length: int) -> Example:
    return lambda n: (torch.randn(n, channels, length),)


def words(count: int, length: int) -> Example:
    return lambda n: (torch.randint(count, (n, length)),)
