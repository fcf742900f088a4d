"""Channels that are off become smaller layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.errors import InputError
from bitwright.nn.layers import KINDS, SlotLayer
from bitwright.parts.mask import Mask
from bitwright.procedures.channels.choose import choose, remove
from bitwright.procedures.channels.constants import readings
from bitwright.procedures.channels.coupling import Channel, coupled, torch_pruning
from bitwright.procedures.channels.narrow import narrow
from bitwright.procedures.registry import procedure
from bitwright.procedures.report import Report
from bitwright.transforms.call import Call
from bitwright.transforms.copying import copy_model
from bitwright.transforms.facts import part_text
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.geometry import as_rows
from bitwright.transforms.layers import candidates, hooks_of
from bitwright.transforms.unwrap import unwrap
from bitwright.transforms.widths import NORM, sizes_of

IMAGES = 8
NEAR = 1e-4  # of the largest number of an output
PLAIN = {slot: plain for plain, slot in KINDS.items()}


@dataclass(frozen=True)
class ShrunkLayer:
    """One layer that lost channels, or could not.

    off     outputs whose filter was all 0;   why   the first of them that stays, and the reason; "" if none does
    """

    layer: str
    outputs: int
    outputs_left: int
    inputs: int
    inputs_left: int
    weights: int
    weights_left: int
    off: int
    why: str


@dataclass(frozen=True)
class ShrinkReport(Report):
    """A row per layer that lost channels or has filters that are all 0.

    weights, weights_left   of all layers of the net
    """

    rows: tuple[ShrunkLayer, ...] = ()
    weights: int = 0
    weights_left: int = 0

    @property
    def speed(self) -> str:
        """What that means for time, in a sentence."""
        if self.weights_left == self.weights:
            return "No channel could go, so the net is as large and as fast as before."
        share = 100 * self.weights_left / max(1, self.weights)
        return f"The layers are smaller now, {share:.1f} % of the weights, and faster with any program; masks stay where single weights are 0."

    def cells(self) -> list[list[str]]:
        out = [["layer", "filters off", "outputs", "inputs", "weights", "left because"]]
        for r in self.rows:
            sides = [
                f"{a} > {b}" if a != b else str(a) for a, b in ((r.outputs, r.outputs_left), (r.inputs, r.inputs_left))
            ]
            out.append([r.layer, str(r.off), *sides, f"{r.weights:,} > {r.weights_left:,}", r.why])
        return out

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"weights": self.weights, "weights_left": self.weights_left}


@procedure("shrink", verb="prune")
def shrink(model: nn.Module, batches: Iterable[Any]) -> ShrinkReport:
    """Make layers smaller by the channels that are off: in evaluation the net computes the same, with less work.

    goes      a channel that is constant wherever it is read, because the filters that make it are all 0 (their mask, or their
              weights); a channel that no layer has a weight for; and what is left without a reader by that
    constant  what bias and batch norm leave of a filter of zeros. 0 just goes; else it goes into the bias of the next layer. A
              layer without a bias, or with a border of zeros, keeps one constant channel, which takes over the others
    coupled   channels that are added, concatenated, flattened or grouped go together, by the dependency graph of torch-pruning
    masks     become smaller with their layers; weights that are 0 elsewhere stay
    batches   images of the first batch run, to see the constants, and to compare the outputs before and after
    stays     channels of layers with a part other than a mask, with hooks, or with a shared weight, and channels whose number
              the model's code knows; the report says which
    file      `bw.save` notes the sizes, so that `bw.load(path, model)` makes the model of the original code as small.
              Optimizers hold the old weights: make them after this
    errors    torch-pruning is missing, or cannot follow the model; no images. The net is then as it was
    source    Fang et al. 2023, arXiv 2301.12900 (the dependency graph)

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = net[0].weight.data[1].zero_()
    >>> report = shrink(net, [torch.randn(8, 4)])   # doctest: +SKIP
    >>> net[0].weight.shape, net[2].weight.shape    # doctest: +SKIP
    (torch.Size([2, 4]), torch.Size([2, 2]))
    """
    torch_pruning()
    model = unwrap(model)
    example = _example(batches)
    twin = _plain(model)
    with evaluating(twin):
        channels = coupled(twin, example)
    fixed = _fixed(model)
    for channel in channels:
        names = sorted({name for name, _ in channel.makes | channel.reads | channel.on})
        channel.fixed = next((f"layer {n}: {fixed[n]}" for n in names if n in fixed), channel.fixed)
    found = _remove(model, channels, fixed, example)
    if _differs(model, channels, found, example):
        _blame(model, channels, found, fixed, example)
        found = _remove(model, channels, fixed, example)
        if why := _differs(model, channels, found, example):
            raise InputError(f"shrink: {why}; the net is as it was", code="shrink-answers")
    rows = _rows(model, channels, found.gone, found.stays)
    every = sum(layer.weight.numel() for layer in found.layers.values())
    narrow(model, found.twin, channels, found.gone, found.moved)
    left: dict[str, Any] = {n: m for n, m in model.named_modules() if n in found.layers}
    done = tuple(_finished(row, left[row.layer]) for row in rows)
    return ShrinkReport("shrink", Call.of(example).images, done, every, sum(m.weight.numel() for m in left.values()))


@dataclass
class _Removed:
    """A twin of the net, in plain layers, with zeros in the place of what goes.

    moved   layer -> its inputs whose weights have taken over constants;   stays   channel -> why it stays
    """

    twin: nn.Module
    layers: dict[str, Any]
    gone: set[int]
    moved: dict[str, set[int]]
    stays: dict[int, str]


def _remove(model: nn.Module, channels: list[Channel], fixed: dict[str, str], example: Any) -> _Removed:
    twin = _plain(model)
    layers = {n: m for n, m in twin.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
    biases = {n for n, layer in layers.items() if layer.bias is not None and n not in fixed}
    gone: set[int] = set()
    moved: dict[str, set[int]] = defaultdict(set)
    while True:  # what goes may leave others without a reader
        reads = readings(twin, example, layers)
        removal = choose(layers, channels, reads, gone, biases)
        if not removal.gone:
            return _Removed(twin, layers, gone, moved, removal.stays)
        remove(layers, channels, reads, removal)
        for at in set(removal.into.values()):
            for name, index in channels[at].reads:
                moved[name].add(index)
        gone |= removal.gone


def _blame(model: nn.Module, channels: list[Channel], found: _Removed, fixed: dict[str, str], example: Any) -> None:
    """Fixes the channels that the model's own code needs: those of the same layers are tried by themselves."""
    families: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at in found.gone:
        families[tuple(sorted({name for name, _ in channels[at].makes | channels[at].on}))].append(at)
    for family in families.values():
        alone = [c if at in family else replace(c, fixed="not tried") for at, c in enumerate(channels)]
        if why := _differs(model, alone, _remove(model, alone, fixed, example), example):
            for at in family:
                channels[at].fixed = why


