"""Proof that the packed net is the trained net: codes and integers of every layer, then every value it returns.

(a) given the trained layer's own input, packed codes and integers equal those of `encode`, layer by layer
(b) the packed net equals its folded graph (layer form: each layer itself) in plain torch, bit for bit from the first code on
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
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from bitwright.engine.packed import PackedModel
from bitwright.engine.packed_layer import packed_layers
from bitwright.engine.report import Beyond, Disagreement, OutputProof
from bitwright.engine.verify_layers import checks_of_graph, checks_of_layers, encodes, levels_of
from bitwright.engine.verify_runs import GraphSide, Inputs, LayerSide, Outputs, Side, Trained, as_float
from bitwright.errors import InputError
from bitwright.transforms.call import Call, as_floats, as_is, as_pixels

SLACK, ULPS = 64.0, 256
LEAST = ULPS * 2.0**-24  # of the largest value
MOST = 2.0**-8  # a run in float64 that went farther off went another way, and proves nothing
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

    count = len(example) if isinstance(example, tuple) else 0
    for given in batches:
        b = tuple(given) if isinstance(given, list) and not isinstance(example, list) else given
        if like(b):
            yield Call.of(b), None
        elif isinstance(b, (tuple, list)) and len(b) and like(b[0]):
            yield Call.of(b[0]), b[1] if len(b) > 1 else None
        elif count and isinstance(b, tuple) and len(b) == count + 1 and like(b[:count]):
            yield Call.of(b[:count]), b[count]
        else:
            what = "a tensor" if isinstance(example, Tensor) else f"made like the example ({type(example).__name__})"
            inner = b[0] if isinstance(b, tuple) and b else b
            raise InputError(f"verify: a batch is {what} or a pair, got {type(inner).__name__}", code="verify-batch")


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
        raise InputError(
            "verify: no image to verify on: the batches are empty, or a generator that was used up. Give batches, "
            "verify=True for the example, or verify=False",
            code="verify-empty",
        )
    return proof


class _Work:
    def __init__(self, model: nn.Module, packed: nn.Module, call: Call, proof: Proof) -> None:
        self.trained, self.proof = Trained(as_float(model, call)), proof
        layers = self.trained.layers
        if isinstance(packed, PackedModel):
            checks = checks_of_graph(layers, packed.graph, packed.backend)
            self.side: Side = GraphSide(self.trained.model, packed, checks)
        else:
            packed = as_float(packed, call)
            self.side = LayerSide(packed, checks_of_layers(layers, packed_layers(packed)))
        self.rates: dict[str, float] = {}
        self.measured = 0

    def step(self, call: Call, target: Any) -> None:
        want, told = self.trained.run(call), self.trained.inputs
        exact = self._compare_layers(told, self.trained.outputs)
        got, inputs = self.side.run(call, self.proof.inexact)
        if self.measured < MEASURED:
            self._measure(call, want, told, exact)
        self._compare_told(call, want, told, self.proof.images)
        self._compare_answers(want, _named(got, want), target, told, inputs, call.images)

    def _compare_layers(self, inputs: Inputs, outputs: Inputs) -> Inputs:
        """(a); returns the outputs of the coding layers without rounding, in float64."""
        proof, exact = self.proof, {}
        for name, calls in inputs.items():
            check, values = self.side.checks.get(name), exact.setdefault(name, [])
            for x, y in zip(calls, outputs[name], strict=True):
                if check is not None:
                    proof.layers.add(name)
                if check is None or bool(x.isnan().any()):  # NaN has no code: the answer is NaN
                    values.append(y.double())
                    continue
                want, value = check.trained(x)
                same = all(torch.equal(a.double(), b.double()) for a, b in zip(want, check.integers(x), strict=True))
                if not same and name not in proof.inexact:
                    proof.inexact.append(name)
                values.append(value.reshape(y.shape))
                off = _largest(values[-1].float() - y)
                proof.layer_difference[name] = max(off, proof.layer_difference.get(name, 0.0))
        return exact

    def _measure(self, call: Call, want: Outputs, told: Inputs, exact: Inputs) -> None:
        """Relative bounds from what float32 did to the trained net's own values."""
        outputs, inputs = self.trained.in_double(call, exact) or ({}, {})
        self.measured += call.images
        pairs: list[tuple[str, Tensor, Tensor | None]] = [(f"output{k}", y, outputs.get(k)) for k, y in want.items()]
        for name, calls in told.items():
            others: list[Any] = inputs.get(name) or [None] * len(calls)
            pairs += [(name, x, other) for x, other in zip(calls, others, strict=False)]
        for name, value, other in pairs:
            rate, size = UNMEASURED, _largest(value)
            if not value.is_floating_point():
                continue
            if other is not None and other.shape == value.shape:
                rate = min(MOST, LEAST + (SLACK * _largest(other - value.double()) / size if size else 0.0))
            self.rates[name] = max(rate, self.rates.get(name, 0.0))

    def _compare_told(self, call: Call, want: Outputs, told: Inputs, start: int) -> None:
        """(c)"""
        outputs, inputs = self.side.told(call, told)
        outputs = _named(outputs, want)
        for name, calls in told.items():
            for expected, got in zip(calls, inputs.get(name, []), strict=False):
                if got.shape == expected.shape:
                    self._near(name, as_pixels(expected), got.float(), start)
        for key, expected in want.items():
            got, where = outputs.get(key), f"output{key}"
            if got is None or got.shape != expected.shape:
                self._judge(where, torch.full((1,), torch.inf), 0.0, start)
            elif expected.is_floating_point():
                bound, proof = self._bound(where, expected, expected), self._output(key, expected)
                self._judge(where, difference(expected, got), bound, start)
                proof.bound = max(proof.bound, bound)

    def _bound(self, name: str, expected: Tensor, got: Tensor) -> float:
        return self.rates.get(name, UNMEASURED) * max(_largest(expected), _largest(got), 1e-30)

    def _near(self, name: str, expected: Tensor, got: Tensor, start: int) -> None:
        """An input of a coding layer: the trained one within the bound, or with its codes up to a threshold within it."""
        bound, layer = self._bound(name, expected, got), self.trained.layers[name]
        off = torch.where(expected.isnan(), 0.0, difference(expected, got))  # then the answer is NaN, and judged there
        if bool((off > bound).any()) and not self.side.strict and encodes(layer):
            low, high = levels_of(layer, got - bound), levels_of(layer, got + bound)
            low, high = torch.minimum(low, high), torch.maximum(low, high)
            level = levels_of(layer, expected)
            off = torch.where((low <= level) & (level <= high), 0.0, off)
        self._judge(f"input of {name or 'the layer'}", off, bound, start)

    def _judge(self, where: str, off: Tensor, bound: float, start: int) -> None:
        """Notes a difference beyond its bound: the first image, and the largest one seen."""
        wrong = off > bound
        if not bool(wrong.any()):
            return
        image = int(wrong.reshape(off.shape[0], -1).any(1).nonzero()[0]) if off.dim() else 0
        found = next((b for b in self.proof.beyond if b.where == where), None)
        if found is None:
            self.proof.beyond.append(found := Beyond(where, 0.0, 0.0, start + image))
        if float(off.max()) > found.difference:
            found.difference, found.bound = float(off.max()), bound

    def _output(self, key: str, value: Tensor) -> OutputProof:
        kind = "classes" if value.dim() == 2 and value.shape[1] > 1 and value.is_floating_point() else "values"
        return self.proof.outputs.setdefault(key, OutputProof(key, kind))

    def _compare_answers(
        self, want: Outputs, got: Outputs, target: Any, told: Inputs, inputs: Inputs, images: int
    ) -> None:
        """(d)"""
        proof = self.proof
        same = torch.ones(images, dtype=torch.bool)
        first: dict[int, tuple[str, int, int, float]] = {}
        for key, expected in want.items():
            found, output = got.get(key), self._output(key, expected)
            if found is None or found.shape != expected.shape:
                continue  # named by (c)
            off = _largest(difference(expected, found))
            output.largest, proof.largest = max(output.largest, off), max(proof.largest, off)
            alike, wanted, given = same_answer(expected, found, output.kind)
            if len(alike) != images:  # no answer for each image: one for the whole batch
                alike = alike.all().expand(images)
                wanted = given = torch.full((images,), -1)
            output.images += images
            output.same += int(alike.sum())
            if output.kind == "classes":
                output.count(wanted, target)
            for i in (~alike).nonzero().flatten().tolist():
                margin = _margin(expected, i) if len(expected) == images else 0.0
                first.setdefault(i, (key, int(wanted[i]), int(given[i]), margin))
            same &= alike
        for i, (key, wanted, given, margin) in sorted(first.items()):
            layer = self._first_difference(told, inputs, i, images)
            proof.disagreements.append(Disagreement(proof.images + i, wanted, given, margin, layer, key))
        proof.images += images
        proof.same += int(same.sum())

    def _first_difference(self, told: Inputs, inputs: Inputs, image: int, images: int) -> str:
        """The first layer, in execution order, whose input codes differ between the trained and the packed net.

        Both from the runs of the whole batch: a batch of one may round otherwise, in the float layers of either net.
        """
        for name, calls in told.items():
            layer = self.trained.layers[name]
            if not encodes(layer):
                continue
            for a, b in zip(calls, inputs.get(name, []), strict=False):
                a, b = as_pixels(a), as_pixels(b)
                if a.shape == b.shape and len(a) == images:
                    a, b = a[image : image + 1], b[image : image + 1]
                    if not torch.equal(levels_of(layer, a), levels_of(layer, b)):
                        return name
        return ""


def _named(got: Outputs, want: Outputs) -> Outputs:
    """By the places of the trained net's: a graph gives a tuple where that has names for its fields."""
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
