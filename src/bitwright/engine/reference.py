"""The oracle: every operator of a packed graph in plain torch, codes as ordinary integer tensors. Slow and obvious."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import bitstrings
from bitwright.engine.ir import Graph, Node, view

EXACT_FLOAT32 = 1 << 24  # integers below this are exact in float32, whatever the order of the sum


def affine(x: Tensor, scale: Tensor, add: Tensor, last: bool) -> Tensor:
    """One multiply, one add, each rounded: never fused."""
    return x * view(scale, x.dim(), last) + view(add, x.dim(), last)


def quantize(x: Tensor, thresholds: Tensor, flip: Tensor | None, last: bool) -> Tensor:
    """Code = number of thresholds that x has reached (NaN: none); int64, shape of x. Channels with flip count down."""
    levels = thresholds.shape[-1]
    if thresholds.dim() == 1:
        code = torch.bucketize(x.contiguous(), thresholds, right=True)
    else:  # one row per channel
        moved = x if last else x.movedim(1, -1)
        code = (moved[..., None] >= thresholds).sum(-1)
        code = code if last else code.movedim(-1, 1)
    code = torch.where(torch.isnan(x), torch.zeros_like(code), code)
    if flip is not None:
        code = torch.where(view(flip, x.dim(), last), levels - code, code)
    return code


def numbers(code: Tensor, mult: int, zero: list[int], last: bool) -> Tensor:
    """X = mult * code + zero_c as float (exact)."""
    z = torch.tensor(zero, dtype=torch.float32)
    return code.float() * mult + (z if z.numel() == 1 else view(z, code.dim(), last))


def weight_integers(graph: Graph, node: Node) -> list[Tensor]:
    """The whole numbers of each term of a stored weight: int32 [O, ...]."""
    info = node.attrs["weight"]
    data = graph.tensor(node, "bits")
    assert data is not None
    bit = bitstrings.unpack(data, (info["planes"], *info["shape"])).to(torch.int32)
    out = []
    for term in info["terms"]:
        total = torch.full(bit.shape[1:], int(term["zero"]), dtype=torch.int32)
        for p, m in zip(term["planes"], term["mult"], strict=True):
            total += m * bit[p]
        out.append(total)
    return out


def stored_weight(graph: Graph, node: Node) -> Tensor:
    """The float32 weight of a layer that runs in float: expanded from its bits, or as stored."""
    if node.key("bits") is None:
        found = graph.tensor(node, "weight")
        assert found is not None
        return found
    scale = graph.tensor(node, "scale")
    assert scale is not None
    total = torch.zeros(node.attrs["weight"]["shape"], dtype=torch.float64)
    for row, w in zip(scale.double(), weight_integers(graph, node), strict=True):
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
    """fl(fl(I_0 s_0) [+ fl(I_1 s_1) ...] + add) in float32, in this order: the arithmetic of contract 3.2 (b)."""
    rank = products[0].dim()
    y = products[0].float() * view(scale[0], rank, last)
    for i, s in zip(products[1:], scale[1:], strict=True):
        y = y + i.float() * view(s, rank, last)
    return y + view(add, rank, last)


def float_op(node: Node, graph: Graph) -> Callable[..., Tensor]:
    """The function of a float operator, its constants bound. Shared by all backends: they are torch's own."""
    a: dict[str, Any] = node.attrs
    op = node.op
    if op == "affine":
        scale, add = graph.tensor(node, "scale"), graph.tensor(node, "add")
        assert scale is not None and add is not None
        return lambda x: affine(x, scale, add, bool(a["last"]))
    if op in ("conv", "linear", "conv_transpose"):
        return _layer(node, graph)
    if op == "prelu":
        slope = graph.tensor(node, "slope")
        assert slope is not None
        return lambda x: F.prelu(x, slope)
    if op == "layer_norm":
        w, b = graph.tensor(node, "weight"), graph.tensor(node, "bias")
        return lambda x: F.layer_norm(x, a["normalized"], w, b, a["eps"])
    table: dict[str, Callable[..., Tensor]] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "silu": F.silu,
        "hardswish": F.hardswish,
        "neg": torch.neg,
        "abs": torch.abs,
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "hardtanh": lambda x: F.hardtanh(x, a["low"], a["high"]),
        "clamp": lambda x: torch.clamp(x, a["low"], a["high"]),
        "leaky_relu": lambda x: F.leaky_relu(x, a["slope"]),
        "gelu": lambda x: F.gelu(x, approximate=a["approximate"]),
        "softmax": lambda x: torch.softmax(x, a["dim"]),
        "log_softmax": lambda x: torch.log_softmax(x, a["dim"]),
        "add_scalar": lambda x: x + a["value"],
        "mul_scalar": lambda x: x * a["value"],
        "mean": lambda x: x.mean(a["dims"], keepdim=a["keepdim"]),
        "flatten": lambda x: x.flatten(a["start"], a["end"]),
        "reshape": lambda x: x.reshape(x.shape[0], *a["sizes"]),
        "permute": lambda x: x.permute(a["dims"]),
        "transpose": lambda x: x.transpose(a["dim0"], a["dim1"]),
        "squeeze": lambda x: x.squeeze(tuple(a["dims"])),
        "unsqueeze": lambda x: x.unsqueeze(a["dim"]),
        "slice": lambda x: x[(slice(None),) * a["dim"] + (slice(a["start"], a["end"], a["step"]),)],
        "pad": lambda x: _pad(x, a),
        "cat": lambda *xs: torch.cat(xs, a["dim"]),
        "max_pool": lambda x: max_pool(x, node),
        "avg_pool": lambda x: _avg_pool(x, node),
        "adaptive_avg_pool": lambda x: {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}[a["rank"]](x, a["size"]),
    }
    return table[op]


def max_pool(x: Tensor, node: Node) -> Tensor:
    a = node.attrs
    f = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[int(a["rank"])]
    return f(x, a["kernel"], a["stride"], a["padding"], a["dilation"], ceil_mode=a["ceil"])


def _pad(x: Tensor, a: dict[str, Any]) -> Tensor:
    if a["mode"] == "constant":
        return F.pad(x, a["pads"], value=a["value"])
    return F.pad(x, a["pads"], mode=a["mode"])


def _avg_pool(x: Tensor, node: Node) -> Tensor:
    a = node.attrs
    f = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[int(a["rank"])]
    return f(x, a["kernel"], a["stride"], a["padding"], a["ceil"], a["count_pad"])


def _layer(node: Node, graph: Graph) -> Callable[[Tensor], Tensor]:
    a = node.attrs
    w, b = stored_weight(graph, node), graph.tensor(node, "bias")
    if node.op == "linear":
        return lambda x: F.linear(x, w, b)
    if node.op == "conv_transpose":
        return lambda x: F.conv_transpose2d(
            in_few_sizes(x), w, b, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
        )[: len(x)]
    if w.dim() == 4:
        w = w.contiguous(memory_format=torch.channels_last)
    return lambda x: convolve(x, w, b, node)
