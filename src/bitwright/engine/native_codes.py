"""Codes: packing floats, the windows of max pooling, and conversion between words and bytes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native_library as core
from bitwright.engine.native_output import address, grid_struct
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
        self.thresholds = core.kernel_table(thresholds, torch.float32)
        self.flip = core.optional(flip, torch.uint8)
        self.planes, self.groups, self.as_bytes = planes, groups, bytes
        shape = list(thresholds.shape)
        core.require(len(shape) in (1, 2), f"thresholds must be [levels] or [C, levels], got {shape}")

    def made(self, n: int, h: int, w: int, c: int) -> tuple[tuple[int, ...], torch.dtype]:
        """How the codes lie in memory, and their type."""
        if self.as_bytes:
            return (n, h, w, c), torch.uint8
        return (n, h, w, self.planes, core.word_count(c, self.groups)), torch.int32

    def struct(self, n: int, h: int, w: int, c: int, nchw: bool) -> ctypes.Structure:
        """The descriptor of one input size; nchw: whether floats have their channels first."""
        per_channel = self.thresholds.dim() == 2
        for name, rows in (("thresholds", self.thresholds if per_channel else None), ("flip", self.flip)):
            if rows is not None:
                core.require(len(rows) == c, f"{name} is for {len(rows)} channels, x has {c}")
        return core.PackStruct(
            n=n, c=c, h=h, w=w, nchw=nchw, levels=self.thresholds.shape[-1], per_channel=per_channel,
            planes=self.planes, groups=self.groups, thresholds=self.thresholds.data_ptr(), flip=address(self.flip),
            grid=address(self.grid),
        )  # fmt: skip


@functools.lru_cache(1024)
def pool_struct(shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    """The descriptor of max pooling of codes that lie as `shape` says: words `[N, H, W, A, Cw]` or bytes `[N, H, W, C]`.

    Sizes are pairs. Padding never wins.
    """
    (n, h, w), (kh, kw), (sh, sw), (ph, pw), (dh, dw) = shape[:3], kernel, stride, padding, dilation

    def size(length: int, k: int, s: int, p: int, d: int) -> int:
        room = length + 2 * p - d * (k - 1) - 1
        if room < 0:
            raise InputError(f"native core: max pooling kernel {k} is larger than the input {length}")
        out = (room + (s - 1 if ceil else 0)) // s + 1
        return out - 1 if ceil and (out - 1) * s >= length + p else out  # windows start inside, as in torch

    planes, channels = shape[3:] if len(shape) == 5 else (1, shape[3])
    oh, ow = size(h, kh, sh, ph, dh), size(w, kw, sw, pw, dw)
    return core.PoolStruct(n, h, w, channels, planes, kh, kw, sh, sw, ph, pw, dh, dw, oh, ow)


def unpack_codes(x: Tensor, channels: int, groups: int = 1) -> Tensor:
    """Words -> uint8 codes `[N, H, W, channels]`."""
    n, h, w, planes, count = core.checked_tensor(x, "words", torch.int32).shape
    wanted = core.word_count(channels, groups)
    core.require(count == wanted, f"{channels} channels are {wanted} words, got {count}")
    out = torch.empty((n, h, w, channels), dtype=torch.uint8)
    core.check_code(core.library().bw_unpack_bits(x.data_ptr(), n * h * w, planes, channels, groups, out.data_ptr()))
    return out


def to_words(codes: Tensor, planes: int, groups: int = 1) -> Tensor:
    """uint8 codes `[N, H, W, C]` -> words: the inverse of `unpack_codes`."""
    n, h, w, channels = core.checked_tensor(codes, "codes", torch.uint8).shape
    out = torch.empty((n, h, w, planes, core.word_count(channels, groups)), dtype=torch.int32)
    pack = core.library().bw_bytes_to_bits
    core.check_code(pack(codes.data_ptr(), n * h * w, planes, channels, groups, out.data_ptr()))
    return out
