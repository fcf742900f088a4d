"""The layer form: a copy of the user's module with packed layers in place, for every model that runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitwright.engine.fold import fold
from bitwright.engine.packed_layer import PackedLayer
from bitwright.engine.packing import EMPTY, packing_of
from bitwright.engine.prepare import Prepared, hooked, without_hooks
from bitwright.engine.trace import put, trace
from bitwright.errors import InputError
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.nn.layers import KINDS
from bitwright.transforms.copying import copy_model

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


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
    reasons = {name: prepared.own.get(name) or stays(layer) for name, layer in prepared.layers.items()}
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
    if type(layer) not in KINDS.values():
        return f"{type(layer).__name__} is a subclass, and stays your code"
    try:
        with torch.no_grad():
            found = packing_of(layer)
    except InputError as error:
        return str(error)
    if isinstance(found, str):
        return found
    return "" if found.coded_weight else "slot w is empty; codes of the input alone gain nothing"


def sample(layer: nn.Module) -> Tensor:
    """The smallest input of a layer, two samples."""
    weight: Any = layer.weight
    if isinstance(layer, nn.Linear):
        return torch.zeros(2, weight.shape[1])
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, weight.shape[2:], strict=True)]  # type: ignore[arg-type]
    return torch.zeros(2, weight.shape[1] * int(layer.groups), *reach)  # type: ignore[arg-type]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_slot_layer(m) or hooked(m) or super().is_leaf_module(m, module_qualified_name)


def sole_norms(model: nn.Module, layers: set[str]) -> dict[str, str]:
    """Name of a layer -> name of the BatchNorm that alone reads it and reads nothing else; {} where nothing is proven."""
    trial = copy_model(model)
    try:
        graph = _Tracer().trace(trial)
    except Exception:  # a forward that symbols cannot run: no proof, so every norm stays where it is
        return {}
    if any(_keeps_symbols(vars(m)) for m in trial.modules()):
        return {}
    modules: dict[str, Any] = dict(trial.named_modules())
    calls = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    found: dict[str, str] = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or name not in layers or len(node.users) != 1 or calls.count(name) != 1:
            continue
        reader = next(iter(node.users))
        norm = str(reader.target)
        module = modules.get(norm) if reader.op == "call_module" else None
        if type(module) not in NORMS or calls.count(norm) != 1 or reader.args != (node,) or module is None:
            continue
        if module.running_mean is None or hooked(module) or "forward" in vars(module):
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
