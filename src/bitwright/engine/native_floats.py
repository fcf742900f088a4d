"""Float convolutions on the kernels: `FloatPlan`, what is prepared once of a layer (see `bw_floats` in csrc/bitwright.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_library import FloatsStruct, check_code, library, pair
from bitwright.errors import InputError

SMALL = 2e6  # products below which a second thread does not pay
MOST_PLANES = 15  # channels of an image that may lie first: Winograd's form, from 16 channels on, reads pixels


class FloatPlan:
    """y = conv(x, weight) + add, then + residual, then ReLU; 3x3 windows in steps of 1 by Winograd's F(2x2, 3x3), windows of 5
    to 8 in steps of 2 of up to four channels by F(3x3, 4x4) over phases, else direct.

    weight [O, C, kh, kw], add [O] or None, float32. Immutable, may be shared by threads.

    >>> plan = FloatPlan(torch.ones(2, 1, 3, 3), torch.tensor([0.0, 1.0]), padding=1)
    >>> plan.run(torch.ones(1, 1, 3, 3))[0, :, 1, 1].tolist()
    [9.0, 10.0]
    """

    def __init__(
        self, weight: Tensor, add: Tensor | None = None, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1, relu: bool = False,
    ) -> None:  # fmt: skip
        if weight.dim() != 4 or (add is not None and len(add) != len(weight)):
            raise InputError(f"native core: float weights must be [O, C, kh, kw], got {list(weight.shape)}")
        o, c, kh, kw = self.weight_shape = tuple(weight.shape)
        self.padding = pair(padding)
        (sh, sw), (dh, dw) = pair(stride), pair(dilation)
        steps = {"stride_h": sh, "stride_w": sw, "dil_h": dh, "dil_w": dw}
        self.fields: dict[str, int] = {"c": c, "o": o, "kh": kh, "kw": kw, **steps, "relu": int(relu)}
        struct, lib = FloatsStruct(**self.fields), library()
        bytes_ = lib.bw_floats_size(ctypes.addressof(struct))
        check_code(bytes_ < 0)
        self.buffer = torch.empty(bytes_ + 64, dtype=torch.uint8)
        self.weights = -(-self.buffer.data_ptr() // 64) * 64
        tensors = [None if t is None else t.detach().float().contiguous() for t in (weight, add)]
        given = [None if t is None else t.data_ptr() for t in tensors]
        check_code(lib.bw_floats_pack(ctypes.addressof(struct), *given, self.weights))

    def struct(self, n: int, h: int, w: int, nchw: bool = False) -> Any:
        """The descriptor of one input size; nchw: of up to `MOST_PLANES` channels, which lie first."""
        f, (ph, pw) = self.fields, self.padding
        oh = max(0, (h + 2 * ph - f["dil_h"] * (f["kh"] - 1) - 1) // f["stride_h"] + 1)
        ow = max(0, (w + 2 * pw - f["dil_w"] * (f["kw"] - 1) - 1) // f["stride_w"] + 1)
        return FloatsStruct(n=n, h=h, w=w, pad_h=ph, pad_w=pw, oh=oh, ow=ow, nchw=nchw, **f)

    def small(self, struct: Any) -> bool:
        """Whether a call is too little work for a second thread."""
        o, c, kh, kw = self.weight_shape
        return struct.n * struct.oh * struct.ow * o * c * kh * kw < SMALL

    def run(self, x: Tensor, residual: Tensor | None = None, threads: int = 1) -> Tensor:
        """y [N, O, OH, OW] of x [N, C, H, W]; y lies channels last."""
        if x.dtype is not torch.float32 or x.dim() != 4 or x.shape[1] != self.weight_shape[1]:
            text = f"native core: input must be float32 [N, {self.weight_shape[1]}, H, W], got {list(x.shape)}"
            raise InputError(text)
        x = x.contiguous(memory_format=torch.channels_last)
        struct = self.struct(len(x), x.shape[2], x.shape[3])
        y = torch.empty(len(x), struct.oh, struct.ow, self.weight_shape[0]).permute(0, 3, 1, 2)
        if residual is not None:
            if residual.shape != y.shape or residual.dtype is not torch.float32:
                raise InputError(f"native core: residual must be float32 {list(y.shape)}")
            residual = residual.contiguous(memory_format=torch.channels_last)
        other = None if residual is None else residual.data_ptr()
        at, lib = ctypes.addressof(struct), library()
        check_code(lib.bw_conv_floats(at, x.data_ptr(), self.weights, y.data_ptr(), other, threads))
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> FloatPlan:
        return self  # immutable

    def __reduce__(self) -> Any:
        raise TypeError("a FloatPlan holds memory laid out for this CPU; save the weights, make it again")


def float_plan(node: Node, graph: Graph) -> FloatPlan:
    """Of a float layer over lines, images, or numbers without a place."""
    a, weight, missing = node.attrs, reference.stored_weight(graph, node), 2 - int(node.attrs["rank"])
    weight = weight.reshape(*weight.shape[:2], *[1] * missing, *weight.shape[2:])
    steps = [[usual] * missing + list(a[k]) for k, usual in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return FloatPlan(weight, graph.tensor(node, "bias"), *steps, relu=bool(a.get("relu")))
