"""Split gates in standard operators: both sums are computed, and the gate selects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine.gates import EXACT, SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.errors import InputError


class PlainSplit(SplitOperator):
    """The operator without a look at any value, as an exporter needs it.

    Errors: `InputError` where whole sums may exceed what float32 holds exactly: a decision could then depend on the machine.
    """

    def __init__(self, node: Node, graph: Graph) -> None:
        super().__init__(node, graph)
        if self.whole:
            ends = [abs(z + e) for z in self.x_info["zero"] for e in (0, self.x_info["mult"] * self.x_info["levels"])]
            most = float(self.weight.abs().double().flatten(1).sum(1).max()) * max(ends)
            if most >= EXACT:
                text = f"export onnx: {node.owner or node.name} ({node.op}): its sums of whole numbers reach {most:.1e}, and "
                text += f"float32, in which onnxruntime adds them, is exact below {EXACT:.1e}. Fewer bits, or fewer channels, fit"
                raise InputError(text, code="export-operator", layer=node.owner)

    def numbers(self, x: Tensor) -> Tensor:
        if x.dtype is torch.uint8 and x.dim() == 4:  # codes as layers with bits read them, [N, H, W, C]
            x = x.permute(0, 3, 1, 2)
        return super().numbers(x)

    def _product(self, x: Tensor, w: Tensor, groups: int | None = None) -> Tensor:
        a = self.attrs
        if not a["rank"]:
            return F.linear(x, w)
        conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[int(a["rank"])]
        return conv(x, w, None, a["stride"], a["padding"], a["dilation"], groups or self.groups)
