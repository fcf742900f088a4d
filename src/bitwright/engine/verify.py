"""Proof that the packed net is the trained net: codes and integers of every layer, then every value it returns.

(a) weights are the whole numbers of `encode`, and so are the codes of the trained layer's own input, layer by layer
(b) the packed net equals its folded graph (layer form: each layer itself) in plain torch, bit for bit: codes, integers with
    their scales, from the first code on
(c) told the inputs of the trained net's coding layers, its values are those of the trained net up to rounding: an input of
    a layer may have another code only within the bound of a threshold, an output may differ by no more than the bound
(d) the class of every image in two ordinary runs, where (c) leaves nothing but values near a threshold to differ by

The bound in (c) comes from the float layers' own arithmetic: the trained net runs in float64, too, and what float32 did to
the same value there, times `SLACK`, plus `ULPS` units in the last place of the largest one, is what another order of the same
sums may do. Per layer and output, relative to the largest value; measured on the first `MEASURED` images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from bitwright.engine import verify_runs as runs
from bitwright.engine.packed import PackedModel
from bitwright.engine.report import Beyond, Disagreement, OutputProof
from bitwright.engine.verify_runs import Inputs, Outputs, levels_of
from bitwright.errors import InputError
from bitwright.nn import SlotLayer
from bitwright.transforms.call import Call, as_floats, as_is, as_pixels

SLACK, ULPS = 64.0, 256
LEAST = ULPS * 2.0**-24  # of the largest value
MOST = 2.0**-8  # a float64 run that differs by more took another branch, and proves nothing
UNMEASURED = 2.0**-13  # where the user's code does not run in float64
MEASURED = 64


@dataclass
class Proof:
    """What was seen. `inexact` names layers whose integers or codes differ, `beyond` values that rounding cannot explain:
    both must be empty."""

    images: int = 0
    same: int = 0
    largest: float = 0.0
    layers: set[str] = field(default_factory=set)
    inexact: list[str] = field(default_factory=list)
    beyond: list[Beyond] = field(default_factory=list)
    outputs: dict[str, OutputProof] = field(default_factory=dict)
    layer_difference: dict[str, float] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)


def batches_of(batches: Iterable[object], example: Any) -> Iterator[tuple[Call, Any]]:
    """Inputs, or (input, target) pairs, as calls of the model; an input has the structure of the example."""
    leaves, want = tree_flatten(example)

    def like(b: Any) -> bool:
        found, structure = tree_flatten(b)
        pairs = zip(found, leaves, strict=True) if structure == want else ()
        return structure == want and all(isinstance(f, Tensor) for f, x in pairs if isinstance(x, Tensor))

    for given in batches:
        b: Any = tuple(given) if isinstance(given, list) and not isinstance(example, list) else given
        first = b[0] if isinstance(b, (tuple, list)) and b else b
        if like(b):
            yield Call.of(b), None
        elif first is not b and like(first):
            yield Call.of(first), b[1] if len(b) > 1 else None
        elif isinstance(example, tuple) and isinstance(b, tuple) and like(b[:-1]):
            yield Call.of(b[:-1]), b[-1]
        else:
            what = "a tensor" if isinstance(example, Tensor) else f"made like the example ({type(example).__name__})"
            text = f"verify: a batch is {what} or a pair, got {type(first if isinstance(b, tuple) else b).__name__}"
            raise InputError(text, code="verify-batch")


def verify(
    model: nn.Module,
    packed: nn.Module,
    batches: Iterable[object],
    example: Any = None,
    change: Callable[[Tensor], Tensor] = as_is,
) -> Proof:
    """Runs the trained net and the packed one (either form) side by side on every batch; neither is changed.

    example   tells inputs from targets where a model takes more than one tensor (see `Call`); None: one tensor
    change    what the tensors need before the trained net takes them (see `Prepared`)

    Errors: `InputError` for a batch of another kind, and where there is no image at all.
    """
    example = torch.zeros(1) if example is None else example
    proof, work = Proof(), None
    for call, target in batches_of(batches, example):
        if call.images:
            call = call.map(change).map(as_floats)
            work = work or _Work(model, packed, call, proof)
            work.step(call, target)
    if not proof.images:
        text = "verify: no image to verify on: the batches are empty, or a generator that was used up. Give batches, "
        raise InputError(f"{text}verify=True for the example, or verify=False", code="verify-empty")
    return proof


class _Work:
    def __init__(self, model: nn.Module, packed: nn.Module, call: Call, proof: Proof) -> None:
        self.trained, self.proof = runs.Trained(runs.as_float(model, call)), proof
        self.side: runs.GraphSide | runs.LayerSide
        if isinstance(packed, PackedModel):
            self.side = runs.GraphSide(self.trained, packed)
        else:
            self.side = runs.LayerSide(self.trained, runs.as_float(packed, call))
        self.rates: dict[str, float] = {}
        self.measured = 0
        self.units = {name: runs.unit_of(self.trained.layers[name]) for name in self.side.weights}
        for name, ours in self.side.weights.items():
            want = runs.whole_weights(self.trained.layers[name])
            if len(want) != len(ours) or not all(map(torch.equal, want, ours)):
                proof.inexact.append(name)

    def step(self, call: Call, target: Any) -> None:
        want, inputs = self.trained.run(call), self.trained.inputs
        got, read, differing = self.side.free_run(call)
        told = self.side.told_run(call, inputs, dict(self.trained.decided))
        exact, wrong = self._compare_layers(inputs, self.trained.outputs, told[2])
        proof = self.proof
        proof.inexact += [name for name in dict.fromkeys([*wrong, *differing]) if name not in proof.inexact]
        if self.measured < MEASURED:
            self._measure(call, want, inputs, exact)
        self._compare_told(want, inputs, _named(told[0], want), told[1])
        for wrong in self.side.wrong:
            self._judge(f"gate of {wrong.layer or 'the layer'}", wrong.off, wrong.bound)
        self._compare_answers(want, _named(got, want), target, inputs, read, call.images)

    def _compare_layers(self, inputs: Inputs, outputs: Inputs, numbers: Inputs) -> tuple[Inputs, list[str]]:
        """(a); returns the outputs of the coding layers without rounding, in float64, and layers that read other numbers."""
        proof, exact, wrong = self.proof, {}, []
        for name, calls in inputs.items():
            layer, values, ours = self.trained.layers[name], exact.setdefault(name, []), iter(numbers.get(name, []))
            for x, y in zip(calls, outputs[name], strict=True):
                values.append(y.double())
                if name not in self.side.weights:
                    continue
                proof.layers.add(name)
                read = next(ours, torch.empty(0)).reshape(-1)
                if not bool(x.isnan().any()):  # NaN has no code: the answer is NaN
                    levels = levels_of(layer, x)
                    if not torch.equal((levels / self.units[name]).round().float().reshape(-1), read):
                        wrong.append(name)
                    if self.measured < MEASURED:
                        values[-1] = runs.unrounded(layer, levels)
                        off = _largest(values[-1].float() - y)
                        proof.layer_difference[name] = max(off, proof.layer_difference.get(name, 0.0))
        return exact, wrong

    def _measure(self, call: Call, want: Outputs, told: Inputs, exact: Inputs) -> None:
        """Relative bounds from what float32 did to the trained net's own values."""
        outputs, inputs = self.trained.in_double(call, exact) or ({}, {})
        self.measured += call.images
        for where, _, value, other in _pairs(want, told, outputs, inputs):
            if value.is_floating_point():
                rate, size = UNMEASURED, _largest(value)
                if other is not None and other.shape == value.shape:
                    rate = min(MOST, LEAST + (SLACK * _largest(other - value.double()) / size if size else 0.0))
                self.rates[where] = max(rate, self.rates.get(where, 0.0))

    def _compare_told(self, want: Outputs, told: Inputs, outputs: Outputs, inputs: Inputs) -> None:
        """(c)"""
        for where, name, expected, got in _pairs(want, told, outputs, inputs):
            if got is None or got.shape != expected.shape:
                if name is None:
                    self._judge(where, torch.full((1,), torch.inf), 0.0)
            elif name is not None:
                self._near(where, self.trained.layers[name], as_pixels(expected), got.float())
            elif expected.is_floating_point():
                bound, proof = self._bound(where, expected, expected), self._output(where, expected)
                self._judge(where, difference(expected, got), bound)
                proof.bound = max(proof.bound, bound)

    def _bound(self, where: str, expected: Tensor, got: Tensor) -> float:
        return self.rates.get(where, UNMEASURED) * max(_largest(expected), _largest(got), 1e-30)

    def _near(self, where: str, layer: SlotLayer, expected: Tensor, got: Tensor) -> None:
        """An input of a coding layer: the trained one within the bound, or with its codes up to a threshold within it."""
        bound = self._bound(where, expected, got)
        off = torch.where(expected.isnan(), 0.0, difference(expected, got))  # then the answer is NaN, and judged there
        if bool((off > bound).any()) and not self.side.strict and runs.encodes(layer):
            ends = levels_of(layer, got - bound), levels_of(layer, got + bound)
            level = levels_of(layer, expected)
            off = torch.where((torch.minimum(*ends) <= level) & (level <= torch.maximum(*ends)), 0.0, off)
        self._judge(where, off, bound)

    def _judge(self, where: str, off: Tensor, bound: float) -> None:
        """Notes a difference beyond its bound: the first image, and the largest one seen."""
        wrong = off > bound
        if not bool(wrong.any()):
            return
        image = int(wrong.reshape(off.shape[0], -1).any(1).nonzero()[0]) if off.dim() else 0
        found = next((b for b in self.proof.beyond if b.where == where), None)
        if found is None:
            self.proof.beyond.append(found := Beyond(where, 0.0, 0.0, self.proof.images + image))
        if float(off.max()) > found.difference:
            found.difference, found.bound = float(off.max()), bound

    def _output(self, where: str, value: Tensor) -> OutputProof:
        key = where.removeprefix("output")
        kind = "classes" if value.dim() == 2 and value.shape[1] > 1 and value.is_floating_point() else "values"
        return self.proof.outputs.setdefault(key, OutputProof(key, kind))

    def _compare_answers(
        self, want: Outputs, got: Outputs, target: Any, told: Inputs, inputs: Inputs, images: int
    ) -> None:
        """(d)"""
        proof, same = self.proof, torch.ones(images, dtype=torch.bool)
        first: dict[int, Disagreement] = {}
        for key, expected in want.items():
            found, output = got.get(key), self._output(f"output{key}", expected)
            if found is None or found.shape != expected.shape:
                continue  # named by (c)
            off = _largest(difference(expected, found))
            output.largest, proof.largest = max(output.largest, off), max(proof.largest, off)
            alike, wanted, given = same_answer(expected, found, output.kind)
            if len(alike) != images:  # no answer for each image: one for the whole batch
                alike, wanted = alike.all().expand(images), torch.full((images,), -1)
                given = wanted
            output.images += images
            output.same += int(alike.sum())
            if output.kind == "classes":
                output.count(wanted, target)
            for i in (~alike).nonzero().flatten().tolist():
                margin = _margin(expected, i) if len(expected) == images else 0.0
                classes = int(wanted[i]), int(given[i])
                first.setdefault(i, Disagreement(proof.images + i, *classes, margin, "", key))
            same &= alike
        for i, found in sorted(first.items()):
            found.first_layer = self._first_difference(told, inputs, i, images)
            proof.disagreements.append(found)
        proof.images += images
        proof.same += int(same.sum())

    def _first_difference(self, told: Inputs, inputs: Inputs, image: int, images: int) -> str:
        """The first layer, in execution order, whose input codes differ between the trained and the packed net.

        Both from the runs of the whole batch: a batch of one may round otherwise, in the float layers of either net.
        """
        for name, calls in told.items():
            layer = self.trained.layers[name]
            if not runs.encodes(layer):
                continue
            for a, b in zip(calls, inputs.get(name, []), strict=False):
                if a.shape == b.shape and len(a) == images:
                    a, b = a[image : image + 1], b[image : image + 1]
                    if not torch.equal(levels_of(layer, a), levels_of(layer, b)):
                        return name
        return ""


