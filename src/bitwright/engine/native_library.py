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


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    """A struct of the header: 64-bit integers, and by their marks pointers `*`, floats `.`, and ints `#`."""
    kinds = {"*": c_void_p, ".": c_float, "#": c_int}
    members = [(f.lstrip("*.#"), kinds.get(f[0], c_int64)) for f in fields.split()]
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
GridStruct = _struct("bw_grid", ".value #kind #base #low #high .quick .rest .bottom .top")
TermsStruct = _struct("bw_terms", "pixels o terms *scale *add")
GatedStruct = _struct("bw_gated", "n h w c o kh kw stride_h stride_w pad_h pad_w dil_h dil_w oh ow count block relu")
FloatsStruct = _struct("bw_floats", "n h w c o kh kw stride_h stride_w pad_h pad_w dil_h dil_w oh ow nchw relu")
TablesStruct = _struct("bw_tables", "n k o group more *levels *scale *add")
ConnectionsStruct = _struct("bw_connections", "n k o *begin *index *value *bias *scale *add tanh")
CodedConnectionsStruct = _struct("bw_coded_connections", "*list *conv")
SkipStruct = _struct(
    "bw_skip", "splits shared low_bits *threshold *bias *scale *add *off_scale *off_add relu dense *rest_corr"
)
SkipCallStruct = _struct("bw_skip_call", "*conv *skip")
SubsampleStruct = _struct("bw_subsample", "n h w c stride_h stride_w before behind")
HighBitsStruct = _struct("bw_high_bits", "count shift *table")
IMAGE_OPERATIONS = ("maxpool_floats", "avgpool_floats", "mean_floats", "subsample_floats")  # on floats, without weights
OPERATIONS = (
    *("conv_bits", "conv_bytes", "pack_bits", "pack_bytes", "maxpool_bits", "maxpool_bytes", "terms"),
    *("conv_gated", "conv_floats", "skip_bytes", "select", "high_bits", "skip_floats", "connections"),
    *("coded_connections", *IMAGE_OPERATIONS),
)
NOWHERE = -(1 << 63)  # the place of a value that a step does not have


POINTER, _I = c_void_p, c_int64
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bw_available_isas": (ctypes.c_char_p, []),
    "bw_force_isa": (c_int, [ctypes.c_char_p]),
    "bw_grid_prepare": (c_int, [POINTER]),
    **dict.fromkeys(
        ("bw_weights_size", "bw_byte_weights_size", "bw_gated_size", "bw_floats_size"), (c_int64, [POINTER])
    ),
    **dict.fromkeys(("bw_weights_pack", "bw_byte_weights_pack"), (c_int, [POINTER] * 3)),
    **dict.fromkeys(("bw_conv_bits", "bw_conv_bytes"), (c_int, [POINTER] * 7 + [c_int])),
    **dict.fromkeys(
        ("bw_pack_bits", "bw_pack_bytes", "bw_maxpool_bits", "bw_maxpool_bytes"), (c_int, [POINTER] * 3 + [c_int])
    ),
    "bw_gated_pack": (c_int, [POINTER] * 6),
    "bw_conv_gated": (c_int, [*[POINTER] * 6, c_int]),
    "bw_floats_pack": (c_int, [POINTER] * 4),
    "bw_linear_connections": (c_int, [*[POINTER] * 3, c_int]),
    "bw_linear_tables": (c_int, [*[POINTER] * 4, c_int]),
    "bw_conv_floats": (c_int, [*[POINTER] * 5, c_int]),
    **dict.fromkeys(("bw_skip_floats_size", "bw_skip_bytes_size"), (c_int64, [POINTER] * 2)),
    **dict.fromkeys(("bw_skip_floats_pack", "bw_skip_bytes_pack"), (c_int, [POINTER] * 4)),
    "bw_skip_floats": (c_int, [POINTER] * 6 + [c_int]),
    "bw_skip_bytes": (c_int, [POINTER] * 8 + [c_int]),
    "bw_run": (c_int, [POINTER, _I, POINTER, _I, c_int]),
    "bw_check_range": (c_int, [POINTER, _I, c_float]),
    **dict.fromkeys(("bw_unpack_bits", "bw_bytes_to_bits"), (c_int, [POINTER, _I, _I, _I, _I, POINTER])),
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


def require(condition: bool, text: str) -> None:
    """Errors: `InputError` of an argument that the kernels do not take."""
    if not condition:
        raise InputError(f"native core: {text}")


def isa() -> str:
    """The instruction set in use: `portable`, `avx2`, `avx512`, `amx`; on 64-bit ARM `portable`, `neon`, `neon_dot`."""
    return library().bw_isa().decode()


def isas() -> list[str]:
    """What this machine can run, slowest first."""
    return library().bw_available_isas().decode().split()


def force_isa(name: str) -> None:
    """Use one instruction set, `""` for the best. Plans made before must be made again."""
    check_code(library().bw_force_isa(name.encode()))


def checked_tensor(value: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    fits = value.dtype == dtype and value.is_contiguous()
    require(fits, f"{what} must be contiguous {dtype}, got {value.dtype} {list(value.shape)}")
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
