"""The generic node: one call of a pure operator of ATen, by name and overload, out of a list; its arguments checked by schema.

    {"op": "aten", "inputs": ["a"], "attrs": {"call": "roll.default", "args": {"self": 0, "shifts": [1], "dims": [2]}}}

An argument is written as its type in torch's own schema says: a tensor as the index of an input or the role of a stored
tensor; a dtype as a word; an infinite number as "inf", "-inf", "nan"; a size that depends on the batch as "N", "8*N",
"8*N+1", and then the last input is the graph's input whose axis 0 has N entries. Devices, layouts and memory formats are not
written. Not on the list: what draws random numbers, writes into its arguments, reads uninitialized memory, or gives
shapes that depend on values.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# +: no result is larger than the largest argument
_ALLOWED = """
_adaptive_avg_pool2d _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy _upsample_nearest_exact1d
_upsample_nearest_exact2d abs+ acos acosh adaptive_avg_pool1d+ adaptive_avg_pool2d+ adaptive_avg_pool3d+
adaptive_max_pool1d+ adaptive_max_pool2d+ adaptive_max_pool3d add addcdiv addcmul addmm affine_grid_generator alias+
all amax amin any arange argmax argmin asin asinh atan atan2 atanh avg_pool1d+ avg_pool2d+ avg_pool3d+ baddbmm
batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm cat+ ceil celu channel_shuffle+ clamp clamp_max clamp_min
clip clone+ col2im constant_pad_nd conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
copy cos cosh cosine_similarity cumprod cumsum diagonal div dot einsum elu embedding+ eq erf erfc exp exp2 expand+
expand_as expm1 fill flatten+ flip+ floor floor_divide fmod frac full full_like gather ge gelu+ glu grid_sampler
group_norm gru gt hardshrink hardsigmoid hardswish+ hardtanh im2col index+ index_put index_select+ instance_norm
isfinite isinf isnan layer_norm le leaky_relu lerp linalg_vector_norm linear log log10 log1p log2 log_sigmoid
log_softmax logaddexp logical_and logical_not logical_or logical_xor logsumexp lstm lt masked_fill matmul max
max_pool1d max_pool2d max_pool2d_with_indices+ max_pool3d maximum mean+ meshgrid min minimum mish+ mm movedim+ mul mv
narrow+ native_group_norm native_layer_norm ne neg+ new_full new_ones new_zeros norm one_hot ones ones_like outer pad
permute+ pixel_shuffle+ pixel_unshuffle+ pow prelu prod reciprocal reflection_pad1d reflection_pad2d relu+ relu6
remainder repeat+ repeat_interleave replication_pad1d replication_pad2d reshape+ rms_norm rnn_relu rnn_tanh roll+ round
rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add select+ select_scatter selu sgn sigmoid sign
silu+ sin sinh slice+ slice_scatter softmax softplus softshrink sort sqrt square squeeze+ stack+ std std_mean sub sum t
tan tanh threshold tile topk transpose+ tril triu trunc unflatten+ unfold unsqueeze+ upsample_bicubic2d
upsample_bilinear2d+ upsample_linear1d+ upsample_nearest1d+ upsample_nearest2d+ upsample_nearest3d+
upsample_trilinear3d var var_mean where+ xlogy zeros zeros_like
"""
ALLOWED = frozenset(name.rstrip("+") for name in _ALLOWED.split())
MOVING = frozenset(name[:-1] for name in _ALLOWED.split() if name[-1] == "+")
UP_TO_ONE = frozenset({"sigmoid", "hardsigmoid", "tanh", "softmax", "_softmax"})
RENAMED = {"view.default": "reshape.default", "_unsafe_view.default": "reshape.default"}  # takes any memory layout
_DTYPES = "float32 float16 bfloat16 float64 bool uint8 int8 int16 int32 int64"
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPES.split()}
WORDS = {d: name for name, d in DTYPES.items()}
NUMBERS = ("inf", "-inf", "nan")
SIZE = re.compile(r"(?:(-?\d{1,9})\*)?N([+-]\d{1,9})?")
MAX_CALLS = 1 << 16  # in the check of one graph: a recurrent layer makes some for every step of its sequence
NOT_WRITTEN = ("Layout", "Device", "MemoryFormat", "Generator", "pin_memory", "non_blocking")


class Unlisted(ValueError):
    """The operator is not on the list, or this use of it; the text says why."""


@functools.cache
def overload(call: str) -> Any:
    """`torch.ops.aten.name.overload` of a name on the list. Errors: `Unlisted`."""
    name, _, which = call.partition(".")
    if name not in ALLOWED:
        raise Unlisted(f"{name[:60]} is not on the list of operators")
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, which) if packet is not None and which in packet.overloads() else None
    if found is None or found._schema.is_mutable or not all(str(r.type) == "Tensor" for r in found._schema.returns):
        raise Unlisted(f"{call[:60]} is not a pure operator of this torch")
    return found


@functools.cache
def arguments(call: str) -> dict[str, tuple[str, bool]]:
    """name -> (type, may be left out), of the arguments that are written."""
    found = {}
    for a in overload(call)._schema.arguments:
        kind = str(a.real_type)
        if not any(word in kind or word == a.name for word in NOT_WRITTEN):
            found[a.name] = (kind, a.has_default_value())
    return found


# -- one argument, by its type ---------------------------------------------------------------------------------
def _is_int(v: Any) -> bool:
    return (type(v) is int and -(1 << 63) <= v < 1 << 63) or (isinstance(v, str) and bool(SIZE.fullmatch(v)))


def _is_number(v: Any) -> bool:
    return type(v) in (int, float, bool) or v in NUMBERS or _is_int(v)


PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": _is_number,
    "number": _is_number,
    "bool": lambda v: type(v) is bool,
    "ScalarType": lambda v: isinstance(v, str) and v in DTYPES,
    "str": lambda v: isinstance(v, str) and len(v) <= 200,
}


def _inner(kind: str, around: str) -> str | None:
    return kind[len(around) + 1 : -1] if kind.startswith(f"{around}[") else None


def fits(value: Any, kind: str, inputs: int, roles: Mapping[str, Any]) -> bool:
    """Whether a file's value is an argument of this type."""
    if (inner := _inner(kind, "Optional")) is not None:
        return value is None or fits(value, inner, inputs, roles)
    if (inner := _inner(kind, "List")) is not None:
        if isinstance(value, list):
            return len(value) <= 4096 and all(fits(v, inner, inputs, roles) for v in value)
        return inner in ("int", "bool", "float") and fits(value, inner, inputs, roles)
    if kind == "Tensor":
        return (type(value) is int and 0 <= value < inputs) or (isinstance(value, str) and value in roles)
    return kind in PLAIN and PLAIN[kind](value)


