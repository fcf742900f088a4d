"""Time of each way of a layer whose gate splits its sum: "gated" adds the rest only where it is on, "bytes" (of codes, in whole numbers)
and "float" (of floats, in torch) compute both sums of every output. All of them give the same decisions and values.

What skipping costs depends on the share of outputs that is on: `convert` notes it in the graph, from its example.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native, planner
from bitwright.engine.gates import SplitOperator, applied
from bitwright.engine.graph import Graph, Node, rows_as_image
from bitwright.engine.native_splits import floats_fit, has_dense_kernel, skips, takes
from bitwright.engine.rules import SPLITS

SAMPLES = 8  # of an example
USUAL_SHARE = 0.3  # where no example has told
# products per nanosecond of base and rest of a layer that skips, and nanoseconds for each output: docs/results/skip.csv, skip_avx2.csv
SKIP_RATES = {
    "avx512": {"bytes": (250.0, 110.0, 1.1), "float": (50.0, 35.0, 1.1)},
    "avx2": {"bytes": (150.0, 60.0, 3.0), "float": (17.0, 19.0, 3.5)},
}
DENSE_BYTES = {
    "avx2": 150.0
}  # products per nanosecond of its dense way, where Winograd's form takes codes of any width
BY_WINOGRAD = 1.6
FLOATS_BY_WINOGRAD = 1.8  # of the base of floats
DENSE_FLOATS = 0.65  # of a float convolution in torch: what both sums by Winograd's form take
SKIP_RATES["amx"] = SKIP_RATES["avx512"]
Times = dict[str, float]


def share_of(node: Node) -> float:
    return float(node.attrs.get("share", USUAL_SHARE))


def note_shares(graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Writes into the gates of a folded graph how many of their outputs are on for the first of these inputs."""
    from bitwright.engine.packed import PackedModel

    gates = [n for n in graph.nodes if n.op in SPLITS]
    if not gates:
        return
    model = PackedModel(graph, "reference")
    env = model.values(model.environment(*(x[:SAMPLES] for x in inputs)), plain=True)
    for node in gates:
        gate, x = SplitOperator(node, graph), env[node.inputs[0]]
        if x.numel():
            node.attrs["share"] = round(float(gate.decide(gate.sums(x)[0]).mean()), 3)


def layers(graph: Graph) -> list[Node]:
    """The gates that have both ways."""
    return [n for n in graph.nodes if n.op in SPLITS and _has_both(n, graph)]


def _has_both(node: Node, graph: Graph) -> bool:
    gate = SplitOperator(node, graph)
    if not gate.coded:
        return floats_fit(gate)
    return node.attrs.get("x_form") == "bytes" and skips(gate)


def dense_way(node: Node) -> str:
    return "float" if node.op == "channel_gate" else "bytes"


def key(node: Node, graph: Graph) -> str:
    """What the time of a layer depends on."""
    a, gate = node.attrs, SplitOperator(node, graph)
    place = [a.get(k) for k in ("stride", "padding", "dilation", "groups", "splits", "group", "step")]
    width = [int(gate.x_info["levels"]), int(gate.weight.abs().max()).bit_length()] if gate.coded else []
    found = ["split", list(gate.weight.shape), list(node.shape), place, width, round(share_of(node), 1)]
    return json.dumps(found, separators=(",", ":"))


def measured(node: Node, graph: Graph) -> Times:
    """Times of a layer in the plan of this CPU."""
    return planner.plan().get(key(node, graph), {})


def way_of(graph: Graph, node: Node) -> str:
    """The faster way: as measured on this CPU, else as predicted; the dense one where nothing is known."""
    dense = dense_way(node)
    if not _has_both(node, graph):
        return dense
    times = measured(node, graph)
    if not {"gated", dense} <= times.keys():
        times = predicted(node, graph)
    return min((way for way in ("gated", dense) if way in times), key=lambda way: times[way], default=dense)


