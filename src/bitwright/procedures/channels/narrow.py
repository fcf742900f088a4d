"""Layers without the channels that go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.procedures.channels.choose import dropped_groups, places_of, split_of
from bitwright.procedures.channels.coupling import Channel
from bitwright.procedures.layerwise.select import mask_of
from bitwright.transforms.geometry import as_rows, from_rows
from bitwright.transforms.widths import Sizes, set_sizes, sizes_of


@torch.no_grad()
def narrow(
    model: nn.Module, twin: nn.Module, channels: list[Channel], gone: set[int], moved: dict[str, set[int]]
) -> None:
    """Takes channels out of `model`, in place.

    twin    the same net in plain layers, where what goes is 0 and others have taken over constants
    moved   layer -> its inputs whose weights the twin has changed
    """
    places, plain = places_of(channels, gone), dict(twin.named_modules())
    for name, layer in model.named_modules():
        made, read = places["makes"].get(name, set()), places["reads"].get(name, set())
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            if made or read:
                _narrow(layer, plain[name], made, read, moved.get(name, set()))
            elif layer.bias is not None or name in moved:
                _take(layer, plain[name], moved.get(name, set()))
        elif made and sizes_of(layer):
            _narrow_norm(layer, made)


def _take(layer: Any, twin: Any, moved: set[int]) -> None:
    """Only the weights and the bias that the twin has changed."""
    if layer.bias is not None:
        layer.bias.copy_(twin.bias)
    if moved:
        weight, mask = _merged(layer, twin, moved)
        layer.weight.copy_(from_rows(layer, weight, getattr(layer, "groups", 1)))
        if mask is not None:
            layer.w.mask.copy_(mask)


def _merged(layer: Any, twin: Any, moved: set[int]) -> tuple[Tensor, Tensor | None]:
    """Weight and mask, outputs first, with the columns that the twin has changed."""
    _, outs, ins = split_of(layer)
    weight, new, mask = as_rows(layer, layer.weight).clone(), as_rows(twin, twin.weight), mask_of(layer)
    mask = None if mask is None else mask.clone()
    for index in moved:
        mine = slice(index // ins * outs, (index // ins + 1) * outs)
        weight[mine, index % ins] = new[mine, index % ins]
        if mask is not None:
            mask[mine, index % ins] |= (new[mine, index % ins] != 0).to(mask.dtype)
    return weight, mask


def _narrow(layer: Any, twin: Any, made: set[int], read: set[int], moved: set[int]) -> None:
    groups, outs, ins = split_of(layer)
    whole = dropped_groups(layer, made, read)
    weight, mask = _merged(layer, twin, moved)
    left = [g for g in range(groups) if g not in whole]
    rows = [[g * outs + i for i in range(outs) if g * outs + i not in made] for g in left]
    columns = [[i for i in range(ins) if g * ins + i not in read] for g in left]

    def cut(t: Tensor) -> Tensor:
        return torch.cat([t[r][:, c] for r, c in zip(rows, columns, strict=True)])

    tensors = {"weight": _like(layer.weight, from_rows(layer, cut(weight), len(left)))}
    if layer.bias is not None:
        tensors["bias"] = twin.bias.detach()[[i for group in rows for i in group]].clone()
    if mask is not None:
        tensors["w.mask"] = cut(mask)
    sizes: Sizes = [sum(map(len, rows)), sum(map(len, columns)), len(left)]
    set_sizes(layer, sizes, tensors)


def _narrow_norm(layer: Any, gone: set[int]) -> None:
    (count,) = sizes_of(layer)
    if count == 1:  # a PReLU with one slope for all
        return
    left = [i for i in range(count) if i not in gone]
    own = {**layer._parameters, **layer._buffers}
    set_sizes(layer, [len(left)], {k: t.detach()[left].clone() for k, t in own.items() if t is not None and t.dim()})


def _like(old: Tensor, new: Tensor) -> Tensor:
    """In the memory format of the old one."""
    for kind in (torch.channels_last, torch.channels_last_3d):
        if old.dim() == (4 if kind is torch.channels_last else 5) and old.is_contiguous(memory_format=kind):
            return new.contiguous(memory_format=kind) if not old.is_contiguous() else new.contiguous()
    return new.contiguous()
