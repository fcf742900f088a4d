"""What can bits do for a slot layer? Its packing, or the reason why there is none.

From `Coded` to integers: which whole numbers a weight takes, and what one unit is worth per channel; an input part as levels,
multiplier, zero and thresholds, read off `encode` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.engine.reference import whole_numbers
from bitwright.engine.thresholds import float_thresholds
from bitwright.errors import Negative
from bitwright.fn.coded import planes_of
from bitwright.nn import SlotLayer
from bitwright.parts import moment
from bitwright.parts.scale import width_of
from bitwright.parts.traits import title_of, traits_of
from bitwright.transforms.facts import split
from bitwright.transforms.forward import evaluating
from bitwright.transforms.packs import MAX_PLANES, no_codes
from bitwright.types import Coded

MAX_RATIO = 1024  # of two steps of one term: integers stay small, sums fit 32 bits; 8 bits need 255
MAX_ZERO = 1 << 15  # 8-bit grids need 255
EMPTY = "its slots are empty"
HOOKS = (  # of a module, as torch keeps them
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def check_finite(what: str, layer: str, value: Tensor) -> None:
    """Errors: `Negative`, with `what` and where: numbers that are nan or infinite have no codes."""
    if value.is_floating_point() and not bool(value.detach().isfinite().all()):
        word = "nan" if bool(value.isnan().any()) else "inf"
        text = f"convert: {what} holds {word}, so there is nothing to pack. Its training went wrong; train it again"
        text += " with a smaller learning rate, or clip=1.0"
        raise Negative(text, code="weights-not-finite", layer=layer, given=word)


# -- one weight -----------------------------------------------------------------------------------------------
class NotInteger(ValueError):
    """The codes cannot be written as small integers times one scale per channel; the text is the reason."""


@dataclass(frozen=True)
class Term:
    """Part of a weight: value_o = unit[o] * (zero + sum_q mult[q] * bit[planes[q]]); most weights are one term."""

    planes: tuple[int, ...]
    mult: tuple[int, ...]
    zero: int
    unit: Tensor  # float64 [O]

    @property
    def code(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        return self.planes, self.mult, self.zero


def _per_channel(t: Tensor, channels: int, what: str) -> Tensor:
    """[..broadcast..] with at most axis 0 of size > 1 -> float64 [O]."""
    flat = t.detach().double()
    if flat.numel() == 1:
        return flat.reshape(1).expand(channels)
    if flat.dim() == 0 or flat.shape[0] != flat.numel():
        raise NotInteger(f"{what} varies inside a filter")
    return flat.reshape(-1).expand(channels)


def _ratio(a: Tensor, b: Tensor) -> Fraction | None:
    """a / b as one small fraction for all channels, or None. Channels where both are 0 say nothing."""
    live = b != 0
    if bool((a[~live] != 0).any()):
        return None
    if not bool(live.any()):
        return Fraction(0)
    r = a[live] / b[live]
    if float(r.abs().max()) > MAX_RATIO:
        return None
    for largest, slack in ((4, 1e-6), (127, 2e-7)):  # coefficients are float32: their ratios carry a few roundings
        first = Fraction(float(r[0])).limit_denominator(largest)
        if float((r - float(first)).abs().max()) <= slack * max(1.0, abs(float(first))):
            return first
    return None


def weight_terms(code: Coded) -> list[Term]:
    """Splits a coded weight [O, ...] into terms whose coefficients are integer multiples of one unit per channel.

    BWN {-a, +a} is one term: zero -1, mult 2, unit a. TTQ {-n, 0, +p} is two: p and n have no common unit.

    >>> bit = torch.tensor([[[1], [0]]], dtype=torch.uint8)
    >>> one = Coded(bit, torch.tensor([[[1.0], [3.0]]]), torch.tensor([[-0.5], [-1.5]]))
    >>> [(t.mult, t.zero, t.unit.tolist()) for t in weight_terms(one)]
    [((2,), -1, [0.5, 1.5])]
    """
    channels = code.bit.shape[1]
    coefs = [_per_channel(code.coef[p], channels, "the step") for p in range(code.planes)]
    offset = _per_channel(code.offset, channels, "the offset")
    left = list(range(code.planes))
    pending = bool((offset != 0).any())
    terms: list[Term] = []
    while left:
        lead = left[0]
        ratios = {p: r for p in left if (r := _ratio(coefs[p], coefs[lead])) is not None}
        shift = _ratio(offset, coefs[lead]) if pending else None
        scale = math.lcm(*(r.denominator for r in [*ratios.values(), shift or Fraction(0)]))
        unit = coefs[lead] / scale
        zero = int(shift * scale) if shift is not None else 0
        pending = pending and shift is None
        picked = tuple(ratios)
        terms.append(Term(picked, tuple(int(ratios[p] * scale) for p in picked), zero, unit.clone()))
        left = [p for p in left if p not in ratios]
    if pending:
        raise NotInteger("the offset is not the same multiple of a step in every filter")
    return terms


def storable(code: Coded) -> tuple[Tensor, list[Term]]:
    """(bits [planes, O, ...], terms) as a file holds them: at most 8 planes.

    A mask over an 8-bit grid is a ninth plane; where the levels fit, the same integers are written with 8.

    >>> import bitwright as bw
    >>> part = bw.make_part("uniform", bits=8, slot="w")
    >>> storable(part.encode(torch.linspace(-1, 1, 9).reshape(3, 3)))[0].shape
    torch.Size([8, 3, 3])
    """
    terms = weight_terms(code)
    if code.planes <= MAX_PLANES:
        return code.bit, terms
    if len(terms) == 1:
        whole = whole_numbers(code.bit, *terms[0].code).to(torch.int64)
        low = int(whole.min()) if whole.numel() else 0
        step = max(1, int(np.gcd.reduce((whole - low).reshape(-1).numpy())))
        levels = int((whole - low).max()) // step if whole.numel() else 0
        if levels < 1 << MAX_PLANES:
            bit = planes_of((whole - low) // step, MAX_PLANES)
            places = tuple(range(MAX_PLANES))
            return bit, [Term(places, tuple(step << p for p in places), low, terms[0].unit)]
    raise NotInteger(f"{code.planes} planes; bit kernels take 1 to {MAX_PLANES}")


# -- one input part -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Grid:
    """What an input part does to a number: X = mult * code + zero_c, value = unit * X, code = 0 .. levels.

    thresholds float32 [L], or [C, L] where channels differ: code = how many of them x has reached
    """

    levels: int
    mult: int
    zero: tuple[int, ...]  # one, or one per channel
    unit: float
    thresholds: Tensor
    units: tuple[float, ...] = ()  # one per channel, where `spread` allowed it; unit is then 1


def _integer_form(code: Coded, channels: int, spread: bool) -> tuple[list[int], list[int], list[float]]:
    """(mult per plane, zero per channel, unit) of a coded input; one unit, or with `spread` perhaps one per channel."""
    coef, offset = code.coef.detach().double(), code.offset.detach().double().reshape(-1)
    if coef.numel() not in (code.planes, code.planes * channels if spread else code.planes):
        raise NotInteger("one step per input channel: the sum over channels is not an integer product")
    if offset.numel() not in (1, channels):
        raise NotInteger("the offset varies inside a channel")
    coef = coef.reshape(code.planes, -1)
    unit = torch.where(coef != 0, coef.abs(), torch.inf).amin(0)
    unit = torch.where(unit.isinf(), 1.0, unit)
    for halves in (1, 2):
        mult, zero = coef / (unit / halves), offset / (unit / halves)
        if float((mult - mult.round()).abs().max()) < 1e-4 and float((zero - zero.round()).abs().max()) < 1e-4:
            mult, zero = mult.round().long(), zero.round().long()
            if not torch.equal(mult, mult[:, :1].expand_as(mult)):
                raise NotInteger("its channels have different levels")
            return mult[:, 0].tolist(), zero.tolist(), (unit / halves).tolist()
    raise NotInteger("its levels are not multiples of one step")


def _alike(run: Callable[[Tensor], Coded]) -> bool:
    """Whether one channel stands for all: parameters per channel would widen the code of a single one."""
    try:
        code = run(torch.tensor([[-1.0], [1.0]]))
    except (RuntimeError, IndexError, ValueError):
        return False
    return code.bit[0].numel() == 2 and code.coef.numel() == code.planes and code.offset.numel() == 1


def grid_of(part: nn.Module, channels: int, rank: int, spread: bool = False) -> Grid:
    """Reads the grid of an input part for values of `rank` axes with `channels` on axis 1 (or the last of two).

    spread: one step per channel is allowed (`units`); fit for a float layer, not for an integer product.
    Errors: `NotInteger` with the reason.

    >>> import bitwright as bw
    >>> g = grid_of(bw.make_part("dorefa_a", bits=2), 3, 4)
    >>> g.levels, g.mult, g.zero, [round(t, 3) for t in g.thresholds.tolist()]
    (3, 1, (0,), [0.167, 0.5, 0.833])
    """
    encode = moment(part, "encode")
    if encode is None:
        raise NotInteger(f"{title_of(part)} has no integer codes")

    def run(x: Tensor) -> Coded:  # [n, C] -> codes on [n, C, 1, ...]
        return encode(x.reshape(*x.shape, *[1] * (rank - 2)))

    def integers(x: Tensor) -> Tensor:
        return (weights * run(x).bit.to(torch.int64)).sum(0).reshape(x.shape)

    with evaluating(part):
        channels = 1 if _alike(run) else channels
        extremes = torch.tensor([[-torch.inf], [torch.inf]]).expand(2, channels)
        mult, zero, units = _integer_form(run(extremes), channels, spread)
        weights = torch.tensor(mult).reshape(-1, *[1] * rank)
        step, ends = max(1, math.gcd(*mult)), integers(extremes)
        low, levels = int(ends.min()), int(ends.max() - ends.min()) // step
        if not 1 <= levels <= 255:
            raise NotInteger(f"{levels + 1} levels; kernels take 2 to 256")
        if max(abs(z + low) for z in zero) > MAX_ZERO:
            raise NotInteger("its zero lies too far from its levels")
        found, flip = float_thresholds(lambda x: (integers(x) - low) // step, levels, channels)
        if bool(flip.any()):
            raise NotInteger("its codes fall as the input rises")
    if bool((found == found[:1]).all()):  # one row serves all channels
        found = found[0].clone()
    unit, rest = (units[0], ()) if len(units) == 1 else (1.0, tuple(units))
    return Grid(levels, step, tuple(z + low for z in zero), unit, found, rest)


# -- one layer ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Packing:
    """How one slot layer enters the graph: grid None = float input (weight-only)."""

    grid: Grid | None
    before: list[nn.Module]
    coded_weight: bool


def packing_of(layer: SlotLayer) -> Packing | str:
    """What bits can do for this layer, or the reason why they cannot do anything."""
    if layer.w is None and layer.x is None and layer.gate is None:
        return EMPTY
    if why := no_codes(layer):
        return why
    before, quantizer = split(layer.x)
    if layer.w is None and quantizer is None:
        return "no quantizer in its slots"
    slot, part, terms, encode = "x", quantizer, [], moment(layer.w, "encode")
    try:
        grid = None if quantizer is None else grid_of(quantizer, width_of(layer) or 0, layer.weight.dim())
        slot, part = "w", layer.w
        if encode is not None:  # as `no_codes` found, where there is a part
            _, terms = storable(encode(layer.slot_weight().detach()))
    except NotInteger as reason:
        return f"slot {slot} holds {part_text(part)}: {reason}"
    if grid is not None:
        each = max((abs(t.zero) + sum(abs(m) for m in t.mult) for t in terms), default=0)
        ends = max(max(abs(z), abs(z + grid.mult * grid.levels)) for z in grid.zero)
        if each * ends * math.prod(layer.weight.shape[1:]) >= 2**31:
            return "its sums of products may exceed 32 bits; fewer bits or fewer inputs would fit"
    return Packing(grid, before, layer.w is not None)


def part_text(part: nn.Module | None) -> str:
    """`uniform(bits=3)`: a part with its options."""
    spec = traits_of(part).spec
    if isinstance(spec, dict):
        options = ", ".join(f"{k}={v!r}" for k, v in spec.items() if k != "part")
        return f"{spec['part']}({options})" if options else str(spec["part"])
    return title_of(part)
