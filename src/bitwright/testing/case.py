"""A case: a part, a slot, options; and the layers and tensors on which laws try it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.nn import Conv2d, Linear, SlotLayer
from bitwright.parts.moments import moment
from bitwright.parts.registry import make_part
from bitwright.transforms.attach import bind, param_groups

IN, OUT = 4, 8


@dataclass(frozen=True)
class Case:
    """`part` in `slot` with `options`."""

    part: str
    slot: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([f"{self.part}[{self.slot}]", *(f"{k}={v!r}" for k, v in self.options.items())])

    def layer(self, kind: str = "conv", channels: int = IN, out: int = OUT) -> SlotLayer:
        """A layer with the part in its slot, and nothing else."""
        filled = {self.slot: {"part": self.part, **self.options}}
        return Conv2d(channels, out, 3, padding=1, **filled) if kind == "conv" else Linear(channels, out, **filled)

    def of(self, layer: SlotLayer) -> nn.Module:
        """The part in the layer; where the slot stays empty, what does nothing."""
        part = getattr(layer, self.slot)
        return part if isinstance(part, nn.Module) else nn.Identity()

    def build(self, kind: str = "conv", channels: int = IN) -> nn.Module:
        """The part alone, with the sizes of a layer."""
        layer = Conv2d(channels, OUT, 3, padding=1) if kind == "conv" else Linear(channels, OUT)
        return make_part(self.part, slot=self.slot, layer=layer, **self.options)

    def has(self, name: str) -> Callable[..., Any] | None:
        return moment(self.build(), name)

    def shape(self, kind: str = "conv", channels: int = IN, batch: int = 3) -> tuple[int, ...]:
        """Shape of the tensor that this slot sees."""
        area = (3, 3) if self.slot == "w" else (6, 6)
        conv = kind == "conv"
        if self.slot == "b":
            return (OUT,)
        if self.slot == "w":
            return (OUT, channels, *area) if conv else (OUT, channels)
        width = OUT if self.slot == "g" else channels
        return (batch, width, *area) if conv else (batch, width)

    def tensor(self, kind: str = "conv", channels: int = IN, batch: int = 3) -> Tensor:
        """Both signs, some values beyond 1, some exact zeros of both signs, some ties."""
        t = torch.randn(self.shape(kind, channels, batch)) * 0.6
        where = torch.rand_like(t)
        t = t.masked_fill(where < 0.08, 0.0).masked_fill((where >= 0.08) & (where < 0.12), -0.0)
        return t.masked_fill((where >= 0.12) & (where < 0.16), 0.5).masked_fill((where >= 0.16) & (where < 0.2), 1.0)


def inputs(kind: str = "conv", channels: int = IN, batch: int = 3) -> Tensor:
    """What a layer reads: values on both sides of 0 and of 1."""
    return torch.rand(batch, channels, 6, 6) * 3 - 1.2 if kind == "conv" else torch.rand(batch, channels) * 3 - 1.2


def after_steps(module: nn.Module) -> None:
    """What `attach` runs after an optimizer step."""
    for layer in module.modules():
        if isinstance(layer, SlotLayer):
            for slot, latent in (("w", layer.weight), ("b", layer.bias)):
                found = moment(getattr(layer, slot), "after_step")
                if found is not None and latent is not None:
                    found(latent)


def penalties(module: nn.Module) -> Tensor:
    total = torch.zeros(())
    for layer in module.modules():
        if isinstance(layer, SlotLayer):
            for slot in ("w", "b", "x", "g", "gate"):
                found = moment(getattr(layer, slot), "penalty")
                total = total + (found() if found is not None else 0.0)
    return total


def train_step(layer: SlotLayer, x: Tensor) -> None:
    """One step of plain SGD in training mode; gradients stay where they are."""
    layer.train()
    optimizer = torch.optim.SGD(param_groups(layer, 0.05, 0.0))
    bind(layer, optimizer)
    y = layer(x)
    ((y - 1).square().mean() + penalties(layer)).backward()
    optimizer.step()
    after_steps(layer)
