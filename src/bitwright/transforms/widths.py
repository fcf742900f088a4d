"""Layers with fewer channels than the code of a model builds: what a file says of them, and how a model gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer

Sizes = list[int]
KEY = "shrunk"  # of the metadata of a file
NORM = nn.modules.batchnorm._BatchNorm


def sizes_of(layer: Any) -> Sizes:
    """[outputs, inputs, groups] of a layer, [channels] of a batch norm or PReLU; [] of anything else.

    >>> sizes_of(nn.Conv2d(4, 6, 3, groups=2)), sizes_of(nn.BatchNorm2d(6)), sizes_of(nn.ReLU())
    ([6, 4, 2], [6], [])
    """
    if isinstance(layer, nn.Linear):
        return [layer.out_features, layer.in_features, 1]
    if isinstance(layer, nn.modules.conv._ConvNd):
        return [layer.out_channels, layer.in_channels, layer.groups]
    if isinstance(layer, NORM):
        return [layer.num_features]
    return [layer.num_parameters] if isinstance(layer, nn.PReLU) else []


def set_sizes(layer: Any, sizes: Sizes, tensors: Mapping[str, Tensor]) -> None:
    """Gives a layer other tensors, by name, and the sizes that go with them; a mask part by `w.mask`."""
    for key, value in tensors.items():
        owner: Any = layer
        *way, last = key.split(".")
        for name in way:
            owner = getattr(owner, name)
        old = getattr(owner, last)
        setattr(owner, last, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = sizes[:2]
    elif isinstance(layer, nn.modules.conv._ConvNd):
        layer.out_channels, layer.in_channels, layer.groups = sizes
    elif isinstance(layer, NORM):
        (layer.num_features,) = sizes
    else:
        (layer.num_parameters,) = sizes
    layer.__dict__["shrunk"] = True


def widths_of(model: nn.Module) -> dict[str, Sizes]:
    """The sizes of all layers that `shrink` made smaller, by name; of a shared module by its first name."""
    return {name: sizes_of(m) or _sizes_by_name(m) for name, m in model.named_modules() if m.__dict__.get("shrunk")}


def _sizes_by_name(packed: Any) -> Sizes:
    """Of a packed layer, which has the attributes of the layer in whose place it stands."""
    if hasattr(packed, "out_features"):
        return [packed.out_features, packed.in_features, 1]
    return [packed.out_channels, packed.in_channels, packed.groups]


def put_widths(model: nn.Module, widths: Any, who: str) -> None:
    """Makes the layers of `model` as small as `widths` says; their numbers are then still to be loaded.

    Errors: `InputError`, before anything is changed, for a table that is none, a name that the model does not have, and sizes
    beyond those of the model.
    """
    modules, plan = dict(model.named_modules()), []
    if not isinstance(widths, dict):
        raise InputError(f"{who}: its list of smaller layers is damaged", code="file-damaged")
    for name, sizes in widths.items():
        layer = modules.get(name)
        own = sizes_of(layer)
        whole = isinstance(sizes, list) and len(sizes) == len(own) and all(type(n) is int and n > 0 for n in sizes)
        if not own or not whole or any(n > most for n, most in zip(sizes, own, strict=True)) or not _divides(sizes):
            here = f"{type(layer).__name__} of sizes {own}" if own else "no layer that has channels"
            raise InputError(
                f"{who}: {name[:60]!r} has sizes {str(sizes)[:40]} in the file, and is {here} in this model: made of another model",
                code="load-keys",
                layer=name[:60],
            )
        if sizes != own:
            plan.append((layer, sizes))
    for layer, sizes in plan:
        set_sizes(layer, sizes, _empty(layer, sizes))


def _divides(sizes: Sizes) -> bool:
    return len(sizes) == 1 or not (sizes[0] % sizes[2] or sizes[1] % sizes[2])


def _empty(layer: Any, sizes: Sizes) -> dict[str, Tensor]:
    """Tensors of the new shapes, not yet of any value."""
    if len(sizes) == 1:
        own = {**layer._parameters, **layer._buffers}
        return {k: t[: sizes[0]].detach().clone() for k, t in own.items() if t is not None and t.dim()}
    outputs, inputs, groups = sizes
    kernel = tuple(layer.weight.shape[2:])
    rows = (outputs, inputs // groups, *kernel)
    flipped = (inputs, outputs // groups, *kernel)
    out = {"weight": layer.weight.new_empty(flipped if getattr(layer, "transposed", False) else rows)}
    if layer.bias is not None:
        out["bias"] = layer.bias.new_empty(outputs)
    mask: Any = getattr(layer.w, "mask", None) if isinstance(layer, SlotLayer) else None
    if isinstance(mask, Tensor) and mask.dim():
        out["w.mask"] = mask.new_ones(rows)
    return out
