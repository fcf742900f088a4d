"""Gated convolutions on the kernels: `GatedPlan`, what is prepared once of a layer whose gate chooses output channels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.graph import Node
from bitwright.engine.native_library import GatedStruct, check_code, library, pair
from bitwright.errors import InputError

SMALL = 2e6  # products below which a second thread does not pay


class GatedPlan:
    """y = on size (conv(x, weight) + add), then + residual, then ReLU: the `count` blocks of channels with the largest size,
    size = relu(predictor mean|x| + bias), and the others 0 without being computed; see `bw_gated` in csrc/bitwright.h.

    weight [O, C, kh, kw], add [O], predictor [O, C], bias [O], float32. Immutable, may be shared by threads.
    """

    def __init__(
        self, weight: Tensor, add: Tensor, predictor: Tensor, bias: Tensor, count: int, block: int = 1,
        stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
        relu: bool = False,
    ) -> None:  # fmt: skip
        if (
            weight.dim() != 4
            or tuple(predictor.shape) != tuple(weight.shape[:2])
            or len(add) != len(bias) != len(weight)
        ):
            raise InputError(
                f"native core: gated weights must be [O, C, kh, kw] with a predictor [O, C], got {list(weight.shape)}"
            )
        self.weight_shape = o, c, kh, kw = tuple(weight.shape)
        self.stride, self.padding, self.dilation = pair(stride), pair(padding), pair(dilation)
        (sh, sw), (dh, dw) = self.stride, self.dilation
        steps = {"stride_h": sh, "stride_w": sw, "dil_h": dh, "dil_w": dw}
        chosen = {"count": count, "block": block, "relu": int(relu)}
        self.fields: dict[str, int] = {"c": c, "o": o, "kh": kh, "kw": kw, **steps, **chosen}
        struct, lib = GatedStruct(**self.fields), library()
        bytes_ = lib.bw_gated_size(ctypes.addressof(struct))
        check_code(bytes_ < 0)
        self.buffer = torch.empty(bytes_ + 64, dtype=torch.uint8)
        self.weights = -(-self.buffer.data_ptr() // 64) * 64
        tensors = [t.detach().float().contiguous() for t in (weight, add, predictor, bias)]
        check_code(lib.bw_gated_pack(ctypes.addressof(struct), *(t.data_ptr() for t in tensors), self.weights))

    def struct(self, n: int, h: int, w: int) -> Any:
        """The descriptor of one input size."""
        kernel = self.weight_shape[2:]
        places = zip((h, w), kernel, self.stride, self.padding, self.dilation, strict=True)
        oh, ow = (max(0, (size + 2 * p - d * (k - 1) - 1) // s + 1) for size, k, s, p, d in places)
        ph, pw = self.padding
        return GatedStruct(n=n, h=h, w=w, oh=oh, ow=ow, pad_h=ph, pad_w=pw, **self.fields)

    def small(self, struct: Any) -> bool:
        """Whether a call is too little work for a second thread."""
        o, c, kh, kw = self.weight_shape
        return struct.n * struct.oh * struct.ow * o * c * kh * kw < SMALL

    def run(self, x: Tensor, residual: Tensor | None = None, threads: int = 1) -> tuple[Tensor, Tensor]:
        """(y [N, O, OH, OW], on [N, O]) of x [N, C, H, W]; y lies channels last."""
        if x.dtype is not torch.float32 or x.dim() != 4 or x.shape[1] != self.weight_shape[1]:
            raise InputError(
                f"native core: input must be float32 [N, {self.weight_shape[1]}, H, W], got {list(x.shape)}"
            )
        x = x.contiguous(memory_format=torch.channels_last)
        struct = self.struct(len(x), x.shape[2], x.shape[3])
        y = torch.empty(len(x), struct.oh, struct.ow, self.weight_shape[0]).permute(0, 3, 1, 2)
        on, at = torch.empty(len(x), self.weight_shape[0]), None
        if residual is not None:
            if residual.shape != y.shape or residual.dtype is not torch.float32:
                raise InputError(f"native core: residual must be float32 {list(y.shape)}")
            residual = residual.contiguous(memory_format=torch.channels_last)
            at = residual.data_ptr()
        check_code(
            library().bw_conv_gated(
                ctypes.addressof(struct), x.data_ptr(), self.weights, y.data_ptr(), at, on.data_ptr(), threads
            )
        )
        return y, on

    def __deepcopy__(self, memo: dict[int, Any]) -> GatedPlan:
        return self  # immutable

    def __reduce__(self) -> Any:
        raise TypeError("a GatedPlan holds memory laid out for this CPU; save the weights, make it again")


def gated_plan(
    conv: Node, weight: Tensor, add: Tensor | None, predictor: Tensor, bias: Tensor,
    winners: dict[str, Any], relu: bool = False,
) -> GatedPlan:  # fmt: skip
    a, missing = conv.attrs, 2 - int(conv.attrs["rank"])  # axes that the kernel has and the layer has not
    weight = weight.reshape(*weight.shape[:2], *[1] * missing, *weight.shape[2:])
    steps = [[usual] * missing + list(a[k]) for k, usual in (("stride", 1), ("padding", 0), ("dilation", 1))]
    add = torch.zeros(len(weight)) if add is None else add
    return GatedPlan(weight, add, predictor, bias, int(winners["count"]), int(winners["block"]), *steps, relu=relu)
