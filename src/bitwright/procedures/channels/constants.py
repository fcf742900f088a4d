"""Channels that hold one number, the same at every position of every image: found by following a forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.transforms.call import Call
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.geometry import as_rows
from bitwright.transforms.tracer import COPIES, KEEPS_ZEROS, Fact, OperatorCall, Tracer, tensors_in

# of each number by itself
NUMBERS = (
    "relu relu6 leaky_relu prelu _prelu_kernel gelu silu elu celu selu hardswish hardsigmoid sigmoid tanh mish softplus neg abs "
    "sgn sign exp sqrt square round floor ceil trunc clamp clamp_min clamp_max hardtanh threshold pow dropout"
)
EACH = (COPIES - {"native_dropout"}) | set(NUMBERS.split())
# of the positions of each channel; what they do at borders is measured, not known
SPACE = KEEPS_ZEROS - EACH - {"native_dropout"}
PAIRS = frozenset(("add", "sub", "mul", "div", "maximum", "minimum"))
NEAR = 1e-6


@dataclass
class Reading:
    """What a layer reads, per input channel: whether it is constant, and that number.

    apart   whether each channel still is one channel of a layer before, or of the net's input
    """

    constant: Tensor
    value: Tensor
    apart: bool

    def joined(self, other: Reading) -> Reading:
        """Of two calls of one layer together."""
        same = (self.value - other.value).abs() <= NEAR * (1 + self.value.abs())
        return Reading(self.constant & other.constant & same, self.value, self.apart and other.apart)


class Constants(Fact):
    """Mark: (axis of the channels, bool [C]: constant whatever the input of the net is)."""

    def passes(self, call: OperatorCall) -> tuple[int, Tensor] | None:
        given, plain = call.inputs, call.plain
        first = self.of(given[0]) if given else None
        if plain == "cat":
            marks = [self.of(t) for t in given]
            axis = call.get(1, "dim", default=0) % given[0].dim()
            if any(m is None or m[0] != axis for m in marks):
                return None
            return axis, torch.cat([m[1] for m in marks])
        if plain in PAIRS:
            return self._pair(given)
        if first is None:
            return None
        each = plain in EACH or "batch_norm" in plain
        return first if each or (plain in SPACE and first[0] == 1) else None

    def after(self, call: OperatorCall, out: list[Tensor]) -> None:
        shapes = ("view", "reshape", "_reshape_alias", "_unsafe_view", "flatten", "squeeze", "unsqueeze")
        for t in out[:1]:
            mark = self.passes(call)
            source = call.inputs[0] if call.inputs else None
            if call.name in shapes or call.plain == "mean":
                mark = None if source is None else _moved(self.of(source), call, source, t)
            self.put(t, mark if mark is not None and t.dim() > mark[0] and t.shape[mark[0]] == len(mark[1]) else None)

    def _pair(self, given: list[Tensor]) -> tuple[int, Tensor] | None:
        wide = [t for t in given if t.numel() > 1]
        marks = [self.of(t) for t in wide]
        if not wide or any(m is None for m in marks) or len({t.dim() for t in wide}) > 1:
            return None
        if len({m[0] for m in marks}) > 1 or len({len(m[1]) for m in marks}) > 1:
            return None
        return marks[0][0], torch.stack([m[1] for m in marks]).all(0)


def _moved(mark: Any, call: OperatorCall, source: Tensor, out: Tensor) -> tuple[int, Tensor] | None:
    """The mark behind a view, or a mean over positions."""
    if mark is None:
        return None
    axis, constant = mark
    count = len(constant)
    if call.plain == "mean":
        dims = call.get(1, "dim")
        axes = {d % source.dim() for d in ([dims] if isinstance(dims, int) else dims or range(source.dim()))}
        if axes & {0, axis}:
            return None
        return axis - (0 if out.dim() == source.dim() else sum(d < axis for d in axes)), constant
    if axis == 1 and out.dim() >= 2 and out.shape[0] == source.shape[0]:
        if out.shape[1] == count:
            return mark
        if out.dim() == 2 and source.dim() > 2:
            return 1, constant.repeat_interleave(out.shape[1] // count)
    if axis == source.dim() - 1 and out.shape[-1] == count:  # tokens
        return out.dim() - 1, constant
    return None


def readings(model: nn.Module, example: Any, layers: Iterable[str]) -> dict[str, Reading]:
    """What each of these layers, plain ones, reads in one eval forward; layers that are not called are left out."""
    fact, found, handles = Constants(), {}, []
    names = set(layers)

    def before(layer: Any, given: Any, name: str) -> None:
        reading = _reading(fact, layer, tensors_in(given)[0])
        layer_reads[name] = reading
        found[name] = found[name].joined(reading) if name in found else reading

    def behind(layer: Any, out: Tensor, name: str) -> None:
        fact.put(out, (_axis(layer, out), _constant_outputs(layer, layer_reads[name])))

    layer_reads: dict[str, Reading] = {}
    for name, module in model.named_modules():
        if name in names:
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, n=name: before(m, (args, kwargs), n), with_kwargs=True
                )
            )
            handles.append(module.register_forward_hook(lambda m, args, out, n=name: behind(m, out, n)))
    try:
        with evaluating(model), Tracer(fact):
            for t in Call.of(example).tensors:
                if t.dim() > 1:
                    fact.put(t, (1, torch.zeros(t.shape[1], dtype=torch.bool)))
            run_model(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _axis(layer: nn.Module, t: Tensor) -> int:
    return t.dim() - 1 if isinstance(layer, nn.Linear) else 1


def _reading(fact: Constants, layer: Any, x: Tensor) -> Reading:
    axis, mark = _axis(layer, x), fact.of(x)
    flat = x.detach().double().movedim(axis, 0).flatten(1).cpu() if x.dim() > axis else x.detach().double().cpu()
    value = flat[:, 0].clone()
    if mark is None or mark[0] != axis:
        return Reading(torch.zeros(len(flat), dtype=torch.bool), value, False)
    level = (flat.amax(1) - flat.amin(1)) <= NEAR * (1 + value.abs())
    return Reading(mark[1] & level, value, True)


def _constant_outputs(layer: Any, read: Reading) -> Tensor:
    """An output is constant if each input with a weight is; at a border of zeros only if that input is 0."""
    rows = as_rows(layer, layer.weight.detach()).cpu()
    uses = (rows.flatten(2) != 0).any(2) if rows.dim() > 2 else rows != 0  # [O, I/g]
    moves = ~read.constant
    if has_border(layer):
        moves = moves | (read.value != 0)
    groups = getattr(layer, "groups", 1)
    each = moves.reshape(groups, 1, -1) & uses.reshape(groups, len(rows) // groups, -1)
    return ~each.any(-1).flatten()


def has_border(layer: Any) -> bool:
    """Whether outputs at the border see zeros, or fewer inputs, in place of what the layer reads elsewhere."""
    if isinstance(layer, nn.Linear):
        return False
    if getattr(layer, "transposed", False):
        return True
    padding = layer.padding
    none = padding == "valid" or (not isinstance(padding, str) and not any(padding))
    if padding == "same":
        none = all(k == 1 for k in layer.kernel_size)
    return layer.padding_mode == "zeros" and not none
