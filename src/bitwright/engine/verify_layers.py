"""Is a packed layer the trained one? Its integers, given the trained layer's own input, and the value they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine import native, reference, run_native, run_reference
from bitwright.engine.fuse import formats
from bitwright.engine.graph import Graph, Node, view
from bitwright.engine.integers import weight_terms
from bitwright.engine.packed_layer import PackedLayer
from bitwright.engine.rules import CODED
from bitwright.nn import SlotLayer
from bitwright.parts import moment
from bitwright.transforms.call import as_pixels
from bitwright.transforms.geometry import crop_of
from bitwright.types import Coded


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
            return [out(plan.run(codes, native.KernelOutput())) for plan in self.plans]
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


def checks_of_graph(layers: dict[str, SlotLayer], folded: Graph, backend: str) -> dict[str, LayerCheck]:
    """One check per coded layer of a graph; a layer that is called several times has one."""
    graph = folded.copy()
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
        found[node.owner] = LayerCheck(layers[node.owner], graph, before, node, backend)
    return found


def checks_of_layers(layers: dict[str, SlotLayer], packed: dict[str, PackedLayer]) -> dict[str, LayerCheck]:
    """The same for packed layers inside a user's module."""
    found = {n: checks_of_graph({"layer": layers[n]}, p.packed.graph, p.packed.backend) for n, p in packed.items()}
    return {name: checks["layer"] for name, checks in found.items() if checks}


def code_of(part: nn.Module | None, x: Tensor) -> Coded:
    encode = moment(part, "encode")
    assert encode is not None
    return encode(x)


def levels_of(layer: SlotLayer, x: Tensor) -> Tensor:
    """The value that stands for each input: what the layer computes with."""
    return code_of(layer.x, x).value().expand(x.shape)


def plain_codes(value: Tensor, node: Node, groups: int) -> Tensor:
    """Codes of any backend as int64, in the order of the value's own axes [N, C, H, W] or [N, C]."""
    if value.dtype == torch.int64:
        return value
    codes = value if value.dtype == torch.uint8 else native.unpack_codes(value, node.channels, groups)
    return (codes if node.last else codes.permute(0, 3, 1, 2)).long()


def encodes(layer: nn.Module) -> bool:
    """Whether a slot layer's input becomes codes."""
    return moment(getattr(layer, "x", None), "encode") is not None
