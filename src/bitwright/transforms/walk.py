"""One eval forward of a model: execution order, shapes, MACs, bits and bytes of every compute layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from bitwright.errors import InputError
from bitwright.nn.layers import KINDS, SlotLayer
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import bit_facts, density_of, float_bytes, part_text, weight_bits
from bitwright.transforms.flow import Flow, trace_flow
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.layers import ComputeLayer, candidates, hooks_of
from bitwright.transforms.packs import why_not
from bitwright.transforms.unwrap import unwrap
from bitwright.types import LayerInfo

__all__ = ["Flow", "Seen", "batch_of", "call_macs", "info_of", "run_forward", "trace_flow", "walk"]


@dataclass
class Seen:
    """What one forward pass showed of one layer."""

    x_shape: tuple[int, ...] = ()
    y_shape: tuple[int, ...] = ()
    macs: int = 0
    calls: int = 0
    order: int = 0


def run_forward(model: nn.Module, example: Any, found: list[ComputeLayer]) -> dict[int, Seen]:
    """One eval forward; what each of the layers saw, by id(module), in execution order."""
    seen: dict[int, Seen] = {}
    lazy = [c.name for c in found if isinstance(c.module, LazyModuleMixin)]
    if lazy:  # the forward below would give it a shape, and we promise to change nothing
        raise InputError(f"{lazy[0]} has no shape yet: run the model once first", code="lazy", layer=lazy[0])

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        y = next((o for o in _flat(output) if isinstance(o, Tensor)), None)
        row = seen.setdefault(id(module), Seen(order=len(seen)))
        row.calls += 1
        if x is not None and y is not None:
            if not row.x_shape:
                row.x_shape, row.y_shape = tuple(x.shape), tuple(y.shape)
            row.macs += call_macs(module, x, y)

    handles = [c.module.register_forward_hook(note, with_kwargs=True) for c in found]
    try:
        with evaluating(model):
            run_model(model, example)
    finally:
        for handle in handles:
            handle.remove()
    batch = _batch(example, found, seen)
    for row in seen.values():
        row.macs //= batch
    return seen


def try_example(model: nn.Module, example: Any, found: list[ComputeLayer]) -> dict[int, Seen]:
    """`run_forward` on the model as the user gave it; an example that does not fit is one line."""
    try:
        return run_forward(model, example, found)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = str(error).strip().splitlines()
        raise InputError(
            f"the model does not run on this example: {text[0] if text else type(error).__name__}{_one(model, example)}",
            code="example",
        ) from error


def _one(model: nn.Module, example: Any) -> str:
    """The hint that the example is a single sample, if the model runs on it with a batch axis added."""
    if not isinstance(example, Tensor):
        return ""
    try:
        with evaluating(model):
            run_model(model, example[None])
    except Exception:  # whatever the user's forward raises
        return ""
    return f". It runs on a batch: {list(example.shape)} is one sample, give example[None]"


def call_macs(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiply-accumulates of one call, whole batch; zero padding counts as work, as everywhere.

    >>> import torch
    >>> x, y = torch.empty(1, 16, 8, 8), torch.empty(1, 32, 6, 6)
    >>> call_macs(nn.Conv2d(16, 32, 3), x, y) == 32 * 6 * 6 * 16 * 3 * 3
    True
    """
    if isinstance(layer, nn.Linear):
        return y.numel() * layer.in_features
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        taps = layer.weight.shape[1] * math.prod(layer.kernel_size)
        return x.numel() * taps  # each input value meets every tap
    if isinstance(layer, nn.modules.conv._ConvNd):
        return y.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return 0


def walk(model: nn.Module, example: Any) -> list[LayerInfo]:
    """Facts of every compute layer in execution order, from one eval forward. The model is left as it was.

    `example`: a batch of inputs (dimension 0 = samples), a tuple of arguments, or a dict of keywords.
    Layers that were not called come last, with calls = 0.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [row.macs for row in walk(net, torch.zeros(5, 4))]
    [12, 6]
    """
    model = unwrap(model)
    found = candidates(model)
    seen = try_example(model, example, found)
    found.sort(key=lambda c: seen[id(c.module)].order if id(c.module) in seen else len(seen))
    return untie(found, [info_of(c, c.module, seen.get(id(c.module), Seen())) for c in found])