def _example(batches: Iterable[Any]) -> Any:
    batch = next(iter(batches), None)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if inputs is None or not Call.of(inputs).images:
        raise InputError("shrink: no images. Give at least one batch of inputs", code="batches-none")
    call = Call.of(inputs).map(lambda t: t[:IMAGES] if t.dim() else t)
    return call.kwargs or call.args


def _plain(model: nn.Module) -> nn.Module:
    """A copy whose layers with nothing but a mask are torch's own, pruned weights 0; it asks for gradients everywhere."""
    twin: Any = copy_model(model)
    for name, layer in list(twin.named_modules(remove_duplicate=False)):
        if not isinstance(layer, SlotLayer) or _part(layer) or not name:
            continue
        kind: Any = PLAIN[type(layer)]
        plain = kind.__new__(kind)
        nn.Module.__init__(plain)
        plain.__dict__.update({k: v for k, v in layer.__dict__.items() if k not in ("_modules", "_parameters")})
        plain.weight = nn.Parameter(layer.quantized_weight().detach().clone())
        plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        parent, _, child = name.rpartition(".")
        twin.get_submodule(parent)._modules[child] = plain
    for p in twin.parameters():
        p.requires_grad_(p.is_floating_point())
    return twin


def _part(layer: SlotLayer) -> str:
    """A part that is no mask, in a slot; "" if there is none."""
    parts = [layer.b, layer.x, layer.g, layer.gate, *([] if isinstance(layer.w, Mask) else [layer.w])]
    found = next((p for p in parts if p is not None), None)
    if type(layer) not in PLAIN:
        return type(layer).__name__
    return "" if found is None else part_text(found)


