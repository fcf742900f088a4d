"""How the coded layers are doing, looked at in a few steps of each epoch: little work, nothing of the training changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.nn.layers import SlotLayer
from bitwright.parts.mask import Mask
from bitwright.parts.moments import moment
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import bit_facts, links_of, quantizer_of

IMAGES = 16  # of a batch, for what is said about inputs
COARSE = 2  # bits of a weight whose flips mean something
MEASURES = ("flips", "dead", "scale", "saturation", "positive")


def coded_layers(model: nn.Module) -> dict[str, SlotLayer]:
    """Layers with a low-bit weight or input, by name, each once."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, SlotLayer)}
    return {n: m for n, m in found.items() if any(bit_facts(part)[0] != 32 for part in (m.w, m.x))}


def latent_size(layer: SlotLayer) -> float:
    return float(layer.weight.detach().abs().mean())


class Probe:
    """One sampled step: made before it, `read()` after it; in between, hooks keep the first inputs.

    flips        share of weight codes (signs, levels) that the step changed; None where the weight is float or has
                 more than 2 bits: fine levels change all the time, and that says nothing
    dead         share of the weights that a mask keeps, if there is one, whose gradient is exactly zero
    scale        mean |latent| relative to the stage's start; None where latents have a fixed range
    saturation   share of inputs for which the x part passes no gradient; None without one
    positive     share of inputs >= 0
    """

    def __init__(self, layers: dict[str, SlotLayer], start: dict[str, float]) -> None:
        self.layers, self.start = layers, start
        self.inputs: dict[str, Tensor] = {}
        with _own_random():
            self.codes = {name: codes(layer) for name, layer in layers.items()}
        self._handles = []
        for name, layer in layers.items():
            source = quantizer_of(layer.x) or layer
            self._handles.append(source.register_forward_pre_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and name not in self.inputs:
                self.inputs[name] = args[0].detach()[:IMAGES].float()

        return hook

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def read(self) -> dict[str, dict[str, float | None]]:
        """After the step, while gradients are still there."""
        self.remove()
        found = {}
        with _own_random():
            for name, layer in self.layers.items():
                x = self.inputs.get(name)
                part = quantizer_of(layer.x)
                grad = layer.weight.grad
                start = 0.0 if traits_of(quantizer_of(layer.w)).fixed_range else self.start.get(name, 0.0)
                found[name] = {
                    "flips": changed(self.codes[name], codes(layer)),
                    "dead": None if grad is None else _share(_kept(layer, grad) == 0),
                    "scale": latent_size(layer) / start if start else None,
                    "saturation": None if x is None or part is None else _share(closed(part, x)),
                    "positive": None if x is None else _share(x >= 0),
                }
        return found


@torch.no_grad()
def codes(layer: SlotLayer) -> Tensor | None:
    """The weight as whole numbers or bits; None where it is float or finer than 2 bits."""
    part = layer.w
    bits = 32 if part is None else bit_facts(part)[0]
    if part is None or bits is None or bits > COARSE:
        return None
    weight = layer.slot_weight().detach()
    whole, encode = moment(part, "whole"), moment(part, "encode")
    if whole is not None:
        return whole(weight)[0].clone()
    return encode(weight).bit.clone() if encode is not None else weight >= 0


def changed(before: Tensor | None, after: Tensor | None) -> float | None:
    """Share of weights whose code differs; planes of one weight count once."""
    if before is None or after is None or before.shape != after.shape:
        return None
    if before.dtype == torch.uint8:
        return _share((before != after).any(0))
    return _share(before != after)


def closed(part: nn.Module, x: Tensor) -> Tensor:
    """Where the part passes no gradient, found by asking autograd; in eval mode, so that observers see nothing."""
    flags = [(m, m.training) for m in part.modules()]
    part.eval()
    try:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            probe = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(part(probe).sum(), probe, allow_unused=True)
    finally:
        for module, flag in flags:
            module.training = flag
    return torch.zeros_like(x, dtype=torch.bool) if slope is None else slope == 0


def add(totals: dict[str, dict[str, list[float]]], sample: dict[str, dict[str, float | None]]) -> None:
    """Adds a sample to the running [sum, count] per layer and column."""
    for name, row in sample.items():
        into = totals.setdefault(name, {})
        for key, value in row.items():
            if value is not None:
                pair = into.setdefault(key, [0.0, 0])
                pair[0] += value
                pair[1] += 1


def means(totals: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float | None]]:
    """Means over the sampled steps of an epoch."""
    return {
        name: {key: (row[key][0] / row[key][1] if key in row else None) for key in MEASURES}
        for name, row in totals.items()
    }


def mean_of(rows: dict[str, dict[str, float | None]], key: str) -> float | None:
    """Over the layers that have it."""
    values = [value for row in rows.values() if (value := row[key]) is not None]
    return sum(values) / len(values) if values else None


def _kept(layer: SlotLayer, values: Tensor) -> Tensor:
    """Those of the weights that no mask removes: the others are at rest on purpose."""
    mask = next((part.mask for part in links_of(layer.w) if isinstance(part, Mask)), None)
    return values if mask is None or mask.shape != values.shape else values[mask.bool()]


def _share(mask: Tensor) -> float:
    return float(mask.float().mean()) if mask.numel() else 0.0


def _own_random() -> Any:
    """A stochastic part that is asked here must not move the stream of the training."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)
