"""What can bits do for a slot layer? Its packing, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from bitwright.engine.integers import NotInteger, Term, storable
from bitwright.engine.quantizer import Grid, grid_of, split
from bitwright.errors import Negative
from bitwright.nn import SlotLayer
from bitwright.parts import moment
from bitwright.parts.scale import width_of
from bitwright.parts.traits import title_of, traits_of
from bitwright.transforms.packs import no_codes

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


def part_text(part: nn.Module | None) -> str:
    """`uniform(bits=3)`: a part with its options."""
    spec = traits_of(part).spec
    if isinstance(spec, dict):
        options = ", ".join(f"{k}={v!r}" for k, v in spec.items() if k != "part")
        return f"{spec['part']}({options})" if options else str(spec["part"])
    return title_of(part)


def in_channels(layer: SlotLayer) -> int:
    return width_of(layer) or 0
