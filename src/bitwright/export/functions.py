"""What each operator of the domain `bitwright` means, in standard ONNX operators: written into every packed file, so that a
plain onnxruntime gives the same numbers, slower. Here a code is one uint8 per element, [N, H, W, C].

Integers are exact in any order of their sum. What follows them is one rounded multiply and one rounded add, as everywhere.
Attributes that only our library needs (`planes`, `groups`, ...) are named and not used.
"""
# Annotations are read by onnxscript: no `from __future__ import annotations` here.

from collections.abc import Sequence
from typing import Any

import onnx
from onnxscript import opset18, script
from onnxscript.values import Opset

LIMIT = 1048576.0  # of an input: beyond it the thresholds of a packed net promise nothing
op: Any = opset18
own: Any = Opset("bitwright", 1)


@script(own, default_opset=op)
def Guard(x):
    """[N]: 0, or NaN where a sample holds NaN or a number beyond the limit."""
    rows = op.Reshape(x, op.Constant(value_ints=[0, -1]))
    broken = op.Cast(op.Or(op.IsNaN(rows), op.Abs(rows) > LIMIT), to=1)
    any_broken = op.ReduceMax(broken, op.Constant(value_ints=[1]), keepdims=0)
    return 0.0 * any_broken / (1.0 - any_broken)  # 0 / 1 = 0, 0 / 0 = NaN


@script(own, default_opset=op)
def Reached(x, thresholds, flip):
    """The number of thresholds that x has reached, counted down where flip; NaN: 0."""
    last = op.Constant(value_ints=[-1])
    code = op.ReduceSum(op.Cast(op.Unsqueeze(x, last) >= thresholds, to=1), last, keepdims=0)
    levels = op.Cast(op.Gather(op.Shape(thresholds), op.Constant(value_int=-1)), to=1)
    turned = op.Where(op.Cast(flip, to=9), levels - code, code)
    return op.Cast(op.Where(op.IsNaN(op.Cast(x, to=1)), 0.0, turned), to=2)


