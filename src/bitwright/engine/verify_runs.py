"""The runs that `verify` compares: the trained net, the same in float64, the packed net, and the packed net told its inputs.

A sign that flips in one layer changes everything behind it, and float layers may round a value near a threshold to either
side. So the packed net is run once more, and each layer that makes codes is told the input that the trained net saw there:
between two such layers only float operators can differ, and by no more than their rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from bitwright.engine import native, reference
from bitwright.engine.gate_packing import gated
from bitwright.engine.graph import Graph, Node
from bitwright.engine.layer_form import packed_layers
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import grid_of, weight_terms
from bitwright.engine.prepare import plain_weights
from bitwright.engine.rules import CODED
from bitwright.engine.verify_gates import DECIDING, KERNELS, NEAR, NEAR_FLOATS, Off, Told, decisions_of, starts
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.parts import moment
from bitwright.parts.scale import width_of
from bitwright.parts.split_gate import Watched
from bitwright.transforms.call import Call, as_floats, as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.decide import slot_layers
from bitwright.transforms.facts import split
from bitwright.transforms.forward import reproducible
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
        with reproducible():
            call.map(as_floats)(copied)
        return copied
    except (RuntimeError, TypeError, ValueError):
        return copy_model(model).eval()


def coding(model: nn.Module) -> list[str]:
    """Slot layers with an input part, or with a gate: those whose inputs a run can be told."""
    return [name for name, layer in slot_layers(model).items() if layer.x is not None or gated(layer)]


class RecordedModel:
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
        def forward(input: Tensor, *args: Any, was: Any = layer.forward, **kwargs: Any) -> Tensor:
            calls, told, answers = self.inputs.setdefault(name, []), self.told.get(name, []), self.answers.get(name, [])
            k = len(calls)
            calls.append(input.detach().clone())  # a later operator may write into it
            if k < len(told) and told[k].shape == input.shape:
                input = told[k]
            y = answers[min(k, len(answers) - 1)].clone() if answers else was(input, *args, **kwargs)
            self.outputs.setdefault(name, []).append(y.detach().clone())
            return y

        layer.__dict__["forward"] = forward

    def run(self, call: Call, told: Inputs | None = None, answers: Inputs | None = None) -> Outputs:
        self.inputs, self.outputs, self.told, self.answers = {}, {}, told or {}, answers or {}
        with reproducible():
            return outputs_of(call(self.model))


class Trained(RecordedModel):
    """The trained net, which remembers what its coding layers see and give."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, coding(model))
        self.plain = model  # for the run in float64
        self.layers = slot_layers(self.model)
        self.decided: Inputs = {}  # of each gate, 1 where it computed
        for name, layer in self.layers.items():
            if isinstance(layer.gate, Watched):
                layer.gate.watchers = (partial(self._decided, name),)

    def _decided(self, name: str, part: nn.Module, on: Tensor) -> None:
        self.decided.setdefault(name, []).append(on.detach().clone())

    def run(self, call: Call, told: Inputs | None = None, answers: Inputs | None = None) -> Outputs:
        self.decided.clear()
        return super().run(call, told, answers)

    def in_double(self, call: Call, answers: Inputs) -> tuple[Outputs, Inputs] | None:
        """The net in float64 with the outputs of its coding layers given; None where its code asks for float32."""
        model = copy_model(self.plain)
        for name, layer in list(model.named_modules()):
            if is_slot_layer(layer) and name not in answers and layer.gate is None and layer.x is None:
                plain_weights(layer)  # float inputs: the weight as it is used, in float64
        watched = RecordedModel(model.double(), answers)
        try:
            found = watched.run(call.map(lambda t: t.double() if t.is_floating_point() else t), answers=answers)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return found, watched.inputs


# -- one layer: what it computes with, in the trained net ----------------------------------------------------
def encodes(layer: nn.Module) -> bool:
    """Whether a slot layer's input becomes codes."""
    return moment(getattr(layer, "x", None), "encode") is not None


def exactly(part: nn.Module | None, x: Tensor) -> Coded:
    """What a part makes of x, its steps in float64."""
    encode = moment(part, "encode")
    assert encode is not None
    code = encode(x)
    return Coded(code.bit, code.coef.detach().double(), code.offset.detach().double())


def levels_of(layer: SlotLayer, x: Tensor) -> Tensor:
    """The value that stands for each input: what the layer computes with, in float64."""
    x = as_pixels(x)
    batch = x[None] if x.dim() == layer.weight.dim() - 1 else x  # parts tell samples from channels
    return exactly(layer.x, batch).value().expand(batch.shape).reshape(x.shape)


def whole_weights(layer: SlotLayer) -> list[Tensor]:
    """The whole numbers of each term of a trained weight: int32 [O, ...]."""
    code = exactly(layer.w, layer.slot_weight().detach())
    return [reference.whole_numbers(code.bit, *term.code) for term in weight_terms(code)]


