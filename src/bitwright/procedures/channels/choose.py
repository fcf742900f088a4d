"""Which channels can go without changing what a net computes, and how the layers behind make up for constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitwright.procedures.channels.constants import Reading, has_border
from bitwright.procedures.channels.coupling import Channel
from bitwright.transforms.geometry import as_rows, from_rows


@dataclass
class Removal:
    """What one look at the net allows.

    gone      channels to remove, as indices;   into   channel -> the one that takes over its constant, where a bias cannot
    stays     why another channel that no live filter feeds stays
    """

    gone: set[int] = field(default_factory=set)
    into: dict[int, int] = field(default_factory=dict)
    stays: dict[int, str] = field(default_factory=dict)


def choose(
    layers: dict[str, Any], channels: list[Channel], reads: dict[str, Reading], before: set[int], biases: set[str]
) -> Removal:
    """Channels that no layer reads, or that are constant wherever they are read.

    layers   plain convolutions and linear layers by name;   before   channels that went earlier
    biases   layers whose bias may take over a constant

    A constant of 0 just goes. Another one goes into the bias of the layer that reads it. Where that layer has no bias, or pads
    with zeros, so that its border does not see the constant, one constant channel stays and takes over the weights of the others,
    times the ratio of their constants.
    """
    removal = Removal()
    alike: dict[Any, list[int]] = defaultdict(list)
    used = {name: _used(layer) for name, layer in layers.items()}
    for at, channel in enumerate(channels):
        if at in before:
            continue
        open_reads = []  # those where a constant has to go somewhere
        why = channel.fixed or ("" if channel.reads else "no layer reads it")
        for name, index in sorted(channel.reads):
            read = reads.get(name)
            if why or read is None or not read.apart:
                why = why or f"{name} reads it mixed with others"
            elif not bool(used[name][index]):
                continue
            elif not bool(read.constant[index]):
                why = f"it is not constant where {name} reads it"
            elif float(read.value[index]):
                open_reads.append((name, index))
        if why:
            removal.stays[at] = why
        elif all(name in biases and not has_border(layers[name]) for name, _ in open_reads):
            removal.gone.add(at)
        else:
            key = tuple(sorted((name, _group(layers[name], index)) for name, index in channel.reads))
            alike[key].append(at)
            name, index = open_reads[0]
            reason = "pads with zeros" if has_border(layers[name]) else "has no bias"
            removal.stays[at] = f"it carries the constant {float(reads[name].value[index]):.3g}, and {name} {reason}"
    for key, group in alike.items():
        if len({name for name, _ in key}) == len(
            key
        ):  # one place in each layer, so that weights can move from one to the other
            stands = max(group, key=lambda at: min(abs(_value(reads, p)) for p in channels[at].reads))
            if all(_value(reads, p) for p in channels[stands].reads):
                removal.into |= {at: stands for at in group if at != stands}
                removal.gone |= removal.into.keys()
    _keep_sizes(layers, channels, removal, before)
    return removal


def _value(reads: dict[str, Reading], place: tuple[str, int]) -> float:
    return float(reads[place[0]].value[place[1]])


def _used(layer: Any) -> Tensor:
    """bool [I]: inputs with a weight that is not 0."""
    rows = as_rows(layer, layer.weight.detach())
    groups = getattr(layer, "groups", 1)
    found = (rows.reshape(groups, len(rows) // groups, rows.shape[1], -1) != 0).any(-1).any(1)
    return found.flatten().cpu()


def _group(layer: Any, index: int) -> int:
    groups = getattr(layer, "groups", 1)
    return index // (len(_used(layer)) // groups) if groups > 1 else 0


def split_of(layer: Any) -> tuple[int, int, int]:
    """(groups, outputs of a group, inputs of a group)."""
    rows, groups = as_rows(layer, layer.weight), getattr(layer, "groups", 1)
    return groups, len(rows) // groups, rows.shape[1]


def dropped_groups(layer: Any, makes: Iterable[int], reads: Iterable[int]) -> set[int]:
    """Groups of a convolution that go as a whole: all outputs and all inputs."""
    groups, outs, ins = split_of(layer)
    made, read = [i // outs for i in set(makes)], [i // ins for i in set(reads)]
    return {g for g in range(groups) if made.count(g) == outs and read.count(g) == ins}


def _keep_sizes(layers: dict[str, Any], channels: list[Channel], removal: Removal, before: set[int]) -> None:
    """Puts channels back until every layer keeps an input and an output, and the groups of a convolution are of one size."""
    while back := _too_many(layers, channels, removal.gone, before):
        for at, why in back.items():
            removal.gone.discard(at)
            removal.into.pop(at, None)
            removal.stays[at] = why


def _too_many(layers: dict[str, Any], channels: list[Channel], gone: set[int], before: set[int]) -> dict[int, str]:
    """Channels of one layer that have to stay, with the reason; {} if no layer loses too many."""
    places = places_of(channels, gone | before)
    owner = {(side, *p): at for at in gone for side, p in sides_of(channels[at])}
    for name, layer in layers.items():
        groups, outs, ins = split_of(layer)
        sides = {side: places[side].get(name, set()) for side in ("makes", "reads")}
        whole = dropped_groups(layer, sides["makes"], sides["reads"])
        whole = whole if len(whole) < groups else set()
        why = f"{name}: " + ("its groups stay of one size" if groups > 1 else "one channel has to stay")
        for side, size in (("makes", outs), ("reads", ins)):
            inside = [sorted(i for i in sides[side] if i // size == g) for g in range(groups) if g not in whole]
            most = min(min(map(len, inside)), size - 1)
            back: dict[int, str] = {}
            for group in inside:
                ours = [owner[side, name, i] for i in group if (side, name, i) in owner]
                back |= dict.fromkeys(ours[max(0, len(ours) - (len(group) - most)) :], why)
            if back:
                return back
    return {}


def sides_of(channel: Channel) -> list[tuple[str, tuple[str, int]]]:
    """All places of a channel that a layer with weights has; a depthwise convolution both puts it out and reads it."""
    found = [("makes", p) for p in channel.makes | channel.on]
    return found + [("reads", p) for p in channel.reads | channel.on]


def places_of(channels: list[Channel], which: Iterable[int]) -> dict[str, dict[str, set[int]]]:
    """side -> layer -> indices, of these channels; those of norms and depthwise convolutions are on both sides."""
    out: dict[str, dict[str, set[int]]] = {"makes": defaultdict(set), "reads": defaultdict(set)}
    for at in which:
        for side, (name, index) in sides_of(channels[at]):
            out[side][name].add(index)
    return out


@torch.no_grad()
def remove(layers: dict[str, Any], channels: list[Channel], reads: dict[str, Reading], removal: Removal) -> None:
    """Puts zeros in the place of what goes, in `layers`; constants go into biases, or into the channel that stands for others."""
    weights = {name: as_rows(layer, layer.weight).clone() for name, layer in layers.items()}
    for at in sorted(removal.gone):
        stands = channels[removal.into[at]] if at in removal.into else None
        for name, index in channels[at].reads:
            rows, value = _of_group(layers[name], weights[name], index), _value(reads, (name, index))
            column = rows[:, index % rows.shape[1]].double()
            if not value or not bool(column.any()):
                continue
            if stands is None:
                (bias,) = _of_group(layers[name], layers[name].bias[:, None], index).T
                bias.copy_(bias.double() + column.reshape(len(column), -1).sum(1) * value)
            else:
                [there] = [i for other, i in stands.reads if other == name]
                taken = rows[:, there % rows.shape[1]]
                taken.copy_(taken.double() + column * (value / _value(reads, (name, there))))
    places = places_of(channels, removal.gone)
    for name, layer in layers.items():
        made, read = places["makes"].get(name, set()), places["reads"].get(name, set())
        weights[name][sorted(made)] = 0
        if layer.bias is not None:
            layer.bias[sorted(made)] = 0
        for index in read:
            rows = _of_group(layer, weights[name], index)
            rows[:, index % rows.shape[1]] = 0
        layer.weight.copy_(from_rows(layer, weights[name], split_of(layer)[0]))


def _of_group(layer: Any, rows: Tensor, index: int) -> Tensor:
    """The rows, of a weight or a bias, that read input `index`: a view."""
    _, outs, ins = split_of(layer)
    return rows[index // ins * outs : (index // ins + 1) * outs]
