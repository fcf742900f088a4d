"""The runs that `verify` compares: the trained net, the same in float64, the packed net, and the packed net told its inputs.

A sign that flips in one layer changes everything behind it, and float layers may round a value near a threshold to either
side. So the packed net is run once more, and each layer that makes codes is told the input that the trained net saw there:
between two such layers only float operators can differ, and by no more than their rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from bitwright.engine import native, reference, run_native, run_reference
from bitwright.engine.fuse import formats
from bitwright.engine.graph import Graph, Node, view
from bitwright.engine.integers import weight_terms
from bitwright.engine.packed import PackedModel
from bitwright.engine.packed_layer import packed_layers
from bitwright.engine.prepare import plain_weights
from bitwright.engine.rules import CODED
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.parts import moment
from bitwright.transforms.call import Call, as_floats, as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.forward import quiet
from bitwright.transforms.geometry import crop_of
from bitwright.types import Coded

Inputs = dict[str, list[Tensor]]  # of a layer, one for each of its calls
Outputs = dict[str, Tensor]  # by their place in what the model returns; "" where that is one tensor


def outputs_of(returned: Any) -> Outputs:
    """The tensors of whatever a model returns: `[0]`, `['logits']`."""
    return {keystr(p): t.detach() for p, t in tree_flatten_with_path(returned)[0] if isinstance(t, Tensor)}


def as_float(model: nn.Module, call: Call) -> nn.Module:
    """A copy in float32, if it runs so: half and double precision are compared in float32, in which packed nets compute."""
    copied = copy_model(model).eval().float()
    try:
        with quiet():
            call.map(as_floats)(copied)
        return copied
    except (RuntimeError, TypeError, ValueError):
        return copy_model(model).eval()


def coding(model: nn.Module) -> list[str]:
    """Slot layers with an input part."""
    return [n for n, m in model.named_modules() if is_slot_layer(m) and m.x is not None]


class Watched:
    """A copy of a model whose layers remember what they see and give, call by call; a run can tell them their inputs or
    answers."""

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.model = copy_model(model).eval()
        self.inputs: Inputs = {}
        self.outputs: Inputs = {}
        self.told: Inputs = {}
        self.answers: Inputs = {}
        for name in layers:
            self._watch(name, self.model.get_submodule(name))

    def _watch(self, name: str, layer: nn.Module) -> None:
        def forward(x: Tensor, *args: Any, was: Any = layer.forward, **kwargs: Any) -> Tensor:
            calls, told, answers = self.inputs.setdefault(name, []), self.told.get(name, []), self.answers.get(name, [])
            k = len(calls)
            calls.append(x.detach().clone())  # a later operator may write into it
            if k < len(told) and told[k].shape == x.shape:
                x = told[k]
            y = answers[min(k, len(answers) - 1)].clone() if answers else was(x, *args, **kwargs)
            self.outputs.setdefault(name, []).append(y.detach().clone())
            return y

        layer.__dict__["forward"] = forward

    def run(self, call: Call, told: Inputs | None = None, answers: Inputs | None = None) -> Outputs:
        self.inputs, self.outputs, self.told, self.answers = {}, {}, told or {}, answers or {}
        with quiet():
            return outputs_of(call(self.model))


class Trained(Watched):
    """The trained net, which remembers what its coding layers see and give."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, coding(model))
        self.plain = model  # for the run in float64
        self.layers = {n: m for n, m in self.model.named_modules() if is_slot_layer(m)}

    def in_double(self, call: Call, answers: Inputs) -> tuple[Outputs, Inputs] | None:
        """The net in float64 with the outputs of its coding layers given; None where its code asks for float32."""
        model = copy_model(self.plain)
        for name, layer in list(model.named_modules()):
            if is_slot_layer(layer) and name not in answers and layer.gate is None and layer.x is None:
                plain_weights(layer)  # float inputs: the weight as it is used, in float64
        watched = Watched(model.double(), answers)
        try:
            found = watched.run(call.map(lambda t: t.double() if t.is_floating_point() else t), answers=answers)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return found, watched.inputs


