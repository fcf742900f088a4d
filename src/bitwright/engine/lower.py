"""An exported program becomes a graph: our operators where they fit, else the generic node, constants worked out."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from bitwright.engine import aten_list, reference
from bitwright.engine.aten import CHECKS, PARTS, AtenCall, Lowered, known, lower, nothing
from bitwright.engine.gate_packing import GatePacking, lower_split, lower_whole
from bitwright.engine.graph import Graph, Node, fresh
from bitwright.engine.packing import Packing, check_finite, storable
from bitwright.engine.rules import LAYERS
from bitwright.errors import InputError
from bitwright.nn import SlotLayer
from bitwright.parts import moment
from bitwright.parts.split_gate import SplitGate
from bitwright.transforms.geometry import steps_of

MAX_CONSTANT = 1 << 24  # numbers of a constant that is worked out while tracing


def user_line(text: str) -> str:
    """`mynet.py line 31` of the innermost frame of the user's own files in a stack trace; empty where there is none."""
    for path, line in reversed(re.findall(r'File "([^"]+)", line (\d+), in \w+', text)):
        if "/torch/" not in path and "bitwright/" not in path:
            return f"{path.rsplit('/', 1)[-1]} line {line}"
    return ""


def frame_of(n: FxNode) -> str:
    return user_line(str(n.meta.get("stack_trace") or ""))


def owner_of(n: FxNode) -> str:
    """The module whose forward made this call."""
    entries = list((n.meta.get("nn_module_stack") or {}).values())
    return str(entries[-1][0]) if entries else ""


def called_name(n: FxNode) -> tuple[str, str]:
    """(namespace.name, name) of what a node calls."""
    parts = str(n.target).split(".")
    return ".".join(parts[:2]), parts[1] if len(parts) > 1 else parts[0]


