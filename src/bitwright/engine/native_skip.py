"""Gated layers that skip: the rest of a sum is computed only where its base exceeds a threshold."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native_library as core
from bitwright.engine.native_conv import ConvCall
from bitwright.engine.native_output import KernelOutput, address
from bitwright.engine.reference import border_classes, corrections, tap_sums
from bitwright.fn.shares import base_mask


class SkipPlan:
    """A layer with prepared weights; one descriptor per input size is remembered. `tables` and `options` fill the struct of the gate."""

    tap_sums: Tensor  # what the zero point of the inputs adds to the base
    shift: Tensor | None = None  # of a layer that lost units: here none is left out
    kind, planes_product = "bytes", 1

    def __init__(
        self, kind: str, weight: Tensor, values: Tensor, tables: dict[str, Tensor | None], options: dict[str, int],
        stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
        groups: int = 1, x_bits: int = 0,
    ) -> None:  # fmt: skip
        lib, (o, fan, kh, kw) = core.library(), weight.shape
        self.in_channels, self.out_channels, self.groups, self.kernel = fan * groups, o, groups, (kh, kw)
        self.stride, self.padding, self.dilation = core.pair(stride), core.pair(padding), core.pair(dilation)
        self.macs_per_pixel, self.keep = weight.numel(), tables
        for name, value in tables.items():
            fits = value is None or value.shape == (o,)
            core.require(fits, f"{name} must have {o} entries, got {value if value is None else list(value.shape)}")
        self.gate = core.SkipStruct(**{name: address(value) for name, value in {**tables, **options}.items()})
        (sh, sw), (ph, pw), (dh, dw) = self.stride, self.padding, self.dilation
        self.struct = core.ConvStruct(
            c=self.in_channels, o=o, kh=kh, kw=kw, stride_h=sh, stride_w=sw, pad_h=ph, pad_w=pw, dil_h=dh, dil_w=dw,
            groups=groups, x_planes=x_bits,
        )  # fmt: skip
        at = ctypes.addressof(self.struct), ctypes.addressof(self.gate)
        size = getattr(lib, f"bw_skip_{kind}_size")(*at)
        core.check_code(size < 0)
        self.buffer = torch.empty(size + 64, dtype=torch.uint8)
        self.weights = -(-self.buffer.data_ptr() // 64) * 64
        core.check_code(getattr(lib, f"bw_skip_{kind}_pack")(*at, values.data_ptr(), self.weights))
        self.function = getattr(lib, f"bw_skip_{kind}")
        self.calls: dict[tuple[int, int, int], tuple[ConvCall, Any, Any]] = {}

    def call(self, n: int, h: int, w: int) -> tuple[ConvCall, Any, Any]:
        """The descriptors of one input size, of the layer and of its gate, and what the gate points to."""
        found = self.calls.get((n, h, w))
        if found is None:
            if len(self.calls) > 256:  # a caller that varies the batch size without end
                self.calls.clear()
            found = self.calls[n, h, w] = self.made(n, h, w)
        return found

    def made(self, n: int, h: int, w: int) -> tuple[ConvCall, Any, Any]:
        return ConvCall(self, n, h, w), self.gate, None  # pyright: ignore[reportArgumentType]


class FloatSkip(SkipPlan):
    """A channel gate in float32: y = base + (base > threshold[o]) rest.

    base is the bias and the sum over one of `splits` shares of each group's input channels, rest the sum over the others. The
    channels and the outputs of a group fall into shares of C // splits and O // splits, the last one with the leftovers; output share j
    has input share j as base, with `shared` all outputs have the first.

    scale, add           float [O]: y scale + add in the end; off_scale, off_add: other ones where the rest is left out
    relu                 max(y, 0) after that, and after a residual
    dense                the rest is computed for every output, with the same decisions; only what `by_winograd` allows
    place                stride, padding, dilation, groups

    The sums are float32, the same whatever else is on, for every batch and number of threads: base by Winograd's F(2x2, 3x3) where
    `by_winograd` says so, else in the order taps, channels; rest in 32 partial sums, where dense by Winograd's form. The decision is that of the base as computed here. NaN is not above any threshold: y is the base, which is NaN.

    >>> import torch
    >>> from bitwright.engine import native
    >>> weight = torch.tensor([[1.0, 10.0], [10.0, 1.0]])[:, :, None, None]
    >>> x = torch.tensor([[2.0, 3.0]])[:, :, None, None]
    >>> if native.available():  # the bases are 2 and 3
    ...     layer = FloatSkip(weight, torch.tensor([1.5, 3.0]), splits=2)
    ...     assert layer.run(x).flatten().tolist() == [32.0, 3.0]
    """

    def __init__(
        self, weight: Tensor, threshold: Tensor, *, splits: int, shared: bool = False, bias: Tensor | None = None,
        scale: Tensor | None = None, add: Tensor | None = None, off_scale: Tensor | None = None,
        off_add: Tensor | None = None, relu: bool = False, dense: bool = False, **place: Any,
    ) -> None:  # fmt: skip
        core.require(weight.dim() == 4, f"float weights must be [O, C, kh, kw], got {list(weight.shape)}")
        given = {
            "threshold": threshold, "bias": torch.zeros(len(weight)) if bias is None else bias, "scale": scale, "add": add,
            "off_scale": off_scale, "off_add": off_add,
        }  # fmt: skip
        tables = {name: core.optional(value, torch.float32) for name, value in given.items()}
        options = {"splits": splits, "shared": int(shared), "relu": int(relu), "dense": int(dense)}
        values = core.kernel_table(weight.detach().permute(0, 2, 3, 1), torch.float32)
        self.tap_sums = torch.zeros(len(weight), *weight.shape[2:], dtype=torch.int64)
        super().__init__("floats", weight, values, tables, options, **place)

    def run(self, x: Tensor, threads: int = 1, residual: Tensor | None = None) -> Tensor:
        """float32 [N, C, H, W] -> [N, O, OH, OW], both best in channels_last; `residual` is like the answer."""
        fits = x.dim() == 4 and x.shape[1] == self.in_channels and x.dtype is torch.float32
        core.require(fits, f"input must be float32 [N, {self.in_channels}, H, W], got {x.dtype} {list(x.shape)}")
        x = x.permute(0, 2, 3, 1).contiguous()
        call, gate, _ = self.call(*x.shape[:3])
        y = torch.empty(call.image).permute(0, 3, 1, 2)
        if residual is not None:
            fits = residual.shape == y.shape and residual.dtype is torch.float32
            core.require(fits, f"residual must be float32 {list(y.shape)}")
            residual = residual.contiguous(memory_format=torch.channels_last)
        other = None if residual is None else residual.data_ptr()
        at = call.address, ctypes.addressof(gate), x.data_ptr(), self.weights, y.data_ptr(), other
        core.check_code(self.function(*at, threads))
        return y


def by_winograd(weight: Tensor, splits: int, shared: bool, stride: Any, dilation: Any, groups: int) -> bool:
    """Whether the sums of a channel gate over floats are Winograd's: 3x3 in steps of 1, whole shares, no groups."""
    o, c, *kernel = weight.shape
    whole = c % splits == 0 and (shared or o % splits == 0)
    return kernel == [3, 3] and {*core.pair(stride), *core.pair(dilation)} == {1} and groups == 1 and c >= 16 and whole


