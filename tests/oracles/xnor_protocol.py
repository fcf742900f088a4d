"""XNOR-Net's training protocol in own words: binarize in place, run, restore, correct the gradient by hand, step.

Shares no code with the library: weights are overwritten before the forward pass and put back after the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def prepare(w: Tensor) -> Tensor:
    """Center over axis 1, clip to [-1, 1]: what the script keeps as the weight from then on."""
    return (w - w.mean(1, keepdim=True)).clamp(-1, 1)


def per_filter(w: Tensor) -> Tensor:
    """Sum over everything but axis 0, kept for broadcasting."""
    return w.flatten(1).sum(1).reshape(-1, *[1] * (w.dim() - 1))


def factor(w: Tensor, extra: float) -> float:
    """(1 - 1 / axis 1) times the weights of a filter, times 1e9 in the ImageNet script."""
    return (1 - 1 / w.shape[1]) * w[0].numel() * extra


class Binarized:
    """The layers whose weight the protocol touches."""

    def __init__(self, layers: list[nn.Linear | nn.Conv2d], extra: float = 1.0) -> None:
        self.layers, self.extra = layers, extra

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forward and backward happen inside, on a * sign(w); then the prepared weights come back."""
        saved: list[Tensor] = []
        for layer in self.layers:
            w = prepare(layer.weight.data)
            saved.append(w.clone())
            layer.weight.data.copy_(per_filter(w.abs()) / w[0].numel() * torch.sign(w))
        try:
            yield
        finally:
            for layer, w in zip(self.layers, saved, strict=True):
                layer.weight.data.copy_(w)

    def correct_gradients(self) -> None:
        """a g [|w| <= 1] + sign(w) / n * sum of g sign(w), times the factor."""
        for layer in self.layers:
            w, g = layer.weight.data, layer.weight.grad
            assert g is not None
            n = w[0].numel()
            direct = per_filter(w.abs()) / n * g * (w.abs() <= 1)
            shared = torch.sign(w) * per_filter(torch.sign(w) * g) / n
            layer.weight.grad = (direct + shared) * factor(w, self.extra)


def train(
    net: nn.Module,
    layers: list[nn.Linear | nn.Conv2d],
    make: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
    groups: Callable[[nn.Parameter, float], dict[str, object]],
    batches: list[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    extra: float = 1.0,
) -> None:
    """`groups` says how a parameter trains, given the factor its gradient carries (1 for the others)."""
    protocol = Binarized(layers, extra)
    binary = {id(layer.weight): factor(layer.weight, extra) for layer in layers}
    optimizer = make([groups(p, binary.get(id(p), 1.0)) for p in net.parameters()])
    for x, target in batches:
        with protocol.running():
            optimizer.zero_grad()
            loss(net(x), target).backward()
        protocol.correct_gradients()
        optimizer.step()
    for layer in layers:  # the next step, or an evaluation, would begin with this
        layer.weight.data.copy_(prepare(layer.weight.data))
