"""Codes: packing floats, max pooling, and conversion between words and bytes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.native_library import (
    PackStruct,
    PoolStruct,
    check_code,
    checked_tensor,
    kernel_table,
    library,
    optional,
    pair,
    word_count,
)
from bitwright.engine.native_output import grid_struct
from bitwright.engine.thresholds import EvenGrid
from bitwright.errors import InputError

SMALL = 200_000  # values; fewer are packed before a second thread has woken up


class PackPlan:
    """float32 -> code: the number of `thresholds` (`[levels]`, or `[C, levels]` per channel) that x reaches.

    NaN reaches none; -0.0 reaches 0.0; `flip[c]` gives `levels - code`. `grid`, for bytes, says the same as the thresholds.
    """

    def __init__(
        self, thresholds: Tensor, planes: int = 1, groups: int = 1, flip: Tensor | None = None,
        bytes: bool = False, grid: EvenGrid | None = None,
    ) -> None:  # fmt: skip
        self.grid = grid_struct(grid)
        self.thresholds = kernel_table(thresholds, torch.float32)
        self.flip = optional(flip, torch.uint8)
        self.planes, self.groups, self.as_bytes = planes, groups, bytes
        self.function = library().bw_pack_bytes if bytes else library().bw_pack_bits
        if self.thresholds.dim() not in (1, 2):
            raise InputError(f"native core: thresholds must be [levels] or [C, levels], got {list(thresholds.shape)}")
        self.calls: dict[tuple[int, ...], ctypes.Structure] = {}

    def run(self, x: Tensor, threads: int | None = None) -> Tensor:
        """x `[N, C, H, W]` (contiguous or channels_last), `[N, C, L]` or `[N, C]`."""
        if x.dtype is not torch.float32:
            if x.dtype not in (torch.float16, torch.bfloat16):  # these two widen exactly
                raise InputError(f"native core: pack takes float32, got {x.dtype}")
            x = x.float()
        while x.dim() < 4:
            x = x.unsqueeze(2 if x.dim() == 3 else -1)
        nchw = not x.is_contiguous(memory_format=torch.channels_last)
        if nchw:
            x = x.contiguous()
        n, c, h, w = x.shape
        struct = self.struct(n, h, w, c, nchw)
        memory, dtype = self.made(n, h, w, c)
        out = torch.empty(memory, dtype=dtype)
        if threads is None:
            threads = 1 if n * h * w * c < SMALL else torch.get_num_threads()
        code = self.function(ctypes.addressof(struct), x.data_ptr(), out.data_ptr(), threads)
        if code:
            check_code(code)
        return out

    def made(self, n: int, h: int, w: int, c: int) -> tuple[tuple[int, ...], torch.dtype]:
        """How the codes lie in memory, and their type."""
        if self.as_bytes:
            return (n, h, w, c), torch.uint8
        return (n, h, w, self.planes, word_count(c, self.groups)), torch.int32

    def struct(self, n: int, h: int, w: int, c: int, nchw: bool) -> ctypes.Structure:
        """The descriptor of one input size."""
        if (found := self.calls.get((n, h, w, c, nchw))) is not None:
            return found
        per_channel = self.thresholds.dim() == 2
        for name, rows in (("thresholds", self.thresholds if per_channel else None), ("flip", self.flip)):
            if rows is not None and rows.shape[0] != c:
                raise InputError(f"native core: {name} is for {rows.shape[0]} channels, x has {c}")
        if len(self.calls) > 256:
            self.calls.clear()
        struct = PackStruct(
            n=n, c=c, h=h, w=w, nchw=nchw, levels=self.thresholds.shape[-1], per_channel=per_channel,
            planes=self.planes, groups=self.groups, thresholds=self.thresholds.data_ptr(),
            flip=None if self.flip is None else self.flip.data_ptr(),
            grid=None if self.grid is None else ctypes.addressof(self.grid),
        )  # fmt: skip
        self.calls[n, h, w, c, nchw] = struct
        return struct

    def __deepcopy__(self, memo: dict[int, Any]) -> PackPlan:
        return self  # immutable


def pack_codes(x: Tensor, thresholds: Tensor, *args: Any, **options: Any) -> Tensor:
    """`PackPlan(thresholds, ...).run(x)`: words `[N, H, W, planes, Cw]`, or uint8 `[N, H, W, C]` with `bytes`."""
    return PackPlan(thresholds, *args, **options).run(x)


@functools.lru_cache(1024)
def pool_struct(shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    """The descriptor of max pooling of codes that lie as `shape` says."""
    (kh, kw), (sh, sw) = pair(kernel), pair(stride or kernel)
    (ph, pw), (dh, dw) = pair(padding), pair(dilation)
    n, h, w = shape[:3]

    def size(length: int, k: int, s: int, p: int, d: int) -> int:
        room = length + 2 * p - d * (k - 1) - 1
        if room < 0:
            raise InputError(f"native core: max pooling kernel {k} is larger than the input {length}")
        out = (room + (s - 1 if ceil else 0)) // s + 1
        return out - 1 if ceil and (out - 1) * s >= length + p else out  # windows start inside, as in torch

    planes, channels = shape[3:] if len(shape) == 5 else (1, shape[3])
    oh, ow = size(h, kh, sh, ph, dh), size(w, kw, sw, pw, dw)
    return PoolStruct(n, h, w, channels, planes, kh, kw, sh, sw, ph, pw, dh, dw, oh, ow)


def maxpool(
    x: Tensor, kernel: int | tuple[int, int], stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, ceil_mode: bool = False,
    threads: int = 1,
) -> Tensor:  # fmt: skip
    """Largest code of each window, words `[N, H, W, A, Cw]` or bytes `[N, H, W, C]`; padding never wins."""
    as_words = x.dim() == 5
    checked_tensor(x, "max pooling input", torch.int32 if as_words else torch.uint8)
    pool = pool_struct(tuple(x.shape), kernel, stride, padding, dilation, ceil_mode)
    out = torch.empty((x.shape[0], pool.oh, pool.ow, *x.shape[3:]), dtype=x.dtype)
    function = library().bw_maxpool_bits if as_words else library().bw_maxpool_bytes
    check_code(function(ctypes.addressof(pool), x.data_ptr(), out.data_ptr(), threads))
    return out


def unpack_codes(x: Tensor, channels: int, groups: int = 1) -> Tensor:
    """Words -> uint8 codes `[N, H, W, channels]`."""
    n, h, w, planes, count = checked_tensor(x, "words", torch.int32).shape
    if count != word_count(channels, groups):
        raise InputError(f"native core: {channels} channels are {word_count(channels, groups)} words, got {count}")
    out = torch.empty((n, h, w, channels), dtype=torch.uint8)
    check_code(library().bw_unpack_bits(x.data_ptr(), n * h * w, planes, channels, groups, out.data_ptr()))
    return out


def to_words(codes: Tensor, planes: int, groups: int = 1) -> Tensor:
    """uint8 codes `[N, H, W, C]` -> words: the inverse of `unpack_codes`."""
    n, h, w, channels = checked_tensor(codes, "codes", torch.uint8).shape
    out = torch.empty((n, h, w, planes, word_count(channels, groups)), dtype=torch.int32)
    check_code(library().bw_bytes_to_bits(codes.data_ptr(), n * h * w, planes, channels, groups, out.data_ptr()))
    return out
