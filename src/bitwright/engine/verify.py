"""Proof that the packed net is the trained net: codes and integers of every layer, then the answers of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine import native, reference, run_native, run_reference
from bitwright.engine.fuse import _formats
from bitwright.engine.graph import Graph, Node
from bitwright.engine.integers import term_integers, weight_terms
from bitwright.engine.packed import PackedModel
from bitwright.engine.packing import crop_of
from bitwright.engine.report import Disagreement
from bitwright.errors import InputError
from bitwright.nn import SlotLayer, is_slot_layer
from bitwright.parts import moment

CODED = ("coded_conv", "coded_linear")
ANSWER = "/"  # no module has this name; "" is the model itself


@dataclass
class Proof:
    """What was seen. `inexact` names layers whose integers or codes differ from the trained layer's: must be empty."""

    images: int = 0
    same: int = 0
    same_folded: int = 0
    largest: float = 0.0
    layers: set[str] = field(default_factory=set)
    inexact: list[str] = field(default_factory=list)
    layer_difference: dict[str, float] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)


def inputs_of(batches: Iterable[object]) -> Iterator[Tensor]:
    """Tensors out of tensors or (input, target) pairs."""
    for b in batches:
        x = b[0] if isinstance(b, (tuple, list)) else b
        if not isinstance(x, Tensor):
            raise InputError(f"verify: a batch is a tensor or a pair, got {type(x).__name__}", code="verify-batch")
        yield x


def verify(model: nn.Module, packed: PackedModel, batches: Iterable[object]) -> Proof:
    """Runs the trained net and the packed net side by side (contract 3.2).

    (a) given the trained layer's own input, packed codes and integers equal those of `encode`, layer by layer
    (b) the fused graph's codes equal those of the folded graph run in plain torch
    (c) the class of every image
    """
    proof = Proof()
    folded = packed.graph
    checks = LayerChecks(model, folded, packed.backend)
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            for x in inputs_of(batches):
                seen = checks.capture(model, x)
                expected = seen.pop(ANSWER)
                values = packed.values(x)
                got = values[packed.output_name]
                checks.compare(seen, proof)
                merged = _compare_codes(packed, folded, x, values, proof)
                proof.same_folded += int(_same_answer(merged[folded.nodes[-1].inputs[0]], got)[0].sum())
                _compare_answers(
                    expected, got, proof, lambda i, s=seen, e=merged: first_difference(folded, checks, s, e, i)
                )
    finally:
        model.train(was)
    return proof


def remember(seen: dict[str, Any], name: str, what: Callable[[Tensor], Any]) -> Callable[..., None]:
    """A forward pre-hook that keeps `what` of the first input under `name`."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if name not in seen:
            seen[name] = what(args[0])

    return hook


class LayerChecks:
    """One small program per coded layer: its own quantizer and its integer product, unfused."""

    def __init__(self, model: nn.Module, folded: Graph, backend: str) -> None:
        self.layers = {n: m for n, m in model.named_modules() if is_slot_layer(m)}
        graph = folded.copy()
        _formats(graph)
        self.graph, self.backend = graph, backend
        self.nodes: dict[str, tuple[list[Node], Node]] = {}
        by_name = graph.by_name()
        for node in graph.nodes:
            if node.op in CODED and node.owner not in self.nodes:
                before: list[Node] = []
                current = by_name[node.inputs[0]]
                while current.owner == f"{node.owner}.x":
                    before.insert(0, current)
                    current = by_name[current.inputs[0]]
                self.nodes[node.owner] = (before, node)
        self._steps = {name: self._program(before, node) for name, (before, node) in self.nodes.items()}

    def _program(self, before: list[Node], node: Node) -> list[object]:
        if self.backend == "native":
            return [*[run_native._step(n, self.graph, 1) for n in before], run_native._conv_plans(node, self.graph)]
        return [run_reference._step(n, self.graph) for n in before]

    def capture(self, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """The first input of each coded layer in a run of the trained net; key ANSWER holds the output."""
        seen: dict[str, Tensor] = {}
        hooks = [self.layers[n].register_forward_pre_hook(remember(seen, n, lambda x: x.detach())) for n in self.nodes]
        try:
            seen[ANSWER] = model(x if x.dtype == torch.uint8 else x.float())
        finally:
            for h in hooks:
                h.remove()
        return seen

    def integers(self, name: str, x: Tensor) -> list[Tensor]:
        """Integer products of the packed layer for the layer's input x, per term."""
        before, node = self.nodes[name]
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        start = before[0].inputs[0] if before else node.inputs[0]
        env = {start: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x}
        if self.backend != "native":
            for step in self._steps[name]:
                step(env)  # type: ignore[operator]
            last = node.op == "coded_linear"
            codes = reference.numbers(env[node.inputs[0]], int(node.attrs["x"]["mult"]), node.attrs["x"]["zero"], last)
            return reference.integer_products(codes, reference.weight_integers(self.graph, node), node)
        *steps, plans = self._steps[name]
        for step in steps:
            step(env)  # type: ignore[operator]
        out = []
        for plan in plans:  # type: ignore[attr-defined]
            y = plan.run(env[node.inputs[0]], native.IntOutput())
            if node.op == "coded_linear":
                y = y.flatten(2).transpose(1, 2).reshape(*x.shape[:-1], -1)
            elif x.dim() == 3:
                y = y.squeeze(2)
            out.append(y)
        return out

    def compare(self, seen: dict[str, Tensor], proof: Proof) -> None:
        for name, x in seen.items():
            layer, (_, node) = self.layers[name], self.nodes[name]
            want = trained_integers(layer, node, x)
            got = self.integers(name, x)
            proof.layers.add(name)
            if any(not torch.equal(a.double(), b.double()) for a, b in zip(want, got, strict=True)):
                if name not in proof.inexact:
                    proof.inexact.append(name)
                continue
            value = trained_scale(layer, node, got)
            plain = layer(x)
            value = value[(..., *(slice(c, None) for c in crop_of(layer)))]  # "same" padding of an even kernel
            diff = float((value - plain).abs().max()) if plain.numel() else 0.0
            proof.layer_difference[name] = max(diff, proof.layer_difference.get(name, 0.0))


