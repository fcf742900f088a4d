"""Runs a graph in plain torch: codes are int64 tensors of the value's own shape. The oracle of every other backend."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.gates import SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import function
from bitwright.engine.rules import CODED, CODED_SPLITS

Step = Callable[[dict[str, Tensor]], None]


def of_one(node: Node, f: Callable[[Tensor], Tensor]) -> Step:
    """A step that reads one value and writes its own."""
    name, source = node.name, node.inputs[0]
    return lambda env: env.__setitem__(name, f(env[source]))


def step(node: Node, graph: Graph) -> Step:
    if node.op == "quantize":
        table, flip, last = graph.need(node, "thresholds"), graph.tensor(node, "flip"), bool(node.attrs["last"])
        return of_one(node, lambda x: reference.quantize(x, table, flip, last))
    if node.op == "max_pool_codes":
        return of_one(node, lambda codes: reference.max_pool(codes.double(), node.attrs).long())
    if node.op == "decode":
        source = graph.node(node.inputs[0])
        x, last = node.attrs.get("x") or source.attrs, bool(source.attrs["last"])
        unit = float(node.attrs["unit"])
        return of_one(node, lambda codes: reference.numbers(codes, int(x["mult"]), x["zero"], last) * unit)
    if node.op in CODED:
        return _coded(node, graph)
    if node.op in CODED_SPLITS:
        return of_one(node, SplitOperator(node, graph))
    f = function(node, graph)
    return lambda env: env.__setitem__(node.name, f(*[env[i] for i in node.inputs]))


def build(graph: Graph, make: Callable[[Node, Graph], Step] = step) -> list[tuple[Node, Step]]:
    """One step per node, as a backend makes them; a step reads and writes the environment name -> value."""
    return [(n, make(n, graph)) for n in graph.nodes if n.op not in ("input", "output", "emitted")]


def _coded(node: Node, graph: Graph) -> Step:
    weights = reference.weight_integers(graph, node)
    scale, add = graph.need(node, "scale"), graph.need(node, "add")
    table, flip, shift = (graph.tensor(node, role) for role in ("int_thresholds", "int_flip", "shift"))
    x_info = node.attrs.get("x") or graph.node(node.inputs[0]).attrs
    last = node.op == "coded_linear"

    def run(env: dict[str, Tensor]) -> None:
        x = reference.numbers(env[node.inputs[0]], int(x_info["mult"]), x_info["zero"], last)
        products = reference.integer_products(x, weights, node)
        if shift is not None:
            products[0] = products[0].double() + reference.view(shift.double(), products[0].dim(), last)
        if table is not None:
            code = reference.quantize(products[0].double(), table.T.double(), flip, last)
            env[node.name] = code.flatten(1) if node.attrs.get("flat") else code
            return
        y = reference.epilogue(products, scale, add, last)
        y = y.flatten(1) if node.attrs.get("flat") else y
        if len(node.inputs) == 2:
            y = y + env[node.inputs[1]]
        if node.attrs.get("relu"):
            y = y.relu()
        if "emit" in node.attrs:
            env[node.name] = node.attrs["emit"]["grid"].codes(y)
            return
        env[node.name] = y
        if "extra" in node.attrs:
            name, cuts = node.attrs["extra"], graph.tensor(node, "cuts")
            if cuts is None:
                env[name] = node.attrs["grid"].codes(y)
            else:
                env[name] = reference.quantize(y, cuts.T, graph.tensor(node, "flip"), False)

    return run
