"""How a layer will run once it is packed, and why not as bits: read off the layer and its parts, before any training."""

from __future__ import annotations

from typing import Any

from torch import nn

from bitwright.nn.layers import KINDS, Conv1d, Conv2d, Linear, SlotLayer
from bitwright.parts.mask import Mask
from bitwright.parts.moments import moment
from bitwright.transforms.facts import bit_facts, density_of, folds, links_of, part_text, split

PACKED = (Linear, Conv1d, Conv2d)
MAX_PLANES = 8  # of a weight or an input, in the kernels
BIT_PAIRS = 4  # planes of weight times planes of input above which only machines with AMX count bits


def runs_as(layer: nn.Module) -> str:
    """`bits`, `int8`, `float` (also weights that are bits in the file and float when they run), or `your code`.

    `bits` and `int8` give the same numbers; up to four pairs of planes the machine may choose `int8` where that is faster.

    >>> import bitwright as bw
    >>> [runs_as(bw.nn.Linear(2, 2, w=w, x=x)) for w, x in (("bwn", "sign"), ("bwn", None), (None, None))]
    ['bits', 'float', 'float']
    """
    if own_code(layer):
        return "your code"
    if not isinstance(layer, SlotLayer) or layer.w is None or why_not(layer):
        return "float"
    w, x = bit_facts(layer.w)[1], bit_facts(layer.x)[1]
    if w is None or x is None:
        return "float"
    return "int8" if w * x > BIT_PAIRS else "bits"


def own_code(layer: nn.Module) -> bool:
    """Whether a forward that is neither torch's nor ours computes this layer."""
    kind: Any = next((k for k in (*KINDS.values(), *KINDS) if isinstance(layer, k)), None)
    return "forward" in layer.__dict__ or (kind is not None and type(layer).forward is not kind.forward)


def why_not(layer: SlotLayer) -> str:
    """Why nothing in this layer becomes bits although it has parts; "" where it does, or where its slots are empty.

    Known from types, options and sizes; what depends on trained values (sums that may exceed 32 bits, levels that are
    no multiples of one step) is found when the net is packed.

    >>> import bitwright as bw
    >>> why_not(bw.nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect", w="bwn"))
    "padding_mode='reflect'; bit kernels take zeros"
    """
    if why := no_codes(layer):
        return why
    for slot, part in (("w", layer.w), ("x", layer.x)):
        planes = bit_facts(part)[1] or 0
        if planes > MAX_PLANES:
            return f"slot {slot} holds {part_text(part)}: {planes} planes; bit kernels take 1 to {MAX_PLANES}"
    return ""


def no_codes(layer: SlotLayer) -> str:
    """The same but for the number of planes: a mask adds one, and its levels may still fit."""
    if layer.w is None and layer.x is None and layer.gate is None:
        return ""
    if type(layer) not in PACKED:
        return f"{type(layer).__name__} has no bit kernel; Linear, Conv1d, Conv2d have"
    if layer.gate is not None:
        return f"slot gate holds {part_text(layer.gate)}; a gate runs in the graph form alone"
    if layer.b is not None and moment(layer.b, "encode") is None:
        return f"slot b holds {part_text(layer.b)}; biases stay float"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={layer.padding_mode!r}; bit kernels take zeros"
    if layer.w is not None and all(isinstance(link, Mask) for link in links_of(layer.w)):
        zeros = 100 - 100 * density_of(layer)
        return f"{zeros:.0f} % of its weights are pruned, but zeros among floats save time in linear layers alone; put the weights on few bits too"
    if layer.w is not None and moment(layer.w, "encode") is None:
        return f"slot w holds {part_text(layer.w)}, which has no integer codes"
    for link in split(layer.x)[0]:
        if not folds(link):
            return f"slot x holds {part_text(link)}, which has no integer codes"
    return ""
