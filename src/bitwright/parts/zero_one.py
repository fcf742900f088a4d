"""Weights that are on or off: the self-pruning nets."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightWarning, InputError
from bitwright.fn.fast import step
from bitwright.fn.noise import centered_noise
from bitwright.parts.options import check_number
from bitwright.parts.registry import part
from bitwright.parts.scale import weight_of
from bitwright.types import Coded, scalar

ADAPTIVE = (  # they add weight decay to the gradient, unless their group says decoupled
    torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax,
)  # fmt: skip
PUBLISHED = 0.001  # the notebook's share of weights that start on
POSSIBLE = "fan_in:C with C of at least 1, bernoulli:P with 0 < P <= 1, published, keep"


@part("zero_one", "w", "b")
class ZeroOne(nn.Module):
    """Weights {off, on}: a connection is there or it is not.

    value     on where w >= threshold, else off; in training on + c u with probability epsilon (the coin c), u uniform on
              (0, random_mag): ONE draw for all layers of the net and all forwards between two optimizer steps
    gradient  g, unchanged: straight through
    shape     any
    options   on, off: finite, off at most on; `part.on = 2.0` later changes what the layer computes, in evaluation too,
              and what `convert` packs. Equal values make a constant, the point 0 of a sweep.
              init: what `start` draws, each latent 0 or 1: "fan_in:C" is 1 with probability C / fan_in, so that each
              output begins with C connections; "bernoulli:P" is 1 with probability P; "published" is the notebook's
              Bernoulli(0.001), made for 4000 inputs; "keep" draws nothing
              decay: weight decay of the latents alone, `bw.param_groups` gives it a group: a step of AdamW takes
              lr * decay of each latent away. Without it the noise of gradients alone switches on more and more
              connections; what a consistent gradient holds stays on
    moments   start, by `bw.apply` and the constructor of a layer: where some weight is negative, the numbers are those of
              a float layer, not latents, and are replaced by new ones (a bias becomes 0); latents from elsewhere that were not
              clipped to [0, 1] need init="keep". after_step clips the latent to [0, 1] and counts the step. bind
              refuses an optimizer that would divide the decay by the size of gradients, and warns if the weight's group has
              another decay
    state     none, but with random_mag above 0 two integers, `stream` (torch's seed when the part was made) and `count`
              (optimizer steps): all layers made under one seed draw the same number, a resumed run goes on with it, and
              so do the processes of a parallel run, which train one net
    source    Agrawal, Karlupia 2019, arXiv 1909.00052, and its notebook
    differs   the notebook draws every start with probability 0.001, which leaves a narrow layer without connections; an
              expected fan-in below 1 is refused here (with "published", below 1/2: the notebook's first layer has 0.78).
              It has no decay
    errors    `InputError` for on below off, values that are not finite, a start with too few connections, and a decay that
              an optimizer like Adam would get

    >>> ZeroOne(on=2.0)(torch.tensor([0.7, 0.5, 0.1])).tolist()
    [2.0, 2.0, 0.0]
    """

    stream: Tensor
    count: Tensor
    bits = planes = storage_bits = 1
    projects = True  # after_step twice is after_step once
    fixed_range = True  # the latent's mean size says how many are on, not how large they are

    def __init__(
        self,
        on: float = 1.0,
        off: float = 0.0,
        threshold: float = 0.5,
        random_mag: float = 0.0,
        epsilon: float = 1.0,
        init: str = "fan_in:4",
        decay: float = 0.0,
        *,
        slot: str = "w",
    ) -> None:
        super().__init__()
        self.slot, self.init = slot, init
        self._on, self._off = self._levels(on, off)
        self.threshold = check_number("zero_one", "threshold", threshold, "above 0, at most 1", lambda v: 0 < v <= 1)
        self.random_mag = check_number(
            "zero_one", "random_mag", random_mag, "0 or more, and finite", lambda v: 0 <= v < math.inf
        )
        self.epsilon = check_number("zero_one", "epsilon", epsilon, "a probability, 0 to 1", lambda v: 0 <= v <= 1)
        share_of(init, 4)  # a wrong value is an error here
        self.latent_decay = check_number(
            "zero_one", "decay", decay, "0 or more, and finite", lambda v: 0 <= v < math.inf
        )
        self.noisy = self.random_mag > 0 and self.epsilon > 0
        if self.noisy:
            seed = torch.initial_seed()
            self.register_buffer("stream", torch.tensor((seed ^ (seed >> 31)) & 0x7FFFFFFF))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def for_layer(cls, layer: nn.Module, **options: Any) -> ZeroOne:
        new = cls(**options)
        weight = weight_of(layer)
        if weight is not None:
            new.to(weight.device)
            if new.slot == "w":
                check_start(new.init, weight)
        return new

    # -- on and off can be assigned at any time ---------------------------------------------------------------------
    @property
    def on(self) -> float:
        return self._on

    @on.setter
    def on(self, value: float) -> None:
        self._on, self._off = self._levels(value, self._off)

    @property
    def off(self) -> float:
        return self._off

    @off.setter
    def off(self, value: float) -> None:
        self._on, self._off = self._levels(self._on, value)

    def _levels(self, on: float, off: float) -> tuple[float, float]:
        on, off = (check_number("zero_one", key, v, "a finite number") for key, v in (("on", on), ("off", off)))
        if on < off:
            raise InputError(
                f"part zero_one: on={on} is below off={off}; the gradient passes unchanged, so a latent would move the "
                f"wrong way. Possible: on of at least {off}",
                code="option",
                given=str(on),
                possible=f"at least {off}",
            )
        spec = self.__dict__.get("spec")
        if spec is not None:  # what a saved recipe says
            spec.update({key: v for key, v, before in (("on", on, self._on), ("off", off, self._off)) if v != before})
        return on, off

    # -- the value ----------------------------------------------------------------------------------------------------
    def drawn(self, w: Tensor) -> Tensor:
        """The value of on: 0-d, of the dtype of w."""
        if not (self.training and self.noisy):
            return scalar(self.on, w)
        coin, size = centered_noise(self.stream, self.count, [2]) + 0.5
        return (self.on + (coin < self.epsilon) * size * self.random_mag).to(w.dtype)

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        return step(w, self.threshold, self.drawn(w), self.off)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        bit = (w.detach() >= self.threshold).to(torch.uint8)
        return Coded(bit[None], scalar(self.on - self.off, w)[None], scalar(self.off, w))

    def _halves(self) -> int | None:
        """2 off / (on - off) where that is whole: then the two values are whole numbers times (on - off) / 2."""
        gap = self.on - self.off
        if gap == 0:
            return 0 if self.off == 0 else None
        ratio = 2 * self.off / gap
        near = round(ratio) if abs(ratio) < 2**20 else 0
        return near if near == ratio else None

    def offers(self, moment: str) -> bool:
        return moment != "whole" or self._halves() is not None

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bit = (w.detach() >= self.threshold).to(w.dtype)
        halves = self._halves()
        assert halves is not None
        if halves % 2 == 0:
            return bit + halves // 2, scalar(self.on - self.off, w)
        return 2 * bit + halves, scalar((self.on - self.off) / 2, w)

    # -- the latent ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def start(self, weight: Tensor, keep: Tensor | None = None) -> None:
        """Draws the first latents where `weight` holds those of a float layer."""
        if self.init == "keep" or weight.device.type == "meta" or not weight.numel():
            return
        if not bool((weight < 0).any()):  # latents are never negative after a step
            return
        if self.slot == "b":
            weight.zero_()
        else:
            weight.copy_(torch.rand_like(weight, dtype=torch.float32) < share_of(self.init, fan_in(weight)))

    def bind(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        name, given = type(optimizer).__name__, group.get("weight_decay", 0)
        if not self.latent_decay:
            return
        if isinstance(optimizer, ADAPTIVE) and not group.get("decoupled_weight_decay"):
            raise InputError(
                f"part zero_one: decay={self.latent_decay:g} with {name}, which adds it to the gradient and divides by "
                "the gradient's size: connections would go off by the decay alone. Possible: AdamW, SGD, or decay=0",
                code="option",
                given=name,
                possible="AdamW, SGD, or decay=0",
            )
        if given != self.latent_decay:
            warnings.warn(
                f"part zero_one: decay={self.latent_decay:g}, but the optimizer's group of its weight has a weight decay of "
                f"{given}. bw.param_groups(model, lr, weight_decay) makes such a group",
                BitwrightWarning,
                stacklevel=2,
            )

    def succeed(self, old: ZeroOne) -> None:
        """Goes on with the draws of the part that sat here before."""
        if self.noisy and old.noisy:
            self.stream.copy_(old.stream)
            self.count.copy_(old.count - 1)  # `apply` projects once more: the layers it left alone stay in step

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        weight.clamp_(0, 1)
        if self.noisy:
            self.count.add_(1)


def fan_in(weight: Tensor) -> int:
    """Inputs of one output: weights of one filter."""
    return max(1, weight.numel() // max(1, weight.shape[0]))


def share_of(init: str, inputs: int) -> float:
    """Probability of a 1 where an output has `inputs` inputs; "keep" has none (0).

    >>> share_of("fan_in:4", 64), share_of("bernoulli:0.5", 64)
    (0.0625, 0.5)
    """
    if init == "keep":
        return 0.0
    name, _, number = init.partition(":")
    if init == "published":
        return PUBLISHED
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name == "fan_in" and 1 <= value < math.inf:
        return min(1.0, value / inputs)
    if name == "bernoulli" and 0 < value <= 1:
        return value
    raise InputError(
        f"part zero_one: init={init!r}; possible: {POSSIBLE}", code="option", given=init, possible=POSSIBLE
    )


def check_start(init: str, weight: Tensor) -> None:
    """`InputError` where a start would leave most outputs without a connection."""
    inputs = fan_in(weight)
    expected = inputs * share_of(init, inputs)
    if init != "keep" and expected < (0.5 if init == "published" else 1):
        raise InputError(
            f"part zero_one: init={init!r} lets an output of {inputs} inputs start with {expected:.2g} connections on "
            'average: most would have none, and the layer would be dead. Choose init="fan_in:4" (four of them)',
            code="zero-one-dead",
            given=init,
            possible=POSSIBLE,
            remedy='init = "fan_in:4"',
        )
