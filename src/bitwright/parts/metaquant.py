"""MetaQuant: the gradient through the quantizer is learned by a small net, while training."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.fn.coded import sign_code
from bitwright.fn.ste import sign, ste
from bitwright.parts.bits import check_bits
from bitwright.parts.dorefa import DorefaW
from bitwright.parts.from_file import ShapesFromFile
from bitwright.parts.meta_net import INITS, NETS, MetaNet, State
from bitwright.parts.options import check_number, check_word
from bitwright.parts.registry import part
from bitwright.parts.remembered import Remembered
from bitwright.parts.scale import mean_abs, wide
from bitwright.types import Coded, scalar

# the nets that parts share: one per optimizer and kind of net
_SHARED: weakref.WeakKeyDictionary[torch.optim.Optimizer, dict[Any, MetaNet]] = weakref.WeakKeyDictionary()
STATES = ("g", "mean", "square", "h", "c")  # of each weight; empty until training fills them


@dataclass
class Shift:
    """Where a step of training stands between its first forward and `after_step`.

    base, to   the latent as stored, and where this step evaluates it
    rate       of the move;   slope   d(weight before the quantizer) / d(latent) at base
    """

    base: Tensor
    to: Tensor
    rate: float = 0.0
    slope: Tensor | None = None
    mean: Tensor | None = None
    square: Tensor | None = None
    steps: int = 0
    state: State = None


@part("metaquant", "w")
class MetaQuant(ShapesFromFile):
    """Binary or k-bit weights whose gradient through the quantizer is learned by a small net.

    value     Q(t), t = A(w).  dorefa: t = tanh(w) / (2 m) + 1/2, m = max|tanh(w)| of the layer; Q = 2 q_k(t) - 1, q_k as in
              dorefa_w (k = 1: sign(w), without a scale).  bwn: t = w, Q = a sign(w), a = mean|w| of the layer or filter
    gradient  without an optimizer, and in evaluation: straight through, g A' 1[|t| <= 1];  A' = (1 - tanh(w)^2) / m or 1.
              Behind `bw.attach`: w.grad is g, the gradient of the loss in Q(t), and what moves w is another one:
                  forward of step n   w_n = w_(n-1) - lr pi(M(g_(n-1), t_(n-1)) A'),  the loss is that of Q(A(w_n))
                  after the step      the latent becomes w_n, M has learned from g_n, g_n is kept. The first step keeps g alone
              M, one net for all layers of an optimizer (`parts/meta_net.py`), learns by Adam at `meta_lr` from
              dLoss/dM = -lr A' g_n A'(w_n) 1[|t_n| <= 1]: the straight-through estimator trains the net that replaces it
    shape     any
    options   net: fc_grad, multi_fc, lstm_fc (the published three), mlp (with tanh, biases, and both inputs).
              refine: pi is that of "sgd" (with the momentum of the optimizer's group) or of "adam" (with its betas); None: the
              one of the optimizer. What the optimizer itself does to the latent is undone. lr: None, the optimizer's, with its
              schedule. init: "ste" begins as the straight-through estimator, "random" as published. gate: M(g, t) 1[|t| <= 1].
              hidden: units of the net; None: 100, of mlp 16
    state     g; what pi keeps, of Adam 8 bytes a weight, which goes on where another optimizer of its kind takes over; for
              lstm_fc 4 bytes a unit of each weight, so 400: give `hidden` for a large net. Evaluation and packing read none of it
    several   forwards between two steps add up (accumulated gradients, a layer that is used twice), as w.grad does
    source    Chen et al. 2019, NeurIPS, MetaQuant: Learning to Quantize by Learning to Penetrate Non-differentiable Quantization
    differs   the public code's forward is one old step ahead of the weight that it then stores; here they are the same. It takes
              BatchNorms and biases through the custom optimizer, here they are the optimizer's own. sign(0) = +1
    errors    `InputError`: an optimizer that is neither SGD nor Adam, without `refine`; one weight in two layers

    >>> MetaQuant()(torch.tensor([0.3, -2.0])).tolist(), MetaQuant("bwn")(torch.tensor([[1.0, -3.0]])).tolist()
    ([1.0, -1.0], [[2.0, -2.0]])
    """

    g: Tensor
    mean: Tensor
    square: Tensor
    h: Tensor
    c: Tensor
    count: Tensor
    steps: Tensor
    meta: MetaNet
    grown = STATES
    bits_range = "1-8"

    def __init__(
        self,
        quantizer: str = "dorefa",
        net: str = "fc_grad",
        refine: str | None = None,
        lr: float | None = None,
        init: str = "ste",
        bits: int = 1,
        granularity: str = "layer",
        hidden: int | None = None,
        meta_lr: float = 1e-3,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.quantizer = check_word("metaquant", "quantizer", quantizer, ("dorefa", "bwn"))
        self.bits = self.planes = self.storage_bits = check_bits("metaquant", bits)
        self.granularity = check_word("metaquant", "granularity", granularity, ("layer", "filter"))
        if quantizer == "bwn" and bits != 1:
            raise InputError(f"part metaquant: quantizer bwn has 1 bit, bits={bits}; use dorefa", code="bits")
        if quantizer == "dorefa" and granularity != "layer":
            raise InputError(
                "part metaquant: dorefa reads the whole layer; granularity=filter is for bwn", code="option"
            )
        self.refine = None if refine is None else check_word("metaquant", "refine", refine, ("sgd", "adam"))
        self.lr = None if lr is None else check_number("metaquant", "lr", lr, "0 or more", lambda v: v >= 0)
        check_number("metaquant", "meta_lr", meta_lr, "0 or more", lambda v: v >= 0)
        units = (16 if net == "mlp" else 100) if hidden is None else hidden
        check_number("metaquant", "hidden", units, "a whole number from 1", lambda v: v >= 1 and v == int(v))
        self.gate = gate
        self.grid = DorefaW(bits)
        self.meta = MetaNet(
            check_word("metaquant", "net", net, NETS), int(units), check_word("metaquant", "init", init, INITS), meta_lr
        )
        for name in STATES:
            kind = torch.bfloat16 if name in ("h", "c") else torch.float32
            self.register_buffer(name, torch.zeros(0, dtype=kind))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # steps that left a gradient
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of Adam
        self.bound = Remembered[tuple[Any, int]]()
        self.move = Remembered[Shift]()

    # -- the quantizer --------------------------------------------------------------------------------------------------
    @property
    def scaled(self) -> bool:
        return self.quantizer == "bwn"

    def value(self, w: Tensor, keep: Tensor | None) -> Tensor:
        """Q(A(w)), without a graph."""
        if self.scaled:
            return mean_abs(w, self.granularity, keep) * sign(w)
        return sign(w) if self.bits == 1 else self.grid(w, keep)

    def before(self, w: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """(t, dt/dw) in the paper's scale: the slope of t is that of Q's range, [-1, 1]."""
        if self.scaled:
            return w, torch.ones_like(w)
        place, slope, _ = self.grid.unit(w, keep)
        return place, slope

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        group = self.settings()
        if group is None or not self.training:
            fixed = w.detach()
            place, slope = self.before(fixed, keep)
            return ste(w, self.value(fixed, keep), slope * (place.abs() <= 1))
        shifted: Any = self.shifted
        # it reads the optimizer, and keeps what it finds: a compiler runs it as it is
        if torch.compiler.is_compiling():
            shifted = torch.compiler.disable(shifted)
        return ste(w, self.value(shifted(w, keep, group), keep))

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        if self.scaled:
            return sign_code(w, mean_abs(w.detach(), self.granularity, keep))
        return sign_code(w, scalar(1.0, w)) if self.bits == 1 else self.grid.encode(w, keep)

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.scaled:
            return sign(w.detach()), mean_abs(w.detach(), self.granularity, keep)
        return (sign(w.detach()), scalar(1.0, w)) if self.bits == 1 else self.grid.whole(w, keep)

    # -- the optimizer --------------------------------------------------------------------------------------------------
    def bind(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        if self.refine is None and not isinstance(optimizer, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)):
            name = type(optimizer).__name__
            raise InputError(
                f"part metaquant: moves a weight as SGD or Adam would, and {name} is neither; say which: "
                'refine="sgd" or refine="adam"',
                code="option",
                given=name,
                possible="sgd, adam",
            )
        index = next(i for i, each in enumerate(optimizer.param_groups) if each is group)
        self.bound.value = (weakref.ref(optimizer), index)
        self.move.value = None
        shared = _SHARED.setdefault(optimizer, {})
        self.meta = shared.setdefault(self.meta.key, self.meta)

    def release(self, optimizer: torch.optim.Optimizer) -> None:
        """Its steps are followed no longer: straight through from now on."""
        if self.bound.value is not None and self.bound.value[0]() is optimizer:
            self.bound.value = self.move.value = None

    def settings(self) -> dict[str, Any] | None:
        """The parameter group of the weight, as it is now; None where no optimizer is attached."""
        if self.bound.value is None:
            return None
        optimizer = self.bound.value[0]()  # looked up each time: loading its state replaces the groups
        return None if optimizer is None else optimizer.param_groups[self.bound.value[1]]

    @torch.no_grad()
    def shifted(self, w: Tensor, keep: Tensor | None, group: dict[str, Any]) -> Tensor:
        """Where this step evaluates the latent; the same for every forward until the optimizer steps."""
        self.meta.claim(w, self)
        w = w.detach()
        move = self.move.value
        if move is None or not torch.equal(move.base, w):
            self.meta.step()
            move = Shift(w.clone(), w.clone()) if not self.count else self.moved(w, keep, group)
            self.move.value = move
        return move.to

    def moved(self, w: Tensor, keep: Tensor | None, group: dict[str, Any]) -> Shift:
        """The latent one step on, by what the net makes of the gradient that the last step left."""
        place, slope = self.before(w, keep)
        learned, state = self.meta.gradient(self.g, place, self.state(w))
        slope = slope * (place.abs() <= 1) if self.gate else slope
        move = Shift(w.clone(), w, float(group["lr"] if self.lr is None else self.lr), slope, state=state)
        direction, decay = wide(learned * slope), float(group.get("weight_decay", 0.0))
        apart = bool(group.get("decoupled_weight_decay", False))
        if decay and not apart:
            direction = direction + decay * w
        if self.refine == "adam" or (self.refine is None and "betas" in group):
            direction = self.adam(direction, move, group)
        elif group.get("momentum"):
            begun, momentum = self.mean.numel() and not self.square.numel(), float(group["momentum"])
            move.mean = average = (self.mean if begun else torch.zeros_like(direction)) * momentum + direction
            move.square = self.square.new_empty(0)
            direction = direction + momentum * average if group.get("nesterov") else average
        kept = w * (1 - move.rate * decay) if decay and apart else w
        move.to = (kept - move.rate * direction).to(w.dtype)
        return move

    def adam(self, gradient: Tensor, move: Shift, group: dict[str, Any]) -> Tensor:
        """The direction of Adam; its averages wait in `move` until the step is made."""
        (one, two), eps = group.get("betas", (0.9, 0.999)), group.get("eps", 1e-8)
        begun = self.square.numel()  # else they are none of Adam's
        mean = self.mean.to(gradient.dtype) if begun else torch.zeros_like(gradient)
        square = self.square.to(gradient.dtype) if begun else torch.zeros_like(gradient)
        move.mean, move.square = mean.lerp(gradient, 1 - one), square * two + (1 - two) * gradient.square()
        move.steps = steps = int(self.steps) + 1 if begun else 1
        return (move.mean / (1 - one**steps)) / ((move.square / (1 - two**steps)).sqrt() + eps)

    def state(self, w: Tensor) -> State:
        """(h, c) of each weight, zeros before the first step."""
        if self.meta.kind != "lstm_fc":
            return None
        if not self.h.numel():
            shape = (w.numel(), self.meta.hidden)
            self.h, self.c = (torch.zeros(shape, dtype=torch.bfloat16, device=w.device) for _ in "hc")
        return self.h, self.c

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        """The latent becomes what the forward computed with, whatever the optimizer made of it."""
        move, g = self.move.value, weight.grad
        self.move.value = None
        if move is None or g is None:
            return
        if move.slope is not None:
            place, slope = self.before(move.to, keep)
            pull = g * slope * (place.abs() <= 1)  # dLoss/dw_n, straight through
            self.meta.collect(
                -move.rate * pull * move.slope, self.g, self.before(move.base, keep)[0], self.state(weight)
            )
            if move.mean is not None:
                self.mean = move.mean
            if move.square is not None:
                self.square = move.square
            self.steps.fill_(move.steps)
            if move.state is not None:
                self.h, self.c = move.state
        weight.copy_(move.to)
        self.g = g.clone()
        self.count += 1
