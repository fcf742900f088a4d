"""A hardtanh whose output only signs read is work for nothing: it changes no sign, and their gradient ends where its does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bitwright.nn.layers import SlotLayer
from bitwright.transforms.facts import links_of
from bitwright.transforms.flow import trace_flow


class IdleHardtanh(nn.Hardtanh):
    """nn.Hardtanh that passes its input on while all its readers, layers by name, take the sign of it.

    Two of the memory-bound operations of a binary block less, forward and backward. (Where an input is exactly +1 or -1
    the hardtanh would have stopped the gradient; the sign's surrogate decides there alone.)
    """

    def __init__(self, like: nn.Hardtanh, readers: tuple[str, ...]) -> None:
        super().__init__(like.min_val, like.max_val, like.inplace)
        self.readers, self.idle = readers, False

    def forward(self, input: Tensor) -> Tensor:
        return input if self.idle else super().forward(input)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", idle: only signs read it" if self.idle else "")


def takes_sign(layer: nn.Module) -> bool:
    """Whether nothing but signs of the input, with a gradient that vanishes beyond 1, leaves this layer's x slot."""
    links = links_of(layer.x) if isinstance(layer, SlotLayer) else []
    first = next((m for m in links if getattr(m, "part_name", "") != "dropout"), None)
    raw = isinstance(layer, SlotLayer) and bool(getattr(layer.gate, "needs_raw_input", False))
    return not raw and bool(links) and links[0] is first and bool(getattr(first, "local_gradient", False))


def idle_clips(model: nn.Module, example: Any, undo: Any) -> None:
    """Hardtanh modules that only layers with a sign read become `IdleHardtanh`; needs an example to know the readers."""
    if example is not None and any(takes_sign(m) for m in model.modules()):
        candidates = {
            name: m for name, m in model.named_modules() if type(m) is nn.Hardtanh and (m.min_val, m.max_val) == (-1, 1)
        }
        found = trace_flow(model, example).clip_readers if candidates else {}
        for name, module in candidates.items():
            readers = tuple(sorted(found.get(name, ())))
            if readers and all(takes_sign(model.get_submodule(reader)) for reader in readers):
                parent, _, child = name.rpartition(".")
                holder = model.get_submodule(parent)
                undo.add(lambda h=holder, c=child, m=module: h._modules.__setitem__(c, m))
                holder._modules[child] = IdleHardtanh(module, readers).train(module.training)
    settle_clips(model, undo)


def settle_clips(model: nn.Module, undo: Any) -> None:
    """After a change of slots: a hardtanh is idle exactly while its readers take signs."""
    for module in model.modules():
        if isinstance(module, IdleHardtanh):
            before = module.idle
            undo.add(lambda m=module, b=before: setattr(m, "idle", b))
            module.idle = all(takes_sign(model.get_submodule(reader)) for reader in module.readers)
