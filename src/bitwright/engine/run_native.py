"""Runs a graph on the compiled kernels: codes are packed words or bytes, float operators are torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native, reference, run_reference
from bitwright.engine.fuse import code_planes
from bitwright.engine.graph import Graph, Node
from bitwright.engine.rules import CODED
from bitwright.engine.run_reference import Step, of_one


def build(graph: Graph, threads: int | None = None) -> list[tuple[Node, Step]]:
    """One step per node. Kernel layouts of the weights are made here, once."""
    return [(n, step(n, graph, threads)) for n in graph.nodes if n.op not in ("input", "output", "emitted")]


def step(node: Node, graph: Graph, threads: int | None) -> Step:
    if node.op == "quantize" and node.attrs["form"] != "plain":
        return _pack(node, graph, threads)
    if node.op == "max_pool_codes":
        kernel, stride, padding, dilation = (tuple(node.attrs[k]) for k in ("kernel", "stride", "padding", "dilation"))
        rest = bool(node.attrs["ceil"]), threads or 1
        return of_one(node, lambda x: native.maxpool(x, kernel, stride, padding, dilation, *rest))
    if node.op in CODED:
        return _coded(node, graph, threads)
    return run_reference.step(node, graph)


def _pack(node: Node, graph: Graph, threads: int | None) -> Step:
    a, table, flip = node.attrs, graph.need(node, "thresholds"), graph.tensor(node, "flip")
    options: dict[str, Any] = {"flip": flip, "bytes": a["form"] == "bytes", "grid": a.get("grid")}
    plan = native.PackPlan(table, code_planes(a["levels"]), int(a["groups"]), **options)
    if bool(a["last"]) and len(node.shape) > 1:  # Linear on [N, ..., C]: pixels are all but the last axis
        return of_one(node, lambda x: plan.run(x.flatten(1, -2).transpose(1, 2).contiguous(), threads))
    return of_one(node, lambda x: plan.run(x, threads))


def conv_plans(node: Node, graph: Graph) -> list[native.ConvPlan]:
    a, x, info = node.attrs, node.attrs["x"], node.attrs["weight"]
    zero: Any = x["zero"][0] if len(x["zero"]) == 1 else torch.tensor(x["zero"])
    geometry: dict[str, Any] = {"x_zero": zero}
    missing = 2 - int(a["rank"]) if node.op == "coded_conv" else 2  # axes that kernels have and the layer has not
    shape = [*info["shape"][:2], *[1] * missing, *info["shape"][2:]]
    if node.op == "coded_conv":
        for key, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            geometry[key] = [usual] * missing + list(a[key])
        geometry["groups"] = int(a["groups"])
    if a["x_form"] == "bytes":
        weights = [w.reshape(shape) for w in reference.weight_integers(graph, node)]
        known = {"x_mult": int(x["mult"]), "x_bits": code_planes(x["levels"])}
        return [native.ConvPlan.bytes(w, **known, **geometry) for w in weights]
    bit = reference.unpack_bits(graph.need(node, "bits"), (info["planes"], *shape))
    x_mult = [int(x["mult"]) << p for p in range(code_planes(x["levels"]))]
    return [
        native.ConvPlan.bits(bit[t["planes"]], w_mult=t["mult"], w_zero=int(t["zero"]), x_mult=x_mult, **geometry)
        for t in info["terms"]
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
    plan = plans[0]
    if "emit" in a:
        e, flip = a["emit"], graph.tensor(node, "int_flip")
        if "grid" in e:
            output: native.KernelOutput = native.GridOutput(scale[0], add, e["grid"])
        else:
            output = native.CodeOutput(
                graph.need(node, "int_thresholds"),
                flip,
                code_planes(e["levels"]),
                int(e["groups"]),
                e["form"] == "bytes",
            )
        return of_one(node, lambda x: plan.run(x, output, None, threads))
    if len(plans) > 1:
        sums = native.KernelOutput()
        return of_one(
            node, lambda x: out(reference.epilogue([p.run(x, sums, None, threads) for p in plans], scale, add, False))
        )
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
