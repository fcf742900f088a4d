"""The folded graph with its codes and weights between QuantizeLinear and DequantizeLinear, as other programs' int8 kernels want it.

A quantizer whose steps are even becomes QuantizeLinear (behind a clip where its codes are fewer than 256), any other one compares,
and its codes, as uint8, are read by DequantizeLinear; weights are int8 with a scale per output channel. The values are the net's,
but sums are rounded by whoever runs the file, so a code may fall on the other side of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.onnx.ops import symbolic

from bitwright.engine import reference
from bitwright.engine.graph import Graph, Node
from bitwright.engine.rules import CODED, CODED_SPLITS
from bitwright.engine.thresholds import even_grid
from bitwright.errors import InputError
from bitwright.export.net import FusedNet, Values

BYTE, OPSET = 255, 18


class QdqNet(FusedNet):
    """Runs the folded graph inside `torch.onnx.export`; the value of a quantizer is the number that its code stands for, in steps.

    Errors: `InputError` where a net has no such form: no codes, or codes or weights that do not fit 8 bits.
    """

    def __init__(self, graph: Graph) -> None:
        if not any(n.op in CODED for n in graph.nodes):
            text = "export onnx: no QDQ form: no layer of this net computes with codes. Possible: standard operators (packed=False; --standard on the command line)"
            raise InputError(text, code="export-form")
        super().__init__(graph)

    def _step(self, node: Node) -> Callable[[Values], None]:
        if node.op == "quantize":
            return self._quantizer(node)
        if node.op in CODED:
            return self._layer(node)
        if node.op in CODED_SPLITS:
            raise _none(node, "its gate compares a partial sum, which int8 kernels do not give", "")
        if node.op == "decode":
            name, source, unit = node.name, node.inputs[0], float(node.attrs["unit"])
            return lambda values: values.__setitem__(name, values[source] * unit)
        return super()._step(node)

    def _quantizer(self, node: Node) -> Callable[[Values], None]:
        a, name, source = node.attrs, node.name, node.inputs[0]
        mult, zeros, levels = int(a["mult"]), [int(z) for z in a["zero"]], int(a["levels"])
        if len(zeros) > 1 or not 0 <= -zeros[0] <= BYTE or mult * levels > BYTE:
            raise _none(node, f"its {levels + 1} codes stand for {zeros[0]} to {zeros[0] + mult * levels}")
        table, flip = self.graph.need(node, "thresholds"), self.graph.tensor(node, "flip")
        grid = even_grid(table) if flip is None and table.dim() == 1 and mult == 1 else None
        read = [self.keep(node, "one", 1.0, torch.float32), self.keep(node, "zero", -zeros[0], torch.uint8)]
        if grid is None or grid.kind == "step" or not 0 <= grid.base <= BYTE:
            compare = self._plain(node)

            def compared(values: Values) -> None:
                compare(values)
                values[name] = self._numbers((values[name] * mult).to(torch.uint8), read)

            return compared
        step = grid.value if grid.kind == "divide" else 1.0 / grid.value
        low, high, clipped = (
            (grid.low - grid.base) * step,
            (grid.high - grid.base) * step,
            (grid.low, grid.high) != (0, BYTE),
        )
        write = [self.keep(node, "step", step, torch.float32), self.keep(node, "base", grid.base, torch.uint8)]

        def rounded(values: Values) -> None:
            x = values[source].clamp(low, high) if clipped else values[source]
            given = [x, *map(self.get_buffer, write)]
            codes = symbolic("QuantizeLinear", given, dtype=torch.uint8, shape=list(x.shape), version=OPSET)
            values[name] = self._numbers(codes, read)

        return rounded

    def _numbers(self, codes: Tensor, constants: list[str], axis: int | None = None) -> Tensor:
        attrs: dict[str, Any] = {} if axis is None else {"axis": axis}
        given = [codes, *map(self.get_buffer, constants)]
        return symbolic("DequantizeLinear", given, attrs, dtype=torch.float32, shape=list(codes.shape), version=OPSET)

    def _layer(self, node: Node) -> Callable[[Values], None]:
        a, name, source = node.attrs, node.name, node.inputs[0]
        scale, offset = self.graph.need(node, "scale"), self.graph.need(node, "add")
        add = self.keep(node, "add", offset, torch.float32)
        terms: list[tuple[str, list[str]]] = []
        for i, whole in enumerate(reference.weight_integers(self.graph, node)):
            if int(whole.min()) < -128 or int(whole.max()) > 127:
                raise _none(node, f"its weights are {int(whole.min())} to {int(whole.max())}")
            empty = scale[i] == 0
            whole = torch.where(empty.reshape(-1, *[1] * (whole.dim() - 1)), 0, whole)
            zero = self.keep(node, f"none{i}", torch.zeros(len(whole)), torch.int8)
            unit = self.keep(node, f"scale{i}", torch.where(empty, _any_scale(offset), scale[i]), torch.float32)
            terms.append((self.keep(node, f"weight{i}", whole, torch.int8), [unit, zero]))

        def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if node.op == "coded_linear":
                return F.linear(x, weight, bias)
            conv: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[int(a["rank"])]
            return conv(x, weight, bias, a["stride"], a["padding"], a["dilation"], int(a["groups"]))

        def run(values: Values) -> None:
            total: Any = None
            for weight, constants in reversed(terms):
                first = weight == terms[0][0]
                numbers = self._numbers(self.get_buffer(weight), constants, axis=0)
                y = layer(values[source], numbers, self.get_buffer(add) if first else None)
                total = y if total is None else y + total
            values[name] = total

        return run


def _any_scale(add: Tensor) -> Tensor:
    """For outputs whose weights are all 0: programs divide the constant of an output by the scale of its weights, and round it to 32 bits."""
    return torch.where(add == 0, 1.0, add.abs() * 2.0**-24)


def _none(node: Node, why: str, beyond: str = ", beyond 8 bits") -> InputError:
    layer = (node.owner or node.name).removesuffix(".x")
    text = f"export onnx: no QDQ form: {layer}: {why}{beyond}. Possible: the form with our operators"
    return InputError(text, code="export-form", layer=layer)