def _each(value: Any, kind: str, change: Callable[[Any, str], Any]) -> Any:
    """An argument with `change(value, type)` for each of its entries; None stays None."""
    kind = _inner(kind, "Optional") or kind
    inner = _inner(kind, "List")
    if value is None:
        return None
    if inner is None:
        return change(value, kind)
    return [_each(v, inner, change) for v in value] if isinstance(value, (list, tuple)) else _each(value, inner, change)


def depends_on_batch(args: Mapping[str, Any], call: str) -> bool:
    """Whether a size in this call's arguments is a multiple of the batch."""
    kinds, found = arguments(call), []

    def look(value: Any, kind: str) -> None:
        found.append(isinstance(value, str) and kind in ("int", "float", "number") and "N" in value)

    for k, value in args.items():
        _each(value, kinds[k][0], look)
    return any(found)


def read(value: Any, kind: str, tensors: list[Tensor], roles: Mapping[str, Tensor], n: int) -> Any:
    """The argument itself."""

    def one(v: Any, kind: str) -> Any:
        if kind == "Tensor":
            return tensors[v] if isinstance(v, int) else roles[v]
        if kind == "ScalarType":
            return DTYPES[v]
        if not isinstance(v, str) or kind == "str":
            return v
        size = SIZE.fullmatch(v)
        return float(v) if size is None else int(size[1] or 1) * n + int(size[2] or 0)

    return _each(value, kind, one)


