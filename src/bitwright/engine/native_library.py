"""The inference side of `libbitwright_core`: its structs and signatures for ctypes, its errors, its instruction sets."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.fn.library import open_core

_generation = 0  # counts force_isa: plans made before it packed their weights for other kernels


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    """A struct of the header: 64-bit integers, and pointers marked by `*`."""
    members = [(f.lstrip("*"), c_void_p if f[0] == "*" else c_int64) for f in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": members})


ConvStruct = _struct(
    "bw_conv",
    "n h w c o kh kw stride_h stride_w pad_h pad_w dil_h dil_w groups oh ow x_planes w_planes w_zero "
    "*x_mult *w_mult row_classes col_classes *row_class *col_class *corr",
)
OutputStruct = _struct(
    "bw_output",
    "mode levels out_planes out_groups *scale *add *thresholds *flip relu extra_bytes *grid *cuts "
    "pool_kernel pool_stride pool_pad",
)
PackStruct = _struct("bw_pack", "n h w c nchw levels per_channel planes groups *thresholds *flip *grid")
PoolStruct = _struct("bw_pool", "n h w channels planes kh kw stride_h stride_w pad_h pad_w dil_h dil_w oh ow")
StepStruct = _struct("bw_step", "operation *shape *weights *output x residual out extra alone")
TermsStruct = _struct("bw_terms", "pixels o terms *scale *add")
OPERATIONS = {
    name: i
    for i, name in enumerate(
        ("conv_bits", "conv_bytes", "pack_bits", "pack_bytes", "maxpool_bits", "maxpool_bytes", "terms")
    )
}
NOWHERE = -(1 << 63)  # the place of a value that a step does not have


class GridStruct(ctypes.Structure):
    """bw_grid."""

    _fields_ = [
        ("value", c_float), ("kind", c_int), ("base", c_int), ("low", c_int), ("high", c_int),
        ("quick", c_float), ("rest", c_float), ("bottom", c_float), ("top", c_float),
    ]  # fmt: skip


POINTER, _I = c_void_p, c_int64
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bw_available_isas": (ctypes.c_char_p, []),
    "bw_force_isa": (c_int, [ctypes.c_char_p]),
    "bw_grid_prepare": (c_int, [POINTER]),
    "bw_weights_size": (c_int64, [POINTER]),
    "bw_weights_pack": (c_int, [POINTER, POINTER, POINTER]),
    "bw_byte_weights_size": (c_int64, [POINTER]),
    "bw_byte_weights_pack": (c_int, [POINTER, POINTER, POINTER]),
    "bw_conv_bits": (c_int, [POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, c_int]),
    "bw_conv_bytes": (c_int, [POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, c_int]),
    "bw_pack_bits": (c_int, [POINTER, POINTER, POINTER, c_int]),
    "bw_pack_bytes": (c_int, [POINTER, POINTER, POINTER, c_int]),
    "bw_maxpool_bits": (c_int, [POINTER, POINTER, POINTER, c_int]),
    "bw_maxpool_bytes": (c_int, [POINTER, POINTER, POINTER, c_int]),
    "bw_run": (c_int, [POINTER, _I, POINTER, _I, c_int]),
    "bw_check_range": (c_int, [POINTER, _I, c_float]),
    "bw_unpack_bits": (c_int, [POINTER, _I, _I, _I, _I, POINTER]),
    "bw_bytes_to_bits": (c_int, [POINTER, _I, _I, _I, _I, POINTER]),
}


_loaded: list[tuple[ctypes.CDLL | None, str]] = []


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason; loaded once. Cached by hand: torch's compiler warns of the caches of functools."""
    if not _loaded:
        _loaded.append(open_core(SIGNATURES))
    return _loaded[0]


def available() -> bool:
    """Whether the native core can be used here."""
    return _load()[0] is not None


def notice() -> str:
    """Why `available()` is False, in one line; empty when it is True."""
    return _load()[1]


def library() -> ctypes.CDLL:
    lib, reason = _load()
    if lib is None:
        raise InputError(reason, code="native-missing")
    return lib


def check_code(code: int) -> None:
    if code:
        raise InputError(f"native core: {library().bw_last_error().decode()}", code="native")


def isa() -> str:
    """The instruction set in use: `portable`, `avx2`, `avx512`, `amx`."""
    return library().bw_isa().decode()


def isas() -> list[str]:
    """What this machine can run, slowest first."""
    return library().bw_available_isas().decode().split()


def force_isa(name: str) -> None:
    """Use one instruction set, `""` for the best. Plans made before must be made again."""
    global _generation
    check_code(library().bw_force_isa(name.encode()))
    _generation += 1


def generation() -> int:
    """How often `force_isa` was called: part of the key of remembered plans."""
    return _generation


def checked_tensor(value: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    if value.dtype != dtype or not value.is_contiguous():
        raise InputError(f"native core: {what} must be contiguous {dtype}, got {value.dtype} {list(value.shape)}")
    return value


def kernel_table(value: Any, dtype: torch.dtype) -> Tensor:
    """A small private table for the kernels: later changes of the argument do not reach it."""
    return torch.as_tensor(value).detach().to("cpu", dtype, copy=True).contiguous()


def optional(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else kernel_table(value, dtype)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def word_count(channels: int, groups: int = 1) -> int:
    """Words per pixel and plane: every group starts a new word."""
    return groups * -(-(channels // groups) // 32)
