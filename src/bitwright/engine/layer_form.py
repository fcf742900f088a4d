"""The layer form: a copy of the user's module with packed layers in place, for every model that runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from bitwright.engine.fold import fold
from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel, check_on_cpu, laid_out
from bitwright.engine.packing import EMPTY, HOOKS, packing_of
from bitwright.engine.prepare import Prepared, without_hooks
from bitwright.engine.rules import LAYERS
from bitwright.engine.trace import put, trace
from bitwright.errors import InputError
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.nn.layers import KINDS as SLOT_LAYERS
from bitwright.transforms.copying import copy_model
from bitwright.transforms.decide import slot_layers
from bitwright.transforms.trained_file import is_channels_last
from bitwright.transforms.twin_trace import sole_readers
from bitwright.transforms.unwrap import hooked

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class PackedLayer(nn.Module):
    """Input quantizer, bits, kernel, scale and bias of a trained layer; `PackedLinear`, `PackedConv1d`, `PackedConv2d`.

    Still an `nn.Linear`, `nn.Conv1d` or `nn.Conv2d` to `isinstance`, with the attributes of the trained layer (`stride`,
    `out_channels`, ...) and its hooks. `weight` and `bias` have shape, type and device of the trained ones and hold NaN:
    the trained values are not kept, and a result computed from them must be visibly wrong.

    Takes what the trained layer takes, of any size and type; computes in float32 and gives the input's floating type back.
    Evaluation only, without gradients, in `train()` too. Stays on the CPU; `half()` and the like change what `weight.dtype`
    says and no packed number.
    """

    packed: PackedModel
    rank: int
    norm: str
    trained_dtype: torch.dtype
    last: bool  # whether the trained weight was channels_last: the output then is, too
    _sizes: tuple[int, ...]
    _has_bias: bool
    _places: tuple[list[int], ...]  # of each axis: what the kernel covers, stride, padding of both sides

    @classmethod
    def build(
        cls, layer: nn.Module, graph: Graph, norm: str = "", backend: str = "auto", threads: int | None = None
    ) -> PackedLayer:
        """The layer that computes `graph` (one layer, its input part, perhaps its norm) in the place of `layer`.

        norm   name of the BatchNorm whose numbers went into the scale
        """
        kind = next(k for k in KINDS if isinstance(layer, k))
        new = cast(Any, KINDS[kind].__new__(KINDS[kind]))
        nn.Module.__init__(new)
        for key, value in vars(layer).items():
            if not key.startswith("_") and key != "training" and not isinstance(value, (Tensor, nn.Module)):
                new.__dict__[key] = value
        for key in HOOKS:
            new.__dict__[key] = layer.__dict__[key].copy()
        weight = cast(Tensor, layer.weight)
        new.norm, new.rank = norm, weight.dim()
        new._sizes, new._has_bias = tuple(weight.shape), layer.bias is not None
        new.trained_dtype, new.last = weight.dtype, is_channels_last(weight)
        new._places = _places(layer)
        new.packed = PackedModel(graph, backend, threads)
        return new.eval()

    @property
    def node(self) -> Node:
        """The layer's own node in its graph."""
        return next(n for n in self.packed.graph.nodes if n.op in LAYERS)

    def rows(self, x: Tensor) -> Tensor:
        """The input as the kernels take it: features in rows [N, C], images with their batch axis.

        Errors: `InputError` for an input that the trained layer would not take.
        """
        check_on_cpu(x, f"packed {type(self).__name__}: input")
        linear, features = self.rank == 2, self._sizes[1] * int(getattr(self, "groups", 1))
        axis = -1 if linear else 1 - self.rank
        wrong = x.dim() < 1 if linear else x.dim() not in (self.rank - 1, self.rank)
        takes = f"{features} features on the last axis" if linear else f"{features} channels on axis {axis}"
        if linear and self.norm and x.dim() > 2:
            wrong, takes = True, f"[N, {features}], with its BatchNorm {self.norm} inside"
        if wrong or x.shape[axis] != features:
            text = f"packed {type(self).__name__}: input is {list(x.shape)}, it takes {takes}"
            raise InputError(text, code="input-shape", given=str(list(x.shape)), possible=takes)
        return x.reshape(-1, features) if linear else x if x.dim() == self.rank else x[None]

    def environment(self, x: Tensor) -> dict[str, Tensor]:
        """The input of the layer's graph by name."""
        return {self.packed.inputs[0].name: laid_out(self.rows(x))}

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            net, input = self.packed, input.detach()
            place = self._sizes[0], *self._places
            y = torch.ops.bitwright.packed_layer(self.rows(input), net.held(), net.graph_text, *place)
        else:
            y = self.packed.run(self.environment(input))
        y = y.to(input.dtype if input.is_floating_point() else self.trained_dtype)
        if self.rank == 2:
            return y.reshape(*input.shape[:-1], y.shape[-1])
        y = y.contiguous(memory_format=torch.channels_last) if self.last or is_channels_last(input) else y.contiguous()
        return y if input.dim() == self.rank else y[0]

    def _without_values(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full((), float("nan"), dtype=self.trained_dtype).expand(shape)

    @property
    def weight(self) -> Tensor:
        return self._without_values(self._sizes)

    @property
    def bias(self) -> Tensor | None:
        return self._without_values(self._sizes[:1]) if self._has_bias else None

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        probe = fn(torch.empty(0, dtype=self.trained_dtype))
        if probe.device.type != "cpu":
            raise InputError(f"packed layers run on the CPU, not on {str(probe.device)!r}", code="device")
        self.trained_dtype = probe.dtype
        return self

    def train(self, mode: bool = True) -> PackedLayer:
        """Stays in evaluation: there is nothing to train."""
        return super().train(False)

    def extra_repr(self) -> str:
        node = self.node
        kind = "bits" if node.op.startswith("coded") else "bits on disk, float run"
        sizes = "x".join(str(s) for s in self._sizes)
        return f"{sizes}, {kind}" + (f", norm={self.norm}" if self.norm else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _places(layer: Any) -> tuple[list[int], ...]:
    """Of each axis of the image: how far the kernel reaches, its stride, the padding of both sides together."""
    if isinstance(layer, nn.Linear):
        return [], [], []
    window = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    sides = layer._reversed_padding_repeated_twice  # of the last axis first
    return window, list(layer.stride), [a + b for a, b in zip(sides[::2], sides[1::2], strict=True)][::-1]


KINDS: dict[type[nn.Module], type[PackedLayer]] = {
    kind: type(f"Packed{kind.__name__}", (PackedLayer, kind), {"__module__": __name__})
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d)
}
PackedLinear, PackedConv1d, PackedConv2d = KINDS.values()


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """The packed layers of a module, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedLayer)}


# -- the whole module -----------------------------------------------------------------------------------------
@dataclass
class LayerForm:
    """The module, its packed layers by name, and for every other layer with parts the reason why it stays as it is."""

    model: nn.Module
    packed: dict[str, PackedLayer]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """What the graph form would have fused at most: norms left alone, and layers that read another one's floats."""
        norms = sum(isinstance(m, NORMS) for m in self.model.modules())
        coded = sum(p.node.op.startswith("coded") for p in self.packed.values())
        return norms + max(0, coded - 1)


def layer_form(prepared: Prepared, backend: str = "auto", threads: int | None = None) -> LayerForm:
    """Packs every layer that has bits; the rest is untouched.

    A BatchNorm goes into the layer in front where nothing else can read that layer: a symbolic run of `forward`, which
    has no branch on values, shows one call of each and no other reader.
    """
    model = copy_model(prepared.model)
    form = LayerForm(model, {})
    reasons = {name: prepared.own.get(name) or stays(layer) for name, layer in slot_layers(prepared.model).items()}
    form.refused = {name: why for name, why in reasons.items() if why}
    kept = [name for name, why in reasons.items() if not why]
    norms = sole_norms(model, set(kept) - set(prepared.hooked)) if kept else {}
    modules = dict(model.named_modules())
    for name in kept:
        layer, norm = modules[name], norms.get(name, "")
        bare = without_hooks(copy_model(layer).float())  # they stay with the packed layer
        pair = OrderedDict(layer=bare, **({"norm": modules[norm]} if norm else {}))
        graph = fold(trace(nn.Sequential(pair).eval(), sample(layer)).graph)
        form.packed[name] = packed = PackedLayer.build(layer, graph, norm, backend, threads)
        form.model = put(form.model, layer, packed)
        if norm:
            put(form.model, modules[norm], nn.Identity())
    return form


def stays(layer: SlotLayer) -> str:
    """Why this layer stays as it is, or ""."""
    if layer.w is None and layer.x is None and layer.gate is None:
        return EMPTY
    if type(layer) not in SLOT_LAYERS.values():
        return f"{type(layer).__name__} is a subclass, and stays your code"
    try:
        with torch.no_grad():
            found = packing_of(layer)
    except InputError as error:
        return str(error)
    if isinstance(found, str):
        return found
    return "" if found.coded_weight else "slot w is empty; codes of the input alone gain nothing"


def sample(layer: Any) -> Tensor:
    """The smallest input of a layer, two samples."""
    window = _places(layer)[0]
    return torch.zeros(2, layer.weight.shape[1] * int(getattr(layer, "groups", 1)), *window)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_slot_layer(m) or hooked(m) or super().is_leaf_module(m, module_qualified_name)


def sole_norms(model: nn.Module, layers: set[str]) -> dict[str, str]:
    """Name of a layer -> name of the BatchNorm that is its only reader and reads nothing else; {} where nothing is proven."""
    trial = copy_model(model)
    try:
        graph = _Tracer().trace(trial)
    except Exception:  # a forward that symbols cannot run: no proof, so every norm stays where it is
        return {}
    if any(_keeps_symbols(vars(m)) for m in trial.modules()):
        return {}
    modules: dict[str, Any] = dict(trial.named_modules())
    found: dict[str, str] = {}
    for node, reader in sole_readers(graph):
        name, norm = str(node.target), str(reader.target)
        module = modules[norm]
        if name not in layers or type(module) not in NORMS or module.running_mean is None:
            continue
        if hooked(module) or "forward" in vars(module):
            continue
        if isinstance(modules[name], nn.Linear) == (type(module) is nn.BatchNorm1d) or modules[name].weight.dim() == 3:
            found[name] = norm
    return found


def _keeps_symbols(value: Any, depth: int = 3) -> bool:
    """Whether an object that forward wrote to holds a value of the symbolic run: then somebody may read it later."""
    if isinstance(value, fx.Proxy):
        return True
    if depth and isinstance(value, dict):
        return any(_keeps_symbols(v, depth - 1) for v in value.values())
    return bool(depth) and isinstance(value, (list, tuple)) and any(_keeps_symbols(v, depth - 1) for v in value)
