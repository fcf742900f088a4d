"""The native core (`csrc/`, one shared library with a C ABI) for torch tensors.

Words are int32 tensors `[N, H, W, planes, Cw]`, byte codes uint8 `[N, H, W, C]`, both contiguous; float and
integer results come back NCHW-shaped in channels_last memory. What does not change between calls (weights,
geometry, thresholds) is prepared once in a plan; a call then costs a few microseconds of Python. Plans are
immutable and may be shared by threads; they are not pickled, their owner keeps the weights.

    plan = ConvPlan.bits(weight_bits, w_mult=[2], w_zero=-1, x_mult=[2], x_zero=-1, padding=1)
    words = pack(x, thresholds=torch.zeros(1), planes=1)
    y = plan.run(words, FloatOutput(scale, add))

Without the library (no compiler when the package was built) `available()` is False and `notice()` says why.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError

_ABI = 1
_NAME = "libbitwright_core.dylib" if sys.platform == "darwin" else "libbitwright_core.so"
_generation = 0  # counts force_isa: plans made before it pack their weights for the wrong kernels


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    """A struct of the header: 64-bit integers, and pointers marked by `*`."""
    members = [(f.lstrip("*"), c_void_p if f[0] == "*" else c_int64) for f in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": members})


_Conv = _struct(
    "bw_conv",
    "n h w c o kh kw stride_h stride_w pad_h pad_w dil_h dil_w groups oh ow x_planes w_planes w_zero "
    "*x_mult *w_mult row_classes col_classes *row_class *col_class *corr",
)
_Output = _struct("bw_output", "mode levels out_planes out_groups *scale *add *thresholds *flip")
_Pack = _struct("bw_pack", "n h w c nchw levels per_channel planes groups *thresholds *flip")
_Pool = _struct("bw_pool", "n h w channels planes kh kw stride_h stride_w pad_h pad_w dil_h dil_w oh ow")

_P, _I = c_void_p, c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bw_abi_version": (c_int, []),
    "bw_last_error": (ctypes.c_char_p, []),
    "bw_isa": (ctypes.c_char_p, []),
    "bw_available_isas": (ctypes.c_char_p, []),
    "bw_force_isa": (c_int, [ctypes.c_char_p]),
    "bw_weights_size": (c_int64, [_P]),
    "bw_weights_pack": (c_int, [_P, _P, _P]),
    "bw_byte_weights_size": (c_int64, [_P]),
    "bw_byte_weights_pack": (c_int, [_P, _P, _P]),
    "bw_conv_bits": (c_int, [_P, _P, _P, _P, _P, _P, _P, c_int]),
    "bw_conv_bytes": (c_int, [_P, _P, _P, _P, _P, _P, _P, c_int]),
    "bw_pack_bits": (c_int, [_P, _P, _P, c_int]),
    "bw_pack_bytes": (c_int, [_P, _P, _P, c_int]),
    "bw_maxpool_bits": (c_int, [_P, _P, _P, c_int]),
    "bw_maxpool_bytes": (c_int, [_P, _P, _P, c_int]),
    "bw_unpack_bits": (c_int, [_P, _I, _I, _I, _I, _P]),
    "bw_bytes_to_bits": (c_int, [_P, _I, _I, _I, _I, _P]),
}


# ---- the library ----------------------------------------------------------------------------------


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason. BITWRIGHT_LIBRARY names a development build."""
    override = os.environ.get("BITWRIGHT_LIBRARY")
    if override:
        candidates = [Path(override)]
    else:  # an editable install spreads the package over two folders
        candidates = [Path(folder) / "engine" / _NAME for folder in sys.modules["bitwright"].__path__]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        return None, f"native core not found ({candidates[0]}); the package was built without a C++ compiler"
    try:
        lib = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, f"native core {path} cannot be used: {error}"
    if lib.bw_abi_version() != _ABI:
        return None, f"native core {path} has ABI {lib.bw_abi_version()}, this package needs {_ABI}"
    if lib.bw_isa() is None:
        return None, f"native core: {lib.bw_last_error().decode()}"
    return lib, ""


