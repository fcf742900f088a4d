"""Kernels of the core called one by one; a packed net runs them in a list (`bitwright.engine.native_run`)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native
from bitwright.engine.native_codes import pool_struct
from bitwright.engine.native_library import check_code, library

Pair = int | tuple[int, int]


def run_int(plan: native.ConvPlan, x: Tensor, threads: int | None = None) -> Tensor:
    """The int32 sums, [N, O, OH, OW]."""
    return plan.run(x, native.KernelOutput(), None, threads)


def pack_codes(x: Tensor, thresholds: Tensor, *args: Any, threads: int = 1, **options: Any) -> Tensor:
    """Codes of x [N, C, H, W] (contiguous or channels_last), [N, C, L] or [N, C], as `PackPlan(thresholds, ...)` lays them."""
    plan = native.PackPlan(thresholds, *args, **options)
    while x.dim() < 4:
        x = x.unsqueeze(2 if x.dim() == 3 else -1)
    nchw = not x.is_contiguous(memory_format=torch.channels_last)
    x = x.contiguous() if nchw else x
    n, c, h, w = x.shape
    memory, dtype = plan.made(n, h, w, c)
    out, lib = torch.empty(memory, dtype=dtype), library()
    function = lib.bw_pack_bytes if dtype is torch.uint8 else lib.bw_pack_bits
    struct = plan.struct(n, h, w, c, nchw)
    check_code(function(ctypes.addressof(struct), x.data_ptr(), out.data_ptr(), threads))
    return out


def maxpool(
    x: Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1, ceil: bool = False,
    threads: int = 1,
) -> Tensor:  # fmt: skip
    """The largest code of each window, by one call of the core."""
    sizes = [(v, v) if isinstance(v, int) else v for v in (kernel, stride or kernel, padding, dilation)]
    pool, lib = pool_struct(tuple(x.shape), *sizes, ceil), library()
    out = torch.empty((x.shape[0], pool.oh, pool.ow, *x.shape[3:]), dtype=x.dtype)
    function = lib.bw_maxpool_bits if x.dim() == 5 else lib.bw_maxpool_bytes
    check_code(function(ctypes.addressof(pool), x.data_ptr(), out.data_ptr(), threads))
    return out