@script(own, default_opset=op)
def Rounded(x, grid):
    """clip(round(x / divide * multiply), low - base, high - base) + base; NaN: 0."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    multiply, divide = op.Gather(grid, zero), op.Gather(grid, one)
    base = op.Gather(grid, op.Constant(value_int=2))
    low, high = op.Gather(grid, op.Constant(value_int=3)), op.Gather(grid, op.Constant(value_int=4))
    place = op.Round(x / divide * multiply)
    inside = op.Min(op.Max(place, low - base), high - base) + base
    return op.Cast(op.Where(op.IsNaN(x), 0.0, inside), to=2)


@script(own, default_opset=op)
def PackBits(x, thresholds, flip, perm: Sequence[int], channels_last: int, planes: int, groups: int):
    """Codes of floats; `perm` brings the channels last."""
    return Reached(op.Transpose(x, perm=perm), thresholds, flip)


@script(own, default_opset=op)
def PackBytes(x, thresholds, flip, perm: Sequence[int], channels_last: int):
    return Reached(op.Transpose(x, perm=perm), thresholds, flip)


@script(own, default_opset=op)
def PackRound(x, grid, perm: Sequence[int], channels_last: int):
    return Rounded(op.Transpose(x, perm=perm), grid)


@script(own, default_opset=op)
def MaxPool(
    codes, planes: int, kernel_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil_mode: int,
):  # fmt: skip
    images = op.Transpose(codes, perm=[0, 3, 1, 2])
    most = op.MaxPool(
        images, kernel_shape=kernel_shape, strides=strides, pads=pads, dilations=dilations, ceil_mode=ceil_mode
    )
    return op.Transpose(most, perm=[0, 2, 3, 1])


@script(own, default_opset=op)
def MaxPoolFloats(
    x,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
):
    """Pooling of floats whose channels are last, as layers with bits write them."""
    images = op.Transpose(x, perm=[0, 3, 1, 2])
    most = op.MaxPool(
        images, kernel_shape=kernel_shape, strides=strides, pads=pads, dilations=dilations, ceil_mode=ceil_mode
    )
    return op.Transpose(most, perm=[0, 2, 3, 1])


@script(own, default_opset=op)
def AveragePoolFloats(
    x,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
):
    """Taps in the padding do not count; no dilation."""
    images = op.Transpose(x, perm=[0, 3, 1, 2])
    mean = op.AveragePool(images, kernel_shape=kernel_shape, strides=strides, pads=pads, ceil_mode=ceil_mode)
    return op.Transpose(mean, perm=[0, 2, 3, 1])


@script(own, default_opset=op)
def SubsampleFloats(x, strides: Sequence[int], channel_pads: Sequence[int]):
    """Every so many rows and columns, with channels of zeros in front of and behind the others."""
    sides, end = op.Constant(value_ints=[1, 2]), op.Constant(value_ints=[2147483647, 2147483647])
    fewer = op.Slice(x, op.Constant(value_ints=[0, 0]), end, sides, op.Constant(value_ints=strides))
    none, pads = op.Constant(value_ints=[0, 0, 0]), op.Constant(value_ints=channel_pads)
    low, high = op.Gather(pads, op.Constant(value_ints=[0])), op.Gather(pads, op.Constant(value_ints=[1]))
    return op.Pad(fewer, op.Concat(none, low, none, high, axis=0))


@script(own, default_opset=op)
def ConvFloats(
    x, weight, add, floor, residual,
    perm: Sequence[int], channels_last: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
):  # fmt: skip
    """float [N, OH, OW, O]: max(convolution + add + residual, floor); `perm` brings the channels of x to axis 1."""
    images = op.Transpose(x, perm=perm)
    y = op.Conv(images, weight, add, strides=strides, pads=pads, dilations=dilations)
    return op.Max(op.Transpose(y, perm=[0, 2, 3, 1]) + residual, floor)


@script(own, default_opset=op)
def MeanFloats(x):
    """[N, 1, 1, C]: the mean of each image. The sum is exact in double, so no order of it is another one."""
    return op.Cast(op.ReduceMean(op.Cast(x, to=11), op.Constant(value_ints=[1, 2]), keepdims=1), to=1)


@script(own, default_opset=op)
def Weight(bits, shape, mult, zero):
    """int32 [O, C / groups, kh, kw]: zero + sum_p mult[p] * bit_p; bit i of the string is bit i % 8 of byte i // 8."""
    one = op.Constant(value_ints=[1])
    places = op.Cast(op.Constant(value_ints=[0, 1, 2, 3, 4, 5, 6, 7]), to=2)
    spread = op.BitShift(op.Unsqueeze(bits, one), places, direction="RIGHT")
    flat = op.Reshape(op.BitwiseAnd(spread, op.Cast(one, to=2)), op.Constant(value_ints=[-1]))
    count = op.ReduceProd(shape, keepdims=1)
    planes = op.Reshape(op.Slice(flat, op.Constant(value_ints=[0]), count), shape)
    weighted = op.Cast(planes, to=6) * op.Reshape(mult, op.Constant(value_ints=[-1, 1, 1, 1, 1]))
    return op.ReduceSum(weighted, op.Constant(value_ints=[0]), keepdims=0) + zero


@script(own, default_opset=op)
def FloatWeight(bits, shape, mult, zero, scale):
    """double [O, ...]: scale[o] * the whole weight. Only this function computes it, once, when a session is made."""
    rows = op.Reshape(op.Cast(scale, to=11), op.Constant(value_ints=[-1, 1, 1, 1]))
    return op.Cast(Weight(bits, shape, mult, zero), to=11) * rows


