"""ATen calls of an exported program become operators: ours where one fits, else the generic node of `aten_list`.

Most records say it themselves: the call's name, and its arguments by name. What takes more than that has a translator here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

from bitwright.engine import aten_list
from bitwright.engine.attributes import Unfit
from bitwright.engine.graph import ints
from bitwright.engine.operators import OPERATORS

# (op, input names, attributes, tensors), or None: nothing happens in evaluation
Lowered = tuple[str, list[str], dict[str, Any], dict[str, Tensor]] | None
IGNORED = ("memory_format", "non_blocking", "copy", "cudnn_enable", "half_to_float")  # they change no number


class Call:
    """Arguments of one call, with the environment to resolve them."""

    def __init__(self, n: FxNode, names: dict[str, str], constants: dict[str, Any]) -> None:
        self.node, self.names, self.constants = n, names, constants
        self.base = str(n.target).split(".")[1].rstrip("_")
        self.schema: Any = getattr(n.target, "_schema", None)
        arguments = self.schema.arguments if self.schema is not None else []
        self.given: dict[str, Any] = {a.name: n.kwargs.get(a.name, a.default_value) for a in arguments}
        self.given |= {a.name: value for a, value in zip(arguments, n.args, strict=False)}
        self.defaults = {a.name: a.default_value for a in arguments}

    def get(self, i: int, default: Any = None) -> Any:
        """Argument i; its schema default where absent."""
        return list(self.given.values())[i] if i < len(self.given) else default

    def value(self, i: int) -> str:
        """Argument i as the name of a computed value."""
        a = self.get(i)
        if isinstance(a, FxNode) and a.name in self.names:
            return self.names[a.name]
        raise Unfit("reads something that is not computed from the input")

    def constant(self, i: int) -> Tensor | None:
        a = self.get(i)
        if a is None:
            return None
        if isinstance(a, FxNode) and a.name in self.constants:
            return self.constants[a.name]
        raise Unfit("its weight is computed in forward; only plain parameters and buffers are stored")

    def is_constant(self, i: int) -> bool:
        a = self.get(i)
        return isinstance(a, FxNode) and a.name in self.constants

    def rank(self) -> int:
        return self.node.meta["val"].dim()

    def input_rank(self, i: int = 0) -> int:
        a = self.get(i)
        return a.meta["val"].dim() if isinstance(a, FxNode) else 0


Translator = Callable[[Call], Lowered]
_TABLE: dict[str, Translator] = {}
_BY_NAME = {name: op for op, record in OPERATORS.items() for name in record.aten.split()}


def _aten(*targets: str) -> Callable[[Translator], Translator]:
    def register(f: Translator) -> Translator:
        _TABLE.update(dict.fromkeys(targets, f))
        return f

    return register


def canonical(target: Any) -> str:
    """`name.overload` of the pure operator that a call is, views as reshapes: any memory layout will do."""
    name, which = str(target).split(".")[1:]
    call = f"{name.rstrip('_') if not name.startswith('__') else name}.{which}"
    return aten_list.RENAMED.get(call, call)


def known(n: FxNode) -> bool:
    """Whether a call may become a node as it is."""
    base = str(n.target).split(".")[1].rstrip("_")
    if base in _TABLE or base in _BY_NAME or base in NOTHING:
        return True
    try:
        return aten_list.overload(canonical(n.target)) is not None
    except aten_list.Unlisted:
        return False


def own(n: FxNode, constants: dict[str, Any], out: FxNode | None = None) -> bool:
    """Whether the values of a call are such as our operators take: float32, the batch on axis 0, all other sizes fixed."""
    values = [i.meta.get("val") for i in n.all_input_nodes if i.name not in constants]
    values = [v for v in (*values, (out or n).meta.get("val")) if isinstance(v, Tensor)]
    return all(
        v.dtype == torch.float32 and v.dim() > 0 and all(isinstance(s, int) for s in v.shape[1:]) for v in values
    ) and all(str(v.shape[0]) == str(values[0].shape[0]) for v in values)


def lower(call: Call, item: int | None = None) -> Lowered:
    """What a call becomes; of several results the one `item`. Errors: `Unfit`, `Unlisted` with the reason."""
    if call.base in NOTHING and NOTHING[call.base](call):
        return None
    if call.base.endswith("dropout"):
        raise Unfit("drops values in evaluation too")
    reason = None
    try:
        if item is None and own(call.node, call.constants):
            if call.base in _TABLE:
                return _TABLE[call.base](call)
            if call.base in _BY_NAME:
                return _by_record(call, _BY_NAME[call.base])
    except Unfit as error:
        reason = error
    try:
        return generic(call, item)
    except aten_list.Unlisted:
        if reason is None:
            raise
        raise reason from None


def _size(value: Any) -> Any:
    """A size that was worked out in forward, instead of the node that works it out."""
    known = value.meta.get("val") if isinstance(value, FxNode) else None
    return known if isinstance(known, (int, float, torch.SymInt)) else value


def generic(call: Call, item: int | None = None) -> Lowered:
    """The call by its own name, its arguments written as their types say."""
    name = canonical(call.node.target)
    target = "_to_copy.default" if call.base in ("to", "type_as") else name
    kinds = aten_list.arguments(target)
    if target != name:
        given: dict[str, Any] = {"self": call.get(0), "dtype": call.node.meta["val"].dtype}
    else:
        given = dict(
            zip((a.name for a in aten_list.overload(name)._schema.arguments), call.given.values(), strict=False)
        )
    if any(isinstance(_size(v), torch.SymInt) and kinds.get(k, ("",))[0] == "Tensor" for k, v in given.items()):
        target = f"{name.split('.')[0]}.Scalar"  # x + x.size(0)
        kinds = aten_list.arguments(target)
    inputs: list[str] = []
    tensors: dict[str, Tensor] = {}

    def tensor(a: Any) -> int | str:
        constant: Any = torch.tensor(a) if isinstance(a, (int, float)) else None  # an int stays one: it sets no type
        constant = call.constants.get(a.name) if isinstance(a, FxNode) else constant
        if isinstance(constant, Tensor):
            role = f"c{len(tensors)}"
            tensors[role] = constant.detach().clone()
            return role
        if not isinstance(a, FxNode) or a.name not in call.names:
            raise aten_list.Unlisted("it reads something that is not computed from the input")
        if call.names[a.name] not in inputs:
            inputs.append(call.names[a.name])
        return inputs.index(call.names[a.name])

    args: dict[str, Any] = {}
    for argument in aten_list.overload(target)._schema.arguments:
        value = given.get(argument.name)
        value = map_arg(value, _size)
        plain = not isinstance(value, FxNode)
        if argument.has_default_value() and (value is None or (plain and value == argument.default_value)):
            continue
        if argument.name in kinds:
            args[argument.name] = aten_list.write(value, kinds[argument.name][0], tensor)
        elif "Generator" in str(argument.real_type):
            raise aten_list.Unlisted("it draws random numbers")
    if any(aten_list.depends_on_batch(v, kinds[k][0]) for k, v in args.items()):
        inputs.append("input")
    attrs: dict[str, Any] = {"call": target, "args": args}
    return "aten", inputs, attrs if item is None else {**attrs, "item": item}, tensors


def _by_record(c: Call, op: str) -> Lowered:
    record, rank = OPERATORS[op], c.input_rank()
    if c.base[-1:] == "d" and c.base[-2:-1].isdigit() and int(c.base[-2]) != rank - 2:
        raise Unfit("has no batch axis")
    left = dict(c.given)
    left.pop(next(iter(left)))
    attrs = {}
    for name, attr in record.attrs.items():
        argument = attr.argument or name
        value = left.pop(argument, None)
        if value is None and argument == "dim":
            raise Unfit("mixes images of a batch")
        attrs[name] = attr.read(value, rank)
    if "stride" in attrs and not attrs["stride"]:
        attrs["stride"] = attrs["kernel"]
    tensors = {}
    for role in (r.strip("[]") for r in record.tensors.split()):
        if (value := left.pop(role, None)) is not None:
            if value.name not in c.constants:
                raise Unfit(f"its {role} is computed in forward")
            tensors[role] = c.constants[value.name].detach().float()
    odd = next((k for k, v in left.items() if k not in IGNORED and v != c.defaults[k]), None)
    if odd is not None:
        raise Unfit(f"{odd}={left[odd]}")
    return op, [c.value(0)], attrs, tensors


def _float_tensor(t: Tensor) -> Tensor:
    return t.detach().float()


# what changes nothing in evaluation, if so
NOTHING: dict[str, Callable[[Call], bool]] = dict.fromkeys(
    ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_assert_tensor_metadata"), lambda c: True
)
NOTHING |= dict.fromkeys(
    ("dropout", "feature_dropout", "native_dropout", "alpha_dropout", "feature_alpha_dropout"), lambda c: not c.get(2)
)
NOTHING |= dict.fromkeys(
    ("to", "_to_copy", "type_as"), lambda c: c.node.meta["val"].dtype == c.node.all_input_nodes[0].meta["val"].dtype
)


@_aten("prelu")
def _prelu(c: Call) -> Lowered:
    slope = c.constant(1)
    assert slope is not None
    return "prelu", [c.value(0)], {}, {"slope": _float_tensor(slope)}


@_aten("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(c: Call) -> Lowered:
    weight, bias, mean, var = (c.constant(i) for i in range(1, 5))
    if mean is None or var is None or (c.get(5) is True):
        raise Unfit("a norm without running statistics depends on the batch")
    eps = float(c.given["eps"])
    rate = 1 / torch.sqrt(var.double() + eps)
    if weight is not None:
        rate = rate * weight.double()
    add = -mean.double() * rate + (0 if bias is None else bias.double())
    return "affine", [c.value(0)], {"last": c.rank() == 2}, {"scale": rate, "add": add}


@_aten("conv1d", "conv2d", "conv3d")
def _conv(c: Call) -> Lowered:
    rank = int(c.base[-2])
    weight = c.constant(1)
    assert weight is not None
    padding, dilation = c.given["padding"], ints(c.given["dilation"], rank)
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            raise Unfit("'same' padding that is not symmetric")
        padding = [t // 2 for t in total]
    attrs = {
        "rank": rank,
        "stride": ints(c.given["stride"], rank),
        "padding": ints(padding, rank),
        "dilation": dilation,
        "groups": int(c.given["groups"]),
    }
    return "conv", [c.value(0)], attrs, _weights(c)


def _weights(c: Call) -> dict[str, Tensor]:
    weight, bias = c.constant(1), c.constant(2)
    assert weight is not None
    return {"weight": _float_tensor(weight)} | ({} if bias is None else {"bias": bias.detach().double()})


@_aten("conv_transpose2d")
def _conv_transpose(c: Call) -> Lowered:
    steps = {k: ints(c.given[k], 2) for k in ("stride", "padding", "output_padding")}
    attrs = {**steps, "groups": int(c.given["groups"]), "dilation": ints(c.given["dilation"], 2)}
    return "conv_transpose", [c.value(0)], attrs, _weights(c)


@_aten("linear")
def _linear(c: Call) -> Lowered:
    return "linear", [c.value(0)], {}, _weights(c)


@_aten("view", "reshape", "_unsafe_view")
def _view(c: Call) -> Lowered:
    rest = [int(s) for s in c.node.meta["val"].shape[1:]]
    if len(rest) == 1 and c.input_rank() > 1:
        return "flatten", [c.value(0)], {"start": 1, "end": c.input_rank() - 1}, {}
    return "reshape", [c.value(0)], {"sizes": rest}, {}


@_aten("slice")
def _slice(c: Call) -> Lowered:
    dim = int(c.get(1, 0)) % c.rank()
    start, end, step = c.get(2), c.get(3), int(c.get(4, 1))
    whole = (start in (None, 0)) and (end is None or (isinstance(end, int) and end >= 2**31)) and step == 1
    if whole:
        return None
    if dim == 0:
        raise Unfit("picks images of a batch")
    last = 2**31 if end is None else min(int(end), 2**31)
    return "slice", [c.value(0)], {"dim": dim, "start": int(start or 0), "end": last, "step": step}, {}


@_aten("pad", "constant_pad_nd")
def _pad(c: Call) -> Lowered:
    mode = str(c.given.get("mode") or "constant")
    attrs = {"pads": [int(p) for p in c.get(1)], "value": float(c.given.get("value") or 0.0), "mode": mode}
    return "pad", [c.value(0)], attrs, {}


@_aten("cat", "concat")
def _cat(c: Call) -> Lowered:
    values = []
    for a in c.get(0):
        if not isinstance(a, FxNode) or a.name not in c.names:
            raise Unfit("joins something that is not computed from the input")
        values.append(c.names[a.name])
    return "cat", values, {"dim": OPERATORS["cat"].attrs["dim"].read(c.get(1, 0), c.rank())}, {}


@_aten("add", "sub", "mul")
def _binary(c: Call) -> Lowered:
    if c.given.get("alpha", 1) != 1:
        raise Unfit("alpha")
    op, other = c.base, c.get(1)
    if isinstance(other, (int, float)):
        if op == "sub":
            return "add_scalar", [c.value(0)], {"value": -float(other)}, {}
        return f"{op}_scalar", [c.value(0)], {"value": float(other)}, {}
    for i, j in ((0, 1), (1, 0)):
        if c.is_constant(j):
            return _with_constant(c, op, i, c.constant(j), swapped=j == 0)
    return op, [c.value(0), c.value(1)], {}, {}


def _with_constant(c: Call, op: str, value: int, constant: Tensor | None, swapped: bool) -> Lowered:
    """A number per channel or one in all: a learned scale or shift in front of or behind a layer."""
    assert constant is not None
    rank, own_shape = c.rank(), c.get(value).meta["val"].shape
    wide = [i - constant.dim() for i, s in enumerate(constant.shape) if s != 1]
    axis = wide[0] if wide else 1 - rank
    if len(wide) > 1 or c.input_rank(value) != rank or constant.dim() > rank or axis not in (-1, 1 - rank):
        raise Unfit(f"a parameter of shape {list(constant.shape)}; one per channel or one in all")
    channels = int(own_shape[axis]) if rank > 1 else 1
    if constant.numel() not in (1, channels):
        raise Unfit("a parameter that widens its value")
    flat = constant.detach().double().reshape(-1).expand(channels)
    one, nought = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    scale, add = {
        "mul": (flat, nought),
        "div": (1 / flat, nought),
        "add": (one, flat),
        "sub": (-one, flat) if swapped else (one, -flat),
    }[op]
    if not bool(scale.isfinite().all()) or not bool(add.isfinite().all()):
        raise Unfit("a parameter that is infinite")
    last = rank == 2 or (axis == -1 and bool(wide))
    return "affine", [c.value(value)], {"last": last}, {"scale": scale.clone(), "add": add.clone()}


@_aten("rsub")
def _rsub(c: Call) -> Lowered:
    other = c.get(1)
    if not isinstance(other, (int, float)) or c.get(2, 1) != 1:
        raise Unfit("takes a computed value from another")
    channels = int(c.node.meta["val"].shape[1]) if c.rank() > 1 else 1
    minus = -torch.ones(channels, dtype=torch.float64)
    number = torch.full((channels,), float(other), dtype=torch.float64)
    return "affine", [c.value(0)], {"last": c.rank() == 2}, {"scale": minus, "add": number}  # it folds as a norm does


@_aten("div")
def _div(c: Call) -> Lowered:
    other = c.get(1)
    if c.given.get("rounding_mode") is not None:
        raise Unfit("rounds")
    if isinstance(other, (int, float)) and other:
        return "mul_scalar", [c.value(0)], {"value": 1.0 / float(other)}, {}
    if c.is_constant(1):
        return _with_constant(c, "div", 0, c.constant(1), swapped=False)
    raise Unfit("divides by a computed value")
