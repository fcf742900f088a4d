"""The graph that runs, as a module for torch's exporter: layers with bits become operators of the domain `bitwright`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from bitwright.engine import reference
from bitwright.engine.fuse_floats import float_kernels
from bitwright.engine.fuse_pools import pool_inside
from bitwright.engine.fuse_shortcuts import subsample_at_once
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import function
from bitwright.engine.rules import CODED, CODED_SPLITS, SPLITS
from bitwright.engine.thresholds import even_grid
from bitwright.export import coded
from bitwright.export.gates import PlainSplit
from bitwright.export.images import pool_floats, pool_window, subsample

Values = dict[str, Tensor]


class FusedNet(nn.Module):
    """Runs the fused graph inside `torch.onnx.export`, and nowhere else.

    Floats keep torch's order of axes; codes are uint8 [N, H, W, C], as the functions of the file have them.

    kernels  whether float layers become operators of ours too, where these pay
    """

    def __init__(self, graph: Graph, kernels: bool = False) -> None:
        super().__init__()
        self.graph = graph = subsample_at_once(pool_inside(float_kernels(graph) if kernels else graph))
        self.sources = graph.inputs()
        self.outputs = list(graph.nodes[-1].inputs)
        self.steps: list[Callable[[Values], None]] = []
        self.used: set[str] = {"Guard"}
        self.channels_last: Values = {}  # floats as layers with bits write them, [N, H, W, C], beside torch's order
        self.rows: dict[str, Any] = {}  # the axes in front of the last, of what a quantizer of a linear layer reads
        for node in graph.nodes:
            if node.op not in ("input", "output", "emitted"):
                self.steps.append(self._step(node))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = {node.name: x for node, x in zip(self.sources, inputs, strict=True)}
        self.channels_last.clear()
        broken = [
            symbolic("bitwright::Guard", [x], dtype=torch.float32, shape=[x.shape[0]], version=1)
            for x in inputs if x.is_floating_point()
        ]  # fmt: skip
        for step in self.steps:
            step(values)
        found = [values[name] for name in self.outputs]
        for mark in broken:
            found = [y + mark.reshape(-1, *[1] * (y.dim() - 1)) if y.is_floating_point() else y for y in found]
        return tuple(found)

    # operators of ours
    def call(self, op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], *out: tuple[Any, Sequence[Any]]) -> Any:
        self.used.add(op)
        dtypes, shapes = [d for d, _ in out], [list(s) for _, s in out]
        if len(out) == 1:
            return symbolic(f"bitwright::{op}", inputs, attrs, dtype=dtypes[0], shape=shapes[0], version=1)
        return symbolic_multi_out(f"bitwright::{op}", inputs, attrs, dtypes=dtypes, shapes=shapes, version=1)

    def keep(self, node: Node, role: str, value: Any, dtype: torch.dtype) -> str:
        """A constant of a node: a buffer, so that it becomes an initializer of the file."""
        name = f"{node.name}_{role}".replace(".", "_")
        self.register_buffer(name, torch.as_tensor(value).to(dtype).contiguous())
        return name

    def _step(self, node: Node) -> Callable[[Values], None]:
        if node.op == "quantize":
            for_gates = all(reader.op in CODED_SPLITS for reader in self.graph.users()[node.name])
            return self._plain(node) if node.attrs["form"] == "plain" or for_gates else coded.pack(self, node)
        if node.op == "max_pool_codes":
            return coded.pool(self, node)
        if node.op in CODED:
            return coded.coded(self, node)
        if node.op == "subsample":
            return subsample(self, node)
        if node.op == "float_conv":
            return coded.float_conv(self, node, self._weight(node))
        if (window := pool_window(node)) is not None:
            return pool_floats(self, node, *window, function(node, self.graph))
        if node.op == "decode":
            x = node.attrs.get("x") or self.graph.node(node.inputs[0]).attrs
            last, unit = bool(self.graph.node(node.inputs[0]).attrs["last"]), float(node.attrs["unit"])
            mult, zero = int(x["mult"]), [int(z) for z in x["zero"]]

            def decoded(code: Tensor) -> Tensor:
                return reference.numbers(code, mult, zero, last) * unit

            f = decoded

        elif node.op in SPLITS:
            f = PlainSplit(node, self.graph)
        elif node.op in ("conv", "conv_transpose", "linear"):
            f = self._float_layer(node)
        elif node.op == "adaptive_avg_pool" and set(node.attrs["size"]) == {1}:
            axes = list(range(-int(node.attrs["rank"]), 0))  # torch's exporter would write five nodes

            def averaged(x: Tensor) -> Tensor:
                return x.double().mean(axes, keepdim=True).to(x.dtype)

            if len(axes) == 2:
                return pool_floats(self, node, "MeanFloats", {}, averaged)
            f = averaged

        else:
            f = function(node, self.graph)
        name, inputs = node.name, list(node.inputs)
        if node.op in ("add", "relu") and len(node.shape) == 3:
            return functools.partial(self._elementwise, name, inputs, f)
        if node.op == "flatten" and list(self.graph.node(inputs[0]).shape[1:]) == [1, 1]:
            return functools.partial(self._flatten, name, inputs[0], f)
        return lambda values: values.__setitem__(name, f(*[values[i] for i in inputs]))

    def _elementwise(self, name: str, inputs: list[str], f: Callable[..., Tensor], values: Values) -> None:
        """The order of axes that layers with bits write is kept, where all inputs have it."""
        found = [self.channels_last[i] for i in inputs if i in self.channels_last]
        if len(found) < len(inputs) or any(x.shape != found[0].shape for x in found):
            values[name] = f(*[values[i] for i in inputs])
            return
        self.channels_last[name] = y = f(*found)
        values[name] = y.permute(0, 3, 1, 2)

    def _flatten(self, name: str, source: str, f: Callable[..., Tensor], values: Values) -> None:
        """Images of one pixel are rows already."""
        values[name] = f(values[source])
        if source in self.channels_last:
            self.channels_last[name] = self.channels_last[source]

    def _plain(self, node: Node) -> Callable[[Values], None]:
        """Codes that torch's own operators read: int64, in torch's order of axes."""
        table, flip = self.graph.need(node, "thresholds"), self.graph.tensor(node, "flip")
        name, source, last = node.name, node.inputs[0], bool(node.attrs["last"])
        grid = None if flip is not None else even_grid(table)
        levels = int(node.attrs["levels"])

        def run(values: Values) -> None:
            x = values[source]
            if grid is not None:
                values[name] = grid.codes(x)
                return
            rows = (
                table if table.dim() == 1 or last or x.dim() == 2 else table.reshape(-1, *[1] * (x.dim() - 2), levels)
            )
            code = (x.unsqueeze(-1) >= rows).sum(-1)
            if flip is not None:
                turned = flip.bool() if last or x.dim() == 2 else flip.bool().reshape(-1, *[1] * (x.dim() - 2))
                code = torch.where(turned, levels - code, code)
            values[name] = torch.where(x.isnan(), 0, code)

        return run

    def _weight(self, node: Node) -> Callable[[], Tensor]:
        if node.key("bits") is not None:
            return coded.expanded(self, node)
        kept = self.keep(node, "weight", self.graph.need(node, "weight"), torch.float32)
        return functools.partial(self.get_buffer, kept)

    def _float_layer(self, node: Node) -> Callable[..., Tensor]:
        """torch's own operator; a weight that is stored as bits stays bits in the file."""
        a = node.attrs
        bias, weight = self.graph.tensor(node, "bias"), self._weight(node)
        if node.op == "linear":
            return lambda x: F.linear(x, weight(), bias)
        rank, place = len(a["stride"]), (a["stride"], a["padding"])
        if node.op == "conv_transpose":
            up: Callable[..., Tensor] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
            return lambda x: up(x, weight(), bias, *place, a["output_padding"], int(a["groups"]), a["dilation"])
        conv: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
        return lambda x: conv(x, weight(), bias, *place, a["dilation"], int(a["groups"]))