@script(own, default_opset=op)
def Inside(outputs, size, taps, stride, pad, dilation):
    """int32 [outputs, taps]: 1 where a tap lies inside an axis of the image."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    start = op.Unsqueeze(op.Range(zero, outputs, one) * stride - pad, op.Constant(value_ints=[1]))
    at = start + op.Range(zero, taps, one) * dilation
    return op.Cast(op.And(at >= zero, at < size), to=6)


@script(own, default_opset=op)
def BorderSums(x, sums, taps, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]):
    """int32 [OH, OW, O or 1]: the sum over the taps that lie inside the image, of taps [O or 1, kh, kw]."""
    zero, one, two = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=2)
    steps, before, apart = (
        op.Constant(value_ints=strides),
        op.Constant(value_ints=pads),
        op.Constant(value_ints=dilations),
    )
    size, outputs, kernel = op.Shape(x), op.Shape(sums), op.Shape(taps)
    rows = Inside(
        op.Gather(outputs, one), op.Gather(size, one), op.Gather(kernel, one),
        op.Gather(steps, zero), op.Gather(before, zero), op.Gather(apart, zero),
    )  # fmt: skip
    cols = Inside(
        op.Gather(outputs, two), op.Gather(size, two), op.Gather(kernel, two),
        op.Gather(steps, one), op.Gather(before, one), op.Gather(apart, one),
    )  # fmt: skip
    return op.Transpose(op.MatMul(op.MatMul(rows, taps), op.Transpose(cols, perm=[1, 0])), perm=[1, 2, 0])


@script(own, default_opset=op)
def ConvInt(
    x, bits, shape, mult, zero, x_mult, taps,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
):  # fmt: skip
    """int32 [N, OH, OW, O]: sum over the window of (zero_c + x_mult * code) * weight."""
    images = op.Transpose(x, perm=[0, 3, 1, 2])
    weight = Weight(bits, shape, mult, zero)
    # 9 bits at most: 2 * half + rest, each of which fits the 8 of ConvInteger (unsigned, so that no processor saturates)
    shift = op.Cast(op.Constant(value_int=256), to=6)
    two = op.Cast(op.Constant(value_int=2), to=6)
    half = op.Cast((weight + shift) / two, to=2)
    rest = op.Cast((weight + shift) - (weight + shift) / two * two, to=2)
    middle = op.Cast(op.Constant(value_int=128), to=2)
    none = op.Cast(op.Constant(value_int=0), to=2)
    halves = op.ConvInteger(images, half, none, middle, strides=strides, pads=pads, dilations=dilations, group=group)
    rests = op.ConvInteger(images, rest, none, none, strides=strides, pads=pads, dilations=dilations, group=group)
    sums = op.Transpose(halves * two + rests, perm=[0, 2, 3, 1])
    return sums * x_mult + BorderSums(x, sums, taps, strides=strides, pads=pads, dilations=dilations)


@script(own, default_opset=op)
def Terms(sums, scale, add):
    """float [N, OH, OW, O] of the integers of T terms side by side, [N, OH, OW, T * O]; scale [T, O]."""
    last = op.Constant(value_ints=[3])
    scales = op.Shape(scale)
    parts = op.Reshape(op.Cast(sums, to=1), op.Concat(op.Constant(value_ints=[0, 0, 0]), scales, axis=0))
    return op.ReduceSum(parts * scale, last, keepdims=0) + add


@script(own, default_opset=op)
def Conv(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
):  # fmt: skip
    """float [N, OH, OW, O]: max(integer * scale + add + residual, floor)."""
    integer = ConvInt(
        x, bits, shape, mult, zero, x_mult, taps,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return op.Max(op.Cast(integer, to=1) * scale + add + residual, floor)


@script(own, default_opset=op)
def ConvCut(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual, cuts, flip,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int, out_bytes: int,
):  # fmt: skip
    """Conv's floats, and one bit of each: y >= cut, the other way round where flip."""
    y = Conv(
        x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return y, op.Cast(op.Xor(y >= cuts, op.Cast(flip, to=9)), to=2)


@script(own, default_opset=op)
def ConvLadder(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual, cuts,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
):  # fmt: skip
    """Conv's floats, and the number of thresholds [levels, O] that each has reached."""
    y = Conv(
        x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return y, Reached(y, op.Transpose(cuts, perm=[1, 0]), op.Constant(value_int=0))


@script(own, default_opset=op)
def ConvRound(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual, grid,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
):  # fmt: skip
    """Conv's floats, and the code of each by an even ladder."""
    y = Conv(
        x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return y, Rounded(y, grid)


@script(own, default_opset=op)
def ConvPool(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
    pool_kernel: Sequence[int], pool_strides: Sequence[int], pool_pads: Sequence[int],
):  # fmt: skip
    """Conv's floats, the largest of each window."""
    y = Conv(
        x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return MaxPoolFloats(
        y, kernel_shape=pool_kernel, strides=pool_strides, pads=pool_pads, dilations=[1, 1], ceil_mode=0
    )


@script(own, default_opset=op)
def ConvCutPool(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual, cuts, flip,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int, out_bytes: int,
    pool_kernel: Sequence[int], pool_strides: Sequence[int], pool_pads: Sequence[int],
):  # fmt: skip
    """ConvCut of floats that were pooled."""
    y = ConvPool(
        x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
        pool_kernel=pool_kernel, pool_strides=pool_strides, pool_pads=pool_pads,
    )  # fmt: skip
    return y, op.Cast(op.Xor(y >= cuts, op.Cast(flip, to=9)), to=2)


@script(own, default_opset=op)
def ConvRoundPool(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual, grid,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
    pool_kernel: Sequence[int], pool_strides: Sequence[int], pool_pads: Sequence[int],
):  # fmt: skip
    """ConvRound of floats that were pooled."""
    y = ConvPool(
        x, bits, shape, mult, zero, x_mult, taps, scale, add, floor, residual,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
        pool_kernel=pool_kernel, pool_strides=pool_strides, pool_pads=pool_pads,
    )  # fmt: skip
    return y, Rounded(y, grid)


@script(own, default_opset=op)
def ConvCodes(
    x, bits, shape, mult, zero, x_mult, taps, thresholds, flip,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
    out_bytes: int, out_planes: int, out_groups: int,
):  # fmt: skip
    """Codes by comparing the integers with whole thresholds [levels, O]."""
    integer = ConvInt(
        x, bits, shape, mult, zero, x_mult, taps,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return Reached(integer, op.Transpose(thresholds, perm=[1, 0]), flip)


@script(own, default_opset=op)
def ConvRoundCodes(
    x, bits, shape, mult, zero, x_mult, taps, scale, add, grid,
    x_planes: int, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], group: int,
):  # fmt: skip
    """Codes of integer * scale + add by an even ladder."""
    integer = ConvInt(
        x, bits, shape, mult, zero, x_mult, taps,
        x_planes=x_planes, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return Rounded(op.Cast(integer, to=1) * scale + add, grid)


OPERATORS = (
    Guard,
    PackBits,
    PackBytes,
    PackRound,
    MaxPool,
    MaxPoolFloats,
    AveragePoolFloats,
    SubsampleFloats,
    ConvFloats,
    MeanFloats,
    ConvInt,
    Terms,
    Conv,
    ConvCut,
    ConvLadder,
    ConvRound,
    ConvPool,
    ConvCutPool,
    ConvRoundPool,
    ConvCodes,
    ConvRoundCodes,
)
HELPERS = (Reached, Rounded, Weight, FloatWeight, Inside, BorderSums)


def protos(used: set[str]) -> list[onnx.FunctionProto]:
    """The functions of the operators that a file uses, with those that they call."""
    made = {f.name: f.to_function_proto() for f in (*HELPERS, *OPERATORS)}
    needed, queue = set(), sorted(used)
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            queue += [n.op_type for n in made[name].node if n.domain == own.domain]
    return [made[name] for name in made if name in needed]
