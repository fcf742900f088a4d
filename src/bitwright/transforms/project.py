"""Moments of the parts that change latents: on the weight as the part sees it, each Parameter once."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from bitwright.nn.invert import SoftInvert
from bitwright.nn.layers import SlotLayer
from bitwright.parts.moments import moment
from bitwright.parts.registry import SLOTS
from bitwright.parts.traits import traits_of


def parts_of(model: nn.Module) -> Iterator[tuple[str, SlotLayer | None, str, nn.Module]]:
    """(name, layer, slot, part) of every part once; a part outside of a layer has layer None and slot "".

    >>> import bitwright as bw
    >>> net = nn.Sequential(bw.nn.Linear(2, 2, x="sign"), bw.make_part("sign"))
    >>> [(name, slot) for name, _, slot, _ in parts_of(net)]
    [('0.x', 'x'), ('1', '')]
    """
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, SlotLayer):
            for slot in SLOTS:
                part = getattr(module, slot)
                if part is not None and id(part) not in inside:
                    inside.update(id(m) for m in part.modules())
                    yield (f"{name}.{slot}" if name else slot), module, slot, part
        elif traits_of(module).part_name:
            inside.update(id(m) for m in module.modules())
            yield name, None, "", module


def project(
    model: nn.Module,
    only: Collection[int] | None = None,
    weights: Collection[int] | None = None,
    name: str = "after_step",
) -> None:
    """Runs `after_step` of all parts and of `SoftInvert`, or `start`, which draws first latents.

    only     ids of parts, no other module (None: all)
    weights  ids of Parameters: a part runs only if the tensor it projects is among them (None: all)
    """
    if name == "after_step" and only is None:
        for module in model.modules():
            if isinstance(module, SoftInvert) and (weights is None or id(module.invert) in weights):
                module.after_step()
    done: set[tuple[int, str]] = set()
    for _, layer, slot, part in parts_of(model):
        if layer is None or moment(part, name) is None:
            continue
        if only is not None and id(part) not in only:
            continue
        latent = layer.bias if slot == "b" else layer.weight
        key = (id(latent), slot)
        if latent is None or key in done or (weights is not None and id(latent) not in weights):
            continue
        done.add(key)
        layer.on_latent(slot, name)
