"""Where do layer inputs come from? One eval forward, watched operator by operator (functional calls too)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.layers import candidates
from bitwright.transforms.unwrap import unwrap

Mark = tuple[str, str]  # (name of the module in whose forward the operator ran, name of the operator)


@dataclass
class Flow:
    """Facts from one forward pass.

    nonneg   layer name -> (module, operator) that made its input non-negative, in every call
    reader   layer name -> name of the BatchNorm that alone reads its output, if there is one
    clip_readers   name of a Hardtanh or ReLU -> the layers that read its output, where nobody else does
    signed   layer name -> the layers that read its output, normed or not, where no ReLU has cut off what is negative;
             "" for an operator outside of layers, and for the caller of the model
    """

    nonneg: dict[str, Mark] = field(default_factory=dict)
    reader: dict[str, str] = field(default_factory=dict)
    clip_readers: dict[str, set[str]] = field(default_factory=dict)
    signed: dict[str, set[str]] = field(default_factory=dict)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# aten operators by what they do to "never negative"; in-place forms end in _
MAKES = _names(
    "relu relu_ sigmoid sigmoid_ hardsigmoid hardsigmoid_ _softmax softmax abs abs_ square exp exp_ exp2 "
    "softplus sqrt sqrt_ linalg_vector_norm"
)
# a ReLU behind these does the same as one in front of them
MOVES = _names(
    "view reshape _reshape_alias _unsafe_view flatten unflatten permute transpose t expand squeeze "
    "unsqueeze alias clone contiguous detach _to_copy slice select narrow gather index index_select "
    "unbind split split_with_sizes chunk flip roll repeat as_strided diagonal lift_fresh "
    "amax max max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d adaptive_max_pool2d adaptive_max_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_dropout reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
)
KEEPS_FIRST = MOVES | _names(
    "cumsum sort topk mean sum prod amin min avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_avg_pool1d upsample_linear1d upsample_bilinear2d round round_ floor ceil"
)
KEEPS_ALL = _names("cat stack add add_ mul mul_ div div_ minimum where addcmul")
JOINS = _names("cat stack")
NORMS = _names("native_group_norm native_layer_norm")  # beside those called ..batch_norm..
CLIPS = _names("clamp clamp_min hardtanh threshold relu6")


def clips_at_zero(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a clip with these arguments begins at a number from 0 on.

    >>> clips_at_zero("hardtanh", ("x", 0.0, 6.0), {}), clips_at_zero("clamp", ("x",), {"max": 1})
    (True, False)
    """
    low = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
    if name.rstrip("_") == "threshold":
        low = min(args[1], args[2]) if len(args) > 2 else None
    return isinstance(low, (int, float)) and low >= 0


