"""Linear layers with float inputs whose weights are nearly all zero: torch's product of the others alone (CSR), for few rows of
inputs our own, which begins sooner.

Same products as the dense layer, added in another order.
"""

from __future__ import annotations

import ctypes
import math
import warnings

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.forms import zeros_skipped
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_library import ConnectionsStruct, available, check_code, library
from bitwright.engine.operators import bounds
from bitwright.engine.rules import Function

FEW = 4  # rows
SHARE, LEAST = 16, 1 << 16  # at most one weight in SHARE is not zero, of at least LEAST weights: bench/sparsity.py


def on_connections(node: Node, graph: Graph) -> bool:
    """Whether so few weights of a linear layer count that their list is faster than the dense product."""
    if node.op != "linear" or len(node.shape) != 1 or not (zeros_skipped() and torch.backends.mkl.is_available()):
        return False
    weight = reference.stored_weight(graph, node)
    return weight.numel() >= LEAST and int((weight != 0).sum()) * SHARE <= weight.numel()


def sparse_linear(node: Node, graph: Graph, limit: float) -> Function | None:
    """The layer on its connections; None where a dense product is faster, or an input may be infinite (0 times it is NaN).

    limit   of an input of the net
    """
    if not on_connections(node, graph) or bounds(graph, limit)[node.inputs[0]] == math.inf:
        return None
    weight, bias = reference.stored_weight(graph, node), graph.tensor(node, "bias")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that CSR is in beta
        connections = weight.to_sparse_csr()
    few = FewConnections(connections, bias) if available() else None
    # an answer lies row by row; the next layer turns its input round anyway
    given = node.name in graph.nodes[-1].inputs

    def run(x: Tensor) -> Tensor:
        if few is not None and len(x) <= FEW:
            return few.run(x)
        y = (connections @ x.t()).t()
        y = y if bias is None else y + bias
        return y.contiguous() if given else y

    return run


class FewConnections:
    """y [N, O] = x [N, K] @ weight.T + bias, on the weights that a sparse CSR tensor holds."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.shape = tuple(weight.shape)
        self.held = [
            weight.crow_indices().to(torch.int32),
            weight.col_indices().to(torch.int32),
            weight.values().float(),
        ]
        self.held += [] if bias is None else [bias.float()]
        self.held = [t.contiguous() for t in self.held]
        self.pointers = [t.data_ptr() for t in self.held] + [None] * (4 - len(self.held))
        self.structs: dict[int, tuple[ctypes.Structure, int]] = {}  # by rows; they hold nothing that a call changes

    def run(self, x: Tensor) -> Tensor:
        x, (o, k), n = x.float().contiguous(), self.shape, len(x)
        y = torch.empty(n, o)
        if n not in self.structs:
            struct = ConnectionsStruct(n, k, o, *self.pointers)
            self.structs[n] = struct, ctypes.addressof(struct)
        check_code(library().bw_linear_connections(self.structs[n][1], x.data_ptr(), y.data_ptr()))
        return y
