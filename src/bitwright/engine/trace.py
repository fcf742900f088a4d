"""A trained model becomes a graph: `torch.export` with a dynamic batch, slot layers as single marked calls."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.engine.graph import Graph
from bitwright.engine.integers import NotInteger
from bitwright.engine.lower import Lowering, simplified, user_line
from bitwright.engine.packing import Packing, crop_of, describe, in_channels, packing_of, padding_of
from bitwright.engine.quantizer import grid_of, split
from bitwright.engine.store import check
from bitwright.errors import InputError, Negative
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.parts import moment
from bitwright.parts.traits import title_of, traits_of
from bitwright.transforms.copying import copy_model
from bitwright.transforms.facts import folds, links_of

_library = torch.library.Library("bitwright", "FRAGMENT")
_library.define(
    "marked_layer(Tensor x, str name, int[] weight, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)


@torch.library.register_fake("bitwright::marked_layer", lib=_library)
def _marked_fake(
    x: Tensor, name: str, weight: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Only the shape: the real layer is put in the marker's place by the caller."""
    x = x if x.is_floating_point() else x.float()  # pixels as bytes: the layer's answer is floats
    w = x.new_empty(weight)
    if len(weight) == 2:
        return F.linear(x, w)
    conv = F.conv1d if len(weight) == 3 else F.conv2d
    return conv(x, w, None, stride, padding, dilation, groups)


_library.define("marked_input(Tensor x, str name) -> Tensor")


@torch.library.register_fake("bitwright::marked_input", lib=_library)
def _marked_input_fake(x: Tensor, name: str) -> Tensor:
    """Floats of the same shape: the layer's own input part is put in the marker's place."""
    return torch.empty_like(x, dtype=x.dtype if x.is_floating_point() else torch.float32)


@dataclass
class Traced:
    """The graph, and for each slot layer that stays float the reason and the user's line."""

    graph: Graph
    refused: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class _Marker(nn.Module):
    """Stands for a slot layer while exporting: its hooks run around it, whoever reads its attributes gets the layer's."""

    def __init__(self, name: str, layer: SlotLayer) -> None:
        super().__init__()
        linear = isinstance(layer, nn.Linear)
        steps = [] if linear else [[int(s) for s in layer.stride], padding_of(layer), [int(d) for d in layer.dilation]]  # type: ignore[union-attr]
        groups = 1 if linear else int(layer.groups)  # type: ignore[arg-type]
        self.__dict__["call"] = (name, [int(s) for s in layer.weight.shape], *(steps or [[], [], []]), groups)
        self.__dict__["cut"] = tuple(slice(c, None) for c in crop_of(layer))
        self.__dict__["layer"] = layer
        self.__dict__.update({key: layer.__dict__[key] for key in HOOKS})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.bitwright.marked_layer(x, *self.__dict__["call"])
        return y[(..., *self.__dict__["cut"])] if any(c.start for c in self.__dict__["cut"]) else y


