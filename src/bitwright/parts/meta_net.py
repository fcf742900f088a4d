"""The small nets of MetaQuant: what they make of the gradient of each weight, and how they learn it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.parts.remembered import Remembered

State: TypeAlias = "tuple[Tensor, Tensor] | None"  # (h, c) of an LSTM, each [weights, hidden]

FLOATS = 2**22  # kept at most for the backward pass of one piece of the work, so that memory does not grow with the net
LONGEST = 2**18  # weights in a piece
NETS = ("fc_grad", "multi_fc", "lstm_fc", "mlp")
INITS = ("ste", "random")


class MetaNet(nn.Module):
    """M(g, t): the gradient of a weight before its quantizer, from g, the gradient after it, and t, the weight there.

    value     fc_grad   g (u.v)                              a number that all weights share
              multi_fc  g (e + (u.v) t)                      e = 1 with init="ste", 0 as published
              lstm_fc   g (v.h + b), h, c = LSTM(t, h, c)    every weight has its own h and c
              mlp       (u.v) (g + r (o.tanh(I [g / r, t] + a) + b)), r the root mean square of g over the layer
              The published fc_grad and multi_fc are chains of matrices without activations, so that their product is one
              number: it is what is computed, while u and v are what learns
    init      "ste": M(g, t) = g exactly. "random": as torch starts Linear and LSTM; the same for all nets of one seed
    learns    by Adam (betas 0.9, 0.999) at the rate `lr`: `collect` adds the gradient of one layer, `step` makes the step.
              All of it is in buffers, so that no optimizer of the user moves it and a checkpoint holds it

    >>> net = MetaNet("mlp", hidden=4)
    >>> g = torch.tensor([0.5, -2.0])
    >>> net.gradient(g, torch.zeros(2))[0].equal(g)
    True
    """

    phi: Tensor
    slope: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor
    waiting: Tensor

    def __init__(self, kind: str, hidden: int = 100, init: str = "ste", lr: float = 1e-3) -> None:
        super().__init__()
        self.kind, self.hidden, self.init, self.lr = kind, hidden, init, lr
        self.key = (kind, hidden, init, lr)
        self.shapes = _shapes(kind, hidden)
        floats = {"fc_grad": 1, "multi_fc": 1, "lstm_fc": 10 * hidden, "mlp": 3 * hidden}[kind]
        self.rows = min(LONGEST, max(1, FLOATS // floats))
        self.register_buffer("phi", _start(kind, hidden, init))
        for name in ("slope", "mean", "square"):  # the gradient of phi, and what Adam keeps of it
            self.register_buffer(name, torch.zeros_like(self.phi))
        self.owners = Remembered[dict[int, Any]]()  # which part moves a weight, by its id
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("waiting", torch.zeros((), dtype=torch.int64))  # 1: `slope` holds layers of the last step

    def claim(self, w: Tensor, part: nn.Module) -> None:
        """Errors: `InputError` where another part moves this weight already: one of the two would miss its steps."""
        if not isinstance(w, nn.Parameter):
            return
        owners = self.owners.value = self.owners.value or {}
        owner = owners.get(id(w))
        if owner is not None and owner() not in (None, part):
            raise InputError(
                "part metaquant: one weight in two layers, and each would keep a gradient of its own. Possible: one layer that is "
                "used twice, two weights, or another part",
                code="weight-shared",
                possible="one layer that is used twice, two weights, or another part",
            )
        owners[id(w)] = weakref.ref(part)

    def run(self, phi: Tensor, g: Tensor, t: Tensor, size: Tensor, state: State = None) -> tuple[Tensor, State]:
        """(M(g, t), the next state) of weights in a row, differentiable in `phi`; size: r of the docstring."""
        p = dict(zip(self.shapes, phi.split([math.prod(s) for s in self.shapes.values()]), strict=True))
        p = {name: p[name].reshape(shape) for name, shape in self.shapes.items()}
        if self.kind == "lstm_fc":
            assert state is not None
            after = torch.lstm_cell(t[:, None], state, p["wx"], p["wh"], p["bx"], p["bh"])
            return g * (after[0] @ p["v"] + p["b"]), after
        scale = torch.dot(p["u"], p["v"])
        if self.kind == "fc_grad":
            return g * scale, None
        if self.kind == "multi_fc":
            return g * (float(self.init == "ste") + scale * t), None
        hidden = F.linear(torch.stack([g / size, t], 1), p["i"], p["a"]).tanh()
        return scale * (g + size * (hidden @ p["o"] + p["b"])), None

    def _pieces(self, g: Tensor, t: Tensor, state: State) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, State]]:
        """The weights of a layer, some at a time, in the type of phi."""
        g, t = g.reshape(-1).to(self.phi.dtype), t.reshape(-1).to(self.phi.dtype)
        size = g.square().mean().sqrt() if g.numel() else g.new_ones(())
        size = torch.where(size > 0, size, torch.ones_like(size))
        for start in range(0, len(g), self.rows):
            piece = slice(start, start + self.rows)
            own = None if state is None else (state[0][piece].to(g.dtype), state[1][piece].to(g.dtype))
            yield piece, g[piece], t[piece], size, own

    @torch.no_grad()
    def gradient(self, g: Tensor, t: Tensor, state: State = None) -> tuple[Tensor, State]:
        """(M(g, t) in the shape and type of g, the next state in the type of the given one)."""
        found, after = torch.empty_like(g, memory_format=torch.contiguous_format), state
        if state is not None:
            after = (torch.empty_like(state[0]), torch.empty_like(state[1]))
        for piece, part, place, size, own in self._pieces(g, t, state):
            value, new = self.run(self.phi, part, place, size, own)
            found.view(-1)[piece] = value.to(g.dtype)
            if after is not None and new is not None:
                after[0][piece], after[1][piece] = new[0].to(after[0].dtype), new[1].to(after[1].dtype)
        return found, after

    @torch.no_grad()
    def collect(self, weight: Tensor, g: Tensor, t: Tensor, state: State = None) -> None:
        """Adds the gradient of sum(weight * M(g, t)) in phi, piece by piece: the graph of one piece is there at a time."""
        flat = weight.reshape(-1).to(self.phi.dtype)
        with torch.enable_grad():
            phi = self.phi.detach().requires_grad_()
            for piece, part, place, size, own in self._pieces(g, t, state):
                value, _ = self.run(phi, part, place, size, own)
                (slope,) = torch.autograd.grad((value * flat[piece]).sum(), phi)
                self.slope += slope
        self.waiting.fill_(1)

    @torch.no_grad()
    def step(self) -> None:
        """One step of Adam, if a gradient waits."""
        if not self.waiting:
            return
        self.count += 1
        self.mean.lerp_(self.slope, 0.1)
        self.square.mul_(0.999).addcmul_(self.slope, self.slope, value=0.001)
        steps = int(self.count)
        size = (self.square / (1 - 0.999**steps)).sqrt() + 1e-8
        self.phi -= self.lr * (self.mean / (1 - 0.9**steps)) / size
        self.slope.zero_()
        self.waiting.zero_()


def _shapes(kind: str, hidden: int) -> dict[str, tuple[int, ...]]:
    """What phi holds, in order."""
    pair: dict[str, tuple[int, ...]] = {"u": (hidden,), "v": (hidden,)}
    gates = 4 * hidden
    return {
        "fc_grad": pair,
        "multi_fc": pair,
        "lstm_fc": {"wx": (gates, 1), "wh": (gates, hidden), "bx": (gates,), "bh": (gates,), "v": (hidden,), "b": ()},
        "mlp": {**pair, "i": (hidden, 2), "a": (hidden,), "o": (hidden,), "b": ()},
    }[kind]


def _start(kind: str, hidden: int, init: str) -> Tensor:
    """The first phi: torch's draws for such layers, and for "ste" what makes M(g, t) = g of them."""
    draws = torch.Generator().manual_seed(torch.initial_seed() & 0x7FFFFFFF)  # of its own: other draws stay as they are
    fan_in = {"u": 1, "i": 2, "a": 2}  # all others read the hidden units
    pieces: dict[str, Tensor] = {}
    for name, shape in _shapes(kind, hidden).items():
        pieces[name] = (torch.rand(shape, generator=draws) * 2 - 1) / math.sqrt(fan_in.get(name, hidden))
    if init == "ste":
        one, ones, zeros = torch.ones(()), torch.ones(hidden), torch.zeros(hidden)
        pieces |= {
            "fc_grad": {"u": _shares(hidden), "v": ones},
            "multi_fc": {"u": ones, "v": zeros},
            "lstm_fc": {"v": zeros, "b": one},
            "mlp": {"u": _shares(hidden), "v": ones, "o": zeros, "b": 0 * one},
        }[kind]
    return torch.cat([piece.reshape(-1) for piece in pieces.values()])


def _shares(count: int) -> Tensor:
    """`count` numbers near 1 / count whose sum is 1 without rounding: all are multiples of 2^-16."""
    whole = torch.full((count,), 2**16 // count)
    whole[: 2**16 % count] += 1
    return whole / 2**16