class _Watch(TorchDispatchMode):
    """Marks tensors as non-negative, counts who reads the outputs of layers, and follows these to a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: Any = WeakTensorKeyDictionary()
        self.made_by: Any = WeakTensorKeyDictionary()  # output of a layer -> layer name
        self.readers: dict[str, list[str]] = {}
        self.sums: Any = WeakTensorKeyDictionary()  # output of layers, perhaps normed or moved -> their names
        self.signed: dict[str, set[str]] = {}  # layer name -> the modules that read it before a ReLU did
        self.stack: list[str] = [""]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        for t in inputs:
            layer = self.made_by.get(t)
            if layer is not None:
                self.readers.setdefault(layer, []).append(self.stack[-1])
        mark = self._mark(name, args, kwargs, inputs)
        sums = self._follow(name, args, kwargs, inputs)
        out = func(*args, **kwargs)
        for t in _tensors(out):
            if sums:
                self.sums[t] = sums
            elif t in self.sums and name.endswith("_"):
                del self.sums[t]
            if mark is not None:
                self.marks[t] = mark
            elif t in self.marks and name.endswith("_"):
                del self.marks[t]  # overwritten in place
        return out

    def _mark(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]) -> Mark | None:
        here = (self.stack[-1], name.strip("_"))
        if name in MAKES:
            return here
        if name.rstrip("_") in CLIPS:
            if clips_at_zero(name, args, kwargs):
                return here
            return self._of(inputs[:1])  # clipping keeps the sign of what is non-negative already
        if name in ("pow", "pow_"):
            power = args[1] if len(args) > 1 else None
            return here if isinstance(power, (int, float)) and power % 2 == 0 else self._of(inputs[:1])
        if name in ("mul", "mul_") and len(inputs) == 2 and inputs[0] is inputs[1]:
            return here
        if name == "maximum":
            return next((m for m in (self.marks.get(t) for t in inputs) if m is not None), None)
        if name == "constant_pad_nd":
            value = args[2] if len(args) > 2 else kwargs.get("value", 0)
            return self._of(inputs[:1]) if value >= 0 else None
        if name in KEEPS_FIRST:
            return self._of(inputs[:1])
        if name in KEEPS_ALL:
            numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, (int, float))]
            return self._of(inputs) if all(n >= 0 for n in numbers) else None
        return None

    def _follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]) -> frozenset[str]:
        """The layers whose sums this operator passes on; where it is no ReLU either, it reads them."""
        found = frozenset[str]().union(*(self.sums.get(t, ()) for t in inputs))
        if not found or name.strip("_") == "relu" or (name.rstrip("_") in CLIPS and clips_at_zero(name, args, kwargs)):
            return frozenset()
        if name in MOVES or name in JOINS or name in NORMS or "batch_norm" in name:
            return found
        for layer in found:
            self.signed.setdefault(layer, set()).add(self.stack[-1])
        return frozenset()

    def _of(self, tensors: list[Tensor]) -> Mark | None:
        found = [self.marks.get(t) for t in tensors]
        return found[0] if found and all(m is not None for m in found) else None


def trace_flow(model: nn.Module, example: Any) -> Flow:
    """Which layer inputs are non-negative and why, and which BatchNorm alone reads a layer's output.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> trace_flow(net, torch.zeros(1, 2)).nonneg
    {'2': ('1', 'relu')}
    """
    model = unwrap(model)
    watch = _Watch()
    inputs: dict[str, list[Mark | None]] = {}
    layers = {id(c.module): c.name for c in candidates(model)}
    rows = {c.name for c in candidates(model) if isinstance(c.module, nn.Linear)}
    norms: dict[str, int] = {}
    clips = {name for name, module in model.named_modules() if isinstance(module, (nn.Hardtanh, nn.ReLU))}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            watch.stack.append(name)
            if id(module) in layers:
                first = next(iter(_tensors((args, kwargs))), None)
                inputs.setdefault(name, []).append(None if first is None else watch.marks.get(first))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                first = next(iter(_tensors((args, kwargs))), None)
                maker = None if first is None else watch.made_by.get(first)
                if maker in rows and first is not None and first.dim() > 2:
                    return  # axis 1 are tokens, not what the Linear puts out
                norms[name] = norms.get(name, 0) + 1

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            watch.stack.pop()
            if id(module) in layers or name in clips:
                for t in _tensors(output):
                    watch.made_by[t] = name
                    if id(module) in layers:
                        watch.sums[t] = frozenset((name,))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            # pre-hook last, hook first: a user's own hooks run outside
            before = module.register_forward_pre_hook(enter(name), with_kwargs=True)
            after = module.register_forward_hook(leave(name), prepend=True, always_call=False)
            stack.callback(before.remove)
            stack.callback(after.remove)
        with evaluating(model), watch:
            out = run_model(model, example)
    returned = {watch.made_by.get(t) for t in _tensors(out)}
    flow = Flow()
    for name, marks in inputs.items():
        first = marks[0] if marks else None
        if first is not None and all(m is not None for m in marks):
            flow.nonneg[name] = first
    names = set(layers.values())
    for name, who in watch.signed.items():
        flow.signed[name] = {_layer_of(reader, names) for reader in who}
    for t in _tensors(out):
        for name in watch.sums.get(t, ()):
            flow.signed.setdefault(name, set()).add("")
    for name in clips & set(watch.readers):
        owners = {_layer_of(reader, names) for reader in watch.readers[name]}
        if "" not in owners and name not in returned:
            flow.clip_readers[name] = owners
    for name, who in watch.readers.items():
        only = set(who)
        calls = len(inputs.get(name, ()))
        if len(only) == 1 and name not in returned:
            reader = next(iter(only))
            if norms.get(reader) == calls:
                flow.reader[name] = reader
    return flow


def _layer_of(reader: str, layers: set[str]) -> str:
    """The layer in whose forward, or in whose parts, something was read; "" outside of all."""
    while reader and reader not in layers:
        reader = reader.rpartition(".")[0]
    return reader


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    return []