def untie(found: list[ComputeLayer], rows: list[LayerInfo]) -> list[LayerInfo]:
    """A tied weight counts once: later layers that share it get no weight bytes, and a note."""
    first: dict[int, str] = {}
    out = []
    for candidate, row in zip(found, rows, strict=True):
        weight = candidate.module._parameters.get("weight")
        owner = row.name if weight is None else first.setdefault(id(weight), row.name)
        if owner != row.name:
            row = replace(row, weights=0, weight_bytes=0.0, notes=(*row.notes, f"weight tied to {owner}"))
        out.append(row)
    return out


def batch_of(model: nn.Module, example: Any) -> int:
    """Samples in `example`: what shapes in `walk` are to be divided by.

    >>> import torch
    >>> batch_of(nn.Linear(4, 2), torch.zeros(5, 4))
    5
    """
    model = unwrap(model)
    found = candidates(model)
    return _batch(example, found, try_example(model, example, found))


def info_of(candidate: ComputeLayer, layer: nn.Module, seen: Seen) -> LayerInfo:
    """The row of one layer; `layer` may stand in for the module: plan shows layers that are not there yet."""
    notes = []
    w = layer.w if isinstance(layer, SlotLayer) else None
    x = layer.x if isinstance(layer, SlotLayer) else None
    w_bits, w_planes = bit_facts(w)
    x_bits, x_planes = bit_facts(x)
    code_bits = traits_of(layer.gate).code_bits if isinstance(layer, SlotLayer) else None
    if code_bits is not None:  # the gate splits the code of the input, or makes it
        x_bits = x_planes = code_bits
    weights = _weights(layer)
    stored = weight_bits(w)
    for word, bits in (("weight", stored if w_bits is not None else None), ("input", x_bits)):
        if bits is None:
            notes.append(f"{word} bits unknown: counted as float")
    if candidate.reason:
        notes.append(f"skipped: {candidate.reason}")
    elif hooks := hooks_of(candidate.module):
        notes.append(f"{', '.join(hooks)}: kept")
    if isinstance(layer, SlotLayer) and layer.gate is None and (why := why_not(layer)):  # a gate stops the whole net
        notes.append(f"stays float when packed: {why}")
    if candidate.is_depthwise:
        notes.append("depthwise")
    if not isinstance(layer, tuple(KINDS)):
        notes.append("MACs not counted")
    elif not seen.calls and not candidate.reason:
        notes.append("not called")
    return LayerInfo(
        name=candidate.name,
        kind=candidate.kind,
        x_shape=seen.x_shape,
        y_shape=seen.y_shape,
        macs=seen.macs,
        calls=seen.calls,
        w_part=part_text(w),
        x_part=part_text(x),
        w_bits=w_bits,
        x_bits=x_bits,
        w_planes=w_planes,
        x_planes=x_planes,
        weights=weights,
        weight_bytes=(32 if stored is None else stored) * weights / 8,
        float_bytes=float(float_bytes(layer)),
        density=density_of(layer),
        notes=tuple(notes),
    )


def _weights(layer: nn.Module) -> int:
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and not isinstance(weight, nn.UninitializedParameter):
        return weight.numel()
    own = layer.parameters(recurse=False)  # what lies in children (attention's out_proj) has a row of its own
    return sum(p.numel() for p in own if p.dim() > 1)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _batch(example: Any, found: list[ComputeLayer], seen: dict[int, Seen]) -> int:
    """Samples in the example; 1 where it is a single unbatched sample."""
    values = example.values() if isinstance(example, dict) else _flat(example)
    first = next((v for v in values if isinstance(v, Tensor)), None)
    if first is None:
        raise InputError("example: holds no tensor. Give one batch of inputs", code="example")
    if first.dim() < 2 and not (first.dim() == 1 and not first.is_floating_point()):
        return 1
    for c in found:
        row = seen.get(id(c.module))
        if row is not None and isinstance(c.module, nn.modules.conv._ConvNd):
            spatial = len(c.module.kernel_size)
            if len(row.x_shape) == spatial + 1 and row.x_shape == tuple(first.shape):
                return 1  # [C, H, W] went straight into a convolution: one sample without batch dimension
    return max(1, first.shape[0])
