"""Convolutions and linear layers with prepared weights; one descriptor per input size is remembered."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native_library as core
from bitwright.engine.native_output import KernelOutput
from bitwright.engine.reference import border_classes, corrections, tap_sums
from bitwright.errors import InputError


class ConvCall:
    """The descriptor of one input size: geometry, border classes and their table of constants."""

    def __init__(self, plan: ConvPlan, n: int, h: int, w: int) -> None:
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = plan.kernel, plan.stride, plan.padding, plan.dilation
        self.oh = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        self.ow = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        if self.oh < 1 or self.ow < 1:
            raise InputError(f"native core: a {h}x{w} input is smaller than the {kh}x{kw} kernel")
        self.image = n, self.oh, self.ow, plan.out_channels
        rows, row_class = border_classes(h, self.oh, kh, sh, ph, dh)
        cols, col_class = border_classes(w, self.ow, kw, sw, pw, dw)
        corr = corrections(plan.tap_sums, rows, cols)
        corr = corr if plan.shift is None else corr + plan.shift
        self.keep = (row_class, col_class, corr.to(torch.int32).contiguous())
        self.struct = core.ConvStruct.from_buffer_copy(plan.struct)
        for name, value in {"n": n, "h": h, "w": w, "oh": self.oh, "ow": self.ow}.items():
            setattr(self.struct, name, value)
        self.struct.row_classes, self.struct.col_classes = len(rows), len(cols)
        self.struct.row_class, self.struct.col_class, self.struct.corr = (t.data_ptr() for t in self.keep)
        self.address = ctypes.addressof(self.struct)
        # threads pay off above roughly 30 microseconds of work on one core
        macs = n * self.oh * self.ow * plan.macs_per_pixel
        self.small = macs * plan.planes_product < (30e6 if plan.kind == "bits" else 5e6)


class ConvPlan:
    """A convolution (or linear layer: 1x1 input and kernel) with prepared weights; see `bits` and `bytes`."""

    def __init__(
        self, kind: str, weight: Tensor, values: Tensor, w_mult: Sequence[int], w_zero: int, x_mult: Sequence[int],
        x_zero: int | Tensor = 0, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1, groups: int = 1, x_bits: int = 0, shift: Tensor | None = None,
    ) -> None:  # fmt: skip
        lib = core.library()
        self.kind, self.groups = kind, groups
        self.out_channels, group_channels, *kernel = values.shape
        self.in_channels, self.kernel = group_channels * groups, (kernel[0], kernel[1])
        self.stride, self.padding, self.dilation = core.pair(stride), core.pair(padding), core.pair(dilation)
        self.tap_sums, self.shift = tap_sums(values, x_zero, groups), shift
        self.macs_per_pixel, self.planes_product = values.numel(), len(x_mult) * len(w_mult)
        self.keep = (core.kernel_table(list(x_mult), torch.int32), core.kernel_table(list(w_mult), torch.int32))
        self.struct = core.ConvStruct(
            c=self.in_channels, o=self.out_channels, kh=self.kernel[0], kw=self.kernel[1],
            stride_h=self.stride[0], stride_w=self.stride[1], pad_h=self.padding[0], pad_w=self.padding[1],
            dil_h=self.dilation[0], dil_w=self.dilation[1], groups=groups, x_planes=x_bits or len(x_mult),
            w_planes=len(w_mult), w_zero=w_zero, x_mult=self.keep[0].data_ptr(), w_mult=self.keep[1].data_ptr(),
        )  # fmt: skip
        if kind == "bits":
            size, pack, self.function = lib.bw_weights_size, lib.bw_weights_pack, lib.bw_conv_bits
            self.tail, self.dtype = (len(x_mult), core.word_count(self.in_channels, groups)), torch.int32
        else:
            size, pack, self.function = lib.bw_byte_weights_size, lib.bw_byte_weights_pack, lib.bw_conv_bytes
            self.tail, self.dtype = (self.in_channels,), torch.uint8
        conv = ctypes.addressof(self.struct)
        count = size(conv)
        core.check_code(count < 0)
        self.buffer = torch.empty(count + 64, dtype=torch.uint8)
        self.weights = -(-self.buffer.data_ptr() // 64) * 64
        core.check_code(pack(conv, weight.data_ptr(), self.weights))
        self.calls: dict[tuple[int, int, int], ConvCall] = {}

    @classmethod
    def bits(
        cls, weight: Tensor, *, w_mult: Sequence[int], w_zero: int, x_mult: Sequence[int], **place: Any
    ) -> ConvPlan:
        """`weight` 0/1 `[w_planes, O, C/groups, kh, kw]`: W = w_zero + sum w_mult[q] bit_q; X likewise.

        I = sum of W * X over the taps inside the image: integers, exact. place: `x_zero` (one, or one per channel), `stride`,
        `padding`, `dilation`, `groups`, `shift` (int64 [O], added to every I).
        """
        planes, shape = len(w_mult), list(weight.shape)
        fits = len(shape) == 5 and shape[0] == planes
        core.require(fits, f"weight bits must be [{planes}, O, C, kh, kw], got {shape}")
        weight = (weight.detach() != 0).to(torch.uint8).contiguous()
        values = w_zero + (weight * torch.tensor(list(w_mult)).reshape(-1, 1, 1, 1, 1)).sum(0)
        return cls("bits", weight, values, w_mult, w_zero, x_mult, **place)

    @classmethod
    def bytes(cls, weight: Tensor, *, x_mult: int = 1, x_bits: int = 8, **place: Any) -> ConvPlan:
        """`weight` integers `[O, C/groups, kh, kw]`, times x_mult in -255..255; X = x_zero + x_mult * code, of uint8
        `[N, H, W, C]` below 2^x_bits: larger ones give wrong sums."""
        fits = weight.dim() == 4 and (not weight.numel() or int(weight.abs().max()) * x_mult <= 255)
        core.require(fits, f"byte weights [O, C, kh, kw] times x_mult must lie in -255..255, got {list(weight.shape)}")
        values = weight.detach().to(torch.int16)
        taps_first = (values * x_mult).permute(0, 2, 3, 1).contiguous()
        return cls("bytes", taps_first, values, [1], 0, [1], x_bits=x_bits, **place)

    def run(self, x: Tensor, output: KernelOutput, residual: Tensor | None = None, threads: int | None = None) -> Any:
        """The result `output` describes; with something `extra` the pair (y, extra). `residual` is like y."""
        if x.dim() != 3 + len(self.tail) or tuple(x.shape[3:]) != self.tail:
            wanted = ", ".join(map(str, self.tail))
            raise InputError(f"native core: input must be [N, H, W, {wanted}], got {list(x.shape)}")
        call = self.call(*x.shape[:3])
        if x.dtype is not self.dtype or not x.is_contiguous():
            core.checked_tensor(x, "input", self.dtype)
        if output.channels is not None and output.channels != self.out_channels:
            have = self.out_channels
            raise InputError(f"native core: output is for {output.channels} channels, the layer has {have}")
        memory, dtype = output.made(*call.image)
        y = torch.empty(memory, dtype=dtype)
        if output.mode in (0, 1):
            y = y.permute(0, 3, 1, 2)
        residual_at = extra_at = extra = None
        if residual is not None:
            if residual.shape != y.shape or residual.dtype is not torch.float32 or output.mode != 1:
                raise InputError(f"native core: residual must be float32 {list(y.shape)} for a FloatOutput")
            residual = residual.contiguous(memory_format=torch.channels_last)
            residual_at = residual.data_ptr()
        if output.extra:
            memory, dtype = output.beside(*call.image)
            extra = torch.empty(memory, dtype=dtype)
            extra_at = extra.data_ptr()
        if threads is None:
            threads = 1 if call.small else torch.get_num_threads()
        code = self.function(
            call.address, x.data_ptr(), self.weights, output.address, y.data_ptr(), residual_at, extra_at, threads
        )
        if code:
            core.check_code(code)
        return y if extra is None else (y, extra)

    def call(self, n: int, h: int, w: int) -> ConvCall:
        """The descriptor of one input size."""
        found = self.calls.get((n, h, w))
        if found is None:
            if len(self.calls) > 256:  # a caller that varies the batch size without end
                self.calls.clear()
            found = self.calls[n, h, w] = ConvCall(self, n, h, w)
        return found

    def __reduce__(self) -> Any:
        raise TypeError("a ConvPlan holds memory laid out for this CPU; save the weights, make it again")