def available() -> bool:
    """Whether the native core can be used here."""
    return _load()[0] is not None


def notice() -> str:
    """Why `available()` is False, in one line; empty when it is True."""
    return _load()[1]


def _lib() -> ctypes.CDLL:
    lib, reason = _load()
    if lib is None:
        raise InputError(reason, code="native-missing")
    return lib


def _check(code: int) -> None:
    if code:
        raise InputError(f"native core: {_lib().bw_last_error().decode()}", code="native")


def isa() -> str:
    """The instruction set in use: `portable`, `avx2`, `avx512`."""
    return _lib().bw_isa().decode()


def isas() -> list[str]:
    """What this machine can run, slowest first."""
    return _lib().bw_available_isas().decode().split()


def force_isa(name: str) -> None:
    """Use one instruction set, `""` for the best. Plans made before must be made again."""
    global _generation
    _check(_lib().bw_force_isa(name.encode()))
    _generation += 1


def _need(value: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    if value.dtype != dtype or not value.is_contiguous():
        raise InputError(
            f"native core: {what} must be contiguous {dtype}, got {value.dtype} {list(value.shape)}"
        )
    return value


def _table(value: Any, dtype: torch.dtype) -> Tensor:
    """A small private table for the kernels: later changes of the argument do not reach it."""
    return torch.as_tensor(value).detach().to("cpu", dtype, copy=True).contiguous()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def words(channels: int, groups: int = 1) -> int:
    """Words per pixel and plane: every group starts a new word."""
    return groups * -(-(channels // groups) // 32)


# ---- what becomes of the integers -----------------------------------------------------------------


class Output:
    """Tells `ConvPlan.run` what to return; made once, used for every call. This one: the int32 sums."""

    mode = 0
    sign_bits = False
    channels: int | None = None

    def __init__(self, **fields: Any) -> None:
        self.keep = fields  # tensors whose memory the struct points to
        values = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in fields.items() if v is not None}
        self.struct = _Output(mode=self.mode, **values)
        self.address = ctypes.addressof(self.struct)

    def empty(self, n: int, oh: int, ow: int, o: int) -> Tensor:
        dtype = torch.int32 if self.mode == 0 else torch.float32
        return torch.empty((n, o, oh, ow), dtype=dtype, memory_format=torch.channels_last)


IntOutput = Output


class FloatOutput(Output):
    """`y = float(I) * scale[o] + add[o]`, then `+ residual`; with `sign_bits` also the words of `y >= 0`."""

    mode = 1

    def __init__(self, scale: Tensor, add: Tensor, sign_bits: bool = False) -> None:
        super().__init__(scale=_table(scale, torch.float32), add=_table(add, torch.float32))
        self.channels, self.sign_bits = scale.numel(), sign_bits
        if add.numel() != scale.numel():
            raise InputError(f"native core: scale has {scale.numel()} entries, add {add.numel()}")


class CodeOutput(Output):
    """`code = #{l : I >= thresholds[l, o]}`, `levels - code` if `flip[o]`; words, or uint8 with `bytes`."""

    def __init__(
        self, thresholds: Tensor, flip: Tensor | None = None, planes: int = 1, groups: int = 1,
        bytes: bool = False,
    ) -> None:  # fmt: skip
        self.mode = 3 if bytes else 2
        levels, self.channels = thresholds.shape
        super().__init__(
            thresholds=_table(thresholds, torch.int32),
            flip=None if flip is None else _table(flip, torch.uint8),
            levels=levels,
            out_planes=planes,
            out_groups=groups,
        )
        self.planes, self.groups = planes, groups
        if flip is not None and flip.numel() != self.channels:
            raise InputError(f"native core: flip has {flip.numel()} entries for {self.channels} channels")

    def empty(self, n: int, oh: int, ow: int, o: int) -> Tensor:
        if self.mode == 3:
            return torch.empty((n, oh, ow, o), dtype=torch.uint8)
        return torch.empty((n, oh, ow, self.planes, words(o, self.groups)), dtype=torch.int32)


# ---- convolution ----------------------------------------------------------------------------------


class _Call:
    """The descriptor of one input size: geometry, border classes and their table of constants."""

    def __init__(self, plan: ConvPlan, n: int, h: int, w: int) -> None:
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = plan.kernel, plan.stride, plan.padding, plan.dilation
        self.oh = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        self.ow = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        if self.oh < 1 or self.ow < 1:
            raise InputError(f"native core: a {h}x{w} input is smaller than the {kh}x{kw} kernel")
        rows, row_class = _border_classes(h, self.oh, kh, sh, ph, dh)
        cols, col_class = _border_classes(w, self.ow, kw, sw, pw, dw)
        corr = torch.einsum("rk,cl,okl->rco", rows, cols, plan.tap_sums) + plan.bias
        self.keep = (row_class, col_class, corr.to(torch.int32).contiguous())
        self.struct = _Conv.from_buffer_copy(plan.struct)
        for name, value in {"n": n, "h": h, "w": w, "oh": self.oh, "ow": self.ow}.items():
            setattr(self.struct, name, value)
        self.struct.row_classes, self.struct.col_classes = len(rows), len(cols)
        self.struct.row_class, self.struct.col_class, self.struct.corr = (t.data_ptr() for t in self.keep)
        self.address = ctypes.addressof(self.struct)
        # threads pay off above roughly 30 microseconds of work on one core
        macs = n * self.oh * self.ow * plan.macs_per_pixel
        self.small = macs * plan.planes_product < (30e6 if plan.kind == "bits" else 5e6)


@functools.lru_cache(4096)
def _border_classes(
    size: int, out: int, kernel: int, stride: int, pad: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Which taps are inside the image: the distinct cases `[classes, kernel]`, and each output's case."""
    at = torch.arange(out)[:, None] * stride - pad + torch.arange(kernel) * dilation
    cases, which = torch.unique((at >= 0) & (at < size), dim=0, return_inverse=True)
    return cases.to(torch.int64), which.to(torch.int32).contiguous()


class ConvPlan:
    """A convolution (or linear layer: 1x1 input and kernel) with prepared weights; see `bits` and `bytes`."""

    def __init__(
        self, kind: str, weight: Tensor, values: Tensor, w_mult: Sequence[int], w_zero: int,
        x_mult: Sequence[int], x_zero: int | Tensor, bias: Tensor | None, stride: int | Sequence[int],
        padding: int | Sequence[int], dilation: int | Sequence[int], groups: int,
    ) -> None:  # fmt: skip
        lib = _lib()
        self.kind, self.groups, self.generation = kind, groups, _generation
        self.out_channels, group_channels, *kernel = values.shape
        self.in_channels, self.kernel = group_channels * groups, (kernel[0], kernel[1])
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        # what the constant part x_zero of the input adds, per output and tap: needed at the border
        zero = torch.as_tensor(x_zero).to(torch.int64).expand(self.in_channels)
        of_output = torch.arange(self.out_channels) * groups // max(self.out_channels, 1)
        zero = zero.reshape(groups, group_channels)[of_output, :, None, None]  # [O, C/groups, 1, 1]
        self.tap_sums = (values.to(torch.int64) * zero).sum(1)
        self.bias = torch.as_tensor(0 if bias is None else bias).to(torch.int64).expand(self.out_channels)
        self.macs_per_pixel, self.planes_product = values.numel(), len(x_mult) * len(w_mult)
        self.x_planes = len(x_mult)
        self.keep = (_table(list(x_mult), torch.int32), _table(list(w_mult), torch.int32))
        self.struct = _Conv(
            c=self.in_channels, o=self.out_channels, kh=self.kernel[0], kw=self.kernel[1],
            stride_h=self.stride[0], stride_w=self.stride[1], pad_h=self.padding[0], pad_w=self.padding[1],
            dil_h=self.dilation[0], dil_w=self.dilation[1], groups=groups, x_planes=len(x_mult),
            w_planes=len(w_mult), w_zero=w_zero,
            x_mult=self.keep[0].data_ptr(), w_mult=self.keep[1].data_ptr(),
        )  # fmt: skip
        size, pack_weights = (
            (lib.bw_weights_size, lib.bw_weights_pack) if kind == "bits"
            else (lib.bw_byte_weights_size, lib.bw_byte_weights_pack)
        )  # fmt: skip
        conv = ctypes.addressof(self.struct)
        count = size(conv)
        _check(count < 0)
        self.buffer = torch.empty(count + 64, dtype=torch.uint8)
        self.weights = -(-self.buffer.data_ptr() // 64) * 64
        _check(pack_weights(conv, weight.data_ptr(), self.weights))
        self.function = lib.bw_conv_bits if kind == "bits" else lib.bw_conv_bytes
        count = words(self.in_channels, groups)
        self.tail = (self.x_planes, count) if kind == "bits" else (self.in_channels,)
        self.dtype = torch.int32 if kind == "bits" else torch.uint8
        self.calls: dict[torch.Size, _Call] = {}

    @classmethod
    def bits(
        cls, weight: Tensor, *, w_mult: Sequence[int], w_zero: int, x_mult: Sequence[int],
        x_zero: int | Tensor = 0, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
    ) -> ConvPlan:  # fmt: skip
        """`weight` 0/1 `[w_planes, O, C/groups, kh, kw]`: W = w_zero + sum w_mult[q] bit_q; X likewise.

        I = sum of W * X over the taps inside the image, plus `bias`: integers, exact.
        """
        if weight.dim() != 5 or weight.shape[0] != len(w_mult):
            raise InputError(
                f"native core: weight bits must be [{len(w_mult)}, O, C, kh, kw], got {list(weight.shape)}"
            )
        weight = (weight.detach() != 0).to(torch.uint8).contiguous()
        mult = torch.tensor(list(w_mult), dtype=torch.int64).reshape(-1, 1, 1, 1, 1)
        values = w_zero + (weight * mult).sum(0)
        place = (x_zero, bias, stride, padding, dilation, groups)
        return cls("bits", weight, values, w_mult, w_zero, x_mult, *place)

    @classmethod
    def bytes(
        cls, weight: Tensor, *, x_zero: int | Tensor = 0, bias: Tensor | None = None,
        stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> ConvPlan:  # fmt: skip
        """`weight` integers -255..255 `[O, C/groups, kh, kw]`; X = x_zero + code, of uint8 `[N, H, W, C]`."""
        if weight.dim() != 4 or (weight.numel() and int(weight.abs().max()) > 255):
            raise InputError(
                f"native core: byte weights must be [O, C, kh, kw] in -255..255, got {list(weight.shape)}"
            )
        values = weight.detach().to(torch.int16)
        taps_first = values.permute(0, 2, 3, 1).contiguous()
        return cls("bytes", taps_first, values, [1], 0, [1], x_zero, bias, stride, padding, dilation, groups)

    def run(
        self, x: Tensor, output: Output, residual: Tensor | None = None, threads: int | None = None
    ) -> Any:
        """The result `output` describes; with `sign_bits` the pair (y, words). `residual` is like y."""
        call = self.calls.get(x.shape)
        if call is None:
            call = self._prepare(x, output)
        if x.dtype is not self.dtype or not x.is_contiguous():
            _need(x, "input", self.dtype)
        if output.channels is not None and output.channels != self.out_channels:
            raise InputError(
                f"native core: output is for {output.channels} channels, the layer has {self.out_channels}"
            )
        n = x.shape[0]
        y = output.empty(n, call.oh, call.ow, self.out_channels)
        extra = signs_at = signs = None
        if residual is not None:
            if residual.shape != y.shape or residual.dtype is not torch.float32 or output.mode != 1:
                raise InputError(f"native core: residual must be float32 {list(y.shape)} for a FloatOutput")
            residual = residual.contiguous(memory_format=torch.channels_last)
            extra = residual.data_ptr()
        if output.sign_bits:
            signs = torch.empty((n, call.oh, call.ow, 1, words(self.out_channels)), dtype=torch.int32)
            signs_at = signs.data_ptr()
        if threads is None:
            threads = 1 if call.small else torch.get_num_threads()
        code = self.function(
            call.address, x.data_ptr(), self.weights, output.address, y.data_ptr(), extra, signs_at, threads
        )
        if code:
            _check(code)
        return y if signs is None else (y, signs)

    def _prepare(self, x: Tensor, output: Output) -> _Call:
        if x.dim() != 3 + len(self.tail) or tuple(x.shape[3:]) != self.tail:
            wanted = ", ".join(map(str, self.tail))
            raise InputError(f"native core: input must be [N, H, W, {wanted}], got {list(x.shape)}")
        if len(self.calls) > 256:  # a caller that varies the batch size without end
            self.calls.clear()
        call = self.calls[x.shape] = _Call(self, *x.shape[:3])
        return call

    def run_int(self, x: Tensor, threads: int | None = None) -> Tensor:
        """The int32 sums, `[N, O, OH, OW]`."""
        return self.run(x, _INT, None, threads)

    def run_float(self, x: Tensor, scale: Tensor, add: Tensor, residual: Tensor | None = None) -> Tensor:
        """`run` with a `FloatOutput` made on the spot."""
        return self.run(x, FloatOutput(scale, add), residual)

    def run_codes(self, x: Tensor, thresholds: Tensor, **options: Any) -> Tensor:
        """`run` with a `CodeOutput` made on the spot."""
        return self.run(x, CodeOutput(thresholds, **options))

    def __deepcopy__(self, memo: dict[int, Any]) -> ConvPlan:
        return self  # immutable

    def __reduce__(self) -> Any:
        raise TypeError("a ConvPlan holds memory laid out for this CPU; save the weights, make it again")


_INT = Output()


# ---- packing, pooling, unpacking ------------------------------------------------------------------


class PackPlan:
    """float32 -> code: the number of `thresholds` (`[levels]`, or `[C, levels]` per channel) that x reaches.

    NaN reaches none; -0.0 reaches 0.0; `flip[c]` gives `levels - code`.
    """

    def __init__(
        self, thresholds: Tensor, planes: int = 1, groups: int = 1, flip: Tensor | None = None,
        bytes: bool = False,
    ) -> None:  # fmt: skip
        self.thresholds = _table(thresholds, torch.float32)
        self.flip = None if flip is None else _table(flip, torch.uint8)
        self.planes, self.groups, self.as_bytes = planes, groups, bytes
        self.function = _lib().bw_pack_bytes if bytes else _lib().bw_pack_bits
        if self.thresholds.dim() not in (1, 2):
            raise InputError(
                f"native core: thresholds must be [levels] or [C, levels], got {list(thresholds.shape)}"
            )
        self.calls: dict[tuple[torch.Size, bool], ctypes.Structure] = {}

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
        struct = self.calls.get((x.shape, nchw)) or self._prepare(x.shape, nchw)
        if self.as_bytes:
            out = torch.empty((n, h, w, c), dtype=torch.uint8)
        else:
            out = torch.empty((n, h, w, self.planes, words(c, self.groups)), dtype=torch.int32)
        if threads is None:
            threads = 1 if n * h * w * c < 200_000 else torch.get_num_threads()
        code = self.function(ctypes.addressof(struct), x.data_ptr(), out.data_ptr(), threads)
        if code:
            _check(code)
        return out

    def _prepare(self, shape: torch.Size, nchw: bool) -> ctypes.Structure:
        n, c, h, w = shape
        per_channel = self.thresholds.dim() == 2
        for name, table in (("thresholds", self.thresholds if per_channel else None), ("flip", self.flip)):
            if table is not None and table.shape[0] != c:
                raise InputError(f"native core: {name} is for {table.shape[0]} channels, x has {c}")
        if len(self.calls) > 256:
            self.calls.clear()
        struct = _Pack(
            n=n, c=c, h=h, w=w, nchw=nchw, levels=self.thresholds.shape[-1], per_channel=per_channel,
            planes=self.planes, groups=self.groups, thresholds=self.thresholds.data_ptr(),
            flip=None if self.flip is None else self.flip.data_ptr(),
        )  # fmt: skip
        self.calls[shape, nchw] = struct
        return struct

    def __deepcopy__(self, memo: dict[int, Any]) -> PackPlan:
        return self  # immutable


def pack(
    x: Tensor, thresholds: Tensor, planes: int = 1, groups: int = 1, flip: Tensor | None = None,
    bytes: bool = False,
) -> Tensor:  # fmt: skip
    """`PackPlan(...).run(x)`: words `[N, H, W, planes, Cw]`, or uint8 `[N, H, W, C]` with `bytes`."""
    return PackPlan(thresholds, planes, groups, flip, bytes).run(x)


@functools.lru_cache(1024)
def _pool_struct(shape: torch.Size, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    (kh, kw), (sh, sw) = _pair(kernel), _pair(stride or kernel)
    (ph, pw), (dh, dw) = _pair(padding), _pair(dilation)
    n, h, w = shape[:3]

    def size(length: int, k: int, s: int, p: int, d: int) -> int:
        room = length + 2 * p - d * (k - 1) - 1
        if room < 0:
            raise InputError(f"native core: max pooling kernel {k} is larger than the input {length}")
        out = (room + (s - 1 if ceil else 0)) // s + 1
        return out - 1 if ceil and (out - 1) * s >= length + p else out  # windows start inside, as in torch

    planes, channels = shape[3:] if len(shape) == 5 else (1, shape[3])
    oh, ow = size(h, kh, sh, ph, dh), size(w, kw, sw, pw, dw)
    return _Pool(n, h, w, channels, planes, kh, kw, sh, sw, ph, pw, dh, dw, oh, ow)


def maxpool(
    x: Tensor, kernel: int | tuple[int, int], stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, ceil_mode: bool = False,
    threads: int = 1,
) -> Tensor:  # fmt: skip
    """Largest code of each window, words `[N, H, W, A, Cw]` or bytes `[N, H, W, C]`; padding never wins."""
    as_words = x.dim() == 5
    _need(x, "max pooling input", torch.int32 if as_words else torch.uint8)
    pool = _pool_struct(x.shape, kernel, stride, padding, dilation, ceil_mode)
    out = torch.empty((x.shape[0], pool.oh, pool.ow, *x.shape[3:]), dtype=x.dtype)
    function = _lib().bw_maxpool_bits if as_words else _lib().bw_maxpool_bytes
    _check(function(ctypes.addressof(pool), x.data_ptr(), out.data_ptr(), threads))
    return out


def unpack(x: Tensor, channels: int, groups: int = 1) -> Tensor:
    """Words -> uint8 codes `[N, H, W, channels]`."""
    n, h, w, planes, count = _need(x, "words", torch.int32).shape
    if count != words(channels, groups):
        raise InputError(f"native core: {channels} channels are {words(channels, groups)} words, got {count}")
    out = torch.empty((n, h, w, channels), dtype=torch.uint8)
    _check(_lib().bw_unpack_bits(x.data_ptr(), n * h * w, planes, channels, groups, out.data_ptr()))
    return out


def to_words(codes: Tensor, planes: int, groups: int = 1) -> Tensor:
    """uint8 codes `[N, H, W, C]` -> words: the inverse of `unpack`."""
    n, h, w, channels = _need(codes, "codes", torch.uint8).shape
    out = torch.empty((n, h, w, planes, words(channels, groups)), dtype=torch.int32)
    _check(_lib().bw_bytes_to_bits(codes.data_ptr(), n * h * w, planes, channels, groups, out.data_ptr()))
    return out


# ---- operators for torch.compile and torch.export -------------------------------------------------
# They take weights as 0/1 bits and remember the plan of each weight tensor until it is written to.

_ops = torch.library.Library("bitwright", "DEF")
_ops.define("pack_bits(Tensor x, Tensor thresholds, int planes) -> Tensor")
_ops.define(
    "bit_conv2d_int(Tensor x_words, Tensor w_bits, int[] w_mult, int w_zero, int[] x_mult, int x_zero, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)
_ops.define(
    "bit_linear_int(Tensor x_words, Tensor w_bits, int[] w_mult, int w_zero, int[] x_mult, int x_zero) "
    "-> Tensor"
)


class _PlanCache:
    """Plans by (identity and version of the weight tensor, options); the entry keeps the tensor alive."""

    def __init__(self, limit: int = 128) -> None:
        self.plans: dict[Any, tuple[Tensor, ConvPlan]] = {}
        self.limit = limit

    def get(
        self, w_bits: Tensor, w_mult: list[int], w_zero: int, x_mult: list[int], **options: Any
    ) -> ConvPlan:
        where = w_bits.data_ptr(), w_bits.shape, w_bits.stride(), w_bits._version, _generation
        key = (*where, tuple(w_mult), w_zero, tuple(x_mult), str(options))
        if key not in self.plans:
            if len(self.plans) >= self.limit:
                self.plans.clear()
            plan = ConvPlan.bits(w_bits, w_mult=w_mult, w_zero=w_zero, x_mult=x_mult, **options)
            self.plans[key] = (w_bits.detach(), plan)
        return self.plans[key][1]


_plans = _PlanCache()


def _pack_op(x: Tensor, thresholds: Tensor, planes: int) -> Tensor:
    return pack(x, thresholds, planes)


def _conv_op(
    x_words: Tensor, w_bits: Tensor, w_mult: list[int], w_zero: int, x_mult: list[int], x_zero: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    plan = _plans.get(
        w_bits, w_mult, w_zero, x_mult,
        x_zero=x_zero, stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    return plan.run_int(x_words.contiguous())


def _linear_op(
    x_words: Tensor, w_bits: Tensor, w_mult: list[int], w_zero: int, x_mult: list[int], x_zero: int
) -> Tensor:
    plan = _plans.get(w_bits[:, :, :, None, None], w_mult, w_zero, x_mult, x_zero=x_zero)
    return plan.run_int(x_words.contiguous()).flatten(1)


def _pack_fake(x: Tensor, thresholds: Tensor, planes: int) -> Tensor:
    n, c, *rest = x.shape
    h, w = (1, 1) if not rest else (1, rest[0]) if len(rest) == 1 else rest
    return x.new_empty((n, h, w, planes, words(c)), dtype=torch.int32)


def _conv_fake(
    x_words: Tensor, w_bits: Tensor, w_mult: list[int], w_zero: int, x_mult: list[int], x_zero: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    n, *image = x_words.shape[:3]
    o, _, *kernel = w_bits.shape[1:]
    oh, ow = (
        (image[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return x_words.new_empty((n, oh, ow, o), dtype=torch.int32).permute(0, 3, 1, 2)


def _linear_fake(
    x_words: Tensor, w_bits: Tensor, w_mult: list[int], w_zero: int, x_mult: list[int], x_zero: int
) -> Tensor:
    return x_words.new_empty((x_words.shape[0], w_bits.shape[1]), dtype=torch.int32)


for _name, _run, _fake in (
    ("pack_bits", _pack_op, _pack_fake),
    ("bit_conv2d_int", _conv_op, _conv_fake),
    ("bit_linear_int", _linear_op, _linear_fake),
):
    _ops.impl(_name, _run, "CPU")
    torch.library.register_fake(f"bitwright::{_name}", _fake)
