"""Which connections of a 0/1 net are there, and which neurons they leave alive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.analysis.zero_one_nets import is_zero_one, need_zero_one, zero_one_layers
from bitwright.nn.layers import SlotLayer
from bitwright.parts.moments import moment
from bitwright.tabular import Tabular
from bitwright.transforms.flow import trace_flow
from bitwright.transforms.layers import candidates
from bitwright.transforms.unwrap import unwrap


@dataclass(frozen=True)
class LayerConnections:
    """A layer with 0/1 weights.

    units          outputs: neurons, or channels of a convolution
    on             weights that are on;   share   of all its weights
    fan_in_mean, fan_in_max   on weights of a unit
    no_input       units without one: they give the same for every image
    live           units on a path of on weights from an input of the net to an output; None where the order of the layers is
                   not known
    """

    layer: str
    weights: int
    units: int
    on: int
    fan_in_mean: float
    fan_in_max: int
    no_input: int
    live: int | None

    @property
    def share(self) -> float:
        return self.on / self.weights if self.weights else 0.0

    @property
    def dead(self) -> int | None:
        return None if self.live is None else self.units - self.live

    def to_dict(self) -> dict[str, Any]:
        """A row as in connections.csv."""
        plain = asdict(self)
        return {"layer": plain.pop("layer"), "share": self.share} | plain


@dataclass(frozen=True)
class Connections(Tabular):
    """Result of `bw.analyze.connections`: a row per 0/1 layer, in the order in which they run; prints as its table.

    inputs, inputs_used   features that the first layers read, and those with a path to an output
    left_out              0/1 layers that the net does not call
    """

    rows: tuple[LayerConnections, ...]
    inputs: int | None = None
    inputs_used: int | None = None
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        return sum(r.weights for r in self.rows)

    @property
    def on(self) -> int:
        return sum(r.on for r in self.rows)

    @property
    def share(self) -> float:
        """On weights / weights, over all layers."""
        return self.on / self.weights if self.weights else 0.0

    @property
    def units(self) -> int:
        return sum(r.units for r in self.rows)

    @property
    def live(self) -> int | None:
        known = [r.live for r in self.rows if r.live is not None]
        return sum(known) if len(known) == len(self.rows) else None

    @property
    def all_off(self) -> list[str]:
        """Layers without any connection: what follows them, a batch norm too, is constant."""
        return [r.layer for r in self.rows if not r.on]

    def cells(self) -> list[list[str]]:
        out = [["layer", "weights", "on", "on %", "fan-in mean", "most", "units", "without input", "live"]]
        for r in self.rows:
            numbers = [f"{r.weights:,}", f"{r.on:,}", share_text(r.share), f"{r.fan_in_mean:.3g}", f"{r.fan_in_max:,}"]
            out.append([r.layer, *numbers, f"{r.units:,}", f"{r.no_input:,}", _count(r.live)])
        no_input = f"{sum(r.no_input for r in self.rows):,}"
        numbers = [f"{self.weights:,}", f"{self.on:,}", share_text(self.share), "", ""]
        return [*out, ["total", *numbers, f"{self.units:,}", no_input, _count(self.live)]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        totals = {key: getattr(self, key) for key in ("weights", "on", "share", "units", "live")}
        facts = {"inputs": self.inputs, "inputs_used": self.inputs_used, "left_out": list(self.left_out)}
        return {"rows": [r.to_dict() for r in self.rows], "totals": totals, **facts, "all_off": self.all_off}


def connections(model: nn.Module, example: Any = None) -> Connections:
    """On weights, fan-in and live units of every layer with 0/1 weights; norms and other layers are not counted.

    value     a weight is on where its latent reaches the threshold and no mask hides it, whatever the value of `on`. A unit
              lives if a path of on weights leads from an input of the net to it, and another from it to an output
    example   a batch of inputs, or a tuple of arguments: one eval forward then tells which layer reads which, and which is
              never called. Without it the layers are taken in the order of definition, if their sizes fit such a chain
    other     layers with float or other weights read all their inputs; a unit of a convolution is a channel. Between layers
              units must keep their order (norms, activations and pooling do)
    errors    a model without 0/1 weights

    >>> import bitwright as bw
    >>> net = nn.Sequential(*(bw.nn.Linear(2, 2, bias=False, w="zero_one") for _ in range(2)))
    >>> for layer, w in zip(net, ([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]])):
    ...     _ = layer.weight.data.copy_(torch.tensor(w))
    >>> print(connections(net))
    layer  weights  on   on %  fan-in mean  most  units  without input  live
    0            4   1  25.00          0.5     1      2              1     1
    1            4   3  75.00          1.5     2      2              0     1
    total        8   4  50.00                         4              1     2
    """
    model = unwrap(model)
    need_zero_one(model, "connections")
    layers = zero_one_layers(model)
    modules = {c.name: c.module for c in candidates(model)}
    order, before = _sources(model, example, modules)
    alive, used = (None, None) if before is None else _alive({name: _links(modules[name]) for name in order}, before)
    rows = []
    for name in (n for n in order if n in layers):
        bit = _bits(layers[name])
        fan_in = bit.flatten(1).sum(1)
        rows.append(
            LayerConnections(
                name, bit.numel(), len(fan_in), int(bit.sum()), float(fan_in.double().mean()), int(fan_in.max()),
                int((fan_in == 0).sum()), None if alive is None else int(alive[name].sum()),
            )
        )  # fmt: skip
    counts = (None, None) if used is None else (used.numel(), int(used.sum()))
    return Connections(tuple(rows), *counts, tuple(n for n in layers if n not in order))


def _bits(layer: SlotLayer) -> Tensor:
    """[O, I / groups, taps...]: True where a weight is on."""
    encode = moment(layer.w, "encode")
    assert encode is not None  # a chain with a 0/1 part in it offers it
    with torch.no_grad():
        return encode(layer.slot_weight()).bit[0].bool()


def _links(layer: nn.Module) -> Tensor:
    """[O, I]: True where output o reads input i; a layer with other weights reads all that its groups allow."""
    outputs, inputs = _sizes(layer)
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, SlotLayer) and is_zero_one(layer):
        bit = _bits(layer)
        near = bit.flatten(2).any(2) if bit.dim() > 2 else bit
    else:
        near = torch.ones(outputs, inputs // groups, dtype=torch.bool)
    if groups == 1:
        return near
    return torch.block_diag(*(piece.to(torch.uint8) for piece in near.chunk(groups))).bool()


Makers = dict[str, tuple[str, ...]]


def _sources(model: nn.Module, example: Any, modules: Mapping[str, nn.Module]) -> tuple[list[str], Makers | None]:
    """(layers in the order in which they run, layer -> layers that it reads); None where outputs and inputs do not fit."""
    if example is not None:
        found = trace_flow(model, example)
        order, before = list(found.order), found.inputs
    else:
        order = list(modules)
        before = {name: tuple(order[max(0, i - 1) : i]) for i, name in enumerate(order)}
    return order, before if all(_fit(n, before[n], order, modules) for n in order) else None


def _fit(name: str, makers: tuple[str, ...], order: list[str], modules: Mapping[str, nn.Module]) -> bool:
    """Whether the inputs of a layer are, unit by unit, the outputs of those it reads, or one map with its positions."""
    outputs, inputs = _sizes(modules[name])
    for maker in makers:
        units = _sizes(modules[maker])[0]
        flattened = isinstance(modules[name], nn.Linear) and len(makers) == 1 and units and not inputs % units
        if order.index(maker) >= order.index(name) or not (units == inputs or flattened):
            return False
    return bool(outputs and inputs)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs); 0 where the layer does not say."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return int(getattr(layer, "out_channels", 0)), int(getattr(layer, "in_channels", 0))


def _alive(links: dict[str, Tensor], before: Makers) -> tuple[dict[str, Tensor], Tensor | None]:
    """(layer -> units on a path from an input to an output, inputs of the net on one); None where first layers differ."""
    fed: dict[str, Tensor] = {}  # a path leads here from an input
    for name, link in links.items():
        sources = [fed[m].repeat_interleave(link.shape[1] // len(fed[m])) for m in before[name]]
        open_ = torch.stack(sources).any(0) if sources else torch.ones_like(link[0])
        fed[name] = (link & open_).any(1)
    heard: dict[str, Tensor] = {}  # a path leads from here to an output
    first: list[Tensor] = []
    readers = {name: [r for r in links if name in before[r]] for name in links}
    for name in reversed(links):
        units = links[name].shape[0]
        found = [(links[r] & heard[r][:, None]).any(0).reshape(units, -1).any(1) for r in readers[name]]
        heard[name] = torch.stack(found).any(0) if found else torch.ones_like(fed[name])
        if not before[name]:
            first.append((links[name] & heard[name][:, None]).any(0))
    used = torch.stack(first).any(0) if len({len(u) for u in first}) == 1 else None
    return {name: fed[name] & heard[name] for name in links}, used


def share_text(share: float) -> str:
    """A small share in per cent keeps two digits.

    >>> share_text(0.25), share_text(0.000312), share_text(0.0)
    ('25.00', '0.031', '0.00')
    """
    if not share or share >= 0.001:
        return f"{100 * share:.2f}"
    return f"{100 * share:.{1 - math.floor(math.log10(100 * share))}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
