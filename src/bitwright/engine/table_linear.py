"""Linear layers with float inputs and weights of few levels: sums of groups of inputs are looked up (csrc/float_tables.h).

Same sums as the dense layer's, with the scale of an output behind them, added in another order.
"""

from __future__ import annotations

import ctypes
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import native_library, reference
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_library import TablesStruct, check_code, library
from bitwright.engine.rules import Function

# by group: weights from which on the tables pay, and the rows of inputs up to which they do; bench/tables.py
ANY = 1 << 62
WIDE = {4: (1 << 17, ANY), 2: (1 << 17, 16), 1: (1 << 17, 4)}
PAYS = {"avx2": {4: (1 << 18, 4), 2: (1 << 20, 4), 1: (1 << 24, 4)}, "avx512": WIDE, "amx": WIDE}
MOST = 1 << 12  # between the smallest and the largest level
ENTRIES, PASS, GROUPS = 16, 64, 8  # of a table; outputs that read one after the other; groups in a word of indices


class TableTerm:
    """y [N, O] = (x [N, K] @ weight.T) * scale + add; weight [O, K] whole numbers of at most 16 levels, scale and add [O].

    >>> TableTerm(torch.tensor([[1, -1, 1]]), torch.tensor([2.0]), torch.tensor([0.5])).run(torch.tensor([[1.0, 2.0, 5.0]]))
    tensor([[8.5000]])
    """

    def __init__(self, weight: Tensor, scale: Tensor, add: Tensor) -> None:
        levels = levels_of(weight)
        self.shape, self.group = tuple(weight.shape), group_of(len(levels))
        ways = list(product(range(len(levels)), repeat=self.group))  # the first input of a group changes slowest
        self.levels = torch.zeros(self.group, ENTRIES)
        self.levels[:, : len(ways)] = levels.float()[torch.tensor(ways).t()]
        passes = [_indices(rows, levels, self.group) for rows in weight.split(PASS)]
        self.index = torch.stack(passes)
        self.scale, self.add = (t.float().expand(self.shape[0]).contiguous() for t in (scale, add))

    def run(self, x: Tensor, onto: Tensor | None = None, threads: int = 1) -> Tensor:
        """With `onto`, the answer is added to that."""
        x, (o, k) = x.float().contiguous(), self.shape
        y = torch.empty(len(x), o) if onto is None else onto
        pointers = [t.data_ptr() for t in (self.levels, self.scale, self.add)]
        struct = TablesStruct(len(x), k, o, self.group, int(onto is not None), *pointers)
        given = (x.data_ptr(), self.index.data_ptr(), y.data_ptr())
        check_code(library().bw_linear_tables(ctypes.addressof(struct), *given, threads))
        return y


def levels_of(weight: Tensor) -> Tensor:
    """The whole numbers that occur, ascending."""
    low = int(weight.min())
    return torch.bincount((weight - low).flatten()).nonzero().flatten() + low


def group_of(levels: int) -> int:
    """How many inputs share a table of 16 entries."""
    return 4 if levels <= 2 else 2 if levels <= 4 else 1


def _indices(rows: Tensor, levels: Tensor, group: int) -> Tensor:
    """int32 [words, 64] of one pass: eight groups in a word, four bits each, the first lowest; what is missing is 0."""
    words = -(-rows.shape[1] // (group * GROUPS))
    place = torch.zeros(PASS, words * GROUPS * group, dtype=torch.int64)
    place[: len(rows), : rows.shape[1]] = torch.searchsorted(levels, rows.to(levels.dtype))
    groups = (place.view(-1, group) * len(levels) ** torch.arange(group - 1, -1, -1)).sum(1)
    return (groups.view(PASS, words, GROUPS) << 4 * torch.arange(GROUPS)).sum(2).to(torch.int32).t().contiguous()


def rows_that_pay(node: Node, graph: Graph) -> int:
    """Up to how many rows of inputs the tables are faster than the dense product here; 0: the layer cannot run by them, or never."""
    if node.op != "linear" or len(node.shape) != 1 or node.key("bits") is None or not native_library.available():
        return 0
    pays, rows = PAYS.get(native_library.isa()), ANY
    if pays is None:
        return 0
    for weight in reference.weight_integers(graph, node):
        levels = len(levels_of(weight))
        if int(weight.max()) - int(weight.min()) > MOST or levels > ENTRIES:
            return 0
        least, most = pays[group_of(levels)]
        rows = min(rows, most if weight.numel() >= least else 0)
    return rows


def table_linear(node: Node, graph: Graph, threads: int | None) -> Function | None:
    """The layer by tables, else None."""
    most = rows_that_pay(node, graph)
    if not most:
        return None
    weights, scales = reference.weight_integers(graph, node), graph.need(node, "scale")
    bias, none = graph.tensor(node, "bias"), torch.zeros(1)
    adds = [none if bias is None else bias, *[none] * (len(weights) - 1)]
    terms = [TableTerm(*given) for given in zip(weights, scales, adds, strict=True)]
    dense = None if most == ANY else reference.stored_weight(graph, node)

    def run(x: Tensor) -> Tensor:
        if dense is not None and len(x) > most:
            return F.linear(x, dense, bias)
        y = terms[0].run(x, None, threads or torch.get_num_threads())
        for term in terms[1:]:
            term.run(x, y, threads or torch.get_num_threads())
        return y

    return run