def write(value: Any, kind: str, tensor: Callable[[Any], int | str]) -> Any:
    """A Python argument as a file holds it; `tensor` gives the index or the role of a tensor. Errors: `Unlisted`."""

    def one(v: Any, kind: str) -> Any:
        if kind == "Tensor":
            return tensor(v)
        if kind == "ScalarType":
            return WORDS[v]
        if isinstance(v, torch.SymInt):
            return linear(v)
        if isinstance(v, float) and not math.isfinite(v):
            return str(v)
        if kind not in PLAIN or not PLAIN[kind](v):
            raise Unlisted(f"an argument {str(v)[:60]}")
        return v

    return _each(value, kind, one)


def linear(size: Any) -> int | str:
    """A size in terms of the batch, as text: a * N + b. Errors: `Unlisted` for any other dependence."""
    node = getattr(size, "node", None)
    if node is None or not node.expr.free_symbols:
        return int(size)
    symbols = list(node.expr.free_symbols)
    b = node.expr.subs(symbols[0], 0) if len(symbols) == 1 else None
    a = None if b is None else node.expr.subs(symbols[0], 1) - b
    if a is None or b is None or not (a.is_integer and b.is_integer) or (a * symbols[0] + b - node.expr).expand() != 0:
        raise Unlisted(f"a size of {node.expr}, which is not a whole multiple of the batch plus a number")
    return f"{f'{a}*' if a != 1 else ''}N{f'{int(b):+d}' if b else ''}"


# -- running and checking ---------------------------------------------------------------------------------------
def bound_call(attrs: Mapping[str, Any], roles: Mapping[str, Tensor]) -> Callable[[list[Tensor]], Any]:
    """The call with its constants bound: a function of its inputs that returns all its results."""
    f, kinds = overload(attrs["call"]), arguments(attrs["call"])
    args = {k: (v, kinds[k][0]) for k, v in attrs["args"].items()}
    symbolic = depends_on_batch(attrs["args"], attrs["call"])
    fixed = {k: read(v, kind, [], roles, 1) for k, (v, kind) in args.items() if "Tensor" not in kind and not symbolic}
    moving = {k: pair for k, pair in args.items() if k not in fixed}

    def run(tensors: list[Tensor]) -> Any:
        n = tensors[-1].shape[0] if symbolic else 1
        return f(**fixed, **{k: read(v, kind, tensors, roles, n) for k, (v, kind) in moving.items()})

    return run


class Watch(TorchDispatchMode):
    """Counts what a call makes on the meta device: values of every intermediate, multiplications, calls."""

    def __init__(self, limit: int, n: int) -> None:
        super().__init__()
        self.limit, self.n = limit, n
        self.values = self.macs = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(a.name == "device" for a in func._schema.arguments) and not any(isinstance(a, Tensor) for a in args):
            kwargs = {**kwargs, "device": "meta"}  # zeros(N, ...): no memory here either
        out = func(*args, **kwargs)
        self.calls += 1
        made = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        for t in made:
            self.values = max(self.values, t.numel() // self.n)
        if self.values > self.limit or self.calls > MAX_CALLS:
            raise Unlisted(f"more than {self.limit} values a sample, or {MAX_CALLS} steps")
        read = [a for a in args if isinstance(a, Tensor) and a.dim()]
        if made and read:  # of a product: every result sums over the last axis, or over the taps of a kernel
            taps = math.prod(read[1].shape[1:]) if "conv" in func.name() and len(read) > 1 else read[0].shape[-1]
            if "attention" in func.name() and len(read) > 1:
                taps = 2 * read[1].shape[-2]
            product = any(word in func.name() for word in ("mm", "conv", "attention", "linear", "matmul"))
            self.macs += made[0].numel() // self.n * (taps if product else 1)
        return out
