"""What becomes of the integers of a convolution: an `Output` is made once and used for every call."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.native_library import OutputStruct, table, words
from bitwright.errors import InputError


class Output:
    """Tells `ConvPlan.run` what to return; made once, used for every call. This one: the int32 sums."""

    mode = 0
    sign_bits = False
    channels: int | None = None

    def __init__(self, **fields: Any) -> None:
        self.keep = fields  # tensors whose memory the struct points to
        values = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in fields.items() if v is not None}
        self.struct = OutputStruct(mode=self.mode, **values)
        self.address = ctypes.addressof(self.struct)

    def empty(self, n: int, oh: int, ow: int, o: int) -> Tensor:
        dtype = torch.int32 if self.mode == 0 else torch.float32
        return torch.empty((n, o, oh, ow), dtype=dtype, memory_format=torch.channels_last)


IntOutput = Output


class FloatOutput(Output):
    """`y = float(I) * scale[o] + add[o]`, then `+ residual`; with `sign_bits` also the words of `y >= 0`."""

    mode = 1

    def __init__(self, scale: Tensor, add: Tensor, sign_bits: bool = False) -> None:
        super().__init__(scale=table(scale, torch.float32), add=table(add, torch.float32))
        self.channels, self.sign_bits = scale.numel(), sign_bits
        if add.numel() != scale.numel():
            raise InputError(f"native core: scale has {scale.numel()} entries, add {add.numel()}")


class CodeOutput(Output):
    """`code = #{l : I >= thresholds[l, o]}`, `levels - code` if `flip[o]`; words, or uint8 with `bytes`."""

    def __init__(
        self, thresholds: Tensor, flip: Tensor | None = None, planes: int = 1, groups: int = 1,
        bytes: bool = False,
    ) -> None:  # fmt: skip
        self.mode = 3 if bytes else 2
        levels, self.channels = thresholds.shape
        super().__init__(
            thresholds=table(thresholds, torch.int32),
            flip=None if flip is None else table(flip, torch.uint8),
            levels=levels,
            out_planes=planes,
            out_groups=groups,
        )
        self.planes, self.groups = planes, groups
        if flip is not None and flip.numel() != self.channels:
            raise InputError(f"native core: flip has {flip.numel()} entries for {self.channels} channels")

    def empty(self, n: int, oh: int, ow: int, o: int) -> Tensor:
        if self.mode == 3:
            return torch.empty((n, oh, ow, o), dtype=torch.uint8)
        return torch.empty((n, oh, ow, self.planes, words(o, self.groups)), dtype=torch.int32)