# -- one layer ------------------------------------------------------------------------------------------------
class LayerCheck:
    """One small program: a coded layer's own quantizer and its integer product, unfused.

    graph  with the formats that `fuse` gives     before  the nodes of its input part
    """

    def __init__(self, layer: SlotLayer, graph: Graph, before: list[Node], node: Node, backend: str) -> None:
        self.layer, self.graph, self.before, self.node = layer, graph, before, node
        native_run = backend == "native"
        self.plans = run_native.conv_plans(node, graph) if native_run else None
        self.steps: list[Any] = [
            run_native.step(n, graph, 1) if native_run else run_reference.step(n, graph) for n in before
        ]

    def shaped(self, x: Tensor) -> Tensor:
        """A float batch, as pixels are read; one sample without a batch axis becomes a batch of one.

        A packed layer of its own computes a Linear layer row by row, whatever axes the rows stand in.
        """
        x = as_pixels(x).float()
        if self.node.op == "coded_linear":
            return x.reshape(-1, x.shape[-1]) if len(self.node.shape) == 1 else x[None] if x.dim() == 1 else x
        return x[None] if x.dim() == int(self.node.attrs["rank"]) + 1 else x

    def integers(self, x: Tensor) -> list[Tensor]:
        """Integer products of the packed layer for the layer's input x, per term."""
        node, x = self.node, self.shaped(x)
        start = self.before[0].inputs[0] if self.before else node.inputs[0]
        env = {start: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()}
        for step in self.steps:
            step(env)
        codes = env[node.inputs[0]]
        if self.plans is not None:
            out = run_native.plain_axes(node)
            return [out(plan.run(codes, native.Output())) for plan in self.plans]
        grid = node.attrs["x"]
        numbers = reference.numbers(codes, int(grid["mult"]), grid["zero"], node.op == "coded_linear")
        return reference.integer_products(numbers, reference.weight_integers(self.graph, node), node)

    def trained(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The integer products that the trained layer's own codes give, by torch's convolution on whole numbers; and what
        they stand for with the trained scales and bias, in float64: the layer's output before any rounding.

        X comes from the part's `encode`, divided by the unit; W likewise. Nothing of the packed file is used but the
        geometry.
        """
        x, last = self.shaped(x), self.node.op == "coded_linear"
        code, unit = code_of(self.layer.x, x), self._unit()
        weight = code_of(self.layer.w, self.layer.slot_weight().detach())
        terms = weight_terms(weight)
        numbers = (code.value().double() / unit).round().expand(x.shape).float()
        whole = [reference.whole_numbers(weight.bit, *term.code).float() for term in terms]
        integers = reference.integer_products(numbers, whole, self.node)
        rank, bias = integers[0].dim(), self.layer.quantized_bias()
        pairs = zip(integers, terms, strict=True)
        total = torch.stack([i.double() * view(t.unit * unit, rank, last) for i, t in pairs]).sum(0)
        if bias is not None:
            total += view(bias.detach().double(), rank, last)
        return integers, total[(..., *(slice(c, None) for c in crop_of(self.layer)))]

    def _unit(self) -> float:
        """The step of the input's grid, or half of it where the grid is odd (-1, +1)."""
        width = self.layer.weight.shape[1] * int(getattr(self.layer, "groups", 1))
        rank = 2 if self.node.op == "coded_linear" else int(self.node.attrs["rank"]) + 2
        code = code_of(self.layer.x, torch.zeros(1, width, *[1] * (rank - 2)))
        step = float(code.coef.double().abs().min())
        shift = (code.offset.double() / step).reshape(-1)
        return step if float((shift - shift.round()).abs().max()) < 1e-4 else step / 2


def checks_of(layers: dict[str, SlotLayer], packed: PackedModel) -> dict[str, LayerCheck]:
    """One check per coded layer of a graph; a layer that is called several times has one."""
    graph = packed.graph.copy()
    formats(graph)
    by_name = graph.by_name()
    found: dict[str, LayerCheck] = {}
    for node in graph.nodes:
        if node.op not in CODED or node.owner in found:
            continue
        before: list[Node] = []
        current = by_name[node.inputs[0]]
        while current.owner == f"{node.owner}.x":
            before.insert(0, current)
            current = by_name[current.inputs[0]]
        found[node.owner] = LayerCheck(layers[node.owner], graph, before, node, packed.backend)
    return found


def code_of(part: nn.Module | None, x: Tensor) -> Coded:
    encode = moment(part, "encode")
    assert encode is not None
    return encode(x)


def levels_of(layer: SlotLayer, x: Tensor) -> Tensor:
    """The value that stands for each input: what the layer computes with."""
    return code_of(layer.x, x).value().expand(x.shape)


def encodes(layer: nn.Module) -> bool:
    """Whether a slot layer's input becomes codes."""
    return moment(getattr(layer, "x", None), "encode") is not None


# -- packed nets ----------------------------------------------------------------------------------------------
class GraphSide:
    """The graph form: `packed` beside its folded graph in plain torch, which it must equal bit for bit.

    strict  whether a layer's input is the trained layer's, not only its codes: a clip that no code depends on is gone
    """

    strict = False

    def __init__(self, trained: Trained, packed: PackedModel) -> None:
        self.model, self.packed = trained.model, packed
        self.checks = checks_of(trained.layers, packed)
        self.nodes = packed.graph.by_name()
        self.answers: Outputs = {}
        # where the input part of a layer begins, in the order of the calls
        self.starts = {
            n.name: n.owner.removesuffix(".x")
            for n in packed.graph.nodes
            if n.owner.endswith(".x") and self.nodes[n.inputs[0]].owner != n.owner
        }

    def _walk(self, call: Call, told: Inputs) -> tuple[dict[str, Tensor], Inputs]:
        """Values of the folded graph, layers told what they are to read; and what they would have read."""
        env, seen = self.packed.environment(*call.args), {}
        for node, step, _ in self.packed.folded_steps():
            name = self.starts.get(node.name)
            if name is None:
                step(env)
                continue
            source, calls = env[node.inputs[0]], seen.setdefault(name, [])
            given, k = told.get(name, []), len(calls)
            calls.append(source)
            fits = k < len(given) and given[k].shape == source.shape
            other = {**env, node.inputs[0]: as_pixels(given[k]) if fits else source}
            step(other)
            env[node.name] = other[node.name]
        return env, seen

    def free_run(self, call: Call) -> tuple[Outputs, Inputs, list[str]]:
        """(answers, what coding layers read, what differs in plain torch)."""
        call = call.in_order(self.model)
        got = self.answers = outputs_of(self.packed(*call.args))
        (env, inputs), differing = self._walk(call, {}), []
        if all(bool(t.isfinite().all()) for t in call.tensors):
            differing = self._differing_codes(self.packed.values(*call.args), env)
            for (key, value), name in zip(got.items(), self.packed.outputs, strict=True):
                if not _equal(value, env[name], exact=self.nodes[name].op in CODED):
                    differing.append(f"output{key}")
        return got, inputs, differing

    def told_run(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        """After `free_run` of the same call."""
        env, seen = self._walk(call.in_order(self.model), inputs)
        found = zip(self.answers.items(), self.packed.outputs, strict=True)
        # samples with NaN in an input have NaN in the answer, which no value inside has
        return {key: torch.where(y.isnan(), y, env[name]) for (key, y), name in found}, seen

    def _differing_codes(self, values: dict[str, Tensor], env: dict[str, Tensor]) -> list[str]:
        """Fused thresholds, pooled bits and emitted codes against the folded graph in plain torch."""
        runtime = {n.name: n for n, _, _ in self.packed.steps()}
        emitted = {str(n.attrs["extra"]): n for n in runtime.values() if "extra" in n.attrs}
        found: list[str] = []
        for node in self.nodes.values():
            mine = runtime.get(node.name) or emitted.get(node.name)
            if node.op != "quantize" or node.name not in values or mine is None:
                continue
            form = mine.attrs.get("emit") or mine.attrs  # a value may have other axes than the node that it comes from
            groups = int(form.get("groups", 1)) if node.name in runtime else 1
            got, want = _plain_codes(values[node.name], mine, groups), env[node.name]
            if got.numel() != want.numel() or not torch.equal(got.reshape(-1), want.reshape(-1)):
                found.append(node.owner.removesuffix(".x"))
        return found


def _plain_codes(value: Tensor, node: Node, groups: int) -> Tensor:
    """Codes of any backend as int64, in the order of the value's own axes [N, C, H, W] or [N, C]."""
    if value.dtype == torch.int64:
        return value
    codes = value if value.dtype == torch.uint8 else native.unpack(value, node.channels, groups)
    return (codes if node.last else codes.permute(0, 3, 1, 2)).long()


def _equal(got: Tensor, want: Tensor, exact: bool) -> bool:
    """Bit for bit; behind float operators up to the order of their sums, which the memory layout decides."""
    if got.shape != want.shape or not torch.equal(got.isnan(), want.isnan()):
        return False
    got, want = got.nan_to_num(), want.nan_to_num()
    if exact or not got.numel():
        return torch.equal(got, want)
    return float((got - want).abs().max()) <= 2**-18 * float(want.abs().max())


class LayerSide(Watched):
    """The layer form: the user's module with packed layers; a layer on the kernels equals itself in plain torch."""

    strict = True

    def __init__(self, trained: Trained, model: nn.Module) -> None:
        super().__init__(model, [*packed_layers(model), *coding(model)])
        self.packed = packed_layers(self.model)
        checks = {n: checks_of({"layer": trained.layers[n]}, p.packed) for n, p in self.packed.items()}
        self.checks = {name: found["layer"] for name, found in checks.items() if found}

    def free_run(self, call: Call) -> tuple[Outputs, Inputs, list[str]]:
        found, differing = self.run(call), []
        for name, layer in self.packed.items():
            for x in self.inputs.get(name, [])[:1]:
                env = {layer.packed.inputs[0].name: layer.batched(x)}
                if not torch.equal(layer.packed.run(dict(env)), layer.packed.run(env, plain=True)):
                    differing.append(name)
        return found, self.inputs, differing

    def told_run(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        return self.run(call, inputs), self.inputs
