"""Gates on the kernels: the three nodes of an `fbs` gate and the convolution that they switch become one `gated_conv`.

Made from the fused graph for the native backend alone; what plain torch, ONNX and C see stays as it is. It decides before it
computes, leaves out what is off, and reads only inputs that are not zero. A residual add and a ReLU behind it join it.
A channel gate on floats becomes a `skipped_gate`, which adds the rest only where it is on, or, `dense`, computes it everywhere; a norm, a
residual add and a ReLU behind it join it.
"""

from __future__ import annotations

from bitwright.engine.fuse_floats import take_add_and_relu
from bitwright.engine.fuse_splits import whole_gates
from bitwright.engine.gates import SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_splits import floats_fit, has_dense_kernel
from bitwright.engine.rules import SPLITS


def gated_kernels(fused: Graph) -> Graph:
    """A new graph where some gate may run so, else the same one."""
    from bitwright.engine import plan_gates, plan_splits  # imported here: they measure with the kernels

    if not any(n.op in ("switch", *SPLITS) for n in fused.nodes):
        return fused
    graph = fused.copy()
    whole_gates(graph)
    for gate in [n for n in graph.nodes if n.op == "channel_gate"]:
        operator, way = SplitOperator(gate, graph), plan_splits.way_of(fused, gate)
        if floats_fit(operator) and (way == "gated" or has_dense_kernel(operator)):
            _skip(graph, gate, dense=way != "gated")
    for switch in [n for n in graph.nodes if n.op == "switch"]:
        conv = found(graph, switch)
        if conv is None:
            continue
        if plan_gates.way_of(fused, switch, conv) == "float":
            continue
        _join(graph, switch, conv)
    graph.prune()
    return graph


def found(graph: Graph, switch: Node) -> Node | None:
    """The convolution that a gate switches, if it reads what the gate reads and nobody else reads what is inside."""
    by_name, users = graph.by_name(), graph.users()
    conv, size, on = (by_name[i] for i in switch.inputs)
    if conv.op != "conv" or int(conv.attrs["rank"]) > 2 or int(conv.attrs["groups"]) > 1 or size.op != "saliency":
        return None
    if on.op != "winners" or on.inputs != [size.name] or conv.inputs != size.inputs:
        return None
    outside = [u for n in (conv, size, on) for u in users[n.name] if u not in (switch, on)]
    return None if outside or len(by_name[conv.inputs[0]].shape) != len(conv.shape) else conv


def _join(graph: Graph, switch: Node, conv: Node) -> None:
    by_name = graph.by_name()
    size, on = by_name[switch.inputs[1]], by_name[switch.inputs[2]]
    roles = {**conv.attrs["tensors"], "predictor": size.key("weight"), "size": size.key("bias")}
    attrs = {**conv.attrs, **{k: on.attrs[k] for k in ("count", "block")}}
    switch.op, switch.inputs = "gated_conv", list(conv.inputs)
    switch.attrs = {**attrs, "shape": list(switch.shape), "tensors": roles, "owner": conv.owner, "extra": on.name}
    for n in (conv, size, on):
        graph.nodes.remove(n)
    take_add_and_relu(graph, switch)


def _skip(graph: Graph, gate: Node, dense: bool) -> None:
    """The gate and what follows each of its outputs; `gate` of the new node is the name that it had."""
    gate.op, gate.attrs = "skipped_gate", {**gate.attrs, "gate": gate.name, "dense": dense}
    after = graph.users()[gate.name]
    if len(after) == 1 and after[0].op == "affine" and not gate.key("on_scale") and not after[0].last:
        norm = after[0]
        if graph.need(norm, "scale").numel() == gate.channels:
            keys = {f"y_{role}": norm.key(role) for role in ("scale", "add")}
            gate.attrs["tensors"] = {**gate.attrs["tensors"], **keys}
            graph.nodes.remove(norm)
            gate.name = norm.name
    after = graph.users()[gate.name]
    if not gate.attrs["shuffle"]:  # else what it reads is not what a residual may be
        take_add_and_relu(graph, gate)
    elif len(after) == 1 and after[0].op == "relu":
        gate.attrs["relu"] = True
        graph.nodes.remove(after[0])
        gate.name = after[0].name