def predicted(node: Node, graph: Graph) -> Times:
    isa, dense = native.isa(), dense_way(node)
    if isa not in SKIP_RATES or isa not in planner.RATES:
        return {}
    gate, outputs, splits = SplitOperator(node, graph), math.prod(node.shape), int(node.attrs.get("splits", 1))
    products, winograd = gate.weight[0].numel() * outputs, has_dense_kernel(gate)
    rest = products * (1 - 1 / splits) if splits > 1 else products
    together = (
        node.channels // (splits if node.attrs.get("group") else 1) or 1
    )  # outputs with one base fill whole vectors
    slots = outputs * 16 * math.ceil(together / 16) / together if dense == "bytes" else outputs
    base_rate, rest_rate, each = SKIP_RATES[isa][dense]
    base_by, all_by = FLOATS_BY_WINOGRAD if winograd else 1.0, 1.0
    if dense == "bytes":
        base_by, all_by = (1.0, 1.0) if isa in DENSE_BYTES else _winograd(node, graph)
    skipped = slots * (products / splits / outputs / (base_rate * base_by) + each) + share_of(node) * rest / rest_rate
    if dense == "float":
        # both sums of the same transformed inputs, or a convolution in groups and a whole one
        both = products * (DENSE_FLOATS if winograd else 1 + 1 / splits) / planner.RATES[isa][2]
    else:
        both = (products / base_by + products / all_by) / DENSE_BYTES.get(isa, planner.RATES[isa][1])
    return {"gated": 1e-9 * skipped, dense: 1e-9 * both}


def _winograd(node: Node, graph: Graph) -> tuple[float, float]:
    """How much faster the kernels make the base and the whole sum where they take Winograd's form: few bits, 3x3, dense."""
    a, gate = node.attrs, SplitOperator(node, graph)
    shape = gate.weight.shape
    plain = shape[2:] == (3, 3) and set(a["stride"]) == set(a["dilation"]) == {1} and gate.groups == 1
    if not gate.coded or not plain or shape[0] < 16 or shape[1] < 32 or float(gate.weight.abs().max()) > 7:
        return 1.0, 1.0
    levels, step = int(gate.x_info["levels"]), int(a.get("step", 0)) // int(gate.x_info["mult"])
    base, whole = (BY_WINOGRAD if n.bit_length() <= 6 else 1.0 for n in (levels // max(1, step), levels))
    return (base if step else 1.0), whole


def rows(graph: Graph) -> Iterator[tuple[str, str, Times, Times]]:
    """(layer, the way that runs, predicted, measured)."""
    for node in graph.nodes:
        if node.op in SPLITS and (node.op == "channel_gate" or takes(SplitOperator(node, graph))):
            name, way = node.owner or node.name, way_of(graph, node)
            both = _has_both(node, graph)
            yield name, way, predicted(node, graph) if both else {}, measured(node, graph) if both else {}


def times(graph: Graph) -> dict[str, Times]:
    """Each way on one image of which the noted share is on, one thread, in turn."""
    return {key(node, graph): planner.in_turn(ways(node, graph)) for node in layers(graph)}


def ways(node: Node, graph: Graph) -> dict[str, Callable[[], object]]:
    """Each way on random numbers, with thresholds for the noted share."""
    from bitwright.engine.fuse_splits import made_whole
    from bitwright.engine.run_native import step

    gate, source = SplitOperator(node, graph), graph.node(node.inputs[0])
    shape = [1, *(int(s) for s in source.shape)]
    x = torch.rand(shape)
    if gate.coded:
        x = torch.randint(0, int(gate.x_info["levels"]) + 1, shape)
    base = gate.sums(x)[0]
    outputs = base if gate.last else base.transpose(0, 1).flatten(1).T
    threshold = torch.quantile(outputs.reshape(-1, outputs.shape[-1]).double(), 1 - share_of(node), dim=0).float()
    calls: dict[str, Callable[[], object]] = {}
    for way in ("gated", dense_way(node)):
        one = Graph([source, Node(node.op, node.name, list(node.inputs), {**node.attrs})], dict(graph.tensors))
        mine = one.nodes[1]
        mine.attrs["tensors"] = dict(node.attrs["tensors"])
        one.put(mine, "threshold", threshold)
        if gate.coded:
            made_whole(one, mine, way)
        elif way == "gated" or has_dense_kernel(gate):
            mine.op, mine.attrs["dense"] = "skipped_gate", way != "gated"
        run, env = step(mine, one, 1), {source.name: _laid(x, gate)}
        calls[way] = lambda run=run, env=env: run(env)
    if gate.coded and not gate.last:  # torch's layer, which says nothing of the gate
        numbers, weight = x.float(), torch.randn(gate.weight.shape)
        calls["float"] = lambda: applied(numbers, weight, node)
    return calls


def _laid(x: Tensor, gate: SplitOperator) -> Any:
    if not gate.coded:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    x = x.to(torch.uint8)
    if gate.last:
        return x.reshape(1, *rows_as_image(x.shape[1:]), x.shape[-1])
    return (x if x.dim() == 4 else x[:, :, None]).permute(0, 2, 3, 1).contiguous()
