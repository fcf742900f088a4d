"""Which layers feed which: the producers of each layer's input through norms, activations, pools and adds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from bitwright.transforms.flow import _tensors
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.layers import candidates
from bitwright.transforms.unwrap import unwrap

Names = frozenset[str]
NONE: Names = frozenset()


@dataclass
class Sources:
    """Facts from one forward pass.

    order      layers in the order in which they ran first
    inputs     layer -> layers whose outputs reach its input without passing through another layer, in that order
    shortcuts  1x1 convolution beside a layer -> the layer that it bypasses
    """

    order: tuple[str, ...] = ()
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shortcuts: dict[str, str] = field(default_factory=dict)


class _Trail(TorchDispatchMode):
    """Every tensor carries the names of the layers it came from; a layer's output carries its own alone."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: Any = WeakTensorKeyDictionary()
        self.joins: list[tuple[Names, Names]] = []

    def of(self, tensors: list[Tensor]) -> Names:
        return NONE.union(*(self.marks.get(t, NONE) for t in tensors))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        trail = self.of(inputs)
        if func.overloadpacket.__name__ in ("add", "add_"):
            sides = [side for t in inputs if (side := self.marks.get(t, NONE))]
            if len(sides) == 2:
                self.joins.append((sides[0], sides[1]))
        out = func(*args, **kwargs)
        for t in _tensors(out):
            if trail:
                self.marks[t] = trail
        return out


def trace_sources(model: nn.Module, example: Any) -> Sources:
    """Execution order, producers and shortcuts, from one eval forward. The model is left as it was.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> trace_sources(net, torch.zeros(1, 2)).inputs
    {'0': (), '2': ('0',)}
    """
    model = unwrap(model)
    trail = _Trail()
    layers = {id(c.module): c.name for c in candidates(model)}
    inputs: dict[str, Names] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[name] = inputs.get(name, NONE) | trail.of(_tensors((args, kwargs)))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for t in _tensors(output):
                trail.marks[t] = frozenset({name})

        return hook

    with ExitStack() as stack:
        for module in model.modules():
            name = layers.get(id(module))
            if name is not None:
                before = module.register_forward_pre_hook(enter(name), with_kwargs=True)
                after = module.register_forward_hook(leave(name), prepend=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
        with evaluating(model), trail:
            run_model(model, example)
    order = tuple(inputs)
    place = {name: i for i, name in enumerate(order)}
    modules = {name: module for module in model.modules() if (name := layers.get(id(module))) is not None}
    return Sources(
        order,
        {name: tuple(sorted(found, key=lambda n: place[n])) for name, found in inputs.items()},
        _shortcuts(order, inputs, trail.joins, modules),
    )


def _shortcuts(
    order: tuple[str, ...], inputs: dict[str, Names], joins: list[tuple[Names, Names]], modules: dict[str, nn.Module]
) -> dict[str, str]:
    """A 1x1 conv that reads what another layer reads, and whose output is added to what came of that layer."""
    found: dict[str, str] = {}
    for pair in joins:
        for side, other in (pair, pair[::-1]):
            one = next(iter(side))
            if len(side) != 1 or one in found or not _is_pointwise(modules[one]):
                continue
            before = _before(other, inputs)
            twin = next((n for n in order if n != one and inputs[n] == inputs[one] and n in before), None)
            # two 1x1 convs side by side: the path with more layers is the main one
            if twin is not None and (not _is_pointwise(modules[twin]) or other != {twin}):
                found[one] = twin
    return found


def _before(names: Names, inputs: dict[str, Names]) -> Names:
    """These layers and all that came before them."""
    seen: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack += inputs[name]
    return frozenset(seen)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and set(module.kernel_size) == {1}