def codes_of(layer: SlotLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(bits, coef, offset) of a trained layer's input, straight from its part."""
    assert layer.x is not None
    encode = moment(layer.x, "encode")
    assert encode is not None
    code = encode(x)
    return code.bit, code.coef, code.offset


def trained_integers(layer: SlotLayer, node: Node, x: Tensor) -> list[Tensor]:
    """The integer products that the trained layer's own codes give, by torch's convolution on whole numbers.

    X comes from the part's `encode`, divided by the unit; W likewise. Nothing of the packed file is used but the
    geometry.
    """
    bit, coef, offset = codes_of(layer, x)
    unit = _unit(coef, offset)
    numbers = (offset + (coef * bit).sum(0)).double() / unit
    numbers = numbers.round().expand(x.shape).float()
    w_encode = moment(layer.w, "encode")
    assert w_encode is not None
    w_code = w_encode(layer.slot_weight().detach())
    weights = [term_integers(w_code.bit, term).float() for term in weight_terms(w_code)]
    return reference.integer_products(numbers, weights, node)


def _unit(coef: Tensor, offset: Tensor) -> float:
    """The step of the grid, or half of it where the grid is odd (-1, +1)."""
    step = float(coef.double().abs().min())
    shift = (offset.double() / step).reshape(-1)
    return step if float((shift - shift.round()).abs().max()) < 1e-4 else step / 2


def trained_scale(layer: SlotLayer, node: Node, integers: list[Tensor]) -> Tensor:
    """Integers times the trained scales plus bias: the layer's float output, up to rounding."""
    w_encode = moment(layer.w, "encode")
    assert w_encode is not None
    terms = weight_terms(w_encode(layer.slot_weight().detach()))
    x_unit = float(node.attrs["x"].get("unit", 1.0)) if "unit" in node.attrs["x"] else _x_unit(layer, node)
    last = node.op == "coded_linear"
    total = torch.zeros_like(integers[0], dtype=torch.float64)
    for i, t in zip(integers, terms, strict=True):
        rate = t.unit * x_unit
        total += i.double() * (rate if last else rate.reshape(-1, *[1] * (i.dim() - 2)))
    bias = layer.quantized_bias()
    if bias is not None:
        bias = bias.double()
        total += bias if last else bias.reshape(-1, *[1] * (total.dim() - 2))
    return total.float()


def _x_unit(layer: SlotLayer, node: Node) -> float:
    width = layer.weight.shape[1] * int(getattr(layer, "groups", 1))
    rank = 2 if node.op == "coded_linear" else int(node.attrs["rank"]) + 2
    _, coef, offset = codes_of(layer, torch.zeros(1, width, *[1] * (rank - 2)))
    return _unit(coef, offset)


def plain_codes(value: Tensor, node: Node) -> Tensor:
    """Codes of any backend as int64 in the value's own axes [N, C, H, W] or [N, C]."""
    if value.dtype == torch.int64:
        return value
    if value.dtype == torch.uint8:
        codes = value
    else:
        channels = node.shape[-1] if node.attrs.get("last") or len(node.shape) == 1 else node.shape[0]
        codes = native.unpack(value, int(channels), int(node.attrs.get("groups", 1)))
    if node.attrs.get("last") or len(node.shape) == 1:
        return codes.reshape(codes.shape[0], *node.shape).long()
    out = codes.permute(0, 3, 1, 2).long()
    return out.squeeze(2) if len(node.shape) == 2 else out


def _compare_codes(
    packed: PackedModel, folded: Graph, x: Tensor, values: dict[str, Tensor], proof: Proof
) -> dict[str, Tensor]:
    """Fused thresholds, pooled bits and emitted codes against the folded graph in plain torch, whose values it returns."""
    env = {"input": packed.prepare(x)}
    runtime = {n.name: n for n, _, _ in packed.steps()}
    emitted = {str(n.attrs["extra"]): n for n in runtime.values() if "extra" in n.attrs}
    for node, step in run_reference.build(folded):
        step(env)
        if node.op != "quantize" or node.name not in values:
            continue
        mine = runtime.get(node.name) or emitted.get(node.name)
        if mine is None:
            continue
        # pooling and flattening move behind the quantizer: the shape is the runtime node's
        attrs = {"shape": list(mine.shape), "last": bool(mine.attrs.get("last", False))}
        form = mine.attrs.get("emit") or mine.attrs
        attrs["groups"] = form.get("groups", 1) if node.name in runtime else 1
        got = plain_codes(values[node.name], Node(node.op, node.name, [], attrs))
        if got.numel() != env[node.name].numel() or not torch.equal(got.reshape(-1), env[node.name].reshape(-1)):
            name = node.owner.removesuffix(".x")
            if name not in proof.inexact:
                proof.inexact.append(name)
    return env


def _same_answer(expected: Tensor, got: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(same, expected class, class) per image; without classes: the same up to the rounding of a float head."""
    if expected.dim() == 2 and expected.shape[1] > 1:
        wanted, found = expected.argmax(1), got.argmax(1)
        return wanted == found, wanted, found
    axes = tuple(range(1, expected.dim()))
    scale = expected.abs().amax(axes).clamp_min(1e-6)
    none = torch.zeros(len(expected), dtype=torch.int64)
    return (expected - got).abs().amax(axes) / scale < 1e-3, none, none


def _compare_answers(expected: Tensor, got: Tensor, proof: Proof, first: Callable[[int], str]) -> None:
    proof.largest = max(proof.largest, float((expected - got).abs().max()) if got.numel() else 0.0)
    same, wanted, found = _same_answer(expected, got)
    for i in (~same).nonzero().flatten().tolist():
        top = expected[i].flatten().topk(min(2, expected[i].numel())).values
        margin = float(top[0] - top[-1])
        proof.disagreements.append(Disagreement(proof.images + i, int(wanted[i]), int(found[i]), margin, first(i)))
    proof.images += len(expected)
    proof.same += int(same.sum())


def first_difference(
    folded: Graph, checks: LayerChecks, seen: dict[str, Tensor], env: dict[str, Tensor], image: int
) -> str:
    """The first layer, in execution order, whose input codes differ between the trained and the packed net.

    Both from the runs of the whole batch: a batch of one may round otherwise, in the float layers of either net.
    """
    for node in folded.nodes:
        name = node.owner.removesuffix(".x")
        layer = checks.layers.get(name)
        if node.op != "quantize" or layer is None or name not in seen or layer.x is None:
            continue
        x = seen[name][image : image + 1]
        bit, coef, offset = codes_of(layer, x)
        want = (offset + (coef * bit).sum(0)).double().expand(x.shape)
        code = env[node.name][image : image + 1]
        got = reference.numbers(code, int(node.attrs["mult"]), node.attrs["zero"], bool(node.attrs["last"]))
        if not torch.equal((want / _unit(coef, offset)).round(), got.double()):
            return name
    return ""