def _pairs(
    want: Outputs, told: Inputs, outputs: Outputs, inputs: Inputs
) -> Iterator[tuple[str, str | None, Tensor, Tensor | None]]:
    """(where, layer or None, its value, the other net's) of each output and each input of a coding layer."""
    yield from ((f"output{key}", None, y, outputs.get(key)) for key, y in want.items())
    for name, calls in told.items():
        others = inputs.get(name, [])
        for x, other in zip_longest(calls, others[: len(calls)]):
            yield f"input of {name or 'the layer'}", name, x, other


def _named(got: Outputs, want: Outputs) -> Outputs:
    """Outputs under the trained net's places: a graph gives a plain tuple where the net gives one with named fields."""
    return dict(zip(want, got.values(), strict=True)) if len(got) == len(want) else got


def difference(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|; 0 where both are NaN or the same infinity, infinite where only one of them is."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a.double() - b.double()).abs().nan_to_num(nan=float("inf"))).float()


def _largest(t: Tensor) -> float:
    return float(t.detach().abs().nan_to_num(nan=0.0, posinf=0.0).max()) if t.numel() else 0.0


def same_answer(expected: Tensor, got: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """(same, expected class, class) per image; without classes: the same up to the rounding of a float head."""
    if kind == "classes":
        wanted, found = expected.argmax(1), got.argmax(1)
        return wanted == found, wanted, found
    expected, got = (t.reshape(len(t), -1) if t.dim() else t.reshape(1, 1) for t in (expected, got))
    none = torch.full((len(expected),), -1)
    if not expected.numel():
        return torch.ones(len(expected), dtype=torch.bool), none, none
    if not expected.is_floating_point():
        return (expected == got).all(1), none, none
    size = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax(1).clamp_min(1e-6)
    return difference(expected, got).amax(1) / size < 1e-3, none, none


def _margin(expected: Tensor, image: int) -> float:
    values = expected[image].flatten().float()
    top = values.topk(min(2, values.numel())).values
    return float(top[0] - top[-1]) if top.numel() else 0.0
