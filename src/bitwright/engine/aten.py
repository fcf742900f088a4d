"""ATen calls of an exported program, one small translator each, to operators of our table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode

from bitwright.engine.ir import BATCH, ints


class Unsupported(ValueError):
    """This use of the operator has no form in a packed graph; the text says why."""


# (op, input names, attributes, tensors), or None: nothing happens in evaluation
Lowered = tuple[str, list[str], dict[str, Any], dict[str, Tensor]] | None


class Call:
    """Arguments of one call by position, with the environment to resolve them."""

    def __init__(self, n: FxNode, names: dict[str, str], constants: dict[str, Tensor], symbols: set[str]) -> None:
        self.node, self.names, self.constants, self.symbols = n, names, constants, symbols
        self.schema: Any = getattr(n.target, "_schema", None)

    def get(self, i: int, default: Any = None) -> Any:
        """Argument i, given by position or by keyword; its schema default where absent."""
        if i < len(self.node.args):
            return self.node.args[i]
        if self.schema is not None and i < len(self.schema.arguments):
            argument = self.schema.arguments[i]
            return self.node.kwargs.get(argument.name, argument.default_value if default is None else default)
        return default

    def value(self, i: int) -> str:
        """Argument i as the name of a computed value."""
        a = self.get(i)
        if isinstance(a, FxNode) and a.name in self.names:
            return self.names[a.name]
        raise Unsupported("reads something that is not computed from the input")

    def constant(self, i: int) -> Tensor | None:
        a = self.get(i)
        if a is None:
            return None
        if isinstance(a, FxNode) and a.name in self.constants:
            return self.constants[a.name]
        raise Unsupported("its weight is computed in forward; only plain parameters and buffers are stored")

    def is_constant(self, i: int) -> bool:
        a = self.get(i)
        return isinstance(a, FxNode) and a.name in self.constants

    def rank(self) -> int:
        return self.node.meta["val"].dim()

    def input_rank(self, i: int = 0) -> int:
        a = self.get(i)
        return a.meta["val"].dim() if isinstance(a, FxNode) else 0

    def sizes(self, i: int) -> list[Any]:
        """A size list; the batch symbol becomes "N"."""
        out: list[Any] = []
        for s in self.get(i):
            if isinstance(s, FxNode) and s.name in self.symbols:
                out.append(BATCH)
            elif isinstance(s, int):
                out.append(s)
            else:
                raise Unsupported("a size that is computed from the batch")
        return out


Translator = Callable[[Call], Lowered]
_TABLE: dict[str, Translator] = {}


def _aten(*targets: str) -> Callable[[Translator], Translator]:
    def register(f: Translator) -> Translator:
        for t in targets:
            _TABLE[f"aten.{t}"] = f
        return f

    return register


class _Translate:
    """`TRANSLATE.get(base)` -> function of (node, names, constants, symbols), or None."""

    def get(self, base: str) -> Callable[..., Lowered] | None:
        found = _TABLE.get(base)
        return None if found is None else lambda n, names, constants, symbols: found(Call(n, names, constants, symbols))


TRANSLATE = _Translate()


def _dims(value: Any, rank: int) -> list[int]:
    """Axes as non-negative numbers; the batch axis must stay alone."""
    dims = [d % rank for d in ([value] if isinstance(value, int) else list(value))]
    if 0 in dims:
        raise Unsupported("mixes images of a batch")
    return dims


def _float_tensor(t: Tensor) -> Tensor:
    return t.detach().float()


@_aten("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_assert_tensor_metadata")
def _nothing(c: Call) -> Lowered:
    return None


@_aten("dropout", "feature_dropout", "native_dropout", "alpha_dropout")
def _dropout(c: Call) -> Lowered:
    if c.get(2):
        raise Unsupported("drops values in evaluation too")
    return None


@_aten("to", "_to_copy", "type_as")
def _to(c: Call) -> Lowered:
    if c.node.meta["val"].dtype != torch.float32:
        raise Unsupported(f"changes the type to {c.node.meta['val'].dtype}; packed nets run in float32")
    return None


@_aten("relu", "relu6", "sigmoid", "tanh", "silu", "hardswish", "neg", "abs")
def _unary(c: Call) -> Lowered:
    return str(c.node.target).split(".")[1].rstrip("_"), [c.value(0)], {}, {}


@_aten("hardtanh")
def _hardtanh(c: Call) -> Lowered:
    return "hardtanh", [c.value(0)], {"low": float(c.get(1, -1.0)), "high": float(c.get(2, 1.0))}, {}


@_aten("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(c: Call) -> Lowered:
    name = str(c.node.target).split(".")[1]
    low = c.get(1) if "max" not in name else None
    high = c.get(2) if name in ("clamp", "clip", "clamp_", "clip_") else (c.get(1) if "max" in name else None)
    for bound in (low, high):
        if bound is not None and not isinstance(bound, (int, float)):
            raise Unsupported("a bound that is a tensor")
    attrs = {"low": None if low is None else float(low), "high": None if high is None else float(high)}
    return "clamp", [c.value(0)], attrs, {}


@_aten("leaky_relu")
def _leaky(c: Call) -> Lowered:
    return "leaky_relu", [c.value(0)], {"slope": float(c.get(1, 0.01))}, {}


@_aten("prelu")
def _prelu(c: Call) -> Lowered:
    slope = c.constant(1)
    assert slope is not None
    return "prelu", [c.value(0)], {}, {"slope": _float_tensor(slope)}


@_aten("gelu")
def _gelu(c: Call) -> Lowered:
    return "gelu", [c.value(0)], {"approximate": str(c.get(1, "none"))}, {}


@_aten("softmax", "log_softmax", "_softmax", "_log_softmax")
def _softmax(c: Call) -> Lowered:
    op = "log_softmax" if "log" in str(c.node.target) else "softmax"
    return op, [c.value(0)], {"dim": _dims(c.get(1), c.rank())[0]}, {}


@_aten("layer_norm")
def _layer_norm(c: Call) -> Lowered:
    tensors = {r: _float_tensor(t) for r, t in (("weight", c.constant(2)), ("bias", c.constant(3))) if t is not None}
    return "layer_norm", [c.value(0)], {"normalized": list(c.get(1)), "eps": float(c.get(4, 1e-5))}, tensors


@_aten("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(c: Call) -> Lowered:
    weight, bias, mean, var = (c.constant(i) for i in range(1, 5))
    if mean is None or var is None or (c.get(5) is True):
        raise Unsupported("a norm without running statistics depends on the batch")
    eps = float(c.get(7, 1e-5))
    rate = 1 / torch.sqrt(var.double() + eps)
    if weight is not None:
        rate = rate * weight.double()
    add = -mean.double() * rate + (0 if bias is None else bias.double())
    return "affine", [c.value(0)], {"last": c.rank() == 2}, {"scale": rate, "add": add}


def _conv(c: Call, rank: int) -> Lowered:
    weight, bias = c.constant(1), c.constant(2)
    assert weight is not None
    padding = c.get(4, 0)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(ints(c.get(5, 1), rank), weight.shape[2:], strict=True)]
        if padding == "valid":
            padding = [0] * rank
        elif all(t % 2 == 0 for t in total):
            padding = [t // 2 for t in total]
        else:
            raise Unsupported("'same' padding that is not symmetric")
    attrs = {
        "rank": rank,
        "stride": ints(c.get(3, 1), rank),
        "padding": ints(padding, rank),
        "dilation": ints(c.get(5, 1), rank),
        "groups": int(c.get(6, 1)),
    }
    tensors = {"weight": _float_tensor(weight)}
    if bias is not None:
        tensors["bias"] = bias.detach().double()
    return "conv", [c.value(0)], attrs, tensors


for _rank in (1, 2, 3):
    _aten(f"conv{_rank}d")(lambda c, rank=_rank: _conv(c, rank))


@_aten("conv_transpose2d")
def _conv_transpose(c: Call) -> Lowered:
    weight, bias = c.constant(1), c.constant(2)
    assert weight is not None
    attrs = {
        "stride": ints(c.get(3, 1), 2),
        "padding": ints(c.get(4, 0), 2),
        "output_padding": ints(c.get(5, 0), 2),
        "groups": int(c.get(6, 1)),
        "dilation": ints(c.get(7, 1), 2),
    }
    tensors = {"weight": _float_tensor(weight)}
    if bias is not None:
        tensors["bias"] = bias.detach().double()
    return "conv_transpose", [c.value(0)], attrs, tensors


@_aten("linear")
def _linear(c: Call) -> Lowered:
    weight, bias = c.constant(1), c.constant(2)
    assert weight is not None
    tensors = {"weight": _float_tensor(weight)}
    if bias is not None:
        tensors["bias"] = bias.detach().double()
    return "linear", [c.value(0)], {}, tensors


@_aten("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(c: Call) -> Lowered:
    rank = int(str(c.node.target).split("max_pool")[1][0])
    kernel = ints(c.get(1), rank)
    attrs = {
        "rank": rank,
        "kernel": kernel,
        "stride": ints(c.get(2), rank) if c.get(2) else kernel,
        "padding": ints(c.get(3, 0), rank),
        "dilation": ints(c.get(4, 1), rank),
        "ceil": bool(c.get(5, False)),
    }
    return "max_pool", [c.value(0)], attrs, {}


@_aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(c: Call) -> Lowered:
    rank = int(str(c.node.target).split("avg_pool")[1][0])
    kernel = ints(c.get(1), rank)
    if c.get(6) is not None:
        raise Unsupported("divisor_override")
    attrs = {
        "rank": rank,
        "kernel": kernel,
        "stride": ints(c.get(2), rank) if c.get(2) else kernel,
        "padding": ints(c.get(3, 0), rank),
        "ceil": bool(c.get(4, False)),
        "count_pad": bool(c.get(5, True)),
    }
    return "avg_pool", [c.value(0)], attrs, {}


@_aten("adaptive_avg_pool1d", "adaptive_avg_pool2d")
def _adaptive(c: Call) -> Lowered:
    rank = int(str(c.node.target).split("avg_pool")[1][0])
    return "adaptive_avg_pool", [c.value(0)], {"rank": rank, "size": ints(c.get(1), rank)}, {}


@_aten("mean")
def _mean(c: Call) -> Lowered:
    if c.get(1) is None:
        raise Unsupported("mixes images of a batch")
    return "mean", [c.value(0)], {"dims": _dims(c.get(1), c.input_rank()), "keepdim": bool(c.get(2, False))}, {}


@_aten("flatten")
def _flatten(c: Call) -> Lowered:
    rank = c.input_rank()
    start, end = int(c.get(1, 0)) % rank, int(c.get(2, -1)) % rank
    if start == 0 and end > 0:
        raise Unsupported("mixes images of a batch")
    return "flatten", [c.value(0)], {"start": start, "end": end}, {}


@_aten("view", "reshape", "_unsafe_view")
def _view(c: Call) -> Lowered:
    sizes = c.sizes(1)
    if not sizes or sizes[0] != BATCH:
        if sizes and sizes[0] == -1 and BATCH not in sizes and c.node.meta["val"].shape[0] == _batch(c):
            sizes = [BATCH, *sizes[1:]]
        else:
            raise Unsupported("moves the batch axis")
    rest = [int(s) for s in c.node.meta["val"].shape[1:]]
    if len(rest) == 1:
        return "flatten", [c.value(0)], {"start": 1, "end": c.input_rank() - 1}, {}
    return "reshape", [c.value(0)], {"sizes": rest}, {}


def _batch(c: Call) -> Any:
    a = c.get(0)
    return a.meta["val"].shape[0] if isinstance(a, FxNode) else None


@_aten("permute")
def _permute(c: Call) -> Lowered:
    rank = c.rank()
    dims = [d % rank for d in c.get(1)]
    if dims[0] != 0:
        raise Unsupported("moves the batch axis")
    return "permute", [c.value(0)], {"dims": dims}, {}


@_aten("transpose")
def _transpose(c: Call) -> Lowered:
    a, b = _dims([c.get(1), c.get(2)], c.rank())
    return "transpose", [c.value(0)], {"dim0": a, "dim1": b}, {}


@_aten("squeeze")
def _squeeze(c: Call) -> Lowered:
    if c.get(1) is None:
        raise Unsupported("squeeze() without an axis also drops a batch of one")
    return "squeeze", [c.value(0)], {"dims": _dims(c.get(1), c.input_rank())}, {}


@_aten("unsqueeze")
def _unsqueeze(c: Call) -> Lowered:
    return "unsqueeze", [c.value(0)], {"dim": _dims(c.get(1), c.rank())[0]}, {}


@_aten("slice")
def _slice(c: Call) -> Lowered:
    dim = int(c.get(1, 0)) % c.rank()
    start, end, step = c.get(2), c.get(3), int(c.get(4, 1))
    whole = (start in (None, 0)) and (end is None or (isinstance(end, int) and end >= 2**31)) and step == 1
    if whole:
        return None
    if dim == 0:
        raise Unsupported("picks images of a batch")
    last = 2**31 if end is None else min(int(end), 2**31)
    return "slice", [c.value(0)], {"dim": dim, "start": int(start or 0), "end": last, "step": step}, {}


@_aten("pad", "constant_pad_nd")
def _pad(c: Call) -> Lowered:
    constant = "constant_pad" in str(c.node.target)
    value = c.get(2) if constant else c.get(3)
    mode = "constant" if constant else str(c.get(2) or "constant")
    attrs = {"pads": [int(p) for p in c.get(1)], "value": float(value or 0.0), "mode": mode}
    return "pad", [c.value(0)], attrs, {}


@_aten("cat", "concat")
def _cat(c: Call) -> Lowered:
    values = []
    for a in c.get(0):
        if not isinstance(a, FxNode) or a.name not in c.names:
            raise Unsupported("joins something that is not computed from the input")
        values.append(c.names[a.name])
    return "cat", values, {"dim": _dims(c.get(1, 0), c.rank())[0]}, {}


def _binary(c: Call, op: str) -> Lowered:
    if op in ("add", "sub") and c.node.kwargs.get("alpha", 1) != 1:
        raise Unsupported("alpha")
    other = c.get(1)
    if isinstance(other, (int, float)):
        if op == "sub":
            return "add_scalar", [c.value(0)], {"value": -float(other)}, {}
        return f"{op}_scalar", [c.value(0)], {"value": float(other)}, {}
    for i, j in ((0, 1), (1, 0)):
        if c.is_constant(j):
            return _with_constant(c, op, c.value(i), c.constant(j), swapped=j == 0)
    return op, [c.value(0), c.value(1)], {}, {}


def _with_constant(c: Call, op: str, value: str, constant: Tensor | None, swapped: bool) -> Lowered:
    """A per-channel or scalar parameter: a learned scale or shift in front of or behind a layer."""
    assert constant is not None
    rank = c.rank()
    flat = constant.detach().double().reshape(-1)
    channels = int(c.node.meta["val"].shape[1]) if rank > 1 else 1
    squeezed = [s for s in constant.shape if s != 1]
    on_channels = (
        constant.dim() == 0
        or not squeezed
        or (
            squeezed == [channels]
            and constant.dim() >= rank - 1
            and constant.shape[constant.dim() - rank + 1] == channels
        )
    )
    if not on_channels:
        raise Unsupported(f"a parameter of shape {list(constant.shape)}; one per channel or one in all")
    flat = flat.expand(channels)
    one, nought = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if op == "mul":
        scale, add = flat, nought
    elif op == "add":
        scale, add = one, flat
    else:
        scale, add = (-one, flat) if swapped else (one, -flat)
    return "affine", [value], {"last": rank == 2}, {"scale": scale.clone(), "add": add.clone()}


for _op in ("add", "sub", "mul"):
    _aten(_op)(lambda c, op=_op: _binary(c, op))


@_aten("rsub")
def _rsub(c: Call) -> Lowered:
    other = c.get(1)
    if not isinstance(other, (int, float)) or c.get(2, 1) != 1:
        raise Unsupported("takes a computed value from another")
    channels = int(c.node.meta["val"].shape[1]) if c.rank() > 1 else 1
    minus = -torch.ones(channels, dtype=torch.float64)
    number = torch.full((channels,), float(other), dtype=torch.float64)
    return "affine", [c.value(0)], {"last": c.rank() == 2}, {"scale": minus, "add": number}  # it folds as a norm does


@_aten("div")
def _div(c: Call) -> Lowered:
    other = c.get(1)
    if isinstance(other, (int, float)) and c.node.kwargs.get("rounding_mode") is None:
        return "mul_scalar", [c.value(0)], {"value": 1.0 / float(other)}, {}
    raise Unsupported("divides by a computed value")
