"""Which layers of a model a layer-wise procedure works on, and which of them share a weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from bitwright.errors import BitwrightWarning, InputError, nearest
from bitwright.nn.layers import SlotLayer
from bitwright.parts.mask import Mask
from bitwright.parts.traits import title_of
from bitwright.transforms.facts import links_of
from bitwright.transforms.geometry import as_rows
from bitwright.transforms.layers import ComputeLayer, candidates

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
POSSIBLE = ", ".join(kind.__name__ for kind in KINDS)


@dataclass(frozen=True)
class Unit:
    """One weight, and the modules that use it: more than one where it is tied."""

    name: str
    modules: tuple[nn.Module, ...]

    @property
    def layer(self) -> Any:
        return self.modules[0]

    @property
    def filters(self) -> Tensor:
        """The weight with outputs first, [O, I/g, *kernel], as masks and other parts see it."""
        return as_rows(self.layer, self.layer.weight.detach())

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias that may absorb error: the only one of all modules, with no part of its own."""
        found = {id(m.bias): m.bias for m in self.modules}
        only = next(iter(found.values()))
        free = all(not isinstance(m, SlotLayer) or m.b is None for m in self.modules)
        return only if len(found) == 1 and free and isinstance(only, nn.Parameter) else None

    @property
    def latents(self) -> list[nn.Parameter]:
        """What a procedure may change: the weight, and the bias that absorbs error."""
        return [self.layer.weight] if self.bias is None else [self.layer.weight, self.bias]

    @property
    def mask(self) -> Tensor | None:
        return mask_of(self.layer)


def mask_of(layer: nn.Module) -> Tensor | None:
    """The mask in the weight slot; None where nothing is pruned."""
    links = links_of(layer.w) if isinstance(layer, SlotLayer) else []
    return next((m.mask for m in links if isinstance(m, Mask)), None)


def compressible(
    model: nn.Module, who: str, layers: Iterable[str] | None = None, latent: bool = False, listing: bool = False
) -> list[Unit]:
    """The weights to work on, in order of definition.

    layers   globs of names; None: all layers of a kind that can
    latent   whether a weight that goes through a quantizer is taken by its latent values; else it is an error
    listing  only to list them: no warning, and a weight may be shared
    errors   `InputError`: a glob that matches nothing, a layer that cannot, a weight shared with a lookup table
    """
    found = candidates(model)
    globs = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    chosen = found if globs is None else _matching(found, globs, who)
    units: dict[int, list[ComputeLayer]] = {}
    left = []
    for row in chosen:
        if reason := _reason(row, latent):
            exact = globs is not None and any(name in globs for name in row.names)
            if exact or _is_quantized(row.module) or not row.name:
                raise InputError(f"{who}: {row.name or 'model'}: {reason}", code="layer-kind", layer=row.name)
            if not row.is_table:
                left.append(f"{row.name} ({reason})")
            continue
        units.setdefault(id(row.module.weight), []).append(row)
    if left and units and not listing:
        more = f" and {len(left) - 1} more layers stay" if len(left) > 1 else " stays"
        warnings.warn(f"{who}: {left[0]}{more} as before", BitwrightWarning, stacklevel=3)
    if not units:
        raise InputError(
            f"{who}: the model has no layer that it could work on; possible: {POSSIBLE}",
            code="recipe-nomatch",
        )
    if not listing:
        _check_shared(model, units, who)
    return [Unit(rows[0].name, tuple(r.module for r in rows)) for rows in units.values()]


def per_layer(model: nn.Module, who: str, option: str, value: Any) -> dict[str, Any]:
    """An option that is one value, or a mapping by layer glob: name of a unit -> value. A full name counts before globs, of
    several globs the last one.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> per_layer(net, "l_obs", "keep", {"1": 0.8, "*": 0.5})
    {'0': 0.5, '1': 0.8}
    """
    table = value if isinstance(value, Mapping) else {"*": value}
    if not table:
        raise InputError(f"{who}: {option} is an empty mapping; give a number, or globs of layers", code="option")
    units = compressible(model, who, latent=True, listing=True)
    every = {u.name: [n for n, m in model.named_modules(remove_duplicate=False) if m in u.modules] for u in units}
    out: dict[str, Any] = {}
    for glob, one in sorted(table.items(), key=lambda item: any(item[0] in names for names in every.values())):
        hits = [name for name, also in every.items() if any(fnmatchcase(n, glob) for n in also)]
        if not hits:
            raise InputError(
                f"{who}: {option} of {glob!r} matches no layer.{nearest(glob, every)} Layers: {', '.join(list(every)[:6])}",
                code="recipe-nomatch",
                given=glob,
                possible=", ".join(every),
            )
        out |= dict.fromkeys(hits, one)
    return {name: out[name] for name in every if name in out}


def _matching(found: list[ComputeLayer], globs: list[str], who: str) -> list[ComputeLayer]:
    names = [name for row in found for name in row.names]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise InputError(
                f"{who}: {glob!r} matches no layer.{nearest(glob, names)} Layers: {', '.join(names[:6])}",
                code="recipe-nomatch",
                given=glob,
                possible=", ".join(names),
            )
    return [row for row in found if any(fnmatchcase(n, g) for n in row.names for g in globs)]


def _reason(row: ComputeLayer, latent: bool) -> str:
    module: nn.Module = row.module
    if not row.name:
        return f"the model is one {row.kind}, which cannot be replaced in place; put it into nn.Sequential"
    if row.reason:
        return row.reason
    if not isinstance(module, KINDS):
        return f"a {row.kind} is none of {POSSIBLE}"
    if isinstance(module, SlotLayer) and module.gate is not None:
        return f"its gate {title_of(module.gate)} decides what the weight is multiplied with"
    if not latent and isinstance(module, SlotLayer) and _is_quantized(module):
        titles = "+".join(title_of(m) for m in links_of(module.w) if not isinstance(m, Mask))
        return (
            f"its weight goes through {titles}; compress the float net, or say latent=True to work on the latent weight"
        )
    return ""


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, SlotLayer) and any(not isinstance(m, Mask) for m in links_of(module.w))


def _check_shared(model: nn.Module, units: dict[int, list[ComputeLayer]], who: str) -> None:
    """One weight, several modules: all of one layout, and none that reads it in another way."""
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            rows = units.get(id(parameter))
            if rows is None or any(module is row.module for row in rows):
                continue
            raise InputError(
                f"{who}: {rows[0].name} shares its weight with {name or 'the model'}.{key} ({type(module).__name__}), which "
                "reads it in another way; untie the two, or leave the layer out",
                code="layer-shared",
                layer=rows[0].name,
            )
    for rows in units.values():
        groups = {getattr(row.module, "groups", 1) for row in rows}
        order = {(isinstance(m, nn.Linear), getattr(m, "transposed", False)) for m in (row.module for row in rows)}
        if len(groups) > 1 or len(order) > 1:
            raise InputError(
                f"{who}: {rows[0].name} and {rows[1].name} share a weight but read it in different groups or orders",
                code="layer-shared",
                layer=rows[0].name,
            )
