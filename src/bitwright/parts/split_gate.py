"""What channel gating and precision gating share: a cheap partial sum decides where the rest is added."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.fast import GatedSum, moments, takes_gate
from bitwright.fn.gate import add_where_on, gate, halves
from bitwright.fn.ste import ste
from bitwright.fn.whole import HALF, whole_op
from bitwright.parts.gate_call import GateCall
from bitwright.parts.gate_norm import FreeNorm, FullPrecision, autocast_off, channels_first
from bitwright.parts.options import check_number, check_word
from bitwright.parts.scale import wide, width_of
from bitwright.types import Site, Spent


class Watched(nn.Module):
    """A part whose decisions others look at; a copy of it starts unwatched, and on its own."""

    watchers: tuple[Callable[[Any, Tensor], None], ...]

    def __getstate__(self) -> dict[str, Any]:
        alone = {"watchers": (), "governed": False}
        return {key: alone.get(key, value) for key, value in self.__dict__.items()}


def channels_to_gate(name: str, layer: nn.Module) -> tuple[int, int, Tensor]:
    """(input channels, output channels, a parameter) of the layer that part `name` is to gate."""
    inputs = width_of(layer)
    outputs = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
    like = next(layer.parameters(), None)
    if inputs is None or outputs is None or like is None:
        kind = type(layer).__name__
        raise InputError(
            f"part {name}: {kind} has no channels to gate; a linear or convolution layer has",
            code="gate-layer",
            given=kind,
            possible="Linear, Conv1d, Conv2d, Conv3d, ConvTranspose2d",
        )
    return int(inputs), int(outputs), like


class SplitGate(Watched, FullPrecision):
    """y = base + on rest, on = 1 where z > threshold: z the base, as it is ("raw") or normalized per channel.

    A subclass splits the operator into base and rest (`split`) and prices them (`spent`). The decision is made in
    float32 whatever the type of the layer, and thresholds stay float32 in a half-precision net. In evaluation, inputs
    that are whole numbers times one unit are summed as whole numbers, and so are such weights; units and bias come
    after the sum, the base's for the decision and once more that of the whole sum where on: y = fl(fl(I scale) + b) for
    whole numbers I. So nothing depends on the order in which a machine adds.
    The test is one-sided: what is left out matters little where a ReLU cuts negative sums off anyway (`bw.plan` notes
    layers without one). Two other tests are not offered, because no published net uses them and so nothing could tell
    whether ours are right: |z| > threshold in front of an odd function that saturates, |z| <= threshold (more only while
    undecided) in front of a sign.

    watchers   called in forward with (part, on): how counting (`bw.count_macs`) and budgets look on. Not state
    """

    outputs: int
    last: bool
    one_sided = True
    needs_code = True
    threshold: nn.Parameter
    norm: FreeNorm | None
    size: Tensor | None  # raw units: running standard deviation of the base, what a step of a threshold is measured in

    def __init__(
        self,
        name: str,
        *,
        init: float,
        target: float,
        weight: float,
        slope: float,
        unit: str,
        sparse_backprop: bool,
    ) -> None:
        super().__init__()
        self.unit = check_word(name, "unit", unit, ("raw", "normalized"))
        self.init = check_number(name, "init", init, takes=lambda v: True)  # infinite: every gate shut, or open
        self.target = check_number(name, "target", target)
        self.weight = check_number(name, "weight", weight, "0 or more", lambda v: 0 <= v < math.inf)
        self.slope = check_number(name, "slope", slope, "above 0", lambda v: 0 < v < math.inf)
        self.sparse = sparse_backprop
        self.watchers = ()
        self.governed = False  # a budget moves the thresholds: no pull to the target

    def fit(self, name: str, layer: nn.Module) -> None:
        """Sizes of the layer: one threshold per output channel."""
        _, self.outputs, like = channels_to_gate(name, layer)
        self.last = isinstance(layer, nn.Linear)
        self.threshold = nn.Parameter(torch.full((self.outputs,), self.init))
        self.norm = FreeNorm(self.outputs, self.last) if self.unit == "normalized" else None
        self.register_buffer("size", torch.ones(()) if self.norm is None else None)
        self.to(like.device)

    def succeed(self, old: SplitGate) -> None:
        """The same part with other options; it keeps its thresholds and statistics."""
        if old.threshold.shape == self.threshold.shape:
            self.threshold = nn.Parameter(old.threshold.detach().clone(), self.threshold.requires_grad)
        if self.norm is not None and old.norm is not None:
            self.norm = old.norm

    # -- what a subclass says -----------------------------------------------------------------------------------------
    def spent(self, site: Site, fires: Tensor, active: Tensor | None) -> Spent:
        """Work for a call: `fires` int64 [N, O] outputs with the rest, `active` inputs that can be non-zero."""
        raise NotImplementedError

    def split(self, op: Callable[..., Tensor], x: Any, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """(base, rest): their sum is the full result."""
        raise NotImplementedError

    def sums(
        self,
        op: GateCall,
        x: Callable[[], Any],
        w: Tensor,
        b: Tensor | None,
        code: tuple[Any, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(base, rest) of `split`: in training from x(); in evaluation from the whole numbers of `code` if it has one unit,
        with the gradient of training where one is wanted. Third, where the weight is whole numbers too, what the output is
        where on: the whole sum of both, scaled once; None: base + rest."""
        if self.training or code is None or code[1].numel() != 1:
            return *self.split(op, x(), w, b), None
        numbers, unit = code
        axes = [1] * (w.dim() - 2)  # channels are the last axis of Linear, the one before space of Conv
        full = None
        with torch.no_grad():
            kind = wide(w).dtype
            bias = None if b is None else b.to(kind).reshape(-1, *axes)
            if op.w_code is not None and op.w_code[1].numel() in (1, self.outputs):
                products, operand = whole_op(op, op.w_code[0], round_once=False), op.from_slot(op.w_code[0])
                size = (op.w_code[1].double() * unit.double()).to(kind).reshape(-1, *axes)
                base, rest = self.split(products, numbers, operand, None)
                full = (base + rest).to(kind) * size
                full = full if bias is None else full + bias
            else:
                size = unit.to(kind)
                base, rest = self.split(op.op, numbers, w, None)
            base, rest = base.to(kind) * size, rest.to(kind) * size
            base = base if bias is None else base + bias
        if torch.is_grad_enabled():
            slopes = self.split(op, x(), w, b)
            base, rest = (s + (v - s).detach() for s, v in zip(slopes, (base, rest), strict=True))
        return base, rest, full

    def joined(
        self, base: Tensor, rest: Tensor | None, full: Tensor | None, like: Tensor, asks: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(output, on), the output in the type of half-precision layers; base, rest, full as `sums` says. Without `rest`, base
        holds both as `halves` says. In training on may be None unless the caller asks for it."""
        one = base.numel() == self.outputs * (1 if rest is not None else 2)  # a value per channel has no variance
        alone = self.norm is None or not (self.norm.shares() or one)
        if self.training and alone and takes_gate(base, rest, self.threshold):
            y, on = self._joined_natively(base, rest, asks or bool(self.watchers))
        else:
            base, rest = halves(base) if rest is None else (base, rest)
            on = self.decide(base)
            y = add_where_on(base, on, rest)
            if full is not None:  # rounded once, as a machine gives it that adds whole numbers only
                y = ste(y, torch.where(on > 0, full, base))
        return (y.to(like.dtype) if like.dtype in HALF else y), on

    def _joined_natively(self, base: Tensor, rest: Tensor | None, asks: bool) -> tuple[Tensor, Tensor | None]:
        """The same in one native pass, and one more for the statistics of the batch."""
        rates = None
        with torch.no_grad():
            count, mean, square = moments(base, rest, self.last)
            if self.norm is not None:
                var = (square - mean.square()).clamp_min(0)
                self.norm.learn(count, mean, var)
                rates = mean.float(), torch.rsqrt(var + self.norm.eps).float(), self.norm.eps
            elif self.size is not None and base.numel() > 1:
                self._measure((square.mean() - mean.mean().square()).clamp_min(0).sqrt())
        made = GatedSum.apply(base, rest, self.threshold, rates, self.slope, self.sparse, self.last, asks)
        y, on = made if asks else (made, None)
        for watcher in self.watchers:
            assert on is not None
            watcher(self, on)
        return y, on

    def _measure(self, now: Tensor) -> None:
        assert self.size is not None
        now = now.to(self.size.dtype)
        self.size.lerp_(torch.where(now.isfinite(), now, self.size), 0.1)

    # -- the decision -------------------------------------------------------------------------------------------------
    def distance(self, base: Tensor) -> Tensor:
        """z - threshold: positive is on."""
        z = wide(base) if self.norm is None else self.norm(base)
        if self.size is not None and self.training and base.numel() > 1:
            with torch.no_grad():
                self._measure(z.std(correction=0))
        threshold = self.threshold if self.last else self.threshold.reshape(-1, *[1] * (base.dim() - 2))
        return z - threshold

    def decide(self, base: Tensor) -> Tensor:
        with autocast_off(base):
            on = gate(self.distance(base), self.slope, self.sparse)
        for watcher in self.watchers:
            watcher(self, on)
        return on.to(base.dtype)

    def deviation(self) -> Tensor | float:
        """One standard deviation of the base in the unit of the thresholds."""
        return 1.0 if self.size is None else self.size

    def fires(self, on: Tensor) -> Tensor:
        """How many outputs of each channel are on, int64 [N, O]."""
        return (channels_first(on.detach(), self.last) > 0).sum(2)


def spent_of(macs: Tensor, bops: Tensor, overhead: Tensor | None, comparisons: int) -> Spent:
    """Whole numbers from exact float64 sums."""
    extra = torch.zeros_like(macs) if overhead is None else overhead
    many = torch.full_like(macs, float(comparisons))
    return Spent(macs.long(), bops.long(), extra.long(), many.long())