def unit_of(layer: SlotLayer) -> float:
    """What one unit of the input's whole numbers is worth."""
    quantizer = split(layer.x)[1]
    assert quantizer is not None
    return grid_of(quantizer, width_of(layer) or 0, layer.weight.dim()).unit


def unrounded(layer: SlotLayer, levels: Tensor) -> Tensor:
    """The layer's output in float64, before any rounding."""
    weight, bias = exactly(layer.w, layer.slot_weight().detach()).value(), layer.quantized_bias()
    return layer.op(levels, layer.from_slot(weight), None if bias is None else bias.detach().double())


# -- packed nets ----------------------------------------------------------------------------------------------
def numbers_read(graph: Graph, node: Node, env: dict[str, Tensor]) -> Tensor:
    """The whole numbers that a coded layer computes with."""
    x = graph.node(node.inputs[0])
    return reference.numbers(env[x.name], x.attrs["mult"], x.attrs["zero"], x.attrs["last"])


def differing(packed: PackedModel, mine: dict[str, Tensor], plain: dict[str, Tensor]) -> list[str]:
    """Layers whose codes or values on the kernels are not those of the folded graph in plain torch: fused thresholds,
    pooled bits, emitted codes, integers with their scales."""
    runtime = {n.name: n for n, _, _ in packed.steps}
    emitted = {str(n.attrs["extra"]): n for n in runtime.values() if "extra" in n.attrs}
    found: list[str] = []
    for name, node in packed.graph.by_name().items():
        made = runtime.get(name) or emitted.get(name)
        if made is None or name not in mine:
            continue
        want = plain[name]
        if "units" in made.attrs:  # the others are not computed
            units = made.attrs["units"]
            side = math.prod(made.shape) // len(units) if want.dim() == 2 else 1  # numbers of a unit in a flattened map
            places = (units[:, None] * side + torch.arange(side)).flatten()
            want = want.index_select(want.dim() - 1 if made.last else 1, places)
        if node.op == "quantize":
            form = made.attrs.get("emit") or made.attrs  # a value may have other axes than the node that it comes from
            groups = int(form.get("groups", 1)) if name in runtime else 1
            got, want = _plain_codes(mine[name], made, groups).reshape(-1), want.reshape(-1)
            same = torch.equal(got, want)
        else:
            coded = made.op in CODED or "way" in made.attrs
            exact = coded and len(made.inputs) == 1 and not made.key("norm_scale")
            near = NEAR_FLOATS if made.op in KERNELS else NEAR
            same = not (coded or name in packed.outputs) or _equal(mine[name], want, exact, near)
        if not same:
            found.append(made.owner.removesuffix(".x"))
    return list(dict.fromkeys(found))


def _plain_codes(value: Tensor, node: Node, groups: int) -> Tensor:
    """Codes of any backend as int64, in the order of the value's own axes [N, C, H, W] or [N, C]."""
    if value.dtype == torch.int64:
        return value
    codes = value if value.dtype == torch.uint8 else native.unpack_codes(value, node.channels, groups)
    return (codes if node.last else codes.permute(0, 3, 1, 2)).long()


def _equal(got: Tensor, want: Tensor, exact: bool, near: float = NEAR) -> bool:
    """Bit for bit; behind float operators up to the order of their sums, which the memory layout decides."""
    if got.shape != want.shape or not torch.equal(got.isnan(), want.isnan()):
        return False
    got, want = got.nan_to_num(), want.nan_to_num()
    if exact or not got.numel() or not got.is_floating_point():
        return torch.equal(got, want)
    return float((got - want).abs().max()) <= near * float(want.abs().max())


def _near(node: Node, env: dict[str, Tensor]) -> float:
    """How far a layer of floats may be from plain torch: a share of its largest value, or of what a ReLU or an add reads."""
    behind = [env[name] for name in node.inputs if name in env] if node.op in ("add", "relu") else []
    return NEAR_FLOATS * max(float(t.abs().max()) for t in (env[node.name], *behind))


def _all_units(kernel: Node, value: Tensor, plain: Tensor) -> Tensor:
    """A layer's value on the kernels, with those units from plain torch that the run leaves out."""
    if "units" not in kernel.attrs:
        return value
    return plain.index_copy(plain.dim() - 1 if kernel.last else 1, kernel.attrs["units"], value)


