"""Gates over whole numbers, for the native backend: each becomes a layer that a kernel computes from codes to what its reader wants.

`cut` is its threshold on the whole sum of the base, `way` how it runs (`engine/plan_splits.py`): "gated" adds the rest only where it
is on, "bytes" computes both sums. A quantizer that is its only reader becomes thresholds on the whole sum; a norm behind it joins it, and
then an even ladder, or a residual, a ReLU and codes that are read beside the floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.engine import fuse, reference, thresholds
from bitwright.engine.gates import DUAL, SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_splits import takes
from bitwright.engine.rules import CODED_SPLITS


def whole_gates(graph: Graph) -> None:
    """Changes the graph in place."""
    from bitwright.engine.plan_splits import way_of  # imported here: it measures with the kernels

    gates = [n for n in graph.nodes if n.op in CODED_SPLITS and n.attrs.get("x_form") == "bytes"]
    gates = [n for n in gates if takes(SplitOperator(n, graph))]
    for gate in gates:
        made_whole(graph, gate, way_of(graph, gate))
    if gates:
        fuse.emit_codes(graph)
        for gate in gates:
            if "emit" not in gate.attrs:
                _take_norm(graph, gate)
        fuse.emit_codes(graph)
        fuse.join_floats(graph)


def made_whole(graph: Graph, gate: Node, way: str) -> None:
    bias, scale = graph.tensor(gate, "bias"), graph.need(gate, "scale")
    graph.put(gate, "add", torch.zeros_like(scale[0]) if bias is None else bias.float())
    graph.put(gate, "cut", cut_of(graph, gate))
    if gate.key("on_scale"):
        for role, key in zip(("norm_scale", "norm_add"), DUAL, strict=False):
            graph.put(gate, role, graph.need(gate, key))
    gate.attrs["way"] = way


def cut_of(graph: Graph, gate: Node) -> Tensor:
    """int32 [O]: the largest whole sum of the base at which each output is off."""
    scale, add, least = graph.need(gate, "scale"), graph.need(gate, "add"), graph.need(gate, "threshold")
    low, high = fuse.integer_range(graph, gate)

    def on(i: Tensor) -> Tensor:
        return (reference.epilogue([i], scale, add, True) >= least).long()

    return thresholds.integer_thresholds(on, 1, low, high, 0)[0][0] - 1


def _take_norm(graph: Graph, gate: Node) -> None:
    after = graph.users()[gate.name]
    if len(after) != 1 or after[0].op != "affine" or gate.key("norm_scale") or after[0].last != gate.last:
        return
    norm = after[0]
    if graph.need(norm, "scale").numel() != gate.channels or graph.need(norm, "add").numel() != gate.channels:
        return
    for role in ("scale", "add"):
        graph.put(gate, f"norm_{role}", graph.need(norm, role))
    graph.nodes.remove(norm)
    gate.name = norm.name
