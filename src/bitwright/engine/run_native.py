"""Runs a graph on the compiled kernels: codes are packed words or bytes, float operators are torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import bitstrings, native, reference, run_reference
from bitwright.engine.fuse import code_planes
from bitwright.engine.graph import Graph, Node

Step = Callable[[dict[str, Tensor]], None]


def build(graph: Graph, threads: int | None = None) -> list[tuple[Node, Step]]:
    """One step per node. Kernel layouts of the weights are made here, once."""
    return [(n, step(n, graph, threads)) for n in graph.nodes if n.op not in ("input", "output", "emitted")]


def step(node: Node, graph: Graph, threads: int | None) -> Step:
    if node.op == "quantize" and node.attrs["form"] != "plain":
        return _pack(node, graph, threads)
    if node.op == "max_pool_codes":
        a = node.attrs
        name, source = node.name, node.inputs[0]
        kernel, stride, padding, dilation = (tuple(a[k]) for k in ("kernel", "stride", "padding", "dilation"))
        ceil = bool(a["ceil"])
        return lambda env: env.__setitem__(
            name, native.maxpool(env[source], kernel, stride, padding, dilation, ceil, threads or 1)
        )
    if node.op in ("coded_conv", "coded_linear"):
        return _coded(node, graph, threads)
    return run_reference.step(node, graph)


def _pack(node: Node, graph: Graph, threads: int | None) -> Step:
    a = node.attrs
    table, flip = graph.need(node, "thresholds"), graph.tensor(node, "flip")
    as_bytes = a["form"] == "bytes"
    plan = native.PackPlan(
        table, code_planes(a["levels"]), int(a["groups"]), flip=flip, bytes=as_bytes, grid=a.get("grid")
    )
    name, source = node.name, node.inputs[0]
    if bool(a["last"]) and len(node.shape) > 1:  # Linear on [N, ..., C]: pixels are all but the last axis
        return lambda env: env.__setitem__(
            name, plan.run(env[source].flatten(1, -2).transpose(1, 2).contiguous(), threads)
        )
    return lambda env: env.__setitem__(name, plan.run(env[source], threads))


def conv_plans(node: Node, graph: Graph) -> list[native.ConvPlan]:
    a, x = node.attrs, node.attrs["x"]
    info = a["weight"]
    planes = code_planes(x["levels"])
    zero: Any = x["zero"][0] if len(x["zero"]) == 1 else torch.tensor(x["zero"])
    x_mult = [int(x["mult"]) << p for p in range(planes)]
    geometry: dict[str, Any] = {}
    shape = list(info["shape"])
    if node.op == "coded_conv":
        rank = int(a["rank"])
        pad = [0] * (2 - rank)
        geometry = {
            "stride": [1] * (2 - rank) + list(a["stride"]),
            "padding": pad + list(a["padding"]),
            "dilation": [1] * (2 - rank) + list(a["dilation"]),
            "groups": int(a["groups"]),
        }
        kernel = [1] * (2 - rank) + shape[2:]
    else:
        kernel = [1, 1]
    shape = [*shape[:2], *kernel]
    if a["x_form"] == "bytes":
        weights = [w.reshape(shape) for w in reference.weight_integers(graph, node)]
        return [native.ConvPlan.bytes(w, x_mult=int(x["mult"]), x_zero=zero, **geometry) for w in weights]
    bit = bitstrings.unpack(graph.need(node, "bits"), (info["planes"], *info["shape"])).reshape(info["planes"], *shape)
    return [
        native.ConvPlan.bits(
            bit[term["planes"]],
            w_mult=list(term["mult"]),
            w_zero=int(term["zero"]),
            x_mult=x_mult,
            x_zero=zero,
            **geometry,
        )
        for term in info["terms"]
    ]


def plain_axes(node: Node) -> Callable[[Tensor], Tensor]:
    """From [N, O, H, W], which kernels speak, to the axes of the layer's value."""
    shape = node.shape
    if len(shape) == 1:
        return lambda y: y.flatten(1)
    if node.op == "coded_linear":
        return lambda y: y.flatten(2).transpose(1, 2).reshape(y.shape[0], *shape)
    return lambda y: y.squeeze(2) if len(shape) == 2 else y


def _coded(node: Node, graph: Graph, threads: int | None) -> Step:
    a = node.attrs
    plans = conv_plans(node, graph)
    scale, add = graph.need(node, "scale"), graph.need(node, "add")
    name, source, out = node.name, node.inputs[0], plain_axes(node)
    if "emit" in a:
        e = a["emit"]
        if "grid" in e:
            even = native.GridOutput(scale[0], add, e["grid"])
            return lambda env: env.__setitem__(name, plans[0].run(env[source], even, None, threads))
        table, flip = graph.need(node, "int_thresholds"), graph.tensor(node, "int_flip")
        codes = native.CodeOutput(
            table, flip, planes=code_planes(e["levels"]), groups=int(e["groups"]), bytes=e["form"] == "bytes"
        )
        plan = plans[0]
        return lambda env: env.__setitem__(name, plan.run(env[source], codes, None, threads))
    if len(plans) > 1:
        integers = native.Output()

        def several(env: dict[str, Tensor]) -> None:
            parts = [p.run(env[source], integers, None, threads) for p in plans]
            env[name] = out(reference.epilogue(parts, scale, add, False))

        return several
    plan = plans[0]
    beside = a.get("extra")
    floats = native.FloatOutput(
        scale[0], add, relu=bool(a.get("relu")), grid=a.get("grid"), cuts=graph.tensor(node, "cuts"),
        flip=graph.tensor(node, "flip"), bytes=a.get("extra_form") == "bytes",
    )  # fmt: skip
    extra = node.inputs[1] if len(node.inputs) == 2 else None

    def run(env: dict[str, Tensor]) -> None:
        residual = None if extra is None else env[extra]
        if residual is not None and residual.dim() == 3:
            residual = residual.unsqueeze(2)
        y = plan.run(env[source], floats, residual, threads)
        if beside is None:
            env[name] = out(y)
        else:
            env[name], env[beside] = out(y[0]), y[1]

    return run