class GraphSide:
    """The graph form: `packed`, and its folded graph in plain torch, whose layers can be told what to read.

    strict  whether a layer's input is the trained layer's, not only its codes: a clip that no code depends on is gone
    """

    strict = False

    def __init__(self, trained: Trained, packed: PackedModel) -> None:
        self.model, self.packed = trained.model, packed
        self.coded = [n for n in packed.graph.nodes if n.op in CODED]
        self.weights = {n.owner: reference.weight_integers(packed.graph, n) for n in self.coded}
        by_name = packed.graph.by_name()
        self.answers: Outputs = {}
        # where the input part of a layer begins, in the order of the calls; of a gated layer, all that read its input
        self.starts = {
            n.name: n.owner.removesuffix(".x")
            for n in packed.graph.nodes
            if n.owner.endswith(".x") and by_name[n.inputs[0]].owner != n.owner
        }
        found = list(starts(packed.graph, {n for n, m in trained.layers.items() if gated(m)}))
        self.starts |= {node: layer for node, layer, _ in found}
        self.again = {node for node, _, begins in found if not begins}
        self.wrong: list[Off] = []  # decisions of gates that rounding cannot explain

    def free_run(self, call: Call) -> tuple[Outputs, Inputs, list[str]]:
        """(answers, what coding layers read, layers that differ in plain torch)."""
        call = call.in_order(self.model)
        self.answers = outputs_of(self.packed(*call.args))
        if any(not bool(t.isfinite().all()) for t in call.tensors):
            return self.answers, self._walk(call, {})[1], []
        mine = self.packed.values(self.packed.environment(*call.args))
        told = Told(decisions_of(self.packed.graph, mine, [n for n, _, _ in self.packed.steps]))
        plain, seen = self._walk(call, {}, told, mine)
        differ = differing(self.packed, mine, plain)
        return self.answers, seen, [*differ, *(w.layer for w in told.wrong if w.layer not in differ)]

    def told_run(self, call: Call, inputs: Inputs, decided: Inputs) -> tuple[Outputs, Inputs, Inputs]:
        """(answers, what coding layers would have read, their whole numbers), after `free_run` of the same call.

        decided  what the trained net's gates did: this run does the same, and `wrong` says where it would not have
        """
        told = Told(decided)
        env, seen = self._walk(call.in_order(self.model), inputs, told)
        self.wrong = told.wrong
        numbers: Inputs = {name: [] for name in self.weights}
        for node in self.coded:
            numbers[node.owner].append(numbers_read(self.packed.graph, node, env))
        found = zip(self.answers.items(), self.packed.outputs, strict=True)
        # samples with NaN in an input have NaN in the answer, which no value inside has
        return {key: torch.where(y.isnan(), y, env[name]) for (key, y), name in found}, seen, numbers

    def _walk(
        self, call: Call, told: Inputs, gates: Told | None = None, like: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Inputs]:
        """Values of the folded graph, layers told what they are to read; and what they would have read.

        gates  decisions that its gates are told
        like   another run of the same net: the value of a layer with a gate on the kernels is compared, and taken from it
        """
        env, seen = self.packed.environment(*call.args), {}
        graph, kernels = self.packed.graph, {n.name: n for n, _, _ in self.packed.steps if n.op in KERNELS}
        for node, step, _ in self.packed.folded_steps:
            name, read = self.starts.get(node.name), env
            if name is not None:
                source, calls = env[node.inputs[0]], seen.setdefault(name, [])
                given, k = told.get(name, []), len(calls) - (node.name in self.again and bool(calls))
                if node.name not in self.again:
                    calls.append(source)
                fits = 0 <= k < len(given) and given[k].shape == source.shape
                read = {**env, node.inputs[0]: as_pixels(given[k]) if fits else source}
            if gates is None or node.op not in DECIDING or not gates.step(node, graph, read):
                step(read)
            env[node.name] = read[node.name]
            if like is not None and gates is not None and node.name in kernels:
                theirs = _all_units(kernels[node.name], like[node.name], env[node.name])
                off, bound = (env[node.name] - theirs).abs(), _near(node, env)
                if bool((off > bound).any()):
                    gates.wrong.append(Off(kernels[node.name].owner, off.flatten(1).amax(1), bound))
                env[node.name] = theirs
        return env, seen


class LayerSide(RecordedModel):
    """The layer form: the user's module with packed layers; a layer on the kernels equals itself in plain torch."""

    strict = True
    wrong: tuple[Off, ...] = ()  # gates run as they were trained

    def __init__(self, trained: Trained, model: nn.Module) -> None:
        super().__init__(model, [*packed_layers(model), *coding(model)])
        self.packed = {n: p for n, p in packed_layers(self.model).items() if p.node.op in CODED}
        self.weights = {n: reference.weight_integers(p.packed.graph, p.node) for n, p in self.packed.items()}

    def free_run(self, call: Call) -> tuple[Outputs, Inputs, list[str]]:
        answers, wrong = self.run(call), []
        for name, layer in packed_layers(self.model).items():
            for x in self.inputs.get(name, [])[:1]:
                runs = (layer.packed.values(layer.environment(x), plain) for plain in (False, True))
                wrong += [name] if differing(layer.packed, *runs) else []
        return answers, self.inputs, wrong

    def told_run(self, call: Call, inputs: Inputs, decided: Inputs) -> tuple[Outputs, Inputs, Inputs]:
        numbers: Inputs = {}
        for name, layer in self.packed.items():
            envs = [layer.packed.values(layer.environment(x), plain=True) for x in inputs.get(name, [])]
            numbers[name] = [numbers_read(layer.packed.graph, layer.node, env) for env in envs]
        return self.run(call, inputs), self.inputs, numbers
