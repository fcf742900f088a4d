"""The hybrid net of a principal component analysis, as a procedure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from bitwright.analysis.pca import pca
from bitwright.procedures.registry import procedure
from bitwright.transforms.recipe import Recipe

Bits = Annotated[int, Field(ge=1, le=8)]


@procedure("pca_hybrid")
def pca_hybrid(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    threshold: float = 0.99,
    delta: float = 2,
    count: Literal["below", "needed"] = "below",
    bits: Bits | tuple[Bits, Bits] = 2,
    shortcut: Literal["fp", "kbit", "binary"] = "fp",
) -> Recipe:
    """Recipe that gives k bits to the layers where the number of significant dimensions rises.

    value     `bw.analyze.pca(model, batches, threshold, delta, count).recipe(bits, shortcut)`, with its options and errors

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 8), nn.Linear(8, 2))
    >>> recipe = pca_hybrid(net, [torch.randn(200, 4)], delta=1, count="needed")
    >>> recipe.rules[0].match, recipe.rules[0].slots["w"]
    ('*', 'xnor')
    """
    return pca(model, batches, threshold, delta, count).recipe(bits, shortcut)
