"""What becomes of the integers of a convolution: a `KernelOutput` is made once and used for every call."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native_library as core
from bitwright.engine.thresholds import EvenGrid


class KernelOutput:
    """Tells `ConvPlan.run` what to return; made once, used for every call. This one: the int32 sums."""

    mode = 0
    extra = ""  # what else a call writes: "words" or "bytes"
    channels: int | None = None
    planes = 1

    def __init__(self, **fields: Any) -> None:
        self.keep = fields  # tensors and structs whose memory the struct points to
        values = {k: address(v) for k, v in fields.items() if v is not None}
        self.struct = core.OutputStruct(mode=self.mode, **values)
        self.address = ctypes.addressof(self.struct)

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        """How the result lies in memory, and its type."""
        return (n, oh, ow, o), {0: torch.int32, 1: torch.float32, 3: torch.uint8}[self.mode]

    def beside(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        """The same of what `extra` names."""
        if self.extra == "bytes":
            return (n, oh, ow, o), torch.uint8
        return (n, oh, ow, self.planes, core.word_count(o)), torch.int32


def address(value: Any) -> Any:
    """Where a tensor or a struct lies; any other field as it is."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return ctypes.addressof(value) if isinstance(value, ctypes.Structure) else value


def grid_struct(grid: EvenGrid | None) -> ctypes.Structure | None:
    """The struct of an even ladder."""
    if grid is None:
        return None
    made = core.GridStruct(grid.value, ("multiply", "divide", "step").index(grid.kind), grid.base, grid.low, grid.high)
    core.check_code(core.library().bw_grid_prepare(ctypes.addressof(made)))
    return made


class FloatOutput(KernelOutput):
    """`y = float(I) * scale[o] + add[o]`, then `+ residual`, then with `relu` the larger of y and 0.

    What a call gives besides y, if anything, for a next layer that reads codes:
    grid          codes of y as bytes, by an even ladder
    cuts, flip    float [L, O] or [O], uint8 [O]: how many cuts y has reached; as words, or of one cut with `bytes` as bytes. Of one cut
                  the other bit where flip[o]; more have no flip
    pool          (side of a square window, stride, padding): y, and with it the codes, are those of the max-pooled floats
    """

    mode = 1

    def __init__(
        self, scale: Tensor, add: Tensor, *, relu: bool = False, grid: EvenGrid | None = None, cuts: Tensor | None = None,
        flip: Tensor | None = None, bytes: bool = False, pool: tuple[int, int, int] | None = None,
    ) -> None:  # fmt: skip
        o = scale.numel()
        cuts = None if cuts is None else cuts.reshape(-1, cuts.shape[-1])
        cut = None if cuts is None else cuts[0]
        for name, value in (("add", add), ("cuts", cut), ("flip", flip)):
            if value is not None:
                core.require(value.numel() == o, f"scale has {o} entries, {name} {value.numel()}")
        levels, pool = 0 if cuts is None else len(cuts), pool or (0, 0, 0)
        self.planes = max(1, levels.bit_length())
        super().__init__(
            scale=core.kernel_table(scale, torch.float32), add=core.kernel_table(add, torch.float32), relu=int(relu), grid=grid_struct(grid),
            pool_kernel=pool[0], pool_stride=pool[1], pool_pad=pool[2], cuts=core.optional(cuts, torch.float32), levels=levels, out_planes=self.planes, extra_bytes=int(bytes), flip=core.optional(flip, torch.uint8),
        )  # fmt: skip
        self.channels, self.pool = o, pool
        if grid is not None or cuts is not None:
            self.extra = "bytes" if grid is not None or bytes else "words"

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        return super().made(n, *self._pooled(oh, ow), o)

    def beside(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        return super().beside(n, *self._pooled(oh, ow), o)

    def _pooled(self, oh: int, ow: int) -> tuple[int, int]:
        kernel, stride, pad = self.pool
        if not kernel:
            return oh, ow
        return (oh + 2 * pad - kernel) // stride + 1, (ow + 2 * pad - kernel) // stride + 1


class GridOutput(KernelOutput):
    """Codes of `y = float(I) * scale[o] + add[o]` by an even ladder, as bytes."""

    mode = 3

    def __init__(self, scale: Tensor, add: Tensor, grid: EvenGrid) -> None:
        scale, add = core.kernel_table(scale, torch.float32), core.kernel_table(add, torch.float32)
        super().__init__(scale=scale, add=add, grid=grid_struct(grid))
        self.channels = scale.numel()


class CodeOutput(KernelOutput):
    """`code = #{l : I >= thresholds[l, o]}`, `levels - code` if `flip[o]`; words, or uint8 with `bytes`."""

    def __init__(
        self, thresholds: Tensor, flip: Tensor | None = None, planes: int = 1, groups: int = 1, bytes: bool = False
    ) -> None:
        self.mode = 3 if bytes else 2
        levels, self.channels = thresholds.shape
        super().__init__(
            thresholds=core.kernel_table(thresholds, torch.int32), flip=core.optional(flip, torch.uint8),
            levels=levels, out_planes=planes, out_groups=groups,
        )  # fmt: skip
        self.planes, self.groups = planes, groups
        if flip is not None:
            core.require(flip.numel() == self.channels, f"flip has {flip.numel()} entries for {self.channels} channels")

    def made(self, n: int, oh: int, ow: int, o: int) -> tuple[tuple[int, ...], torch.dtype]:
        if self.mode == 3:
            return super().made(n, oh, ow, o)
        return (n, oh, ow, self.planes, core.word_count(o, self.groups)), torch.int32
