"""Linear layers with float inputs whose weights are mostly zero: the product of the others alone (csrc/connections.h).

Same products as the dense layer, added in another order.
"""

from __future__ import annotations

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.forms import listed, zeros_skipped
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_library import ConnectionsStruct, available, check_code, isa, library
from bitwright.engine.operators import bounds
from bitwright.engine.rules import Function

# At most one weight in SHARE is not zero, of at least LEAST weights; up to FEW rows at most one in FEW_SHARE: bench/sparsity_masks.py
SHARE, LEAST = 5, 1 << 16
FEW, FEW_SHARE = 2, 8
# of codes, where such a list was measured against the dense kernels: from so many rows on; share where two products pass 16 bits, else
CODED_ROWS, CODED_SHARES, CODED_ISAS = 16, (5, 16), ("avx2",)
SMALL = 1 << 18  # products below which a second thread does not pay
TANH = "tanh.default"


def on_connections(node: Node, graph: Graph) -> bool:
    """Whether so few weights of a linear layer count that their list is faster than the dense product.

    A small layer only behind another such layer: there it saves a step of its own, and the order of sums is the list's anyway.
    """
    if node.op != "linear" or len(node.shape) != 1 or not (zeros_skipped() and available()):
        return False
    weight = reference.stored_weight(graph, node)
    if int((weight != 0).sum()) * SHARE > weight.numel():
        return False
    if weight.numel() >= LEAST:
        return True
    source = graph.node(node.inputs[0])
    while source.op == "affine" or is_tanh(source):
        source = graph.node(source.inputs[0])
    return source.op == "connections" or on_connections(source, graph)


def is_tanh(node: Node) -> bool:
    return node.op == "aten" and node.attrs["call"] == TANH and len(node.shape) == 1


def finite_input(node: Node, largest: dict[str, float]) -> bool:
    """0 times an infinite number is NaN: such zeros count. largest: `bounds` of the graph."""
    return largest[node.inputs[0]] < math.inf


def runs_on_connections(node: Node, graph: Graph, limit: float) -> bool:
    """limit: of an input of the net."""
    return on_connections(node, graph) and finite_input(node, bounds(graph, limit))


def sparse_linear(node: Node, graph: Graph, threads: int | None) -> tuple[WeightList, Function | None]:
    """Of a node `connections`: the layer, and where its list is slower than the dense product for few rows a function that chooses."""
    weight, bias = reference.stored_weight(graph, node), graph.tensor(node, "bias")
    if (scale := graph.tensor(node, "in_scale")) is not None:
        weight, bias = joined_weights(weight, bias, scale, graph.need(node, "in_add"))
    tanh, after = int(node.attrs["tanh"]), (graph.tensor(node, "out_scale"), graph.tensor(node, "out_add"))
    layer = WeightList(weight, bias, *after, tanh=tanh)
    if layer.count * FEW_SHARE <= weight.numel():
        return layer, None

    def run(x: Tensor) -> Tensor:
        if len(x) > FEW:
            return layer.run(x, threads or torch.get_num_threads())
        y = F.linear(x.tanh() if tanh & INPUTS else x, weight, bias)
        y = y.tanh_() if tanh & SUMS else y
        return y if after[0] is None or after[1] is None else y * after[0] + after[1]

    return layer, run


def coded_list(node: Node, graph: Graph) -> WeightList | None:
    """The list of a linear layer that reads codes as bytes, where it pays from CODED_ROWS rows on: floats add whole numbers exactly
    while all sums stay below 2^24."""
    a = node.attrs
    if (
        node.op != "coded_linear"
        or a["x_form"] != "bytes"
        or not (zeros_skipped() and available() and isa() in CODED_ISAS)
    ):
        return None
    weights = reference.weight_integers(graph, node)
    if len(weights) != 1 or listed(node, graph) or weights[0].numel() < LEAST:
        return None
    weight, levels = weights[0].double() * int(a["x"]["mult"]), int(a["x"]["levels"])
    wide = 2 * float(weight.abs().max()) * levels > 32767  # the dense kernels take twice as long
    few = int((weight != 0).sum()) * CODED_SHARES[not wide] <= weight.numel()
    return WeightList(weight, None) if few and float(weight.abs().sum(1).max()) * levels < 1 << 24 else None


def joined_weights(weight: Tensor, bias: Tensor | None, scale: Tensor, add: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that reads x where it read x * scale + add."""
    shift = weight.double() @ add.double()
    return (weight.double() * scale.double()).float(), (shift if bias is None else bias.double() + shift).float()


INPUTS, SUMS = 1, 2  # of what the tanh is taken


class WeightList:
    """y [N, O] = x [N, K] @ weight.T + bias, on the weights [O, K] that are not 0; then y * scale + add.

    tanh  of what it is taken, INPUTS, SUMS or both; 0: of nothing

    >>> WeightList(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([0.5, 0.0])).run(torch.tensor([[3.0, 4.0]]))
    tensor([[8.5000, 3.0000]])
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None, add: Tensor | None = None, tanh: int = 0
    ) -> None:
        self.shape, self.tanh, on = tuple(weight.shape), tanh, weight != 0
        self.count = int(on.sum())
        begin = torch.zeros(len(weight) + 1, dtype=torch.int32)
        begin[1:] = on.sum(1).cumsum(0)
        # one entry more, so that no list is empty
        lists = [begin, F.pad(on.nonzero()[:, 1].to(torch.int32), (0, 1)), F.pad(weight[on].float(), (0, 1))]
        behind = [None if t is None else t.float().contiguous() for t in (bias, scale, add)]
        self.held = [*(t.contiguous() for t in lists), *behind]
        self.pointers = [None if t is None else t.data_ptr() for t in self.held]

    def struct(self, n: int) -> ctypes.Structure:
        """The descriptor for so many rows."""
        o, k = self.shape
        return ConnectionsStruct(n, k, o, *self.pointers, self.tanh)

    def small(self, n: int) -> bool:
        """Whether a call is too little work for a second thread."""
        return n * self.count < SMALL

    def run(self, x: Tensor, threads: int = 1) -> Tensor:
        x, struct = x.float().contiguous(), self.struct(len(x))
        y = torch.empty(len(x), self.shape[0])
        check_code(library().bw_linear_connections(ctypes.addressof(struct), x.data_ptr(), y.data_ptr(), threads))
        return y
