"""The runs that `verify` compares: the trained net, the same in float64, the packed net, and the packed net told its inputs.

A sign that flips in one layer changes everything behind it, and float layers may round a value near a threshold to either
side. So the packed net is run once more, and each layer that makes codes is told the input that the trained net saw there:
between two such layers only float operators can differ, and by no more than their rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from bitwright.engine import run_reference
from bitwright.engine.graph import Node
from bitwright.engine.packed import PackedModel
from bitwright.engine.packed_layer import packed_layers
from bitwright.engine.prepare import Call, as_floats, as_pixels
from bitwright.engine.verify_layers import CODED, LayerCheck, plain_codes
from bitwright.nn import is_slot_layer
from bitwright.transforms.copying import copy_model

Inputs = dict[str, list[Tensor]]  # of a layer, one for each of its calls
Outputs = dict[str, Tensor]  # by their place in what the model returns; "" where that is one tensor


def outputs_of(returned: Any) -> Outputs:
    """The tensors of whatever a model returns: `[0]`, `['logits']`."""
    return {keystr(p): t.detach() for p, t in tree_flatten_with_path(returned)[0] if isinstance(t, Tensor)}


@contextmanager
def quiet() -> Iterator[None]:
    """No gradients; the same random numbers in every run, for a forward that draws some."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels read weights past the layers
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def as_float(model: nn.Module, call: Call) -> nn.Module:
    """A copy in float32, if it runs so: half and double precision are compared in float32, in which packed nets compute."""
    copied = copy_model(model).eval().float()
    try:
        with quiet():
            call.map(as_floats)(copied)
        return copied
    except (RuntimeError, TypeError, ValueError):
        return copy_model(model).eval()


