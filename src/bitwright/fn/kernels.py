"""The native training kernels: when they may run, and how one is called. A call is one ctypes call."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bitwright.fn.library import open_core

_P, _I = c_void_p, c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bw_sign_forward": (c_int, [_P, _P, _P, _I, c_int, c_int, c_int]),
    "bw_step_forward": (c_int, [_P, _P, _I, c_float, c_float, c_float, c_int, c_int]),
    "bw_mask_backward": (c_int, [_P, _P, _P, _I, c_int, c_int]),
    "bw_approx_backward": (c_int, [_P, _P, _P, _I, c_int, c_int]),
    "bw_clip_forward": (c_int, [_P, _P, _P, _P, _I, _P, _I, c_int, c_int]),
    "bw_odd_forward": (c_int, [_P, _P, _P, _I, _I, c_int, c_int]),
    "bw_clip_backward": (c_int, [_P, _P, _P, _P, _P, _I, c_int, c_int]),
    "bw_lsq_forward": (c_int, [_P, _P, _P, _I, _I, _I, c_float, c_float, c_int, c_int]),
    "bw_lsq_backward": (c_int, [_P, _P, _P, _P, _P, _I, _I, _I, c_float, c_float, c_float, c_int, c_int]),
    "bw_binary_forward": (c_int, [_P, _P, _P, _P, _I, _I, c_int, c_int, c_int]),
    "bw_binary_backward": (c_int, [_P, _P, _P, _P, _I, _I, c_int, c_int, c_int, c_int]),
    "bw_dorefa_forward": (c_int, [_P, _P, _P, _I, _I, c_int, c_int]),
    "bw_dorefa_backward": (c_int, [_P, _P, _P, _P, _I, c_int, c_int]),
    "bw_gate_moments": (c_int, [_P, _P, _I, _I, _I, c_int, c_int, c_int]),
    "bw_gate_forward": (c_int, [*[_P] * 7, _I, _I, _I, c_int, c_int, c_int]),
    "bw_gate_backward": (c_int, [*[_P] * 10, _I, _I, _I, c_int, c_float, c_int, c_int, c_int]),
    "bw_split_forward": (c_int, [_P, _P, _P, _I, _P, c_float, c_int, c_int]),
}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_PLAIN = (Tensor, nn.Parameter)  # not their subclasses: fake, batched, sharded tensors have no memory of their own
_ALONE = 32768  # elements below which a second thread does not pay
_enabled = os.environ.get("BITWRIGHT_FUSED", "1") != "0"


@functools.cache
def _library() -> ctypes.CDLL | None:
    return open_core(_SIGNATURES)[0]


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Uses the native kernels or not, within the block (the environment's BITWRIGHT_FUSED=0 is the start value).

    >>> with switched(False):
    ...     takes(torch.zeros(2))
    False
    """
    global _enabled
    before, _enabled = _enabled, on
    try:
        yield
    finally:
        _enabled = before


def takes(x: Tensor) -> bool:
    """Whether the native kernels do x: eager, on the CPU, float32 or bfloat16, under no transform.

    The one place that chooses by device: CUDA would take torch.compile of the composed functions here.
    """
    if torch.compiler.is_compiling():  # first: compilers must see nothing of what follows
        return False
    return (
        _enabled
        and type(x) in _PLAIN
        and x.dtype in _DTYPES
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and not _transformed()
        and _library() is not None
    )


def readable(t: Tensor) -> bool:
    """Whether a branch may look at the value of t: eager, with memory of its own, under no transform.

    >>> readable(torch.zeros(()))
    True
    """
    if torch.compiler.is_compiling():
        return False
    return type(t) in _PLAIN and not t.is_meta and not _transformed()


def _transformed() -> bool:
    """A functorch transform, forward mode, a dispatch mode (fake tensors, tracing to FX) or jit tracing is active."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def takes_gradient(grad: Tensor) -> bool:
    """`takes`, and no batch of gradients (`is_grads_batched`), which looks like a plain tensor but has no memory."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return takes(grad) and not (functorch.is_legacy_batchedtensor(grad) or functorch.is_functorch_wrapped_tensor(grad))


def needs_graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def call_core(name: str, *arguments: Any) -> None:
    """A function of the core; its error message is raised as an exception."""
    lib = _library()
    assert lib is not None
    if getattr(lib, name)(*arguments):
        raise RuntimeError(f"native core: {lib.bw_last_error().decode()}")


def launch(name: str, *arguments: Any, like: Tensor, option: tuple[Any, ...] = ()) -> None:
    """`call_core` with tensors as their addresses; behind them the type of `like`, and as many threads as it is worth."""
    places = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    threads = 1 if like.numel() < _ALONE else torch.get_num_threads()
    call_core(name, *places, _DTYPES[like.dtype], *option, threads)
