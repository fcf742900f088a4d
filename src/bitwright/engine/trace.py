"""A trained model becomes a graph: `torch.export` with a dynamic batch, slot layers as single marked calls."""

from __future__ import annotations

import copy
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_arg

from bitwright.engine import bitstrings
from bitwright.engine.aten import Call, lower
from bitwright.engine.graph import Graph, Node, fresh
from bitwright.engine.integers import NotInteger, storable
from bitwright.engine.operators import LAYERS, Unfit
from bitwright.engine.packing import Packing, describe, in_channels, packing_of, padding_of
from bitwright.engine.quantizer import grid_of, split
from bitwright.errors import InputError
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.parts import moment
from bitwright.parts.norm import Norm
from bitwright.transforms.facts import links_of

_library = torch.library.Library("bitwright", "FRAGMENT")
_library.define(
    "marked_layer(Tensor x, str name, int[] weight, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)


@torch.library.register_fake("bitwright::marked_layer", lib=_library)
def _marked_fake(
    x: Tensor, name: str, weight: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Only the shape: the real layer is put in the marker's place by the caller."""
    w = x.new_empty(weight)
    if len(weight) == 2:
        return F.linear(x, w)
    conv = F.conv1d if len(weight) == 3 else F.conv2d
    return conv(x, w, None, stride, padding, dilation, groups)


_library.define("marked_input(Tensor x, str name) -> Tensor")


@torch.library.register_fake("bitwright::marked_input", lib=_library)
def _marked_input_fake(x: Tensor, name: str) -> Tensor:
    """Floats of the same shape: the layer's own input part is put in the marker's place."""
    return torch.empty_like(x)


@dataclass
class Traced:
    """The graph, and for each slot layer that stays float the reason and the user's line."""

    graph: Graph
    refused: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)


class _Marker(nn.Module):
    """Stands for a slot layer while exporting."""

    def __init__(self, name: str, layer: SlotLayer) -> None:
        super().__init__()
        self.name, self.sizes = name, [int(s) for s in layer.weight.shape]
        linear = isinstance(layer, nn.Linear)
        self.stride = [] if linear else [int(s) for s in layer.stride]  # type: ignore[union-attr]
        self.padding = [] if linear else (padding_of(layer) or [])
        self.dilation = [] if linear else [int(d) for d in layer.dilation]  # type: ignore[union-attr]
        self.groups = 1 if linear else int(layer.groups)  # type: ignore[arg-type]

    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.bitwright.marked_layer(
            x, self.name, self.sizes, self.stride, self.padding, self.dilation, self.groups
        )


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
    if not isinstance(layer, nn.Linear) and padding_of(layer) is None:
        plain.__dict__["padding_mode"] = "constant"  # pads by an operator of its own: zeros, more on one side
    with torch.no_grad():
        plain._parameters["weight"] = nn.Parameter(layer.quantized_weight().detach().clone(), requires_grad=False)
        bias = layer.quantized_bias()
        if layer.b is not None and bias is not None:
            plain._parameters["bias"] = nn.Parameter(bias.detach().clone(), requires_grad=False)
    if layer.x is not None:
        before, quantizer = split(layer.x)
        grid = None
        known = all(isinstance(m, Norm) or getattr(m, "part_name", "") == "dropout" for m in before)
        if known and quantizer is not None:
            try:
                grid = grid_of(quantizer, in_channels(layer), rank, spread=True)
            except NotInteger:
                known = False
        if known:
            inputs[name] = Packing(grid, before, False)
        plain._modules["x"] = _InputMarker(name) if known else layer.x
    return plain


def trace(model: nn.Module, example: Tensor) -> Traced:
    """Exports `model` (in evaluation mode) and lowers it to our table of operators.

    Errors: `InputError` naming the line of the user's code or the operator that has no entry in the table.
    """
    work = copy.deepcopy(model).eval()
    layers = {n: m for n, m in work.named_modules() if is_slot_layer(m)}
    ranks = _ranks(work, layers, example)
    packings: dict[str, Packing] = {}
    inputs: dict[str, Packing] = {}  # of refused layers, whose input part alone enters the graph
    refused: dict[str, str] = {}
    parents = dict(work.named_modules(remove_duplicate=False))
    places: dict[int, list[str]] = {}
    for n, m in work.named_modules(remove_duplicate=False):
        places.setdefault(id(m), []).append(n)
    for name, layer in layers.items():
        _check_ends(name, layer)
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
    graph, frames = _lower(_export(work, example), layers, packings, inputs)
    return Traced(graph, refused, frames)


def _check_ends(name: str, layer: SlotLayer) -> None:
    """A grid without ends has no finite set of codes, and no operator of the graph."""
    for slot in ("w", "x"):
        for link in links_of(getattr(layer, slot)):
            if getattr(link, "clip", True) is False and moment(link, "encode") is None:
                part = getattr(link, "part_name", type(link).__name__)
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


def _ranks(work: nn.Module, layers: dict[str, SlotLayer], example: Tensor) -> dict[str, int]:
    """Number of axes of each slot layer's input."""
    found: dict[str, int] = {}
    hooks = [layer.register_forward_pre_hook(_note_rank(found, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            work(example)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"convert: the model does not run on this example of shape {list(example.shape)}: {_first_line(error)}",
            code="convert-example",
        ) from None
    finally:
        for h in hooks:
            h.remove()
    return found


def _export(work: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    # one image would be specialized to batch 1
    batch = example if example.shape[0] > 1 else example.expand(2, *example.shape[1:]).contiguous()
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(work, (batch,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:
        line = _user_line(str(error))
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


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs and prints a failed export over many lines; its reason is in the exception, for one line of ours."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch.export")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _first_line(error: Exception) -> str:
    text = next((t.strip() for t in str(error).splitlines() if t.strip()), type(error).__name__)
    return text[:200].rstrip(".") + "."


def _user_line(text: str) -> str:
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    for path, line, _ in reversed(found):
        if "/torch/" not in path and "bitwright/" not in path:
            return f" at {path.rsplit('/', 1)[-1]} line {line}"
    return ""


def _frame(node: torch.fx.Node) -> str:
    """`mynet.py line 31` of the first user frame behind a node."""
    return _user_line(str(node.meta.get("stack_trace") or "")).removeprefix(" at ")


def _owner(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""


def _lower(
    program: torch.export.ExportedProgram,
    layers: dict[str, SlotLayer],
    packings: dict[str, Packing],
    inputs: dict[str, Packing],
) -> tuple[Graph, dict[str, str]]:
    graph = Graph([], {})
    constants: dict[str, Tensor] = {}
    state = dict(program.state_dict)
    state.update(program.constants)
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.target is not None and spec.target in state:
            constants[name] = state[spec.target].detach()
    names: dict[str, str] = {}  # fx name -> our value name
    symbols: set[str] = set()
    frames: dict[str, str] = {}
    for n in program.graph.nodes:
        if n.op == "placeholder":
            if n.name in constants:
                continue
            if names:
                raise InputError("convert: models with one tensor input only", code="convert-inputs")
            shape = [int(s) for s in n.meta["val"].shape[1:]]
            graph.nodes.append(Node("input", "input", [], {"shape": shape}))
            names[n.name] = "input"
        elif n.op == "output":
            outs = n.args[0]
            if len(outs) != 1 or not isinstance(outs[0], torch.fx.Node) or outs[0].name not in names:
                raise InputError("convert: models with one tensor output only", code="convert-outputs")
            last = names[outs[0].name]
            graph.nodes.append(Node("output", "output", [last], {"shape": list(graph.node(last).shape)}))
        elif n.op == "call_function":
            target = str(n.target)
            if target.startswith("aten.sym_size") or "sym_size" in n.name:
                symbols.add(n.name)
                continue
            if target.startswith("bitwright.marked_layer"):
                layer_name = str(n.args[1])
                frames[layer_name] = _frame(n)
                names[n.name] = _emit_layer(
                    graph, names[_first_input(n).name], n, layers[layer_name], layer_name, packings[layer_name]
                )
                continue
            if target.startswith("bitwright.marked_input"):
                layer_name = n.args[1]
                names[n.name] = _emit_input(
                    graph, names[n.args[0].name], layers[layer_name], layer_name, inputs[layer_name]
                )
                continue
            inputs_of = n.all_input_nodes
            if inputs_of and all(i.name in constants for i in inputs_of) and _stays_constant(n, constants):
                constants[n.name] = _worked_out(n, constants)
                continue
            _emit_aten(graph, n, names, constants, symbols, layers)
        else:
            raise InputError(f"convert: {n.op} {n.target} in the traced graph is not supported", code="convert-op")
    return graph, frames


# of a parameter or buffer: they move no number
RESHAPES = ("aten._assert_tensor_metadata", "aten.detach", "aten.reshape", "aten.to.", "aten.unsqueeze", "aten.view")


def _stays_constant(n: torch.fx.Node, constants: dict[str, Tensor]) -> bool:
    """Parameters that forward only reshapes (a shift per channel), and numbers made of single numbers (1 - 2 t)."""
    single = all(constants[i.name].numel() == 1 for i in n.all_input_nodes)
    return str(n.target).startswith(RESHAPES) or (single and str(n.target).startswith("aten."))


def _worked_out(n: torch.fx.Node, constants: dict[str, Tensor]) -> Tensor:

    def real(value: Any) -> Any:
        return map_arg(value, lambda node: constants[node.name])

    assert callable(n.target)
    made = n.target(*real(n.args), **real(n.kwargs))
    return made if isinstance(made, Tensor) else constants[n.all_input_nodes[0].name]


def _first_input(n: torch.fx.Node) -> torch.fx.Node:
    first = n.args[0] if n.args else None
    if not isinstance(first, torch.fx.Node):
        raise InputError(f"convert: {n.target} without an input is not supported", code="convert-op")
    return first


def _shape(n: torch.fx.Node) -> list[int]:
    val = n.meta.get("val")
    return [int(s) for s in val.shape[1:]] if isinstance(val, Tensor) and val.dim() > 0 else []


def _emit_aten(
    graph: Graph,
    n: torch.fx.Node,
    names: dict[str, str],
    constants: dict[str, Tensor],
    symbols: set[str],
    layers: dict[str, SlotLayer],
) -> None:
    target = str(n.target)
    base = target.rsplit(".", 1)[0] if target.count(".") > 1 else target
    inplace = base.endswith("_") and not base.endswith("__")
    where = _owner(n) or "the model"
    frame = _frame(n)
    at = f" ({frame})" if frame else ""
    try:
        done = lower(Call(n, names, constants, symbols))
    except KeyError:
        raise InputError(
            f"convert: {where} uses {base}{at}, which the packed graph has no operator for. Keep it outside: "
            "convert the part before it",
            code="convert-op",
            layer=where,
            given=base,
        ) from None
    except Unfit as reason:
        raise InputError(f"convert: {where}: {base}{at}: {reason}", code="convert-op", layer=where) from None
    if done is None:  # nothing happens in evaluation
        names[n.name] = names[_first_input(n).name]
        return
    op, inputs, attrs, tensors = done
    owner = _owner(n)
    if op in LAYERS:  # a gate calls the layer's operator from inside
        owner = next((name for name in layers if name and owner.startswith(f"{name}.")), owner)
    node = Node(op, _fresh(graph, owner or n.name), inputs, {**attrs, "shape": _shape(n), "owner": owner})
    if frame:
        node.attrs["frame"] = frame
    for role, value in tensors.items():
        graph.put(node, role, value)
    graph.nodes.append(node)
    names[n.name] = node.name
    if inplace:  # whoever reads the input later sees the result
        names[_first_input(n).name] = node.name


def _fresh(graph: Graph, wish: str) -> str:
    return fresh(wish or "node", ("input", "output", *(n.name for n in graph.nodes)))


def _emit_input(graph: Graph, source: str, layer: SlotLayer, name: str, packing: Packing) -> str:
    """Norms, then the quantizer, then (where the weight is not coded) back to numbers."""
    x_shape = list(graph.node(source).shape)
    last = isinstance(layer, nn.Linear)
    value = source

    def emit(op: str, wish: str, attrs: dict[str, Any], **tensors: Tensor) -> None:
        nonlocal value
        node = Node(op, _fresh(graph, wish), [value], {"shape": x_shape, "owner": f"{name}.x", **attrs})
        for role, tensor in tensors.items():
            graph.put(node, role, tensor)
        graph.nodes.append(node)
        value = node.name

    for i, link in enumerate(packing.before):
        if isinstance(link, Norm):
            # kept apart from any BatchNorm before it: given the layer's input, its codes are then exactly the trained
            # layer's, and not only up to the rounding of a merged norm
            scale, add = link.constants()
            emit("affine", f"{name}.x{i}", {"last": last, "keep": True}, scale=scale.detach(), add=add.detach())
    grid = packing.grid
    if grid is not None:
        attrs = {"last": last, "levels": grid.levels, "mult": grid.mult, "zero": list(grid.zero)}
        emit("quantize", f"{name}.x", attrs, thresholds=grid.thresholds)
        if not packing.coded_weight:
            emit("decode", f"{name}.values", {"unit": grid.unit})
            if grid.units:  # one step per channel
                units = torch.tensor(grid.units, dtype=torch.float32)
                attrs = {"last": last, "keep": True}
                emit("affine", f"{name}.steps", attrs, scale=units, add=torch.zeros_like(units))
    return value


def _emit_layer(graph: Graph, source: str, n: torch.fx.Node, layer: SlotLayer, name: str, packing: Packing) -> str:
    last = isinstance(layer, nn.Linear)
    grid = packing.grid
    value = _emit_input(graph, source, layer, name, packing)
    attrs = {"shape": _shape(n), "owner": name, "frame": _frame(n)}
    if not last:
        attrs |= {"rank": layer.weight.dim() - 2, **_Marker(name, layer).geometry()}
    coded = grid is not None and packing.coded_weight
    op = ("coded_linear" if last else "coded_conv") if coded else ("linear" if last else "conv")
    node = Node(op, _fresh(graph, name), [value], attrs)
    bias = layer.quantized_bias()
    bias = None if bias is None else bias.detach().double()
    if packing.coded_weight:
        _put_weight(graph, node, layer, grid.unit if coded and grid is not None else None, bias)
    else:
        graph.put(node, "weight", layer.weight.detach().float())
        if bias is not None:
            graph.put(node, "bias", bias)
    graph.nodes.append(node)
    return node.name


def _put_weight(graph: Graph, node: Node, layer: SlotLayer, x_unit: float | None, bias: Tensor | None) -> None:
    """The coded weight: bits, and per term one scale per channel (float64 here; rounded once after folding)."""
    encode = moment(layer.w, "encode")
    assert encode is not None
    with torch.no_grad():
        bit, terms = storable(encode(layer.slot_weight().detach()))
    channels = bit.shape[1]
    graph.put(node, "bits", bitstrings.pack(bit))
    node.attrs["weight"] = {
        "shape": [int(s) for s in bit.shape[1:]],
        "planes": bit.shape[0],
        "terms": [{"planes": list(t.planes), "mult": list(t.mult), "zero": t.zero} for t in terms],
    }
    factor = 1.0 if x_unit is None else x_unit
    graph.put(node, "scale", torch.stack([t.unit * factor for t in terms]))
    if x_unit is not None:
        graph.put(node, "add", torch.zeros(channels, dtype=torch.float64) if bias is None else bias)
    elif bias is not None:
        graph.put(node, "bias", bias)