# -- before: operators that are neither ours nor on the list are decomposed, writes into views become values ------------
def simplified(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    calls = [n for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    foreign = {n.target for n in calls if n.target.namespace == "aten" and not known(n)}
    every: Any = torch.export.default_decompositions() if foreign else {}
    table = {op: every[op] for op in foreign if op in every}
    if table or any(_writes_into_a_view(n) for n in calls):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch warns about its own internals
            program = program.run_decompositions(table)
    return program


def _writes_into_a_view(n: FxNode) -> bool:
    """An in-place call on something that shares its memory with another value: renaming its result is not enough."""
    if not isinstance(n.target, torch._ops.OpOverload) or not n.target._schema.is_mutable:
        return False
    root: Any = n.args[0]
    while isinstance(root, FxNode):
        if not isinstance(root.target, torch._ops.OpOverload) or any(_is_view(u) for u in root.users if u is not n):
            return True
        if not root.target._schema.is_mutable:
            return _is_view(root)
        root = root.args[0]
    return True


def _is_view(n: FxNode) -> bool:
    if not isinstance(n.target, torch._ops.OpOverload):
        return n.target is operator.getitem
    aliases = [r.alias_info for r in n.target._schema.returns]
    return any(a is not None and not a.is_write for a in aliases)


@dataclass
class Lowering:
    """One program on its way to a graph. packings: also of layers whose input part alone enters the graph, and of gated
    layers without their gate; gates: what the gates need."""

    program: torch.export.ExportedProgram
    layers: dict[str, SlotLayer]
    packings: dict[str, Packing]
    gates: dict[str, GatePacking] = field(default_factory=dict)
    graph: Graph = field(default_factory=lambda: Graph([], {}))
    names: dict[str, str] = field(default_factory=dict)  # fx name -> the name of our value
    constants: dict[str, Any] = field(default_factory=dict)
    several: dict[str, AtenCall] = field(default_factory=dict)  # calls with several results, emitted where one is read

    def __post_init__(self) -> None:
        state = {**self.program.state_dict, **self.program.constants}
        for spec in self.program.graph_signature.input_specs:
            if spec.target in state and isinstance(state[spec.target], Tensor):
                self.constants[getattr(spec.arg, "name", "")] = state[spec.target].detach()

    def run(self) -> Graph:
        does = {"placeholder": self._input, "output": self._output, "call_function": self._call}
        for n in self.program.graph.nodes:
            if n.op in does:  # not "get_attr", the body of a branch: whoever calls it is refused
                try:
                    does[n.op](n)
                except aten_list.Unlisted as reason:
                    raise _no_form(n, reason) from None
        return self.graph

    def emit(self, op: str, wish: str, inputs: list[str], attrs: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
        taken = "output", *(n.name for n in self.graph.nodes)
        node = Node(op, fresh(wish or "node", taken), inputs, attrs)
        for role, value in tensors.items():
            # a threshold may be infinite: a level never reached, a gate always shut
            if op not in ("aten", "quantize") and role != "threshold":
                check_finite(f"{node.owner or node.name}: its {role}", node.owner, value)
            self.graph.put(node, role, value)
        self.graph.nodes.append(node)
        return node.name

    # -- ends
    def _input(self, n: FxNode) -> None:
        value = n.meta["val"]
        if n.name in self.constants or not isinstance(value, Tensor):  # an argument left at its default
            return
        if any(not isinstance(s, int) for s in value.shape[1:]) or value.dtype not in aten_list.WORDS:
            raise InputError(f"convert: input {n.name} is {value.dtype} {list(value.shape)}", code="convert-inputs")
        attrs = {"shape": list(value.shape[1:]), "dtype": aten_list.WORDS[value.dtype]}
        self.names[n.name] = self.emit("input", n.name if self.names else "input", [], attrs, {})

    def _output(self, n: FxNode) -> None:
        specs = self.program.graph_signature.output_specs
        returned: Any = n.args[0]
        flat = [a for a, s in zip(returned, specs, strict=True) if s.kind.name == "USER_OUTPUT"]
        values = [self.value(a) if isinstance(a, FxNode) else None for a in flat]
        found = [v for v in values if v is not None]
        if not found:
            raise InputError("convert: the model returns no tensor", code="convert-outputs")
        numbers = iter(range(len(found)))
        leaves = [None if v is None else next(numbers) for v in values]
        spec = self.program.call_spec.out_spec
        assert spec is not None
        structure = described(pytree.tree_unflatten(leaves, spec))
        attrs: dict[str, Any] = {} if structure == 0 else {"structure": structure}
        self.graph.nodes.append(Node("output", "output", found, attrs))

    # -- calls
    def value(self, n: FxNode) -> str:
        """The name of a value; a constant that is read as a value becomes a node."""
        if n.name not in self.names:
            if not isinstance(self.constants.get(n.name), Tensor):
                raise aten_list.Unlisted(f"{n.name} is not computed from the input")
            attrs = {"call": "clone.default", "args": {"self": "c0"}, "owner": ""}
            self.names[n.name] = self.emit("aten", n.name, [], attrs, {"c0": self.constants[n.name].clone()})
        return self.names[n.name]

    def _call(self, n: FxNode) -> None:
        value, (path, name) = n.meta.get("val"), called_name(n)
        if n.target is operator.getitem:
            self._item(n)
        elif name.startswith(CHECKS) or not isinstance(value, (Tensor, tuple, list)):
            pass  # sizes, and what only checks
        elif path == "bitwright.marked_layer":
            self.names[n.name] = self._layer(n) if n.args[2] else self._part(n)
        elif not self._worked_out(n):
            call = AtenCall(n, self.names, self.constants)
            if not isinstance(value, Tensor):
                self.several[n.name] = call
            elif nothing(call):
                self.names[n.name] = self.value(_node(n.args[0]))
            else:
                self._put(n, lower(call))
                if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable:
                    self.names[_node(n.args[0]).name] = self.names[n.name]  # whoever reads it later sees the result

    def _put(self, n: FxNode, lowered: Lowered) -> None:
        op, inputs, attrs, tensors = lowered
        owner = owner_of(n)
        if op in LAYERS:  # a gate calls the layer's operator from inside
            owner = next((name for name in self.layers if name and owner.startswith(f"{name}.")), owner)
        attrs = {**attrs, "owner": owner}
        if frame := frame_of(n):
            attrs["frame"] = frame
        self.names[n.name] = self.emit(op, owner or n.name, inputs, attrs, tensors)

    def _item(self, n: FxNode) -> None:
        """One of several results."""
        source, index = _node(n.args[0]), int(cast(int, n.args[1]))
        if source.name in self.constants:
            self.constants[n.name] = self.constants[source.name][index]
            return
        call = self.several[source.name]
        if call.base not in PARTS:
            self._put(n, lower(call, index))
            return
        dim, inputs = int(call.given["dim"]) % call.rank("self"), [call.value("self")]
        if call.base == "unbind":
            self._put(n, ("aten", inputs, {"call": "select.int", "args": {"self": 0, "dim": dim, "index": index}}, {}))
            return
        sizes = [v.shape[dim] for v in source.meta["val"]]
        start, end = (aten_list.linear(sum(sizes[:k])) for k in (index, index + 1))
        inputs += ["input"] if isinstance(start, str) or isinstance(end, str) else []
        args = {"self": 0, "dim": dim, "start": start, "end": end}
        self._put(n, ("aten", inputs, {"call": "slice.Tensor", "args": args}, {}))

    def _worked_out(self, n: FxNode) -> bool:
        """A pure call of constants alone is a constant."""
        op = n.target
        if not isinstance(op, torch._ops.OpOverload) or any(i.name not in self.constants for i in n.all_input_nodes):
            return False
        if op._schema.is_mutable or torch.Tag.nondeterministic_seeded in op.tags:
            return False
        meta = n.meta["val"]
        made = [meta] if isinstance(meta, Tensor) else list(meta)
        if any(not isinstance(s, int) for t in made for s in t.shape) or sum(t.numel() for t in made) > MAX_CONSTANT:
            return False
        args, kwargs = map_arg((n.args, n.kwargs), lambda node: self.constants[node.name])
        with torch.no_grad():
            self.constants[n.name] = op(*args, **kwargs)
        return True

    # -- slot layers
    def _part(self, n: FxNode) -> str:
        """A layer's input part: norms, then the quantizer, then (where the weight is not coded) back to numbers."""
        name, value = str(n.args[1]), self.value(_node(n.args[0]))
        packing, last = self.packings[name], isinstance(self.layers[name], nn.Linear)

        def emit(op: str, wish: str, attrs: dict[str, Any], **tensors: Tensor) -> str:
            return self.emit(op, wish, [value], {"owner": f"{name}.x", **attrs}, tensors)

        for i, link in enumerate(packing.before):
            if constants := moment(link, "constants"):
                # kept apart from any BatchNorm before it: given the layer's input, its codes are then exactly the trained
                # layer's, and not only up to the rounding of a merged norm
                scale, add = (t.detach() for t in constants())
                value = emit("affine", f"{name}.x{i}", {"last": last, "keep": True}, scale=scale, add=add)
        grid = packing.grid
        if grid is None:
            return value
        attrs = {"last": last, "levels": grid.levels, "mult": grid.mult, "zero": list(grid.zero)}
        value = emit("quantize", f"{name}.x", attrs, thresholds=grid.thresholds)
        if not packing.coded_weight:
            value = emit("decode", f"{name}.values", {"unit": grid.unit})
            if grid.units:  # one step per channel
                units = torch.tensor(grid.units, dtype=torch.float32)
                attrs = {"last": last, "keep": True}
                value = emit("affine", f"{name}.steps", attrs, scale=units, add=torch.zeros_like(units))
        return value

    def _layer(self, n: FxNode) -> str:
        name = str(n.args[1])
        layer, packing = self.layers[name], self.packings[name]
        if any(not isinstance(s, int) for s in _node(n.args[0]).meta["val"].shape[1:]):
            raise aten_list.Unlisted("a size of its input depends on the batch")
        value, last = self._part(n), isinstance(layer, nn.Linear)
        attrs: dict[str, Any] = {"owner": name, "frame": frame_of(n)}
        if not last:
            attrs |= {"rank": layer.weight.dim() - 2, **steps_of(layer)}
        gate = layer.gate if name in self.gates else None
        if isinstance(gate, SplitGate) and gate.one_sided:
            return lower_split(self, name, layer, gate, self.gates[name], value, attrs)
        coded = packing.grid is not None and packing.coded_weight
        more, tensors = _weight(layer, packing)
        op = f"{'coded_' if coded else ''}{'linear' if last else 'conv'}"
        y = self.emit(op, name, [value], attrs | more, tensors)
        return y if gate is None else lower_whole(self, name, gate, packing, self.value(_node(n.args[0])), y)


def _weight(layer: SlotLayer, packing: Packing) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(attributes, tensors) of a layer's weight and bias: float32, or bits and per term one scale per channel (float64
    here; rounded once after folding)."""
    bias = layer.quantized_bias()
    tensors = {} if bias is None else {"bias": bias.detach().double()}
    if not packing.coded_weight:
        return {}, {"weight": layer.quantized_weight().detach().float(), **tensors}
    encode = moment(layer.w, "encode")
    assert encode is not None
    with torch.no_grad():
        bit, terms = storable(encode(layer.slot_weight().detach()))
    info = {
        "shape": [int(s) for s in bit.shape[1:]],
        "planes": bit.shape[0],
        "terms": [{"planes": list(t.planes), "mult": list(t.mult), "zero": t.zero} for t in terms],
    }
    unit = 1.0 if packing.grid is None else packing.grid.unit
    if packing.grid is not None:
        tensors = {"add": tensors.get("bias", torch.zeros(bit.shape[1], dtype=torch.float64))}
    scale = torch.stack([t.unit * unit for t in terms])
    return {"weight": info}, {"bits": reference.pack_bits(bit), "scale": scale, **tensors}


def _no_form(n: FxNode, reason: aten_list.Unlisted) -> InputError:
    n = _node(n.args[0]) if n.target is operator.getitem else n
    where, frame, base = owner_of(n) or "the model", frame_of(n), called_name(n)[0]
    at = f" ({frame})" if frame else ""
    text = f"convert: {where} uses {base}{at}, which a packed graph cannot hold: {reason}"
    return InputError(text, code="convert-op", layer=where, given=base)


def _node(value: object) -> FxNode:
    assert isinstance(value, FxNode), value
    return value


def described(value: Any) -> Any:
    """The structure of the answer as plain JSON: a number of an output, null, or one entry that names the kind."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, tuple):
        return {"tuple": [described(v) for v in value]}
    if isinstance(value, list):
        return {"list": [described(v) for v in value]}
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: described(v) for k, v in value.items()}}
    kind = type(value).__name__
    text = f"convert: the model returns a {kind}; a graph holds tensors, tuples, lists and dicts of them"
    raise InputError(text, code="convert-outputs", given=kind)
