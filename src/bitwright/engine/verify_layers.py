"""Is a packed layer the trained one? Its integers, given the trained layer's own input, and the value they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine import native, reference, run_native, run_reference
from bitwright.engine.fuse import _formats
from bitwright.engine.graph import Graph, Node
from bitwright.engine.integers import term_integers, weight_terms
from bitwright.engine.packed_layer import PackedLayer
from bitwright.engine.packing import crop_of
from bitwright.engine.prepare import as_pixels
from bitwright.nn import SlotLayer
from bitwright.parts import moment

CODED = ("coded_conv", "coded_linear")


class LayerCheck:
    """One small program: a coded layer's own quantizer and its integer product, unfused.

    graph  with the formats that `fuse` gives     before  the nodes of its input part
    """

    def __init__(self, layer: SlotLayer, graph: Graph, before: list[Node], node: Node, backend: str) -> None:
        self.layer, self.graph, self.before, self.node, self.backend = layer, graph, before, node, backend
        if backend == "native":
            steps: Any = [run_native._step(n, graph, 1) for n in before]
            self.plans: Any = run_native._conv_plans(node, graph)
        else:
            steps = [run_reference._step(n, graph) for n in before]
        self.steps = steps

    def shaped(self, x: Tensor) -> Tensor:
        """A float batch, as pixels are read; one sample without a batch axis becomes a batch of one.

        A packed layer of its own computes a Linear layer row by row, whatever axes the rows stand in.
        """
        x = as_pixels(x).float()
        if self.node.op == "coded_linear" and len(self.node.shape) == 1:
            return x.reshape(-1, x.shape[-1])
        rank = 2 if self.node.op == "coded_linear" else int(self.node.attrs["rank"]) + 2
        return x[None] if x.dim() == rank - 1 else x

    def integers(self, x: Tensor) -> list[Tensor]:
        """Integer products of the packed layer for the layer's input x, per term."""
        node = self.node
        x = self.shaped(x)
        start = self.before[0].inputs[0] if self.before else node.inputs[0]
        env = {start: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()}
        for step in self.steps:
            step(env)
        if self.backend != "native":
            last = node.op == "coded_linear"
            codes = reference.numbers(env[node.inputs[0]], int(node.attrs["x"]["mult"]), node.attrs["x"]["zero"], last)
            return reference.integer_products(codes, reference.weight_integers(self.graph, node), node)
        out = []
        for plan in self.plans:
            y = plan.run(env[node.inputs[0]], native.IntOutput())
            if node.op == "coded_linear":
                y = y.flatten(2).transpose(1, 2).reshape(*x.shape[:-1], -1)
            elif x.dim() == 3:
                y = y.squeeze(2)
            out.append(y)
        return out

    def trained(self, x: Tensor) -> list[Tensor]:
        """The integer products that the trained layer's own codes give, by torch's convolution on whole numbers.

        X comes from the part's `encode`, divided by the unit; W likewise. Nothing of the packed file is used but the
        geometry.
        """
        x = self.shaped(x)
        bit, coef, offset = codes_of(self.layer, x)
        numbers = (offset + (coef * bit).sum(0)).double() / _unit(coef, offset)
        weights = [term_integers(self._weight().bit, term).float() for term in weight_terms(self._weight())]
        return reference.integer_products(numbers.round().expand(x.shape).float(), weights, self.node)

    def _weight(self) -> Any:
        encode = moment(self.layer.w, "encode")
        assert encode is not None
        return encode(self.layer.slot_weight().detach())

    def value(self, integers: list[Tensor]) -> Tensor:
        """Integers times the trained scales plus bias, in float64: the layer's output before any rounding."""
        node, last = self.node, self.node.op == "coded_linear"
        unit = float(node.attrs["x"]["unit"]) if "unit" in node.attrs["x"] else self._x_unit()
        total = torch.zeros_like(integers[0], dtype=torch.float64)
        for i, t in zip(integers, weight_terms(self._weight()), strict=True):
            rate = t.unit * unit
            total += i.double() * (rate if last else rate.reshape(-1, *[1] * (i.dim() - 2)))
        bias = self.layer.quantized_bias()
        if bias is not None:
            bias = bias.detach().double()
            total += bias if last else bias.reshape(-1, *[1] * (total.dim() - 2))
        return total[(..., *(slice(c, None) for c in crop_of(self.layer)))]  # "same" padding of an even kernel

    def _x_unit(self) -> float:
        width = self.layer.weight.shape[1] * int(getattr(self.layer, "groups", 1))
        rank = 2 if self.node.op == "coded_linear" else int(self.node.attrs["rank"]) + 2
        _, coef, offset = codes_of(self.layer, torch.zeros(1, width, *[1] * (rank - 2)))
        return _unit(coef, offset)


def checks_of_graph(layers: dict[str, SlotLayer], folded: Graph, backend: str) -> dict[str, LayerCheck]:
    """One check per coded layer of a graph; a layer that is called several times has one."""
    graph = folded.copy()
    _formats(graph)
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
        found[node.owner] = LayerCheck(layers[node.owner], graph, before, node, backend)
    return found


def checks_of_layers(layers: dict[str, SlotLayer], packed: dict[str, PackedLayer]) -> dict[str, LayerCheck]:
    """The same for packed layers inside a user's module."""
    found: dict[str, LayerCheck] = {}
    for name, layer in packed.items():
        for check in checks_of_graph({"layer": layers[name]}, layer.packed.graph, layer.packed.backend).values():
            found[name] = check
    return found


def codes_of(layer: SlotLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(bits, coef, offset) of a trained layer's input, straight from its part."""
    encode = moment(layer.x, "encode")
    assert encode is not None
    code = encode(x)
    return code.bit, code.coef, code.offset


def levels_of(layer: SlotLayer, x: Tensor) -> Tensor:
    """The value that stands for each input: what the layer computes with."""
    bit, coef, offset = codes_of(layer, x)
    return (offset + (coef * bit).sum(0)).expand(x.shape)


def _unit(coef: Tensor, offset: Tensor) -> float:
    """The step of the grid, or half of it where the grid is odd (-1, +1)."""
    step = float(coef.double().abs().min())
    shift = (offset.double() / step).reshape(-1)
    return step if float((shift - shift.round()).abs().max()) < 1e-4 else step / 2


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


def encodes(layer: nn.Module) -> bool:
    """Whether a slot layer's input becomes codes."""
    return moment(getattr(layer, "x", None), "encode") is not None
