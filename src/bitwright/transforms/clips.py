"""An activation is not needed where only quantizers read its output and each of them clips at least as much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bitwright.nn.layers import SlotLayer
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import links_of
from bitwright.transforms.flow import Flow
from bitwright.transforms.layers import hooks_of


class IdleClip(nn.Module):
    """An activation that passes its input on while all its readers, layers by name, would clip it themselves.

    This saves two of the memory-bound operations of a low-bit block, one forward and one backward; no value changes.
    (Where an input is exactly at the edge, the activation would have stopped the gradient; now the quantizer's rule
    alone decides there.)
    """

    readers: tuple[str, ...]
    idle: bool


class IdleHardtanh(nn.Hardtanh, IdleClip):
    """A hardtanh in front of signs whose gradient ends at 1."""

    def __init__(self, like: nn.Hardtanh, readers: tuple[str, ...]) -> None:
        nn.Hardtanh.__init__(self, like.min_val, like.max_val, like.inplace)
        self.readers, self.idle = readers, False

    def forward(self, input: Tensor) -> Tensor:
        return input if self.idle else super().forward(input)


class IdleReLU(nn.ReLU, IdleClip):
    """A ReLU in front of grids that begin at 0."""

    def __init__(self, like: nn.ReLU, readers: tuple[str, ...]) -> None:
        nn.ReLU.__init__(self, like.inplace)
        self.readers, self.idle = readers, False

    def forward(self, input: Tensor) -> Tensor:
        return input if self.idle else super().forward(input)


def clips_itself(layer: nn.Module, clip: nn.Module) -> bool:
    """Whether the first thing that this layer does to its input makes the activation in front of it unnecessary."""
    if not isinstance(layer, SlotLayer) or traits_of(layer.gate).needs_raw_input:
        return False
    first = traits_of(next(iter(links_of(layer.x)), None))
    return first.local_gradient if isinstance(clip, nn.Hardtanh) else first.begins_at_zero


def idle_clips(model: nn.Module, flow: Flow | None, undo: Any) -> None:
    """Activations that only such layers read become `IdleClip`s; the readers are known from the flow of an example."""
    plain = ((n, m) for n, m in model.named_modules() if type(m) is nn.ReLU or _is_hardtanh(m))
    found = {n: m for n, m in plain if not hooks_of(m)}  # a hooked activation must really compute
    read_by = {} if flow is None else flow.clip_readers
    for name, module in found.items():
        readers = tuple(sorted(read_by.get(name, ())))
        if readers and all(clips_itself(model.get_submodule(reader), module) for reader in readers):
            if isinstance(module, nn.Hardtanh):
                _replace(model, name, IdleHardtanh(module, readers), undo)
            elif isinstance(module, nn.ReLU):
                _replace(model, name, IdleReLU(module, readers), undo)
    for module in model.modules():
        if isinstance(module, IdleClip):
            before = module.idle
            undo.add(lambda m=module, b=before: setattr(m, "idle", b))
            module.idle = all(clips_itself(model.get_submodule(reader), module) for reader in module.readers)


def _is_hardtanh(module: nn.Module) -> bool:
    return type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (-1, 1)


def _replace(model: nn.Module, name: str, new: nn.Module, undo: Any) -> None:
    parent, _, child = name.rpartition(".")
    holder = model.get_submodule(parent)
    old = model.get_submodule(name)
    new.train(old.training)
    undo.add(lambda: holder._modules.__setitem__(child, old))
    holder._modules[child] = new


@contextmanager
def awake(model: nn.Module) -> Iterator[None]:
    """Inside, all activations work: a trace then sees what layers would read."""
    sleeping = [m for m in model.modules() if isinstance(m, IdleClip) and m.idle]
    for module in sleeping:
        module.idle = False
    try:
        yield
    finally:
        for module in sleeping:
            module.idle = True
