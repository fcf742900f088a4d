"""Which channels of a tensor can be non-zero, followed through a forward pass: what a gate switched off stays off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.transforms.tracer import KEEPS_ZEROS, KEEPS_ZEROS_OF_CHANNELS, Fact, OperatorCall

# in place, these leave zeros in every view of the tensor
_STILL = frozenset(name.rstrip("_") for name in KEEPS_ZEROS) | {"mul", "div"}
_BROADCAST = frozenset({"mul", "div", "add", "sub", "expand"})


class Active:
    """bool [N, C], and how many channels the sparsest of the tensors added into this one had (int64 [N])."""

    def __init__(self, channels: Tensor, least: Tensor | None = None) -> None:
        self.channels = channels
        self.least = channels.sum(1) if least is None else least


class ActiveChannels(Fact):
    """Carries `Active`s from tensor to tensor. An operator that it does not know ends them: all channels count.

    Through an addition goes the union, through a multiplication the intersection, through a concatenation both side by
    side; norms, biases and everything else that changes a zero end it.
    """

    def put(self, t: Tensor, mark: Active | None) -> None:
        fits = mark is not None and t.dim() >= 2 and t.shape[:2] == mark.channels.shape
        super().put(t, mark if fits else None)

    def after(self, call: OperatorCall, out: list[Tensor]) -> None:
        if out:
            if call.written and call.plain not in _STILL:
                self._written(out[0])
            self.put(out[0], self._mark(call, out[0]))

    def _written(self, t: Tensor) -> None:
        """Nothing is known any more of tensors that share memory with one that was written to."""
        place = t.untyped_storage().data_ptr()
        for other in [o for o in self.marks if o.untyped_storage().data_ptr() == place]:
            if other is not t:
                del self.marks[other]

    def _mark(self, call: OperatorCall, out: Tensor) -> Active | None:
        plain = call.plain
        if plain == "cat":
            return self._cat(call)
        first, second = (a if isinstance(a, Tensor) else None for a in (*call.args[:2], None, None)[:2])
        if any(t is not None and t.dim() not in (0, out.dim()) for t in (first, second)) and plain in _BROADCAST:
            return None  # axes shift: [N, C] broadcasts over H and W of [N, C, H, W]
        mine, other = self.of(first), self.of(second)
        if plain in ("mul", "div"):
            return _both(mine, other if plain == "mul" else None)
        if plain in ("add", "sub"):
            if mine is None or other is None or mine.channels.shape != other.channels.shape:
                return None
            return Active(mine.channels | other.channels, torch.minimum(mine.least, other.least))
        if mine is None or first is None:
            return None
        if call.name in KEEPS_ZEROS:
            return mine
        if plain in ("clamp", "hardtanh", "clamp_min", "clamp_max"):
            return mine if _zero_inside(plain, call.args, call.kwargs) else None
        return _view(call, mine, first, out) if plain in KEEPS_ZEROS_OF_CHANNELS else None

    def _cat(self, call: OperatorCall) -> Active | None:
        tensors, dim = list(call.args[0]), call.get(1, "dim", default=0)
        if not tensors or dim % tensors[0].dim() != 1 or all(self.of(t) is None for t in tensors):
            return None
        parts = [self.of(t) or _all(t) for t in tensors]
        channels = torch.cat([p.channels for p in parts], 1)
        return Active(channels, torch.stack([p.least for p in parts]).sum(0))


def _zero_inside(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a clamp leaves 0 unchanged; bounds are numbers or None (for tensors the answer is no)."""
    if name == "clamp_max":
        args = (args[0], None, *args[1:])
    rest = dict(zip(("low", "high"), args[1:3], strict=False))
    low, high = (-1, 1) if name == "hardtanh" else (None, None)  # what PyTorch leaves out of the call
    low = rest.get("low", kwargs.get("min", kwargs.get("min_val", low)))
    high = rest.get("high", kwargs.get("max", kwargs.get("max_val", high)))
    if any(isinstance(bound, Tensor) for bound in (low, high)):
        return False
    return (low is None or low <= 0) and (high is None or high >= 0)


def _all(t: Tensor) -> Active:
    return Active(torch.ones(t.shape[0], t.shape[1], dtype=torch.bool, device=t.device))


def _both(one: Active | None, two: Active | None) -> Active | None:
    if one is None or two is None or one.channels.shape != two.channels.shape:
        return one or two
    return Active(one.channels & two.channels)


def _view(call: OperatorCall, mine: Active, source: Tensor, out: Tensor) -> Active | None:
    """Shapes that keep samples and channels apart, or flatten the positions of each channel into a row."""
    n, c = mine.channels.shape
    name, args = call.plain, call.args
    if name == "constant_pad_nd":
        sides, value = args[1], call.get(2, "value", default=0)
        own = len(sides) // 2 >= source.dim() - 1  # does the padding reach the channels?
        if value != 0 or len(sides) // 2 >= source.dim():
            return None
        if not own:
            return mine
        at = 2 * (source.dim() - 2)
        return Active(torch.nn.functional.pad(mine.channels, (sides[at], sides[at + 1])), mine.least)
    if name == "slice":
        dim = call.get(1, "dim", default=0) % source.dim()
        if dim >= 2:
            return mine
        start, end, step = call.get(2), call.get(3), call.get(4, default=1)
        cut = mine.channels[start:end:step] if dim == 0 else mine.channels[:, start:end:step]
        return Active(cut)
    if name in ("mean", "sum"):
        dims = call.get(1)
        axes = {d % source.dim() for d in ([dims] if isinstance(dims, int) else dims or range(source.dim()))}
        return mine if not axes & {0, 1} else None
    if name == "select" and (args[1] % source.dim()) < 2:
        return None
    if out.dim() >= 2 and out.shape[0] == n and out.shape[1] == c:
        return mine
    if out.dim() == 2 and out.shape[0] == n and out.shape[1] % c == 0 and out.numel() == source.numel():
        return Active(mine.channels.repeat_interleave(out.shape[1] // c, 1), mine.least * (out.shape[1] // c))
    return None
