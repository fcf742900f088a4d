"""Parts that own a norm (`owns_norm = True`) take over the BatchNorm that is the only reader of their layer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitwright.errors import BitwrightWarning, InputError
from bitwright.nn.layers import SlotLayer
from bitwright.parts.mask import Mask
from bitwright.parts.moments import moment
from bitwright.parts.registry import SLOTS
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import links_of
from bitwright.transforms.flow import Flow
from bitwright.transforms.layers import hooks_of


@dataclass
class Take:
    """One takeover: the part at `prefix`, of `layer`, takes the norm called `norm`."""

    layer: str
    part: Any
    prefix: str
    norm: str
    module: nn.Module


class NormKeys:
    """Load hook: the state of a norm that was taken over becomes the state of the part that took it. Picklable.

    rows   (name of the norm, prefix of the part), where the part has `norm_state`, which converts such a state
    """

    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self.rows = rows

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for norm, part in self.rows:
            head = f"{prefix}{norm}."
            found = {key[len(head) :]: state_dict.pop(key) for key in list(state_dict) if key.startswith(head)}
            owner: Any = module.get_submodule(part)
            for key, value in owner.norm_state(found).items() if found else ():
                state_dict.setdefault(f"{prefix}{part}.{key}", value)


def plan_norms(
    model: nn.Module, built: list[tuple[str, str, SlotLayer]], flow: Flow | None, verb: str = "apply"
) -> list[Take]:
    """Which part takes which norm; an error where a part owns one and none is found."""
    takes: list[Take] = []
    for name, wanted, layer in built:
        for slot in SLOTS:
            for i, part in enumerate(links_of(getattr(layer, slot))):
                if not traits_of(part).owns_norm or traits_of(part).bitwright_norm:
                    continue
                if not wanted and flow is None:
                    raise InputError(
                        f"{verb}: the {slot} part of {name} takes over a BatchNorm: give an example",
                        code="norm-example",
                        layer=name,
                    )
                if flow is not None:
                    wanted = wanted or flow.reader.get(name, "")
                norm = dict(model.named_modules()).get(wanted) if wanted else None
                if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    raise InputError(
                        f"{verb}: the {slot} part of {name} takes over the BatchNorm that is the only reader of its output; "
                        + (f"{wanted!r} is none" if wanted else "there is none"),
                        code="norm-none",
                        layer=name,
                    )
                if norm.running_mean is None:
                    raise InputError(
                        f"{verb}: the {slot} part of {name} takes over the BatchNorm {wanted}, which keeps no running "
                        "statistics; build it with track_running_stats=True",
                        code="norm-none",
                        layer=name,
                    )
                if hooks := hooks_of(norm):
                    raise InputError(
                        f"{verb}: the {slot} part of {name} takes over the BatchNorm {wanted}, and its {hooks[0]} would be "
                        "lost; remove that first",
                        code="norm-hook",
                        layer=name,
                    )
                chained = len(links_of(getattr(layer, slot))) > 1
                takes.append(Take(name, part, f"{name}.{slot}." + (f"links.{i}." if chained else ""), wanted, norm))
    return takes


def give_norms(model: nn.Module, takes: list[Take], undo: Any) -> None:
    """Hands the norms over, puts Identity in their places, maps their keys on load."""
    for take in takes:
        take.part.take_norm(take.module)
        take.part.bitwright_norm = take.norm
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if module is take.module:
                parent, _, child = name.rpartition(".")
                holder = model.get_submodule(parent)
                if traits_of(holder).bitwright_norm:
                    continue  # the part itself may hold the very module
                undo.add(lambda h=holder, c=child, m=module: h._modules.__setitem__(c, m))
                holder._modules[child] = nn.Identity()
    if takes:
        rows = [(take.norm, take.prefix.rstrip(".")) for take in takes]
        handle = model.register_load_state_dict_pre_hook(NormKeys(rows))
        undo.add(handle.remove)


def inherit(name: str, old: SlotLayer, new: SlotLayer) -> None:
    """A part that replaces one of its own kind keeps what that one learned, if it has the moment `succeed`."""
    _inherit_mask(name, old, new)
    for slot in SLOTS:
        before, after = getattr(old, slot), getattr(new, slot)
        succeed = moment(after, "succeed")
        if before is None or before is after or type(before) is not type(after) or succeed is None:
            continue
        succeed(before)
        if traits_of(after).owns_norm and (norm := traits_of(before).bitwright_norm):
            after.bitwright_norm = norm
    if (norm := norm_of(old)) and not norm_of(new):
        raise InputError(
            f"apply: {name} holds the BatchNorm {norm} in a part that this recipe takes away, and the norm with it; "
            "apply it to the net as it was built, and load the weights",
            code="norm-lost",
            layer=name,
        )


def _inherit_mask(name: str, old: SlotLayer, new: SlotLayer) -> None:
    """What is pruned stays pruned where the new parts have a mask too."""
    before, after = (next((p for p in links_of(layer.w) if isinstance(p, Mask)), None) for layer in (old, new))
    if before is None or before is after or before.mask.dim() == 0:
        return
    if after is not None:
        after.mask.copy_(before.mask)
    elif before.density() < 1 and old.w is not new.w:
        warnings.warn(
            f"apply: {name} loses its mask, {100 - 100 * before.density():.0f} % of its weights were pruned; write "
            'w = ["...", "mask"] to keep it',
            BitwrightWarning,
            stacklevel=4,
        )


def norm_of(layer: SlotLayer) -> str:
    """Name of the norm that a part of this layer took over, or ""."""
    norms = (traits_of(part).bitwright_norm for slot in SLOTS for part in links_of(getattr(layer, slot)))
    return next(filter(None, norms), "")
