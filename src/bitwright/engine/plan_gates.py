"""Time of each way of a layer whose gate switches channels: "gated" computes what is on, "float" everything, on the kernel for float layers or in torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

import torch

from bitwright.engine import native, planner
from bitwright.engine.fuse_floats import here
from bitwright.engine.fuse_gates import found
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_floats import float_plan
from bitwright.engine.native_gates import GatedPlan, gated_plan
from bitwright.engine.operators import function
from bitwright.engine.reference import stored_weight

ZEROS_STAY = ("relu", "max_pool", "adaptive_avg_pool")


def layers(graph: Graph) -> list[tuple[Node, Node]]:
    """(switch, convolution) of each layer that has both ways."""
    pairs = [(n, found(graph, n)) for n in graph.nodes if n.op == "switch"]
    return [(switch, conv) for switch, conv in pairs if conv is not None]


def live_share(graph: Graph, name: str) -> float:
    """How many of a value's channels may be other than zero: less than all behind a gate, through operators that keep
    zeros; behind an add, those of two independent choices."""
    node = graph.node(name)
    if node.op in ZEROS_STAY:
        return live_share(graph, node.inputs[0])
    if node.op == "add":
        a, b = (live_share(graph, i) for i in node.inputs)
        return a + b - a * b
    return kept(graph, node) if node.op == "switch" else 1.0


def kept(graph: Graph, switch: Node) -> float:
    a = graph.node(switch.inputs[2]).attrs
    return int(a["count"]) * int(a["block"]) / switch.channels


def key(graph: Graph, switch: Node, conv: Node) -> str:
    """What the time of a layer depends on."""
    a, shape = conv.attrs, stored_weight(graph, conv).shape
    place = [a[k] for k in ("stride", "padding", "dilation")]
    shares = [round(live_share(graph, conv.inputs[0]), 2), round(kept(graph, switch), 2)]
    block = int(graph.node(switch.inputs[2]).attrs["block"])
    return json.dumps(
        ["gated", list(shape), list(switch.shape), place, *shares, block % 16 == 0], separators=(",", ":")
    )


def measured(graph: Graph, switch: Node) -> dict[str, float]:
    """Times of a layer in the plan of this CPU."""
    conv = found(graph, switch)
    return {} if conv is None else planner.plan().get(key(graph, switch, conv), {})


def way_of(graph: Graph, switch: Node, conv: Node) -> str:
    """The faster way: as measured on this CPU, else as predicted; "gated" where nothing is known."""
    times = measured(graph, switch)
    if not {"gated", "float"} <= times.keys():
        times = _predicted(graph, switch, conv)
    return "float" if {"gated", "float"} <= times.keys() and times["float"] < times["gated"] else "gated"


def plan_of(graph: Graph, switch: Node, conv: Node) -> GatedPlan:
    size, on = graph.node(switch.inputs[1]), graph.node(switch.inputs[2])
    predictor, bias = graph.need(size, "weight"), graph.need(size, "bias")
    return gated_plan(conv, stored_weight(graph, conv), graph.tensor(conv, "bias"), predictor, bias, on.attrs)


def _predicted(graph: Graph, switch: Node, conv: Node) -> dict[str, float]:
    isa = native.isa()
    if isa not in planner.RATES:
        return {}
    products = stored_weight(graph, conv).numel() * math.prod(switch.shape) / switch.channels
    done = products * live_share(graph, conv.inputs[0]) * kept(graph, switch)
    return {way: 1e-9 * n / planner.RATES[isa][-1] for way, n in (("gated", done), ("float", products))}


def rows(graph: Graph) -> Iterator[tuple[str, str, dict[str, float], dict[str, float]]]:
    """(layer, the way that runs, predicted, measured)."""
    for switch, conv in layers(graph):
        name, runs = conv.owner or conv.name, way_of(graph, switch, conv)
        yield name, runs, _predicted(graph, switch, conv), measured(graph, switch)


def times(graph: Graph) -> dict[str, dict[str, float]]:
    """Each way on one image in which as many channels are zero as there would be, one thread, in turn."""
    return {key(graph, switch, conv): _times(graph, switch, conv) for switch, conv in layers(graph)}


def _times(graph: Graph, switch: Node, conv: Node) -> dict[str, float]:
    shape = [int(s) for s in graph.node(conv.inputs[0]).shape]
    x = torch.rand(1, *shape, *[1] * (3 - len(shape)))
    x[:, torch.randperm(shape[0])[math.ceil(shape[0] * live_share(graph, conv.inputs[0])) :]] = 0
    x = x.contiguous(memory_format=torch.channels_last)
    plain = x.reshape(1, *shape) if len(shape) < 3 else x
    plan = plan_of(graph, switch, conv)
    steps = [function(n, graph) for n in (conv, *(graph.node(i) for i in switch.inputs[1:]), switch)]
    if here() and len(shape) == 3:
        steps[0] = float_plan(conv, graph).run

    def dense() -> object:
        compute, size, on, gate = steps
        g = size(plain)
        return gate(compute(plain), g, on(g))

    image = x if len(shape) == 3 else x.reshape(1, shape[0], 1, -1)
    calls: dict[str, Callable[[], object]] = {"gated": lambda: plan.run(image), "float": dense}
    return planner.in_turn(calls)
