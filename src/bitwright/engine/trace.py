"""A trained model becomes a graph: `torch.export` with a dynamic batch, slot layers as single marked calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.engine.gate_packing import GatePacking, gate_packing_of, gated
from bitwright.engine.graph import Graph
from bitwright.engine.lower import Lowering, simplified, user_line
from bitwright.engine.packing import HOOKS, NotInteger, Packing, grid_of, packing_of
from bitwright.engine.prepare import first_line, plain_weights
from bitwright.engine.store import check_graph
from bitwright.errors import InputError
from bitwright.nn import SlotLayer
from bitwright.parts import moment
from bitwright.parts.scale import width_of
from bitwright.parts.traits import traits_of
from bitwright.quiet import quiet
from bitwright.transforms.copying import copy_model
from bitwright.transforms.decide import slot_layers
from bitwright.transforms.facts import folds, links_of, part_text, split
from bitwright.transforms.forward import reproducible
from bitwright.transforms.geometry import crop_of, steps_of

_library = torch.library.Library("bitwright", "FRAGMENT")
_library.define(
    "marked_layer(Tensor x, str name, int[] weight, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)


@torch.library.register_fake("bitwright::marked_layer", lib=_library)
def _marked_fake(
    x: Tensor, name: str, weight: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Only the shape: the real layer is put in the marker's place by `Lowering`. Without a weight: its input part alone."""
    if not weight:
        return torch.empty_like(x, dtype=x.dtype if x.is_floating_point() else torch.float32)
    w = x.new_empty(weight)
    if len(weight) == 2:
        return F.linear(x, w)
    conv = F.conv1d if len(weight) == 3 else F.conv2d
    return conv(x, w, None, stride, padding, dilation, groups)


@dataclass
class Traced:
    """The graph, and for each slot layer that stays float the reason."""

    graph: Graph
    refused: dict[str, str]


class _Marker(nn.Module):
    """Stands for a slot layer while exporting: its hooks run around it, whoever reads its attributes gets the layer's."""

    def __init__(self, name: str, layer: SlotLayer) -> None:
        super().__init__()
        steps = list(steps_of(layer).values()) or [[], [], [], 1]
        self.__dict__["call"] = (name, list(layer.weight.shape), *steps)
        self.__dict__["cut"] = tuple(slice(c, None) for c in crop_of(layer))
        self.__dict__ |= {"layer": layer, **{key: layer.__dict__[key] for key in HOOKS}}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, x: Tensor) -> Tensor:
        layer, cut = self.__dict__["layer"], self.__dict__["cut"]
        kind, axes = x.dtype, x.shape[:-1]
        if not kind.is_floating_point:
            raise InputError("a layer reads bytes: as pixels, k / 255")
        # the batch is not axis 0: the layer sees its rows, and the result gets the axes back
        moved = isinstance(layer, nn.Linear) and any(not isinstance(s, int) for s in x.shape[1:])
        x = x.float()  # codes and products are exact whatever the model's own type
        y = torch.ops.bitwright.marked_layer(x.reshape(-1, x.shape[-1]) if moved else x, *self.__dict__["call"])
        y = y.reshape(*axes, y.shape[-1]) if moved else y
        y = y[(..., *cut)] if any(c.start for c in cut) else y
        return y.to(kind)


