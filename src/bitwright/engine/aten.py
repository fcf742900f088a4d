"""ATen calls of an exported program become operators: ours where `fuse` understands one, else the node of `aten_list`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

from bitwright.engine import aten_list
from bitwright.engine.graph import ints

Lowered = tuple[str, list[str], dict[str, Any], dict[str, Tensor]]  # op, input names, attributes, tensors
NOTHING = ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_assert_tensor_metadata")
CASTS = ("to", "_to_copy", "type_as")
PARTS = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsafe_split", "unsafe_chunk")
CHECKS = ("_assert_", "sym_constrain_range")  # names of calls that only check something begin so


class AtenCall:
    """One call: its arguments by name, with the names of computed values and the constants."""

    def __init__(self, n: FxNode, names: dict[str, str], constants: dict[str, Any]) -> None:
        self.node, self.names, self.constants = n, names, constants
        self.base = str(n.target).split(".")[1].rstrip("_")
        arguments = n.target._schema.arguments if isinstance(n.target, torch._ops.OpOverload) else []
        self.given: dict[str, Any] = {a.name: n.kwargs.get(a.name, a.default_value) for a in arguments}
        self.given |= {a.name: value for a, value in zip(arguments, n.args, strict=False)}

    def computed(self, a: Any) -> str:
        """The name of a computed value. Errors: `Unlisted`."""
        if isinstance(a, FxNode) and a.name in self.names:
            return self.names[a.name]
        raise aten_list.Unlisted("it reads something that is not computed from the input")

    def value(self, name: str) -> str:
        """The same of an argument."""
        return self.computed(self.given[name])

    def constant(self, name: str) -> Tensor | None:
        """An argument whose values are known, or None."""
        a = self.given[name]
        return self.constants.get(a.name) if isinstance(a, FxNode) else None

    def plain(self, *names: str) -> bool:
        """Whether these are numbers, None or constants: nothing computed."""
        return all(not isinstance(self.given[k], FxNode) or self.constant(k) is not None for k in names)

    def rank(self, name: str = "") -> int:
        """Axes of the result, or of an argument."""
        n = self.given[name] if name else self.node
        value = n.meta["val"] if isinstance(n, FxNode) else None
        return value.dim() if isinstance(value, Tensor) else 0


def canonical(target: Any) -> str:
    """`name.overload` of the pure operator of a call; a view becomes a reshape, which takes any memory layout."""
    name, which = str(target).split(".")[1:]
    call = f"{name.rstrip('_') if not name.startswith('__') else name}.{which}"
    return aten_list.RENAMED.get(call, call)


def known(n: FxNode) -> bool:
    """Whether a call is ours, may become a node as it is, or only checks."""
    name = str(n.target).split(".")[1]
    base = name.rstrip("_")
    if base in (*OURS, *NOTHING, *CASTS) or name in PARTS or base.endswith("dropout"):
        return True
    if name.startswith((*CHECKS, "sym_")):
        return True
    try:
        return aten_list.overload(canonical(n.target)) is not None
    except aten_list.Unlisted:
        return False


def nothing(c: AtenCall) -> bool:
    """Whether a call changes no value in evaluation. Errors: `Unlisted` for a dropout that drops."""
    if c.base.endswith("dropout"):
        if c.given.get("train", c.given.get("training")):
            raise aten_list.Unlisted("drops values in evaluation too")
        return True
    if c.base in CASTS:
        return c.node.meta["val"].dtype == c.node.all_input_nodes[0].meta["val"].dtype
    if c.base == "slice":
        end = c.given["end"]
        to_the_end = end is None or (isinstance(end, int) and end >= 2**31)
        return c.given["start"] in (None, 0) and to_the_end and c.given["step"] == 1
    return c.base in NOTHING


def own(c: AtenCall) -> bool:
    """Whether our operators can take the values of a call: float32, the batch on axis 0, all other sizes fixed."""
    values = [i.meta.get("val") for i in c.node.all_input_nodes if i.name not in c.constants]
    values = [v for v in (*values, c.node.meta.get("val")) if isinstance(v, Tensor)]
    fit = (v.dtype == torch.float32 and v.dim() > 0 and all(isinstance(s, int) for s in v.shape[1:]) for v in values)
    return all(fit) and all(str(v.shape[0]) == str(values[0].shape[0]) for v in values)


def lower(call: AtenCall, item: int | None = None) -> Lowered:
    """What a call becomes; `item` picks one of several results. Errors: `Unlisted` with the reason."""
    ours = OURS.get(call.base) if item in (None, 0) and own(call) else None
    return (ours(call) if ours else None) or generic(call, item)


def _size(value: Any) -> Any:
    """A size that was worked out in forward, instead of the node that works it out."""
    known = value.meta.get("val") if isinstance(value, FxNode) else None
    return known if isinstance(known, (int, float, torch.SymInt)) else value


def generic(call: AtenCall, item: int | None = None) -> Lowered:
    """The call by its own name, its arguments written as their types say."""
    target = canonical(call.node.target)
    if call.base in CASTS:
        target = "_to_copy.default"
        given = {"self": call.node.args[0], "dtype": call.node.meta["val"].dtype}
    else:  # a view names its sizes differently from a reshape
        names = [a.name for a in aten_list.overload(target)._schema.arguments]
        given = dict(zip(names, call.given.values(), strict=False))
    kinds = aten_list.arguments(target)
    if any(isinstance(_size(v), torch.SymInt) and kinds.get(k, ("",))[0] == "Tensor" for k, v in given.items()):
        target = f"{target.split('.')[0]}.Scalar"  # x + x.size(0)
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
        if (name := call.computed(a)) not in inputs:
            inputs.append(name)
        return inputs.index(name)

    args: dict[str, Any] = {}
    for argument in aten_list.overload(target)._schema.arguments:
        value = map_arg(given.get(argument.name), _size)
        plain = not isinstance(value, FxNode)
        if argument.has_default_value() and (value is None or (plain and value == argument.default_value)):
            continue
        if argument.name in kinds:
            args[argument.name] = aten_list.write(value, kinds[argument.name][0], tensor)
        elif "Generator" in str(argument.real_type):
            raise aten_list.Unlisted("it draws random numbers")
    if aten_list.depends_on_batch(args, target):
        inputs.append("input")
    attrs: dict[str, Any] = {"call": target, "args": args}
    return "aten", inputs, attrs if item is None else {**attrs, "item": item}, tensors


# -- layers -----------------------------------------------------------------------------------------------------
def _layer(c: AtenCall, op: str, attrs: dict[str, Any]) -> Lowered | None:
    weight, bias = c.constant("weight"), c.constant("bias")
    if weight is None or not c.plain("bias"):  # computed in forward
        return None
    tensors = {} if bias is None else {"bias": bias.detach().double()}
    return op, [c.value("input")], attrs, {"weight": weight.detach().float(), **tensors}


def _conv(c: AtenCall) -> Lowered | None:
    rank, padding, weight = int(c.base[-2]), c.given["padding"], c.constant("weight")
    if weight is None:
        return None
    dilation = ints(c.given["dilation"], rank)
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    steps = {"stride": ints(c.given["stride"], rank), "padding": ints(padding, rank), "dilation": dilation}
    return _layer(c, "conv", {"rank": rank, **steps, "groups": int(c.given["groups"])})


def _conv_transpose(c: AtenCall) -> Lowered | None:
    steps = {k: ints(c.given[k], 2) for k in ("stride", "padding", "output_padding", "dilation")}
    return _layer(c, "conv_transpose", {**steps, "groups": int(c.given["groups"])})


# -- what becomes a scale and a shift per channel ------------------------------------------------------------------
def _affine(c: AtenCall, value: str, last: bool, scale: Tensor, add: Tensor) -> Lowered | None:
    if not bool(scale.isfinite().all() and add.isfinite().all()):
        return None
    return "affine", [c.value(value)], {"last": last}, {"scale": scale.clone(), "add": add.clone()}


def _batch_norm(c: AtenCall) -> Lowered | None:
    mean, var = c.constant("running_mean"), c.constant("running_var")
    weight, bias = c.constant("weight"), c.constant("bias")
    if mean is None or var is None or c.given.get("training") or not c.plain("weight", "bias"):
        return None
    rate = 1 / torch.sqrt(var.double() + float(c.given["eps"]))
    if weight is not None:
        rate = rate * weight.double()
    add = -mean.double() * rate + (0 if bias is None else bias.double())
    return "affine", [c.value("input")], {"last": c.rank("input") == 2}, {"scale": rate, "add": add}


def _binary(c: AtenCall) -> Lowered | None:
    """A computed value with a number or a constant. Two computed values stay a call, except the `add` of a residual."""
    if c.given.get("alpha", 1) != 1 or c.given.get("rounding_mode") is not None:
        return None
    other = c.given["other"]
    if isinstance(other, (int, float)) and (other or c.base != "div"):
        n = float(other)
        if c.base == "rsub":
            channels = int(c.node.meta["val"].shape[1]) if c.rank() > 1 else 1
            one = torch.ones(channels, dtype=torch.float64)
            return _affine(c, "self", c.rank() == 2, -one, n * one)  # it folds as a norm does
        if c.base in ("add", "sub"):
            return "add_scalar", [c.value("self")], {"value": n if c.base == "add" else -n}, {}
        return "mul_scalar", [c.value("self")], {"value": n if c.base == "mul" else 1 / n}, {}
    for value, constant in (("self", "other"), ("other", "self")):
        if c.constant(constant) is not None and c.base != "rsub":
            return _with_constant(c, value, constant)
    if c.base == "add" and c.rank("self") == c.rank("other"):
        return "add", [c.value("self"), c.value("other")], {}, {}
    return None


def _with_constant(c: AtenCall, value: str, name: str) -> Lowered | None:
    """One number, or one per channel: a learned scale or shift in front of or behind a layer."""
    constant: Any = c.constant(name)
    rank, channels = c.rank(), 1
    wide = [i - constant.dim() for i, s in enumerate(constant.shape) if s != 1]
    axis = wide[0] if wide else 1 - rank
    if len(wide) > 1 or c.rank(value) != rank or constant.dim() > rank or axis not in (-1, 1 - rank):
        return None
    if rank > 1:
        channels = int(c.given[value].meta["val"].shape[axis])
    if constant.numel() not in (1, channels) or (c.base == "div" and name == "self"):
        return None
    flat = constant.detach().double().reshape(-1).expand(channels)
    one, nought = torch.ones_like(flat), torch.zeros_like(flat)
    scale, add = {
        "mul": (flat, nought),
        "div": (1 / flat, nought),
        "add": (one, flat),
        "sub": (-one, flat) if name == "self" else (one, -flat),
    }[c.base]
    return _affine(c, value, rank == 2 or (axis == -1 and bool(wide)), scale, add)


# -- elementwise, and what moves values ----------------------------------------------------------------------------
def _clamp(c: AtenCall) -> Lowered | None:
    low, high = (0, 6) if c.base == "relu6" else (c.given.get(k, c.given.get(f"{k}_val")) for k in ("min", "max"))
    if isinstance(low, FxNode) or isinstance(high, FxNode):
        return None
    ends = {k: None if v is None else float(v) for k, v in (("low", low), ("high", high))}
    return "clamp", [c.value("self")], ends, {}


def _prelu(c: AtenCall) -> Lowered | None:
    slope = torch.tensor([float(c.given["negative_slope"])]) if c.base == "leaky_relu" else c.constant("weight")
    return None if slope is None else ("prelu", [c.value("self")], {}, {"slope": slope.detach().float()})


def _max_pool(c: AtenCall) -> Lowered | None:
    rank = int(c.base[-2])
    if c.rank("self") != rank + 2:
        return None
    kernel, padding, dilation = (ints(c.given[k], rank) for k in ("kernel_size", "padding", "dilation"))
    stride = ints(c.given["stride"], rank) if c.given["stride"] else kernel
    sizes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return "max_pool", [c.value("self")], {"rank": rank, **sizes, "ceil": c.given["ceil_mode"]}, {}


def _adaptive_avg_pool(c: AtenCall) -> Lowered | None:
    rank, sizes = int(c.base[-2]), c.given["output_size"]
    if c.rank("self") != rank + 2 or not all(isinstance(s, int) for s in sizes):
        return None
    return "adaptive_avg_pool", [c.value("self")], {"rank": rank, "size": ints(sizes, rank)}, {}


def _flatten(c: AtenCall) -> Lowered | None:
    """A value flattened into rows. Any other reshape stays a call."""
    rank = c.rank("self")
    if c.rank() != 2 or rank < 2:
        return None
    return "flatten", [c.value("self")], {"start": 1, "end": rank - 1}, {}


def _slice(c: AtenCall) -> Lowered | None:
    dim, start, end = int(c.given["dim"]) % c.rank(), c.given["start"], c.given["end"]
    if dim == 0 or not all(v is None or isinstance(v, int) for v in (start, end)):
        return None
    last = 2**31 if end is None else min(end, 2**31)
    return "slice", [c.value("self")], {"dim": dim, "start": start or 0, "end": last, "step": c.given["step"]}, {}


def _pad(c: AtenCall) -> Lowered | None:
    pads, mode, value = list(c.given["pad"]), c.given.get("mode", "constant"), c.given["value"]
    if len(pads) >= 2 * c.rank() or not all(isinstance(p, int) for p in pads):
        return None
    return "pad", [c.value("self")], {"pads": pads, "value": float(value or 0), "mode": mode}, {}


OURS: dict[str, Callable[[AtenCall], Lowered | None]] = {  # None: a generic node after all
    "linear": lambda c: _layer(c, "linear", {}),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    "conv_transpose2d": _conv_transpose,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div"), _binary),
    "relu": lambda c: ("relu", [c.value("self")], {}, {}),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6"), _clamp),
    **dict.fromkeys(("prelu", "leaky_relu"), _prelu),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive_avg_pool),
    **dict.fromkeys(("flatten", "view", "reshape", "_unsafe_view"), _flatten),
    "slice": _slice,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}