class _InputMarker(nn.Module):
    """Stands for the input part of a layer that runs in float."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.bitwright.marked_input(x, self.name)


def _float_run(layer: SlotLayer, name: str, rank: int, inputs: dict[str, Packing]) -> nn.Module:
    """A refused slot layer for the graph: the plain operator on the weight it uses, behind its input part.

    The part becomes a quantizer of the graph where it has levels; any other is exported as the user wrote it.
    """
    plain = copy.copy(layer)
    plain._modules = dict.fromkeys(layer._modules)
    plain._modules["gate"] = layer.gate
    plain._parameters = dict(layer._parameters)
    if any(crop_of(layer)):
        plain.__dict__["padding_mode"] = "constant"  # pads by an operator of its own: zeros, more on one side
    with torch.no_grad():
        plain._parameters["weight"] = nn.Parameter(layer.quantized_weight().detach().clone(), requires_grad=False)
        bias = layer.quantized_bias()
        if layer.b is not None and bias is not None:
            plain._parameters["bias"] = nn.Parameter(bias.detach().clone(), requires_grad=False)
    if layer.x is not None:
        before, quantizer = split(layer.x)
        grid = None
        known = all(map(folds, before))
        if known and quantizer is not None:
            try:
                grid = grid_of(quantizer, in_channels(layer), rank, spread=True)
            except NotInteger:
                known = False
        if known:
            inputs[name] = Packing(grid, before, False)
        plain._modules["x"] = _InputMarker(name) if known else layer.x
    return plain


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Traced:
    """Exports `model` (in evaluation mode) and lowers it to a graph. `example`: a batch, or a tuple of one per input.

    Errors: `InputError`, code `convert-op`, `convert-trace` or `convert-hook`, with the line of the user's code and the reason.
    """
    work, batch = _alike(copy_model(model).eval(), example if isinstance(example, tuple) else (example,))
    layers = {n: m for n, m in work.named_modules() if is_slot_layer(m)}
    ranks = _ranks(work, layers, batch)
    packings: dict[str, Packing] = {}
    inputs: dict[str, Packing] = {}  # of refused layers, whose input part alone enters the graph
    refused: dict[str, str] = {}
    parents = dict(work.named_modules(remove_duplicate=False))
    places: dict[int, list[str]] = {}
    for n, m in work.named_modules(remove_duplicate=False):
        places.setdefault(id(m), []).append(n)
    for name, layer in layers.items():
        _check_ends(name, layer)
        _check_plain(name, layer)
        found = packing_of(layer, ranks.get(name, 4))
        if isinstance(found, str):
            if layer.w is not None or layer.x is not None:
                refused[name] = f"{name} ({describe(layer)}): {found}"
            new: nn.Module = _float_run(layer, name, ranks.get(name, 4), inputs)
        else:
            packings[name] = found
            if not found.coded_weight:
                refused[name] = f"{name} ({describe(layer)}): slot w is empty; codes of the input alone gain nothing"
            new = _Marker(name, layer)
        if not name:
            work = new
            continue
        for place in places[id(layer)]:
            parent, _, child = place.rpartition(".")
            setattr(parents[parent], child, new)
    program = simplified(_export(work, batch))
    lowering = Lowering(program, layers, packings, inputs)
    graph = lowering.run()
    if any(n.op == "aten" for n in graph.nodes):
        _try(graph)
    return Traced(graph, refused, lowering.frames)


def _try(graph: Graph) -> None:
    """A call outside our own table must work on the meta device, as it will when the file is read."""
    try:
        check(graph.copy(), folded=False)
    except InputError as error:
        raise InputError(f"convert: {str(error).removeprefix('packed file: ')}", code="convert-op") from None


def _alike(work: nn.Module, example: tuple[Any, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A net all of one other float type runs in float32, as its packed form will."""
    for x in example:
        if not isinstance(x, Tensor) or x.dim() < 1:
            what = "a single number" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"convert: each input is one tensor [N, ...], got {what}. Give a batch, or a tuple of batches",
                code="convert-inputs",
            )
    if len({x.shape[0] for x in example}) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in example)
        raise InputError(f"convert: inputs {shapes} differ in axis 0, the batch", code="convert-inputs")
    types = {m.weight.dtype for m in work.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
    if len(types) == 1 and types != {torch.float32}:
        work = work.float()
        example = tuple(x.float() if x.is_floating_point() else x for x in example)
    return work, example


def _check_plain(name: str, layer: SlotLayer) -> None:
    """What would be lost or wrong in a marked call: a forward of the instance's own, a weight computed by a hook."""
    inside = [m for m in layer.modules() if m is not layer and (m._forward_hooks or m._forward_pre_hooks)]
    why = ""
    if "forward" in layer.__dict__:
        why = "its forward was replaced on the instance"
    elif "weight" not in layer._parameters:
        why = "its weight is computed by a hook or a parametrization"
    elif inside:
        why = f"a hook sits on its part {type(inside[0]).__name__}"
    if why:
        raise InputError(
            f"convert: {name or '(net)'} ({describe(layer)}): {why}, which a graph cannot hold. Remove it before converting",
            code="convert-hook",
            layer=name,
        )
    for key, value in layer.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            word = "nan" if bool(torch.isnan(value).any()) else "inf"
            raise Negative(
                f"convert: {f'{name}.' if name else ''}{key} holds {word}, so there is nothing to pack. Its training went wrong; "
                "train it again with a smaller learning rate, or clip=1.0",
                code="weights-not-finite",
                layer=name,
                given=word,
            )


def _check_ends(name: str, layer: SlotLayer) -> None:
    """A grid without ends has no finite set of codes, and no operator of the graph."""
    for slot in ("w", "x"):
        for link in links_of(getattr(layer, slot)):
            if traits_of(link).clip is False and moment(link, "encode") is None:
                part = title_of(link)
                raise InputError(
                    f"convert: {name}: {part} in slot {slot} has clip = false: its levels have no end, so no number of bits "
                    "holds them. Train with clip = true",
                    code="convert-unbounded",
                    layer=name,
                    given="clip = false",
                    possible="clip = true",
                )


def _note_rank(found: dict[str, int], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[name] = args[0].dim()

    return hook


def _ranks(work: nn.Module, layers: dict[str, SlotLayer], example: tuple[Tensor, ...]) -> dict[str, int]:
    """Number of axes of each slot layer's input."""
    found: dict[str, int] = {}
    hooks = [layer.register_forward_pre_hook(_note_rank(found, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            work(*example)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        shapes = ", ".join(str(list(x.shape)) for x in example)
        raise InputError(
            f"convert: the model does not run on this example of shape {shapes}: {_first_line(error)}",
            code="convert-example",
        ) from None
    finally:
        for h in hooks:
            h.remove()
    return found


def _export(work: nn.Module, batch: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    if batch[0].shape[0] == 1:  # one image would fix the batch at 1
        batch = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in batch)
    size = torch.export.Dim("batch", min=1)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one call for a whole encoder layer: on no list
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(work, batch, dynamic_shapes=[{0: size}] * len(batch))
    except Exception as error:
        line = f" at {found}" if (found := user_line(str(error))) else ""
        if "data-dependent" in str(error) and line:
            what = f": {line.removeprefix(' at ')} branches on a tensor value."
        else:
            what = f"{line}: {_first_line(error)}"
        raise InputError(
            f"convert {type(work).__name__}: cannot trace forward{what} "
            "Convert a part, bw.convert(model.body, x), or move the branch outside",
            code="convert-trace",
            given=line.removeprefix(" at ") or None,
            remedy="bw.convert(model.body, x)",
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs and prints a failed export over many lines; its reason is in the exception, for one line of ours."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch.export")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a kept activation is assigned while tracing: it is a copy's
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _first_line(error: Exception) -> str:
    text = next((t.strip() for t in str(error).splitlines() if t.strip()), type(error).__name__)
    return text[:200].rstrip(".") + "."
