"""Operators for torch.compile and torch.export, `torch.ops.bitwright.*`: eager on the CPU, and fake.

They take weights as 0/1 bits and remember the plan of each weight tensor until it is written to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.engine.native_codes import pack_codes
from bitwright.engine.native_conv import ConvPlan
from bitwright.engine.native_library import generation, word_count

_ops = torch.library.Library("bitwright", "DEF")
_ops.define("pack_bits(Tensor x, Tensor thresholds, int planes) -> Tensor")
_ops.define(
    "bit_conv2d_int(Tensor x_words, Tensor w_bits, int[] w_mult, int w_zero, int[] x_mult, int x_zero, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)
_ops.define(
    "bit_linear_int(Tensor x_words, Tensor w_bits, int[] w_mult, int w_zero, int[] x_mult, int x_zero) -> Tensor"
)


PLACE = ("stride", "padding", "dilation", "groups")
LIMIT = 128
_plans: dict[
    Any, tuple[Tensor, ConvPlan]
] = {}  # by identity and version of the weights, which stay alive, and the rest


def _plan(w_bits: Tensor, w_mult: list[int], w_zero: int, x_mult: list[int], x_zero: int, *place: Any) -> ConvPlan:
    where = w_bits.data_ptr(), w_bits.shape, w_bits.stride(), w_bits._version, generation()
    key = (*where, str((w_mult, w_zero, x_mult, x_zero, place)))
    if key not in _plans:
        if len(_plans) >= LIMIT:
            _plans.clear()
        more = dict(zip(PLACE, place, strict=False))
        plan = ConvPlan.bits(w_bits, w_mult=w_mult, w_zero=w_zero, x_mult=x_mult, x_zero=x_zero, **more)
        _plans[key] = (w_bits.detach(), plan)
    return _plans[key][1]


def _pack_op(x: Tensor, thresholds: Tensor, planes: int) -> Tensor:
    return pack_codes(x, thresholds, planes)


def _conv_op(x_words: Tensor, w_bits: Tensor, *rest: Any) -> Tensor:
    return _plan(w_bits, *rest).run_int(x_words.contiguous())


def _linear_op(x_words: Tensor, w_bits: Tensor, *rest: Any) -> Tensor:
    return _conv_op(x_words, w_bits[:, :, :, None, None], *rest).flatten(1)


def _pack_fake(x: Tensor, thresholds: Tensor, planes: int) -> Tensor:
    n, c, *rest = x.shape
    h, w = (1, 1) if not rest else (1, rest[0]) if len(rest) == 1 else rest
    return x.new_empty((n, h, w, planes, word_count(c)), dtype=torch.int32)


def _conv_fake(x_words: Tensor, w_bits: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation = rest[4:7]
    n, *image = x_words.shape[:3]
    o, _, *kernel = w_bits.shape[1:]
    oh, ow = ((image[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    return x_words.new_empty((n, oh, ow, o), dtype=torch.int32).permute(0, 3, 1, 2)


def _linear_fake(x_words: Tensor, w_bits: Tensor, *rest: Any) -> Tensor:
    return x_words.new_empty((x_words.shape[0], w_bits.shape[1]), dtype=torch.int32)


for _name, _run, _fake in (
    ("pack_bits", _pack_op, _pack_fake),
    ("bit_conv2d_int", _conv_op, _conv_fake),
    ("bit_linear_int", _linear_op, _linear_fake),
):
    _ops.impl(_name, _run, "CPU")
    torch.library.register_fake(f"bitwright::{_name}", _fake)
