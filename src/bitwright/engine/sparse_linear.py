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
from bitwright.engine.forms import zeros_skipped
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_library import ConnectionsStruct, available, check_code, library
from bitwright.engine.operators import bounds
from bitwright.engine.rules import Function

# At most one weight in SHARE is not zero, of at least LEAST weights; up to FEW rows at most one in FEW_SHARE: bench/sparsity_masks.py
SHARE, LEAST = 5, 1 << 16
FEW, FEW_SHARE = 2, 8


def on_connections(node: Node, graph: Graph) -> bool:
    """Whether so few weights of a linear layer count that their list is faster than the dense product."""
    if node.op != "linear" or len(node.shape) != 1 or not (zeros_skipped() and available()):
        return False
    weight = reference.stored_weight(graph, node)
    return weight.numel() >= LEAST and int((weight != 0).sum()) * SHARE <= weight.numel()


def finite_input(node: Node, largest: dict[str, float]) -> bool:
    """0 times an infinite number is NaN: such zeros count. largest: `bounds` of the graph."""
    return largest[node.inputs[0]] < math.inf


def sparse_linear(node: Node, graph: Graph, limit: float, threads: int | None = None) -> Function | None:
    """The layer on its connections; None where it does not run so.

    limit   of an input of the net
    """
    joined = node.key("in_scale") is not None or "tanh" in node.attrs  # looked at before, see fuse_connections.py
    if not joined and not (on_connections(node, graph) and finite_input(node, bounds(graph, limit))):
        return None
    weight, bias = reference.stored_weight(graph, node), graph.tensor(node, "bias")
    if (scale := graph.tensor(node, "in_scale")) is not None:
        weight, bias = joined_weights(weight, bias, scale, graph.need(node, "in_add"))
    layer, tanh = WeightList(weight, bias), bool(node.attrs.get("tanh"))
    least = 0 if layer.count * FEW_SHARE <= weight.numel() else FEW + 1  # rows

    def run(x: Tensor) -> Tensor:
        few = len(x) < least
        y = F.linear(x, weight, bias) if few else layer.run(x, threads or torch.get_num_threads())
        return y.tanh_() if tanh else y

    return run


def joined_weights(weight: Tensor, bias: Tensor | None, scale: Tensor, add: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that reads x where it read x * scale + add."""
    shift = weight.double() @ add.double()
    return (weight.double() * scale.double()).float(), (shift if bias is None else bias.double() + shift).float()


class WeightList:
    """y [N, O] = x [N, K] @ weight.T + bias, on the weights [O, K] that are not 0.

    >>> WeightList(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([0.5, 0.0])).run(torch.tensor([[3.0, 4.0]]))
    tensor([[8.5000, 3.0000]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.shape, on = tuple(weight.shape), weight != 0
        self.count = int(on.sum())
        begin = torch.zeros(len(weight) + 1, dtype=torch.int32)
        begin[1:] = on.sum(1).cumsum(0)
        # one entry more, so that no list is empty
        self.held = [begin, F.pad(on.nonzero()[:, 1].to(torch.int32), (0, 1)), F.pad(weight[on].float(), (0, 1))]
        self.held += [] if bias is None else [bias.float()]
        self.held = [t.contiguous() for t in self.held]
        self.pointers = [t.data_ptr() for t in self.held] + [None] * (4 - len(self.held))
        self.structs: dict[int, tuple[ctypes.Structure, int]] = {}  # by rows; they hold nothing that a call changes

    def run(self, x: Tensor, threads: int = 1) -> Tensor:
        x, (o, k), n = x.float().contiguous(), self.shape, len(x)
        y = torch.empty(n, o)
        if n not in self.structs:
            struct = ConnectionsStruct(n, k, o, *self.pointers)
            self.structs[n] = struct, ctypes.addressof(struct)
        check_code(library().bw_linear_connections(self.structs[n][1], x.data_ptr(), y.data_ptr(), threads))
        return y
