"""MetaQuant as its paper writes it: one graph from the meta net to the loss, matrices as they are, torch's own Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[[list[Tensor]], Tensor]  # the loss of quantized weights


def through(value: Tensor, soft: Tensor) -> Tensor:
    """Value of `value`, gradient of `soft`."""
    return soft + (value - soft).detach()


def before(w: Tensor, quantizer: str) -> Tensor:
    """t = A(w); its slope with the factor 2 that Q's range, [-1, 1], brings along is `slope`."""
    if quantizer == "bwn":
        return w
    t = torch.tanh(w)
    return t / (2 * t.abs().max().detach()) + 0.5


def slope(w: Tensor, quantizer: str) -> Tensor:
    t = torch.tanh(w)
    return torch.ones_like(w) if quantizer == "bwn" else (1 - t * t) / t.abs().max()


def quantized(w: Tensor, quantizer: str, bits: int) -> Tensor:
    """Q(A(w)) with the straight-through gradient inside |t| <= 1."""
    t = before(w, quantizer)
    inside = (t.detach().abs() <= 1).to(w.dtype)
    if quantizer == "bwn":
        hard = w.detach().abs().mean() * torch.where(w >= 0, 1.0, -1.0)
        return through(hard, w * inside)
    top = 2**bits - 1
    hard = torch.where(w >= 0, 1.0, -1.0) if bits == 1 else 2 * (t * top).round() / top - 1
    return through(hard, 2 * t * inside)


class Learner:
    """All layers of a net, their shared meta net, and one optimizer refinement."""

    def __init__(
        self, weights: list[Tensor], net: str, shapes: dict[str, tuple[int, ...]], phi: Tensor, *, lr: float, refine: str,
        quantizer: str = "dorefa", bits: int = 1, skip: bool = True, momentum: float = 0.0, meta_lr: float = 1e-3,
    ) -> None:  # fmt: skip
        self.weights, self.net, self.quantizer, self.bits = [w.clone() for w in weights], net, quantizer, bits
        self.lr, self.refine, self.skip, self.momentum = lr, refine, skip, momentum
        self.phi: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            size = torch.Size(shape).numel()
            self.phi[name], phi = phi[:size].reshape(shape).clone().requires_grad_(), phi[size:]
        self.adam = torch.optim.Adam(self.phi.values(), meta_lr)
        self.gradients: list[Tensor] | None = None
        self.averages: list[Any] = [None] * len(weights)
        self.cells: list[Any] = [None] * len(weights)
        self.steps = 0

    def learned(self, i: int, g: Tensor, t: Tensor) -> tuple[Tensor, Any]:
        p, n = self.phi, g.numel()
        column, place = g.reshape(n, 1), t.reshape(n, 1)
        if self.net == "fc_grad":
            return (column @ p["u"][None] @ p["v"][:, None]).reshape(g.shape), None
        if self.net == "multi_fc":
            factor = place @ p["u"][None] @ p["v"][:, None]
            return g * (float(self.skip) + factor.reshape(g.shape)), None
        if self.net == "lstm_fc":
            units = p["v"].numel()
            h, c = self.cells[i] or (g.new_zeros(n, units),) * 2
            gates = place @ p["wx"].T + p["bx"] + h @ p["wh"].T + p["bh"]
            a, f, s, o = gates.split(units, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(a) * torch.tanh(s)
            h = torch.sigmoid(o) * torch.tanh(c)
            kept = tuple(x.detach().to(torch.bfloat16).to(g.dtype) for x in (h, c))
            return g * (h @ p["v"] + p["b"]).reshape(g.shape), kept
        size = g.square().mean().sqrt()
        hidden = torch.tanh(torch.cat([column / size, place], 1) @ p["i"].T + p["a"])
        inner = g + size * (hidden @ p["o"] + p["b"]).reshape(g.shape)
        return inner * (p["u"] @ p["v"]), None

    def direction(self, i: int, g: Tensor) -> Tensor:
        """What the optimizer makes of a gradient, a constant."""
        if self.refine == "sgd":
            self.averages[i] = g if self.averages[i] is None else self.momentum * self.averages[i] + g
            return self.averages[i]
        m, v = self.averages[i] or (torch.zeros_like(g), torch.zeros_like(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        self.averages[i] = m, v
        return (m / (1 - 0.9**self.steps)) / ((v / (1 - 0.999**self.steps)).sqrt() + 1e-8)

    def step(self, run: Run) -> tuple[float, list[Tensor]]:
        """(loss, the weights that it was taken at)."""
        at = [w.clone().requires_grad_() for w in self.weights]
        if self.gradients is not None:
            at = []
            for i, (w, g) in enumerate(zip(self.weights, self.gradients, strict=True)):
                value, cell = self.learned(i, g, before(w, self.quantizer))
                gradient = value * slope(w, self.quantizer)
                self.cells[i] = cell
                fixed = self.direction(i, gradient.detach())
                at.append(w - self.lr * (gradient + (fixed - gradient).detach()))
        codes = [quantized(w, self.quantizer, self.bits) for w in at]
        for code in codes:
            code.retain_grad()
        loss = run(codes)
        self.adam.zero_grad()
        loss.backward()
        if self.gradients is not None:
            self.adam.step()
        self.gradients = [code.grad.clone() for code in codes if code.grad is not None]
        self.weights = [w.detach() for w in at]
        self.steps += 1
        return loss.item(), self.weights
