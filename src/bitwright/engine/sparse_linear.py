"""Linear layers with float inputs whose weights are nearly all zero: torch's product of the others alone (CSR).

Same products as the dense layer, added in another order.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.forms import zeros_skipped
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import bounds
from bitwright.engine.rules import Function

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

    given = (
        node.name in graph.nodes[-1].inputs
    )  # an answer lies row by row; the next layer turns its input round anyway

    def run(x: Tensor) -> Tensor:
        y = (connections @ x.t()).t()
        y = y if bias is None else y + bias
        return y.contiguous() if given else y

    return run