def _fixed(model: nn.Module) -> dict[str, str]:
    """Modules that keep their sizes, with the reason."""
    found: dict[str, str] = {}
    for row in candidates(model):
        part = _part(row.module) if isinstance(row.module, SlotLayer) else ""
        why = row.reason or (f"it has the part {part}; shrink before quantizing" if part else "")
        if not why and (hooks := hooks_of(row.module)):
            why = f"it has a {hooks[0]}"
        if why:
            found |= dict.fromkeys(row.names, why)
    users: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, (NORM, nn.PReLU)) and (hooks := hooks_of(module)):
            found[name] = f"it has a {hooks[0]}"
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)].append(name)
    for names in users.values():
        if len(names) > 1:
            found |= {name: f"it shares a parameter with {next(n for n in names if n != name)}" for name in names}
    return found


def _differs(model: nn.Module, channels: list[Channel], found: _Removed, example: Any) -> str:
    """Why the smaller net does not do the same; "" if it does."""
    trial = copy_model(model)
    narrow(trial, found.twin, channels, found.gone, found.moved)
    with evaluating(model):
        before = [t for t in tree_leaves(run_model(model, example)) if isinstance(t, Tensor)]
    try:
        with evaluating(trial):
            after = [t for t in tree_leaves(run_model(trial, example)) if isinstance(t, Tensor)]
    except Exception as error:  # whatever the model's own code does with a size that it did not expect
        why = (str(error).splitlines() or [type(error).__name__])[0][:100]
        return f"the model's code does not run with fewer channels ({why})"
    for a, b in zip(before, after, strict=True):
        near = NEAR * float(a.double().abs().max()) + 1e-12 if a.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=0, atol=near, equal_nan=True):
            return "the model's code gives other answers with fewer channels"
    return ""


def _rows(model: nn.Module, channels: list[Channel], gone: set[int], stays: dict[int, str]) -> list[ShrunkLayer]:
    """A row per layer, sizes after it still as before it."""
    home = {place: at for at, channel in enumerate(channels) for place in channel.makes | channel.on}
    rows = []
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        weight: Tensor = layer.weight
        if isinstance(layer, SlotLayer) and isinstance(layer.w, Mask):
            weight = layer.quantized_weight()
        filters = as_rows(layer, weight.detach()).flatten(1)
        off = [i for i in range(len(filters)) if not bool(filters[i].any())]
        left = [i for i in off if home.get((name, i)) not in gone]
        why = "" if not left else stays.get(home.get((name, left[0]), -1), "nothing in the graph reads it")
        outputs, inputs, _ = sizes_of(layer)
        why = f"filter {left[0]}: {why}" if why else ""
        rows.append(ShrunkLayer(name, outputs, outputs, inputs, inputs, layer.weight.numel(), 0, len(off), why))
    touched = {p[0] for at in gone for p in channels[at].makes | channels[at].reads | channels[at].on}
    return [row for row in rows if row.off or row.layer in touched]


def _finished(row: ShrunkLayer, layer: Any) -> ShrunkLayer:
    outputs, inputs, _ = sizes_of(layer)
    return ShrunkLayer(
        row.layer, row.outputs, outputs, row.inputs, inputs, row.weights, layer.weight.numel(), row.off, row.why
    )