class _InputMarker(nn.Module):
    """Stands for the input part of a layer that runs in float."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.bitwright.marked_layer(x, self.name, [], [], [], [], 1)


def _float_run(name: str, layer: SlotLayer, packings: dict[str, Packing]) -> None:
    """A refused slot layer becomes the plain operator on the weight it uses, behind its input part.

    The part becomes a quantizer of the graph where it has levels; any other is exported as the user wrote it.
    """
    plain_weights(layer)
    if any(crop_of(layer)):
        layer.__dict__["padding_mode"] = "constant"  # pads by an operator of its own: zeros, more on one side
    before, quantizer = split(layer.x)
    if layer.x is None or not all(map(folds, before)):
        return
    try:
        grid = None if quantizer is None else grid_of(quantizer, width_of(layer) or 0, layer.weight.dim(), spread=True)
    except NotInteger:
        return
    packings[name] = Packing(grid, before, False)
    layer._modules["x"] = _InputMarker(name)


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Traced:
    """Exports `model` (in evaluation mode) and lowers it to a graph. `example`: a batch, or a tuple of one per input.

    Errors: `InputError`, code `convert-op` or `convert-trace`, with the line of the user's code and the reason.
    """
    work, batch = copy_model(model).eval(), example if isinstance(example, tuple) else (example,)
    _check_batch(batch)
    layers = slot_layers(work)
    packings: dict[str, Packing] = {}
    gates: dict[str, GatePacking] = {}
    refused: dict[str, str] = {}
    for name, layer in layers.items():
        _check_ends(name, layer)
        found = gate_packing_of(layer) if gated(layer) else packing_of(layer)
        if isinstance(found, GatePacking):
            packings[name], gates[name] = found.inner, found
            work = put(work, layer, _Marker(name, layer))
        elif isinstance(found, Packing):
            packings[name] = found
            if not found.coded_weight:
                refused[name] = "slot w is empty; codes of the input alone gain nothing"
            work = put(work, layer, _Marker(name, layer))
        else:
            if layer.w is not None or layer.x is not None:
                refused[name] = found
            _float_run(name, layer, packings)
    graph = Lowering(simplified(_export(work, batch)), layers, packings, gates).run()
    try:
        check_graph(graph, folded=False)  # as when the file is read: this says the shapes of its values
    except InputError as error:
        raise InputError(f"convert: {str(error).removeprefix('packed file: ')}", code="convert-op") from None
    graph.work = None
    return Traced(graph, refused)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` in every place of `old`; returns the model, which is `new` where `old` was all of it."""
    if old is model:
        return new
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new
    return model


def _check_batch(batch: tuple[Any, ...]) -> None:
    for x in batch:
        if not isinstance(x, Tensor) or x.dim() < 1:
            what = "a single number" if isinstance(x, Tensor) else type(x).__name__
            text = f"convert: each input is one tensor [N, ...], got {what}. Give a batch, or a tuple of batches"
            raise InputError(text, code="convert-inputs")
    if len({x.shape[0] for x in batch}) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in batch)
        raise InputError(f"convert: inputs {shapes} differ in axis 0, the batch", code="convert-inputs")


def _check_ends(name: str, layer: SlotLayer) -> None:
    """A grid without ends has no finite set of codes, and no operator of the graph."""
    for slot, link in [("w", m) for m in links_of(layer.w)] + [("x", m) for m in links_of(layer.x)]:
        if traits_of(link).clip is False and moment(link, "encode") is None:
            text = f"convert: {name}: {part_text(link)} in slot {slot} has clip = false: its levels have no end, so no number"
            text += " of bits holds them. Train with clip = true"
            raise InputError(text, code="convert-unbounded", layer=name, given="clip = false", possible="clip = true")


def _export(work: nn.Module, batch: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    if batch[0].shape[0] == 1:  # one image would fix the batch at 1
        batch = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in batch)
    size = torch.export.Dim("batch", min=1)
    try:
        with reproducible(), quiet():  # of a failed export, the reason is in the exception
            return torch.export.export(work, batch, dynamic_shapes=[{0: size}] * len(batch))
    except Exception as error:
        line, remedy = user_line(str(error)), "bw.convert(model.body, x)"
        what = f"{f' at {line}' if line else ''}: {first_line(error)}"
        if "data-dependent" in str(error) and line:
            what = f": {line} branches on a tensor value."
        text = f"convert {type(work).__name__}: cannot trace forward{what} Convert a part, {remedy}, or move the branch outside"
        raise InputError(text, code="convert-trace", given=line or None, remedy=remedy) from None