class Trained:
    """A copy of the trained net that remembers what its coding layers see and give."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy_model(model).eval()
        self.plain = copy_model(self.model)  # for the run in float64
        self.layers = {n: m for n, m in self.model.named_modules() if is_slot_layer(m)}
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, layer in self.layers.items():
            if layer.x is not None:
                self._watch(name, layer)

    def _watch(self, name: str, layer: nn.Module) -> None:
        def forward(x: Tensor, *args: Any, was: Any = layer.forward, **kwargs: Any) -> Tensor:
            kept = x.detach().clone()  # a later operator may write into it
            y = was(x, *args, **kwargs)
            self.seen.setdefault(name, []).append((kept, y.detach().clone()))
            return y

        layer.__dict__["forward"] = forward

    def run(self, call: Call) -> tuple[Outputs, dict[str, list[tuple[Tensor, Tensor]]]]:
        """Outputs, and (input, output) of each call of each layer that has an input part."""
        self.seen = {}
        with quiet():
            found = outputs_of(call(self.model))
        return found, self.seen

    def in_double(self, call: Call, told: Inputs) -> tuple[Outputs, Inputs] | None:
        """The net in float64 with the outputs of its coding layers given; None where its code asks for float32."""
        model, inputs = copy_model(self.plain), {}
        for name, layer in list(model.named_modules()):
            if not is_slot_layer(layer):
                continue
            if name in told:
                _tell_outputs(layer, told[name], inputs.setdefault(name, []))
            elif layer.gate is None and layer.x is None:  # float inputs: the weight as it is used, in float64
                with torch.no_grad():
                    weight, bias = layer.quantized_weight().detach().clone(), layer.quantized_bias()
                    bias = None if bias is None else bias.detach().clone()
                layer.set_slots(w=None, b=None)
                layer.weight = nn.Parameter(weight, requires_grad=False)
                layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        try:
            with quiet():
                returned = call.map(lambda t: t.double() if t.is_floating_point() else t)(model.double())
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return outputs_of(returned), inputs


def _tell_outputs(layer: nn.Module, told: list[Tensor], seen: list[Tensor]) -> None:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = told[min(len(seen), len(told) - 1)]
        seen.append(x.detach().clone())
        return y.clone()

    layer.__dict__["forward"] = forward


class Side(Protocol):
    """A packed net that can be run as it is, and told the inputs of its coding layers."""

    checks: dict[str, LayerCheck]
    strict: bool  # whether a layer's input is the trained layer's, not only its codes

    def run(self, call: Call, inexact: list[str]) -> tuple[Outputs, Inputs]: ...

    def told(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        """After `run` of the same call."""
        ...


class GraphSide:
    """The graph form: `packed` beside the folded graph in plain torch, which it must equal bit for bit.

    A clip that no code depends on is not in the folded graph: inputs of layers are compared by their codes.
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

    def run(self, call: Call, inexact: list[str]) -> tuple[Outputs, Inputs]:
        call = call.in_order(self.model)
        got = self.answers = outputs_of(self.packed(*call.args))
        env = self.packed.environment(*call.args)
        inputs: Inputs = {}
        for node, step in self.steps:
            if node.name in self.starts:
                inputs.setdefault(self.starts[node.name], []).append(env[node.inputs[0]])
            step(env)
        if all(bool(t.isfinite().all()) for t in call.tensors):
            self._compare_codes(self.packed.values(*call.args), env, inexact)
            by_name = self.folded.by_name()
            for (key, value), name in zip(got.items(), self.packed.outputs, strict=True):
                where = f"output{key}"
                if not _equal(value, env[name], exact=by_name[name].op in CODED) and where not in inexact:
                    inexact.append(where)
        return got, inputs

    def told(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        call = call.in_order(self.model)
        env, seen = self.packed.environment(*call.args), {}
        for node, step in self.steps:
            name = self.starts.get(node.name)
            if name is None:
                step(env)
                continue
            source, calls = env[node.inputs[0]], seen.setdefault(name, [])
            given = inputs.get(name, [])
            if len(calls) < len(given) and given[len(calls)].shape == source.shape:
                told = {**env, node.inputs[0]: as_pixels(given[len(calls)])}
                step(told)
                env[node.name] = told[node.name]
            else:
                step(env)
            calls.append(source)
        found = zip(self.answers.items(), self.packed.outputs, strict=True)
        # samples with NaN in an input have NaN in the answer, which no value inside has
        return {key: torch.where(y.isnan(), y, env[name]) for (key, y), name in found}, seen

    def _compare_codes(self, values: dict[str, Tensor], env: dict[str, Tensor], inexact: list[str]) -> None:
        """Fused thresholds, pooled bits and emitted codes against the folded graph in plain torch."""
        runtime = {n.name: n for n, _, _ in self.packed.steps()}
        emitted = {str(n.attrs["extra"]): n for n in runtime.values() if "extra" in n.attrs}
        for node, _ in self.steps:
            mine = runtime.get(node.name) or emitted.get(node.name)
            if node.op != "quantize" or node.name not in values or mine is None:
                continue
            # pooling and flattening move behind the quantizer: the shape is the runtime node's
            attrs = {"shape": list(mine.shape), "last": bool(mine.attrs.get("last", False))}
            form = mine.attrs.get("emit") or mine.attrs
            attrs["groups"] = form.get("groups", 1) if node.name in runtime else 1
            got = plain_codes(values[node.name], Node(node.op, node.name, [], attrs))
            name = node.owner.removesuffix(".x")
            want = env[node.name]
            same = got.numel() == want.numel() and torch.equal(got.reshape(-1), want.reshape(-1))
            if not same and name not in inexact:
                inexact.append(name)


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
        self.model, self.checks = copy_model(model).eval(), checks
        self.packed = packed_layers(self.model)
        self.inputs: Inputs = {}
        self.given: Inputs = {}
        for name, layer in list(self.model.named_modules()):
            if name in self.packed or (is_slot_layer(layer) and layer.x is not None):
                self._watch(name, layer)

    def _watch(self, name: str, layer: nn.Module) -> None:
        def forward(x: Tensor, *args: Any, was: Any = layer.forward, **kwargs: Any) -> Tensor:
            calls, given = self.inputs.setdefault(name, []), self.given.get(name, [])
            told = given[len(calls)] if len(calls) < len(given) and given[len(calls)].shape == x.shape else x
            calls.append(x.detach().clone())
            return was(told, *args, **kwargs)

        layer.__dict__["forward"] = forward

    def _run(self, call: Call, given: Inputs) -> tuple[Outputs, Inputs]:
        self.inputs, self.given = {}, given
        with quiet():
            found = outputs_of(call(self.model))
        return found, self.inputs

    def run(self, call: Call, inexact: list[str]) -> tuple[Outputs, Inputs]:
        found, inputs = self._run(call, {})
        for name, layer in self.packed.items():
            for x in inputs.get(name, [])[:1]:
                x = layer.batched(x)
                shape = tuple(x.shape[1:])
                plain = PackedModel(layer.graph(shape), "reference")
                if not torch.equal(layer.program(shape)(x), plain(x)) and name not in inexact:
                    inexact.append(name)
        return found, inputs

    def told(self, call: Call, inputs: Inputs) -> tuple[Outputs, Inputs]:
        return self._run(call, inputs)
