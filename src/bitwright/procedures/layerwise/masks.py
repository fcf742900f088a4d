"""Results of procedures become parts: masks and codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer, is_slot_layer
from bitwright.parts.codebook import Codebook
from bitwright.parts.mask import Mask
from bitwright.parts.traits import traits_of
from bitwright.procedures.layerwise.select import Unit
from bitwright.transforms.apply import apply
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.facts import links_of


def put_masks(model: nn.Module, masks: dict[str, tuple[Unit, Tensor]], who: str) -> None:
    """Puts each mask into the weight slot of its layers: into the `mask` part there, or a new one beside the others."""
    rules = []
    names = {id(m): n for n, m in model.named_modules()}
    wanted: list[tuple[str, Tensor]] = []
    for unit, mask in masks.values():
        for module in unit.modules:
            name = names[id(module)]
            wanted.append((name, mask))
            if _mask_part(module) is None:
                rules.append({"match": exact_glob(name), "w": _with_mask(module, name, who)})
    if rules:
        apply(model, rules)
    for name, mask in wanted:
        part = _mask_part(model.get_submodule(name))
        assert part is not None
        part.mask.copy_(mask)


def _mask_part(module: nn.Module) -> Mask | None:
    links = links_of(module.w) if is_slot_layer(module) else []
    return next((m for m in links if isinstance(m, Mask)), None)


def _with_mask(module: nn.Module, name: str, who: str) -> Any:
    if not isinstance(module, SlotLayer) or module.w is None:
        return "mask"
    specs = [traits_of(link).spec for link in links_of(module.w)]
    if not all(isinstance(spec, dict) for spec in specs):
        raise InputError(
            f"{who}: the weight part of {name} was built by hand; use bw.make_part, so that a mask can stand beside it",
            code="recipe-spec",
            layer=name,
        )
    return [*specs, "mask"]


@torch.no_grad()
def put_codebooks(
    model: nn.Module,
    found: dict[str, tuple[Unit, str, int | None, dict[str, Tensor]]],
    who: str,
    granularity: str = "filter",
) -> None:
    """Puts each unit's levels, group width, index, scale and, if it has one, zero into `codebook` parts; an existing mask stays beside it."""
    names = {id(m): n for n, m in model.named_modules()}
    rules = []
    for unit, levels, group, tensors in found.values():
        spec: dict[str, Any] = {"part": "codebook", "levels": levels}
        if "zero" in tensors:
            spec["asymmetric"] = True
        if group is not None:
            spec["group"] = group
        if granularity != "filter":
            spec["granularity"] = granularity
        for module in unit.modules:
            masked = _mask_part(module) is not None
            rules.append({"match": exact_glob(names[id(module)]), "w": [spec, "mask"] if masked else spec})
    apply(model, rules)
    for unit, _, _, tensors in found.values():
        for name in (names[id(module)] for module in unit.modules):
            layer: Any = model.get_submodule(name)
            part = next(link for link in links_of(layer.w) if isinstance(link, Codebook))
            seen = layer.slot_weight()
            part.hold(seen, tensors["index"], tensors["scale"], tensors.get("zero"))
            if seen is not layer.weight:  # a transposed convolution shows its parts a rearranged copy
                layer.weight.copy_(layer.from_slot(seen))
