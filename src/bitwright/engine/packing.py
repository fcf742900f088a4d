"""What can bits do for a slot layer? Its packing, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitwright.engine.integers import NotInteger, Term, storable
from bitwright.engine.quantizer import Grid, grid_of, split
from bitwright.errors import Negative
from bitwright.nn import SlotLayer
from bitwright.parts import moment
from bitwright.transforms.facts import part_text
from bitwright.transforms.packs import no_codes

EMPTY = "its slots are empty"
HOOKS = (  # of a module, as torch keeps them
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def describe(layer: nn.Module) -> str:
    """`Conv2d 64>64 3x3`, as messages name a layer."""
    weight = getattr(layer, "weight", None)
    kind = type(layer).__name__
    if not isinstance(weight, Tensor):
        return kind
    if isinstance(layer, nn.Linear):
        return f"{kind} {weight.shape[1]}>{weight.shape[0]}"
    size = "x".join(str(k) for k in weight.shape[2:])
    return f"{kind} {getattr(layer, 'in_channels', '?')}>{getattr(layer, 'out_channels', '?')} {size}"


def padding_of(layer: nn.Module) -> list[int]:
    """Zero padding of both sides as ints. "same" with an even kernel pads one less on the left: see `crop_of`."""
    padding: Any = getattr(layer, "padding", 0)
    if padding == "valid":
        return [0] * len(layer.kernel_size)  # type: ignore[arg-type]
    return [(t + 1) // 2 for t in _same(layer)] if padding == "same" else [int(p) for p in padding]


def crop_of(layer: nn.Module) -> list[int]:
    """How many results in front are too many, per axis, where `padding_of` pads one more than the layer does."""
    return [t % 2 for t in _same(layer)] if getattr(layer, "padding", 0) == "same" else []


def _same(layer: nn.Module) -> list[int]:
    return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # type: ignore[arg-type]


def check_finite(what: str, layer: str, value: Tensor) -> None:
    """Errors: `Negative`, with `what` and where: numbers that are nan or infinite have no codes."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        word = "nan" if bool(value.isnan().any()) else "inf"
        raise Negative(
            f"convert: {what} holds {word}, so there is nothing to pack. Its training went wrong; "
            "train it again with a smaller learning rate, or clip=1.0",
            code="weights-not-finite",
            layer=layer,
            given=word,
        )


@dataclass(frozen=True)
class Packing:
    """How one slot layer enters the graph: grid None = float input (weight-only)."""

    grid: Grid | None
    before: list[nn.Module]
    coded_weight: bool


def packing_of(layer: SlotLayer, rank: int) -> Packing | str:
    """What bits can do for this layer, or the reason why nothing."""
    if layer.w is None and layer.x is None and layer.gate is None:
        return EMPTY
    if why := no_codes(layer):
        return why
    before, quantizer = split(layer.x)
    if layer.w is None and quantizer is None:
        return "no quantizer in its slots"
    terms: list[Term] = []
    try:
        grid = None if quantizer is None else grid_of(quantizer, in_channels(layer), rank)
    except NotInteger as reason:
        return f"slot x holds {part_text(quantizer)}: {reason}"
    try:
        if layer.w is not None:
            _, terms = storable(moment(layer.w, "encode")(layer.slot_weight().detach()))  # type: ignore[misc]
    except NotInteger as reason:
        return f"slot w holds {part_text(layer.w)}: {reason}"
    if grid is not None:
        each = max((abs(t.zero) + sum(abs(m) for m in t.mult) for t in terms), default=0)
        ends = max(max(abs(z), abs(z + grid.mult * grid.levels)) for z in grid.zero)
        if each * ends * math.prod(layer.weight.shape[1:]) >= 2**31:
            return "its sums of products may exceed 32 bits; fewer bits or fewer inputs would fit"
    return Packing(grid, before, layer.w is not None)


def in_channels(layer: SlotLayer) -> int:
    return int(getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0))
