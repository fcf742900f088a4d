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
class Candidate:
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


def candidates(model: nn.Module) -> list[Candidate]:
    """Compute layers in order of definition; what lies inside a slot layer belongs to its parts.

    >>> [c.name for c in candidates(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
    ['0']
    """
    found: dict[int, Candidate] = {}
    for name, module, parent in _tree(model, "", None, ()):
        if isinstance(module, (SlotLayer, *KINDS, *FOREIGN)):
            row = found.setdefault(id(module), Candidate(module))
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
    if exact:
        return ""
    if base is None:
        return f"there is no {kind} with slots"
    own = " with its own forward" if type(module).forward is not base.forward else ""
    return f"{kind}, subclass of {base.__name__}{own}"
