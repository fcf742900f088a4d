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

from bitwright.engine import run_reference
from bitwright.engine.packed import PackedModel
from bitwright.engine.packed_layer import packed_layers
from bitwright.engine.rules import CODED
from bitwright.engine.verify_layers import LayerCheck, plain_codes
from bitwright.nn import is_slot_layer
from bitwright.transforms.call import Call, as_floats, as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.forward import quiet

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


class RecordedModel:
    """A model whose layers remember what they see and give, call by call; a run can tell them their inputs or answers."""

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.model = model
        self.inputs: Inputs = {}
        self.outputs: Inputs = {}
        self.told: Inputs = {}
        self.answers: Inputs = {}
        for name in layers:
            self._watch(name, model.get_submodule(name))

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


class Trained(RecordedModel):
    """A copy of the trained net that remembers what its coding layers see and give."""

    def __init__(self, model: nn.Module) -> None:
        self.plain = copy_model(model).eval()  # for the run in float64
        copied = copy_model(self.plain)
        self.layers = {n: m for n, m in copied.named_modules() if is_slot_layer(m)}
        super().__init__(copied, [n for n, layer in self.layers.items() if layer.x is not None])

    def in_double(self, call: Call, answers: Inputs) -> tuple[Outputs, Inputs] | None:
        """The net in float64 with the outputs of its coding layers given; None where its code asks for float32."""
        model = copy_model(self.plain)
        for name, layer in list(model.named_modules()):
            if is_slot_layer(layer) and name not in answers and layer.gate is None and layer.x is None:
                with torch.no_grad():  # float inputs: the weight as it is used, in float64
                    weight, bias = layer.quantized_weight().detach().clone(), layer.quantized_bias()
                    bias = None if bias is None else bias.detach().clone()
                layer.set_slots(w=None, b=None)
                layer.weight = nn.Parameter(weight, requires_grad=False)
                layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        watched = RecordedModel(model.double(), answers)
        try:
            found = watched.run(call.map(lambda t: t.double() if t.is_floating_point() else t), answers=answers)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return found, watched.inputs


class GraphSide:
    """The graph form: `packed` beside the folded graph in plain torch, which it must equal bit for bit.

    strict  whether a layer's input is the trained layer's, not only its codes: a clip that no code depends on is gone
    """

    strict = False

    def __init__(self, model: nn.Module, packed: PackedModel, checks: dict[str, LayerCheck]) -> None:
        self.model, self.packed, self.folded, self.checks = model, packed, packed.graph, checks
        self.answers: Outputs = {}
        self.steps = run_reference.build(self.folded)
        owners = {n.name: n.owner for n in self.folded.nodes}
        # where the input part of a layer begins, in the order of the calls
        self.starts = {
            n.name: n.owner.removesuffix(".x")
            for n in self.folded.nodes
            if n.owner.endswith(".x") and owners[n.inputs[0]] != n.owner
        }

    def _walk(self, call: Call, told: Inputs) -> tuple[dict[str, Tensor], Inputs]:
        """Values of the folded graph, layers told what they are to read; and what they would have read."""
        env, seen = self.packed.environment(*call.args), {}
        for node, step in self.steps:
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

    def run(self, call: Call, inexact: list[str]) -> tuple[Outputs, Inputs]:
        call = call.in_order(self.model)
        got = self.answers = outputs_of(self.packed(*call.args))
        env, inputs = self._walk(call, {})
        if all(bool(t.isfinite().all()) for t in call.tensors):
            differing = self._differing_codes(self.packed.values(*call.args), env)
            by_name = self.folded.by_name()
            for (key, value), name in zip(got.items(), self.packed.outputs, strict=True):
                if not _equal(value, env[name], exact=by_name[name].op in CODED):
                    differing.append(f"output{key}")
            inexact += [name for name in dict.fromkeys(differing) if name not in inexact]
        return got, inputs

    def told(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        """After `run` of the same call."""
        env, seen = self._walk(call.in_order(self.model), inputs)
        found = zip(self.answers.items(), self.packed.outputs, strict=True)
        # samples with NaN in an input have NaN in the answer, which no value inside has
        return {key: torch.where(y.isnan(), y, env[name]) for (key, y), name in found}, seen

    def _differing_codes(self, values: dict[str, Tensor], env: dict[str, Tensor]) -> list[str]:
        """Fused thresholds, pooled bits and emitted codes against the folded graph in plain torch."""
        runtime = {n.name: n for n, _, _ in self.packed.steps()}
        emitted = {str(n.attrs["extra"]): n for n in runtime.values() if "extra" in n.attrs}
        found: list[str] = []
        for node in self.folded.nodes:
            mine = runtime.get(node.name) or emitted.get(node.name)
            if node.op != "quantize" or node.name not in values or mine is None:
                continue
            form = mine.attrs.get("emit") or mine.attrs  # a value may have other axes than the node that it comes from
            groups = int(form.get("groups", 1)) if node.name in runtime else 1
            got, want = plain_codes(values[node.name], mine, groups), env[node.name]
            if got.numel() != want.numel() or not torch.equal(got.reshape(-1), want.reshape(-1)):
                found.append(node.owner.removesuffix(".x"))
        return found


def _equal(got: Tensor, want: Tensor, exact: bool) -> bool:
    """Bit for bit; behind float operators up to the order of their sums, which the memory layout decides."""
    if got.shape != want.shape or not torch.equal(got.isnan(), want.isnan()):
        return False
    if exact or not got.numel():
        return torch.equal(got.nan_to_num(), want.nan_to_num())
    got, want = got.nan_to_num(), want.nan_to_num()
    return float((got - want).abs().max()) <= 2**-18 * float(want.abs().max())


class LayerSide:
    """The layer form: the user's module with packed layers; a layer on the kernels equals itself in plain torch."""

    strict = True

    def __init__(self, model: nn.Module, checks: dict[str, LayerCheck]) -> None:
        model, self.checks = copy_model(model).eval(), checks
        self.packed = packed_layers(model)
        coding = [n for n, m in model.named_modules() if is_slot_layer(m) and m.x is not None]
        self.watched = RecordedModel(model, [*self.packed, *coding])

    def run(self, call: Call, inexact: list[str]) -> tuple[Outputs, Inputs]:
        found = self.watched.run(call)
        for name, layer in self.packed.items():
            for x in self.watched.inputs.get(name, [])[:1]:
                x = layer.batched(x)
                shape = tuple(x.shape[1:])
                plain = PackedModel(layer.graph(shape), "reference")
                if not torch.equal(layer.program(shape)(x), plain(x)) and name not in inexact:
                    inexact.append(name)
        return found, self.watched.inputs

    def told(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        return self.watched.run(call, inputs), self.watched.inputs


Side = GraphSide | LayerSide  # a packed net that can be run as it is, and told the inputs of its coding layers
