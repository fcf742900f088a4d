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
    return [(n, _step(n, graph, threads)) for n in graph.nodes if n.op not in ("input", "output", "emitted")]


def _step(node: Node, graph: Graph, threads: int | None) -> Step:
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
    return run_reference._step(node, graph)


def _pack(node: Node, graph: Graph, threads: int | None) -> Step:
    a = node.attrs
    table, flip = graph.need(node, "thresholds"), graph.tensor(node, "flip")
    as_bytes = a["form"] == "bytes"
    plan = native.PackPlan(table, code_planes(a["levels"]), int(a["groups"]), flip=flip, bytes=as_bytes)
    name, source = node.name, node.inputs[0]
    if bool(a["last"]) and len(node.shape) > 1:  # Linear on [N, ..., C]: pixels are all but the last axis
        return lambda env: env.__setitem__(
            name, plan.run(env[source].flatten(1, -2).transpose(1, 2).contiguous(), threads)
        )
    return lambda env: env.__setitem__(name, plan.run(env[source], threads))


def _conv_plans(node: Node, graph: Graph) -> list[native.ConvPlan]:
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
    if a["x_form"] == "bytes":  # X = mult * code + zero, and zero is 0 where mult is not 1: mult goes into the weight
        w = reference.weight_integers(graph, node)[0].reshape(shape) * int(x["mult"])
        return [native.ConvPlan.bytes(w, x_zero=zero, **geometry)]
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


def _coded(node: Node, graph: Graph, threads: int | None) -> Step:
    a = node.attrs
    plans = _conv_plans(node, graph)
    scale, add = graph.need(node, "scale"), graph.need(node, "add")
    name, source = node.name, node.inputs[0]
    shape = node.shape
    flat = len(shape) == 1
    rows = node.op == "coded_linear" and not flat

    def out(y: Tensor) -> Tensor:  # kernels speak [N, O, H, W]
        if flat:
            return y.flatten(1)
        if rows:
            return y.flatten(2).transpose(1, 2).reshape(y.shape[0], *shape)
        return y.squeeze(2) if len(shape) == 2 else y

    if "emit" in a:
        e = a["emit"]
        table, flip = graph.need(node, "int_thresholds"), graph.tensor(node, "int_flip")
        codes = native.CodeOutput(
            table, flip, planes=code_planes(e["levels"]), groups=int(e["groups"]), bytes=e["form"] == "bytes"
        )
        plan = plans[0]
        return lambda env: env.__setitem__(name, plan.run(env[source], codes, None, threads))
    if len(plans) > 1:
        integers = native.IntOutput()

        def several(env: dict[str, Tensor]) -> None:
            parts = [p.run(env[source], integers, None, threads) for p in plans]
            env[name] = out(reference.epilogue(parts, scale, add, False))

        return several
    plan = plans[0]
    bits_name = a.get("sign_bits")
    floats = native.FloatOutput(scale[0], add, sign_bits=bits_name is not None)
    extra = node.inputs[1] if len(node.inputs) == 2 else None

    def run(env: dict[str, Tensor]) -> None:
        residual = None if extra is None else env[extra]
        if residual is not None and residual.dim() == 3:
            residual = residual.unsqueeze(2)
        y = plan.run(env[source], floats, residual, threads)
        if bits_name is None:
            env[name] = out(y)
        else:
            env[name], env[bits_name] = out(y[0]), y[1]

    return run
