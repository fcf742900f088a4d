"""Layers of two nets of one topology, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.procedures.layerwise.geometry import groups_of
from bitwright.procedures.layerwise.linalg import inverse_factor
from bitwright.procedures.layerwise.select import Unit, compressible
from bitwright.procedures.layerwise.stats import LayerStats, visit_layers
from bitwright.transforms.decide import exact_glob


def pairs(source: nn.Module, target: nn.Module, names: list[str], who: str, latent: bool) -> list[tuple[Unit, Unit]]:
    """The units of these names in both nets; `InputError` where one is missing or of another shape."""
    globs = [exact_glob(name) for name in names]
    mine = {unit.name: unit for unit in compressible(target, who, globs, latent)}
    known = {name for name, _ in source.named_modules()}
    found = []
    for name, unit in mine.items():
        if name not in known:
            raise InputError(
                f"{who}: the source has no layer {name}; both nets need the same topology, or leave the layer out of keep",
                code="layer-unknown",
                layer=name,
            )
        other = source.get_submodule(name)
        shapes = [
            list(w.shape) if isinstance(w := getattr(m, "weight", None), Tensor) else [] for m in (other, unit.layer)
        ]
        if shapes[0] != shapes[1] or groups_of(other) != groups_of(unit.layer):
            raise InputError(
                f"{who}: the weight of {name} is {shapes[0]} in the source and {shapes[1]} in the target; leave the layer "
                "out of keep",
                code="layer-shape",
                layer=name,
                given=str(shapes[0]),
                possible=str(shapes[1]),
            )
        if other.weight is unit.layer.weight:
            raise InputError(
                f"{who}: {name} is the same weight in both nets; give two nets", code="layer-shared", layer=name
            )
        found.append(unit)
    theirs = {unit.name: unit for unit in compressible(source, who, [exact_glob(unit.name) for unit in found], latent)}
    return [(theirs[unit.name], unit) for unit in found]


def inverse_diagonals(
    model: nn.Module, batches: Iterable[Any], units: list[Unit], damping: float, who: str
) -> dict[str, Tensor]:
    """1 / [H^-1]_qq of every input of each unit, [G, 1, D]; 0 for an input that is always 0."""
    found: dict[str, Tensor] = {}

    def visit(stats: LayerStats) -> None:
        pieces = []
        for h, dead in zip(stats.h, stats.dead(), strict=True):
            diagonal = inverse_factor(h, damping).upper.square().sum(-2)
            pieces.append(torch.where(dead, torch.zeros_like(diagonal), 1 / diagonal))
        weight: Tensor = stats.layer.weight
        found[stats.name] = torch.cat(pieces, -1)[:, None, : stats.columns].to(weight.device, torch.float32)

    visit_layers(model, batches, units, visit, who=who, bias=False)
    return found
