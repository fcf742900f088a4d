"""Bits or bytes: which kernel a coded layer runs on. Both are exact; they differ in time only.

Counting bits costs one pass for each pair of bit planes (one of the weight, one of the input), over words of 32 channels;
multiplying bytes costs the same for any number of bits. So bits pay for few pairs and many channels. They also pay where a layer
runs on one pixel and reads its weights from memory: an eighth as many bytes. The limits are measured: bench/forms.py.
Where few weights are not zero, a layer runs on lists of the inputs that count: one bit of each on words (csrc/sliced.h), more on
bytes (csrc/lists.h); bench/sparsity.py.
Where the layers of a net were timed on this CPU (planner.py), that decides.
"""

from __future__ import annotations

import math
import os

import numpy as np

from bitwright.engine import native_library
from bitwright.engine.graph import Graph, Node

# (channels, pairs): with at least these input channels per group, up to these pairs of planes run faster as bits.
# "balanced": the weights lie evenly about 0, which a kernel of AVX-512 can use
LIMITS = {
    "avx512": ((256, 4), (128, 3), (64, 2), (32, 1)),
    "avx512 balanced": ((64, 4), (32, 3), (0, 1)),
    "avx512 winograd": ((128, 2), (0, 3)),  # against bytes that take 16 products for 36
    "amx": ((0, 16),),  # whose kernel expands bits into the tiles that bytes use
    "": ((256, 2), (64, 1)),
}
# (channels, look-ups) for AVX2; "winograd" as above, "1 or 2 bits": of inputs whose sums stay in 16 bits (csrc/avx2_narrow.h),
# "streamed": a linear layer whose weights come from memory, on one row
LOOKED_UP = {
    "": ((64, 2), (16, 1)),
    "winograd": ((256, 2), (64, 1)),
    "winograd, 1 or 2 bits": ((256, 2), (16, 1)),
    "streamed": ((0, 4),),
}
LOOKED_UP_PLANES = 4  # bits of an input that one look-up takes
STREAMED = 1 << 20  # bytes of a linear layer's weights above which memory decides
STREAMED_PAIRS = 8
LISTED_SHARE, SLICED_SHARE = 256, 8  # of csrc/lists.h and csrc/sliced.h
_ONES = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)


def zeros_skipped() -> bool:
    """Whether zeros may be left out of the run; BITWRIGHT_ZEROS=0 in the environment: not, for measurements."""
    return os.environ.get("BITWRIGHT_ZEROS") != "0"


def code_planes(levels: int) -> int:
    """Bits of a code 0..levels."""
    return max(1, int(levels).bit_length())


def planes_read(layer: Node) -> int:
    """Bits of the codes that a fused layer reads."""
    return code_planes(layer.attrs["x"]["levels"])


def look_ups(layer: Node) -> int:
    """Of AVX2, for four inputs and their weights."""
    return -(-planes_read(layer) // LOOKED_UP_PLANES) * int(layer.attrs["weight"]["planes"])


def bytes_pay(layer: Node, graph: Graph) -> bool:
    """Whether a coded layer is faster on byte codes than on bit planes: as measured here, else by the limits."""
    from bitwright.engine.planner import measured  # imported here: the planner measures with the engine

    if listed(layer, graph):
        return not _one_bit(layer)
    times = measured(layer)
    if {"bits", "bytes"} <= times.keys():
        return times["bytes"] < times["bits"]
    info = layer.attrs["weight"]
    pairs, shape = planes_read(layer) * int(info["planes"]), info["shape"]
    isa = native_library.isa() if native_library.available() else ""
    streamed = layer.op == "coded_linear" and math.prod(shape) >= STREAMED
    if isa == "avx2" and not _grouped(layer):
        against = "winograd" if _winograd(layer, 16, 65536) else ""
        if against and planes_read(layer) <= 2:
            against = "winograd, 1 or 2 bits"
        wide = (
            planes_read(layer) > LOOKED_UP_PLANES and not streamed
        )  # as fast, but the codes are easier to make as bytes
        return wide or look_ups(layer) > _most(LOOKED_UP["streamed" if streamed else against], shape[1])
    if streamed:
        return pairs > STREAMED_PAIRS
    balanced = all(2 * int(term["zero"]) == -sum(term["mult"]) for term in info["terms"])
    limits = LIMITS.get(f"{isa} balanced" if balanced else isa) or LIMITS.get(isa) or LIMITS[""]
    if _grouped(layer):
        limits = LIMITS["amx"]
    most = _most(limits, shape[1])
    if isa == "avx512" and planes_read(layer) <= 6 and int(info["planes"]) <= 3 and _winograd(layer, 32):
        most = min(most, _most(LIMITS["avx512 winograd"], shape[1]))
    return pairs > most


def listed(layer: Node, graph: Graph) -> bool:
    """Whether so few weights are not zero that the kernel keeps a list of them. A bit that is on in any plane counts as one weight."""
    (term, *more), bits = layer.attrs["weight"]["terms"], graph.tensor(layer, "bits")
    if more or int(term["zero"]) or _grouped(layer) or bits is None or not zeros_skipped():
        return False
    share = SLICED_SHARE if _one_bit(layer) else LISTED_SHARE
    return int(_ONES[bits.numpy()].sum()) * share <= math.prod(layer.attrs["weight"]["shape"])


def _one_bit(layer: Node) -> bool:
    """Whether csrc/sliced.h takes this layer: one bit each, and no window that slides over the image."""
    a = layer.attrs
    plain = a.get("flat") or layer.op == "coded_linear"
    return planes_read(layer) == int(a["weight"]["planes"]) == 1 and bool(plain)


def _grouped(layer: Node) -> bool:
    return int(layer.attrs.get("groups", 1)) > 1


def _most(limits: tuple[tuple[int, int], ...], channels: int) -> int:
    return next((most for least, most in limits if channels >= least), 0)


def _winograd(layer: Node, channels: int, most: float = math.inf) -> bool:
    """Whether the byte kernel does this layer by Winograd's products: from `channels` on, up to `most` filters of 3x3."""
    a = layer.attrs
    if layer.op != "coded_conv" or int(a["rank"]) != 2 or _grouped(layer):
        return False
    outputs, inputs, *kernel = a["weight"]["shape"]
    plain = kernel == [3, 3] and set(a["stride"]) == {1} and set(a["dilation"]) == {1}
    return plain and inputs >= channels and outputs >= 16 and inputs * outputs <= most
