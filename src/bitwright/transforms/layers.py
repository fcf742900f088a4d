"""Which modules of a model are compute layers, and which of them cannot be replaced, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from bitwright.nn.layers import KINDS, SlotLayer

FOREIGN = (
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
)


@dataclass
class ComputeLayer:
    """One compute layer: its names (a shared module has several), and why it is skipped, if so."""

    module: nn.Module
    names: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def is_table(self) -> bool:
        """A lookup, no arithmetic: not what `first` and `last` mean."""
        return isinstance(self.module, (nn.Embedding, nn.EmbeddingBag))

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def is_depthwise(self) -> bool:
        """A convolution each of whose outputs reads one input channel."""
        conv = self.module
        return isinstance(conv, nn.modules.conv._ConvNd) and conv.groups == conv.in_channels > 1

    def is_kind(self, kind: str) -> bool:
        """Whether a rule for this kind is for this layer; "" is for all."""
        return kind in ("", self.kind) or (kind == "depthwise" and self.is_depthwise)


def candidates(model: nn.Module) -> list[ComputeLayer]:
    """Compute layers in order of definition; what lies inside a slot layer belongs to its parts.

    >>> [c.name for c in candidates(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
    ['0']
    """
    found: dict[int, ComputeLayer] = {}
    for name, module, parent in _tree(model, "", None, ()):
        if isinstance(module, (SlotLayer, *KINDS, *FOREIGN)):
            row = found.setdefault(id(module), ComputeLayer(module))
            row.names.append(name)
            row.reason = row.reason or skip_reason(module, parent)
    return list(found.values())


def _tree(
    module: nn.Module, name: str, parent: nn.Module | None, above: tuple[int, ...]
) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Every occurrence of every module, shared ones repeatedly; not below slot layers, not in circles."""
    if id(module) in above:
        return
    yield name, module, parent
    if isinstance(module, SlotLayer):
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from _tree(child, f"{name}.{key}" if name else key, module, (*above, id(module)))


def hooks_of(module: nn.Module) -> list[str]:
    """What runs beside the class of this module: its hooks, and a forward replaced on the instance.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.register_forward_hook(print)
    >>> hooks_of(layer)
    ['forward hook']
    """
    found = {
        "forward pre-hook": module._forward_pre_hooks,
        "forward hook": module._forward_hooks,
        "backward pre-hook": module._backward_pre_hooks,
        "backward hook": module._backward_hooks,
        "forward replaced on the instance": "forward" in module.__dict__,
    }
    return [text for text, there in found.items() if there]


def skip_reason(module: nn.Module, parent: nn.Module | None = None) -> str:
    """Why this layer cannot get slots; "" if it can."""
    kind = type(module).__name__
    if isinstance(parent, nn.MultiheadAttention):
        return f"{kind}, its weight is read directly by MultiheadAttention"
    if parametrize.is_parametrized(module):
        return f"{kind}, its weight is computed by torch.nn.utils.parametrize; remove the parametrizations first"
    if isinstance(module, LazyModuleMixin):
        return f"{kind} has no shape yet; run the model once first"
    base = next((k for k in KINDS if isinstance(module, k)), None)
    exact = type(module) in KINDS or isinstance(module, SlotLayer)
    if exact and "weight" not in module._parameters:
        return f"{kind}, its weight is computed by a hook (weight_norm, spectral_norm, prune); remove it first"
    if exact and "forward" in module.__dict__ and not isinstance(module, SlotLayer):
        return f"{kind}, its forward was replaced on the instance"
    if exact:
        return ""
    if base is None:
        return f"there is no {kind} with slots"
    own = " with its own forward" if type(module).forward is not base.forward else ""
    return f"{kind}, subclass of {base.__name__}{own}"