class ByteSkip(SkipPlan):
    """A gate over byte codes, in whole numbers: I = base + (base > threshold[o]) rest, exact.

    `weight` [O, C / groups, kh, kw], whole numbers in -255..255. The codes are uint8 [N, H, W, C] below 2^x_bits;
    larger ones give wrong sums.
    splits, shared       channel gate: shares as in `FloatSkip`; inputs are x_zero + code; x_zero one number or one per channel
    low_bits             precision gate: base is the sum over the codes without their low_bits lowest bits, rest over these bits
    bias                 whole numbers [O], part of the base
    norms                float [O]: of a FloatOutput y becomes y scale + add, where the rest is left out by off_scale, off_add if given,
                         before the residual is added
    place                stride, padding, dilation

    >>> import torch
    >>> from bitwright.engine import native
    >>> weight = torch.tensor([[1, 2], [2, -1]])[:, :, None, None]
    >>> codes = torch.tensor([9, 5], dtype=torch.uint8).reshape(1, 1, 1, 2)
    >>> if native.available():  # the high parts of the inputs are 8 and 4: the bases are 16 and 12
    ...     layer = ByteSkip(weight, torch.tensor([15, 12]), low_bits=2)
    ...     assert layer.run_int(codes).flatten().tolist() == [19, 12]
    """

    def __init__(
        self, weight: Tensor, threshold: Tensor, *, splits: int = 1, shared: bool = False, low_bits: int = 0,
        bias: Tensor | None = None, x_zero: int | Tensor = 0, x_bits: int = 8, groups: int = 1,
        norms: Mapping[str, Tensor | None] | None = None, **place: Any,
    ) -> None:  # fmt: skip
        fits = weight.dim() == 4 and (not weight.numel() or int(weight.abs().max()) <= 255)
        core.require(fits, f"byte weights [O, C, kh, kw] must lie in -255..255, got {list(weight.shape)}")
        zero = torch.as_tensor(x_zero)
        core.require(not (low_bits and zero.any()), "a precision gate takes codes whose zero is 0")
        values = weight.detach().to(torch.int16)
        o, fan = values.shape[:2]
        options = {"splits": splits, "shared": int(shared), "low_bits": low_bits}
        norms = {name: core.optional(value, torch.float32) for name, value in (norms or {}).items()}
        tables = {"threshold": core.optional(threshold, torch.int32), **norms}
        taps_first = values.permute(0, 2, 3, 1).contiguous()
        super().__init__("bytes", weight, taps_first, tables, options, groups=groups, x_bits=x_bits, **place)
        base = base_mask(fan, o // groups, groups, splits, not shared)[:, :, None, None]
        self.tap_sums, self.rest_sums = (tap_sums(values * part, x_zero, groups) for part in (base, ~base))
        self.bias = torch.as_tensor(0 if bias is None else bias).to(torch.int32).expand(o)

    def made(self, n: int, h: int, w: int) -> tuple[ConvCall, Any, Any]:
        call, gate, rest = super().made(n, h, w)
        call.keep[2].add_(self.bias)
        if self.rest_sums.any():
            (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
            rows, _ = border_classes(h, call.oh, kh, sh, ph, dh)
            cols, _ = border_classes(w, call.ow, kw, sw, pw, dw)
            rest = corrections(self.rest_sums, rows, cols).to(torch.int32).contiguous()
            gate = core.SkipStruct.from_buffer_copy(gate)
            gate.rest_corr = rest.data_ptr()
        return call, gate, rest

    def run(self, x: Tensor, output: KernelOutput, residual: Tensor | None = None, threads: int = 1) -> Any:
        """The result `output` describes; with something `extra` the pair (y, extra). `residual` is like y."""
        fits = x.dim() == 4 and x.shape[3] == self.in_channels
        core.require(fits, f"input must be [N, H, W, {self.in_channels}], got {list(x.shape)}")
        core.checked_tensor(x, "input", torch.uint8)
        have, wanted = self.out_channels, output.channels
        core.require(wanted in (None, have), f"output is for {wanted} channels, the layer has {have}")
        call, gate, _ = self.call(*x.shape[:3])
        memory, dtype = output.made(*call.image)
        y, extra = torch.empty(memory, dtype=dtype), None
        if output.mode in (0, 1):
            y = y.permute(0, 3, 1, 2)
        if residual is not None:
            fits = residual.shape == y.shape and residual.dtype is torch.float32 and output.mode == 1
            core.require(fits, f"residual must be float32 {list(y.shape)} for a FloatOutput")
            residual = residual.contiguous(memory_format=torch.channels_last)
        if output.extra:
            memory, dtype = output.beside(*call.image)
            extra = torch.empty(memory, dtype=dtype)
        pointers = [None if t is None else t.data_ptr() for t in (y, residual, extra)]
        at = call.address, ctypes.addressof(gate), x.data_ptr(), self.weights, output.address
        core.check_code(self.function(*at, *pointers, threads))
        return y if extra is None else (y, extra)

    def run_int(self, x: Tensor, threads: int = 1) -> Tensor:
        """The int32 sums, `[N, O, OH, OW]`."""
        return self.run(x, KernelOutput(), None, threads)
