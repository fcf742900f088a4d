"""What becomes of the integers of a convolution: a `KernelOutput` is made once and used for every call."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.native_library import (
    GridStruct,
    OutputStruct,
    check_code,
    kernel_table,
    library,
    optional,
    word_count,
)
from bitwright.engine.thresholds import EvenGrid
from bitwright.errors import InputError


class KernelOutput:
    """Tells `ConvPlan.run` what to return; made once, used for every call. This one: the int32 sums."""

    mode = 0
    extra = ""  # what else a call writes: "words" of the signs, or "bytes"
    channels: int | None = None

    def __init__(self, **fields: Any) -> None:
        self.keep = fields  # tensors and structs whose memory the struct points to
        values = {k: _address(v) for k, v in fields.items() if v is not None}
        self.struct = OutputStruct(mode=self.mode, **values)
        self.address = ctypes.addressof(self.struct)

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        """How the result lies in memory, and its type."""
        return (n, oh, ow, o), torch.int32 if self.mode == 0 else torch.float32

    def beside(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        """The same of what `extra` names."""
        if self.extra == "bytes":
            return (n, oh, ow, o), torch.uint8
        return (n, oh, ow, 1, word_count(o)), torch.int32


def _address(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return ctypes.addressof(value) if isinstance(value, ctypes.Structure) else value


def grid_struct(grid: EvenGrid | None) -> GridStruct | None:
    """The struct of an even ladder."""
    if grid is None:
        return None
    made = GridStruct(grid.value, ("multiply", "divide", "step").index(grid.kind), grid.base, grid.low, grid.high)
    check_code(library().bw_grid_prepare(ctypes.addressof(made)))
    return made


class FloatOutput(KernelOutput):
    """`y = float(I) * scale[o] + add[o]`, then `+ residual`, then with `relu` the larger of y and 0.

    What a call gives besides y, if anything, for a next layer that reads codes:
    grid          codes of y as bytes, by an even ladder
    cuts, flip    float [O], uint8 [O]: one bit `y >= cuts[o]`, the other one where flip[o]; as words, or with `bytes` as bytes

    pool          (kernel, stride, padding) of a max-pooling by square windows that y goes through first
    """

    mode = 1

    def __init__(
        self, scale: Tensor, add: Tensor, *, relu: bool = False, grid: EvenGrid | None = None, cuts: Tensor | None = None,
        flip: Tensor | None = None, bytes: bool = False, pool: tuple[int, int, int] = (0, 0, 0),
    ) -> None:  # fmt: skip
        o, self.pool = scale.numel(), pool
        for name, value in (("add", add), ("cuts", cuts), ("flip", flip)):
            if value is not None and value.numel() != o:
                raise InputError(f"native core: scale has {o} entries, {name} {value.numel()}")
        super().__init__(
            scale=kernel_table(scale, torch.float32), add=kernel_table(add, torch.float32), relu=int(relu), grid=grid_struct(grid),
            cuts=optional(cuts, torch.float32), extra_bytes=int(bytes), flip=optional(flip, torch.uint8),
            pool_kernel=pool[0], pool_stride=pool[1], pool_pad=pool[2],
        )  # fmt: skip
        self.channels = o
        if grid is not None or cuts is not None:
            self.extra = "bytes" if grid is not None or bytes else "words"

    def _pooled(self, oh: int, ow: int) -> tuple[int, int]:
        kernel, stride, padding = self.pool
        if not kernel:
            return oh, ow
        return (oh + 2 * padding - kernel) // stride + 1, (ow + 2 * padding - kernel) // stride + 1

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        return super().made(n, *self._pooled(oh, ow), o)

    def beside(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        return super().beside(n, *self._pooled(oh, ow), o)


class GridOutput(KernelOutput):
    """Codes of `y = float(I) * scale[o] + add[o]` by an even ladder, as bytes."""

    mode = 3

    def __init__(self, scale: Tensor, add: Tensor, grid: EvenGrid) -> None:
        scale, add = kernel_table(scale, torch.float32), kernel_table(add, torch.float32)
        super().__init__(scale=scale, add=add, grid=grid_struct(grid))
        self.channels = scale.numel()

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        return (n, oh, ow, o), torch.uint8


class CodeOutput(KernelOutput):
    """`code = #{l : I >= thresholds[l, o]}`, `levels - code` if `flip[o]`; words, or uint8 with `bytes`."""

    def __init__(
        self, thresholds: Tensor, flip: Tensor | None = None, planes: int = 1, groups: int = 1, bytes: bool = False
    ) -> None:
        self.mode = 3 if bytes else 2
        levels, self.channels = thresholds.shape
        super().__init__(
            thresholds=kernel_table(thresholds, torch.int32), flip=optional(flip, torch.uint8),
            levels=levels, out_planes=planes, out_groups=groups,
        )  # fmt: skip
        self.planes, self.groups = planes, groups
        if flip is not None and flip.numel() != self.channels:
            raise InputError(f"native core: flip has {flip.numel()} entries for {self.channels} channels")

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        if self.mode == 3:
            return (n, oh, ow, o), torch.uint8
        return (n, oh, ow, self.planes, word_count(o, self.groups)), torch.int32
