"""What a gate is called with: the linear operator of its layer, and what else it may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Code: TypeAlias = tuple[Tensor, Tensor]  # whole numbers and their unit


def unchanged(w: Tensor) -> Tensor:
    return w


@dataclass(eq=False)
class GateCall:
    """`call(x, w, b)` is the layer's operator without slots; every gate is called as `gate(call, x, w, b)`.

    raw            what the quantizer of the x slot reads, for a gate with `needs_raw_input`
    whole, seen    for a gate with `needs_code`: what codes the input, and the tensor that it reads
    code, w_code   whole numbers and unit of input and weight; None: there is no code. That of the weight is there in
                   evaluation alone, in the layout of the parts
    unit           that of the input's code alone
    from_slot      brings a weight from the layout of the parts into that of the operator

    >>> import torch
    >>> GateCall(torch.nn.functional.linear)(torch.ones(1, 2), torch.ones(3, 2), None).tolist()
    [[2.0, 2.0, 2.0]]
    """

    op: Callable[..., Tensor]
    raw: Tensor | None = None
    whole: Callable[[Tensor], Code] | None = None
    seen: Tensor | None = None
    w_code: Code | None = None
    from_slot: Callable[[Tensor], Tensor] = unchanged

    @property
    def code(self) -> Code | None:
        """Computed each time: a gate asks once. (torch's compiler does not take a property with a lock.)"""
        return None if self.whole is None or self.seen is None else self.whole(self.seen)

    @property
    def unit(self) -> Tensor | None:
        """A code's unit does not depend on the sample, so one sample tells it."""
        return None if self.whole is None or self.seen is None else self.whole(self.seen[:1])[1]

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None, **options: Any) -> Tensor:
        return self.op(x, w, b, **options)


def as_call(op: Callable[..., Tensor]) -> GateCall:
    """What a gate works with where it is called alone: with a bare operator."""
    return op if isinstance(op, GateCall) else GateCall(op)
