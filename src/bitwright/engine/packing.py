"""What can bits do for a slot layer? Its packing, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitwright.engine.integers import NotInteger, Term, storable
from bitwright.engine.quantizer import Grid, grid_of, split
from bitwright.nn import Conv1d, Conv2d, Linear, SlotLayer
from bitwright.parts import moment
from bitwright.parts.scale import width_of
from bitwright.parts.traits import title_of, traits_of
from bitwright.transforms.facts import folds


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


@dataclass(frozen=True)
class Packing:
    """How one slot layer enters the graph: grid None = float input (weight-only)."""

    grid: Grid | None
    before: list[nn.Module]
    coded_weight: bool


def packing_of(layer: SlotLayer, rank: int) -> Packing | str:
    """What bits can do for this layer, or the reason why nothing."""
    if type(layer) not in (Linear, Conv1d, Conv2d):
        return f"{type(layer).__name__} has no bit kernel; Linear, Conv1d, Conv2d have"
    if layer.gate is not None:
        return f"slot gate holds {name_of(layer.gate)}; gated layers are not packed yet"
    if layer.b is not None and moment(layer.b, "encode") is None:
        return f"slot b holds {name_of(layer.b)}; biases stay float"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={layer.padding_mode!r}; bit kernels take zeros"
    if layer.w is None and layer.x is None:
        return "its slots are empty"
    if layer.w is not None and moment(layer.w, "encode") is None:
        return f"slot w holds {name_of(layer.w)}, which has no integer codes"
    before, quantizer = split(layer.x)
    if quantizer is None and layer.x is not None and layer.w is None:
        return "no quantizer in its slots"
    for link in before:
        if not folds(link):
            return f"slot x holds {name_of(link)}, which has no integer codes"
    terms: list[Term] = []
    if layer.w is not None:
        try:
            _, terms = storable(moment(layer.w, "encode")(layer.slot_weight().detach()))  # type: ignore[misc]
        except NotInteger as reason:
            return f"slot w holds {name_of(layer.w)}: {reason}"
    if quantizer is None:
        return Packing(None, before, layer.w is not None)
    try:
        grid = grid_of(quantizer, in_channels(layer), rank)
    except NotInteger as reason:
        return f"slot x holds {name_of(quantizer)}: {reason}"
    each = max((abs(t.zero) + sum(abs(m) for m in t.mult) for t in terms), default=0)
    ends = max(max(abs(z), abs(z + grid.mult * grid.levels)) for z in grid.zero)
    if each * ends * math.prod(layer.weight.shape[1:]) >= 2**31:
        return "its sums of products may exceed 32 bits; fewer bits or fewer inputs would fit"
    return Packing(grid, before, layer.w is not None)


def name_of(part: nn.Module) -> str:
    spec = traits_of(part).spec
    if isinstance(spec, dict):
        options = ", ".join(f"{k}={v!r}" for k, v in spec.items() if k != "part")
        return f"{spec['part']}({options})" if options else str(spec["part"])
    return title_of(part)


def in_channels(layer: SlotLayer) -> int:
    return width_of(layer) or 0
