"""The arithmetic of codes in plain torch, codes as ordinary integer tensors: the oracle. Slow and obvious."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine.graph import Graph, Node, view

EXACT_FLOAT32 = 1 << 24  # integers below this are exact in float32, whatever the order of the sum


# -- bits on disk: one dense string per tensor, least significant bit first, padded only at its end ------------
def pack_bits(bit: Tensor) -> Tensor:
    """uint8 0/1 of any shape -> uint8 bytes; bit i of the flattened tensor is bit i % 8 of byte i // 8.

    >>> pack_bits(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1])).tolist()
    [129, 1]
    """
    flat = bit.detach().to(torch.uint8).cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_bits(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Back to 0/1 of `shape`.

    >>> unpack_bits(torch.tensor([129, 1], dtype=torch.uint8), (3, 3)).tolist()
    [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    """
    count = math.prod(shape)
    flat = np.unpackbits(data.numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat).reshape(shape)


# -- numbers --------------------------------------------------------------------------------------------------
def affine(x: Tensor, scale: Tensor, add: Tensor, last: bool) -> Tensor:
    """One multiply, one add, each rounded: never fused."""
    return x * view(scale, x.dim(), last) + view(add, x.dim(), last)


def quantize(x: Tensor, thresholds: Tensor, flip: Tensor | None, last: bool) -> Tensor:
    """Code = number of thresholds that x has reached; int64, shape of x. Channels with flip count down. NaN: always 0."""
    levels = thresholds.shape[-1]
    if thresholds.dim() == 1:
        code = torch.bucketize(x.contiguous(), thresholds, right=True)
    else:  # one row per channel
        axis = -1 if last else 1
        rows = x.movedim(axis, 0)
        code = torch.searchsorted(thresholds.contiguous(), rows.flatten(1).contiguous(), right=True)
        code = code.reshape(rows.shape).movedim(0, axis)
    if flip is not None:
        code = torch.where(view(flip, x.dim(), last), levels - code, code)
    return torch.where(torch.isnan(x), torch.zeros_like(code), code)


def numbers(code: Tensor, mult: int, zero: list[int], last: bool) -> Tensor:
    """X = mult * code + zero_c as float (exact)."""
    z = torch.tensor(zero, dtype=torch.float32)
    return code.float() * mult + (z if z.numel() == 1 else view(z, code.dim(), last))


def whole_numbers(bit: Tensor, planes: Sequence[int], mult: Sequence[int], zero: int) -> Tensor:
    """zero + sum_q mult[q] * bit[planes[q]]: int32 [O, ...]."""
    total = torch.full(bit.shape[1:], zero, dtype=torch.int32)
    for p, m in zip(planes, mult, strict=True):
        total += m * bit[p].to(torch.int32)
    return total


def weight_integers(graph: Graph, node: Node) -> list[Tensor]:
    """The whole numbers of each term of a stored weight: int32 [O, ...]."""
    info = node.attrs["weight"]
    bit = unpack_bits(graph.need(node, "bits"), (info["planes"], *info["shape"]))
    return [whole_numbers(bit, t["planes"], t["mult"], t["zero"]) for t in info["terms"]]


def stored_weight(graph: Graph, node: Node) -> Tensor:
    """The float32 weight of a layer that runs in float: expanded from its bits, or as stored."""
    if node.key("bits") is None:
        return graph.need(node, "weight")
    total = torch.zeros(node.attrs["weight"]["shape"], dtype=torch.float64)
    for row, w in zip(graph.need(node, "scale").double(), weight_integers(graph, node), strict=True):
        total += row.reshape(-1, *[1] * (w.dim() - 1)) * w
    return total.float()


def integer_products(x: Tensor, weights: list[Tensor], node: Node) -> list[Tensor]:
    """Exact integer results per term, as float32 where they fit 24 bits, else float64."""
    out = []
    for w in weights:
        bound = float(x.abs().max()) * float(w.abs().flatten(1).sum(1).max()) if x.numel() and w.numel() else 0.0
        exact = torch.float32 if bound < EXACT_FLOAT32 else torch.float64
        a, b = x.to(exact), w.to(exact)
        if node.op == "coded_linear":
            out.append(F.linear(a, b))
        else:
            out.append(convolve(a, b, None, node))
    return out


def convolve(x: Tensor, w: Tensor, bias: Tensor | None, node: Node) -> Tensor:
    a = node.attrs
    f = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[int(a["rank"])]
    y = f(in_few_sizes(x), w, bias, a["stride"], a["padding"], a["dilation"], int(a["groups"]))
    return y[: len(x)]


def in_few_sizes(x: Tensor) -> Tensor:
    """The batch, filled up with zeros to a multiple of an eighth to a quarter of its size; up to 8 samples as it is.

    torch keeps the code that it makes for each size of a convolution, about 0.4 MB, for up to 1024 of them: a server that
    meets every batch size up to 700 would hold hundreds of megabytes. These are 36 sizes up to 1024.

    >>> [len(in_few_sizes(torch.zeros(n, 1))) for n in (0, 1, 7, 8, 9, 17, 100, 128, 700)]
    [0, 1, 7, 8, 10, 20, 112, 128, 768]
    """
    step = 1 << max(0, (len(x) - 1).bit_length() - 3) if len(x) else 1
    missing = -len(x) % step
    return F.pad(x, [*[0, 0] * (x.dim() - 1), 0, missing]) if missing else x


def epilogue(products: list[Tensor], scale: Tensor, add: Tensor, last: bool) -> Tensor:
    """fl(fl(I_0 s_0) [+ fl(I_1 s_1) ...] + add) in float32, in this order."""
    rank = products[0].dim()
    y = products[0].float() * view(scale[0], rank, last)
    for i, s in zip(products[1:], scale[1:], strict=True):
        y = y + i.float() * view(s, rank, last)
    return y + view(add, rank, last)


def max_pool(x: Tensor, a: Mapping[str, Any]) -> Tensor:
    f = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[int(a["rank"])]
    return f(x, a["kernel"], a["stride"], a["padding"], a["dilation"], ceil_mode=a["ceil"])


# -- what the constant part of a layer's input adds, at the borders of an image and inside ---------------------
def seen_by_outputs(zero: int | Sequence[int] | Tensor, values: Tensor, groups: int) -> Tensor:
    """int64 [O, C / groups, 1, ...]: the input constant (one, or one a channel) that each weight [O, C / groups, ...] meets."""
    outputs, per_group = values.shape[:2]
    each = torch.as_tensor(zero).to(torch.int64).expand(per_group * groups).reshape(groups, per_group)
    of_output = torch.arange(outputs) * groups // max(outputs, 1)
    return each[of_output].reshape(outputs, per_group, *[1] * (values.dim() - 2))


def tap_sums(values: Tensor, x_zero: int | Sequence[int] | Tensor, groups: int) -> Tensor:
    """int64 [O, kh, kw]: what the input constant x_zero adds at each tap of the weight [O, C / groups, kh, kw]."""
    return (values.to(torch.int64) * seen_by_outputs(x_zero, values, groups)).sum(1)


@functools.lru_cache(4096)
def border_classes(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Which taps are inside the image: the distinct cases `[classes, kernel]`, and each output's case."""
    at = torch.arange(out)[:, None] * stride - pad + torch.arange(kernel) * dilation
    cases, which = torch.unique((at >= 0) & (at < size), dim=0, return_inverse=True)
    return cases.to(torch.int64), which.to(torch.int32).contiguous()


def corrections(sums: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """int64 [row classes, column classes, O]: the sum over the taps that each class has inside the image."""
    return torch.einsum("rk,cl,okl->rco", rows, cols, sums)
