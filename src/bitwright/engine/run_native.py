"""Runs a graph on the compiled kernels: codes are packed words or bytes, float operators are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native, reference, run_reference
from bitwright.engine.fuse import code_planes
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_codes import SMALL, pool_struct
from bitwright.engine.native_library import TermsStruct, kernel_table
from bitwright.engine.native_run import Laid, NativeRun, Program
from bitwright.engine.rules import CODED
from bitwright.engine.run_reference import Step

Lay = Callable[[Program], None]


def build(graph: Graph, threads: int | None = None) -> list[tuple[Node, Step]]:
    """One step per node. Kernel layouts of the weights are made here, once."""
    return [(n, step(n, graph, threads)) for n in graph.nodes if n.op not in ("input", "output", "emitted")]


def step(node: Node, graph: Graph, threads: int | None) -> Step:
    if node.op == "quantize" and node.attrs["form"] != "plain":
        return NativeRun([node], [_pack(node, graph)], threads)
    if node.op == "max_pool_codes":
        return NativeRun([node], [_pool(node)], threads)
    if node.op in CODED:
        return NativeRun([node], [_coded(node, graph)], threads)
    return run_reference.step(node, graph)


def _pack(node: Node, graph: Graph) -> Lay:
    a, table, flip = node.attrs, graph.need(node, "thresholds"), graph.tensor(node, "flip")
    options: dict[str, Any] = {"flip": flip, "bytes": a["form"] == "bytes", "grid": a.get("grid")}
    plan = native.PackPlan(table, code_planes(a["levels"]), int(a["groups"]), **options)
    operation, source = f"pack_{a['form']}", node.inputs[0]

    def lay(p: Program) -> None:
        x = p.laid[source]
        n, h, w, c = x.memory
        made = Laid(*plan.made(n, h, w, c))
        struct, small = plan.struct(n, h, w, c, x.nchw), n * h * w * c < SMALL
        p.add(operation, struct, {"x": source}, {"out": (node.name, made)}, alone=small)

    return lay


def _pool(node: Node) -> Lay:
    source, a = node.inputs[0], node.attrs
    window = (*(tuple(a[k]) for k in ("kernel", "stride", "padding", "dilation")), bool(a["ceil"]))

    def lay(p: Program) -> None:
        x = p.laid[source]
        struct = pool_struct(x.memory, *window)
        made = Laid((x.memory[0], struct.oh, struct.ow, *x.memory[3:]), x.dtype)
        operation = "maxpool_bytes" if x.dtype is torch.uint8 else "maxpool_bits"
        p.add(operation, struct, {"x": source}, {"out": (node.name, made)}, alone=made.bytes < SMALL)

    return lay


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


def _coded(node: Node, graph: Graph) -> Lay:
    plans = conv_plans(node, graph)
    if len(plans) > 1:
        return _several(node, graph, plans)
    plan, output, source = plans[0], _output(node, graph), node.inputs[0]
    reads = {"x": source, "residual": node.inputs[1] if len(node.inputs) == 2 else None}

    def lay(p: Program) -> None:
        n, h, w = p.laid[source].memory[:3]
        call = plan.call(n, h, w)
        image = n, call.oh, call.ow, plan.out_channels
        writes = {"out": (node.name, Laid(*output.made(*image)))}
        if "extra" in node.attrs:
            writes["extra"] = (node.attrs["extra"], Laid(*output.beside(*image)))
        p.add(
            f"conv_{plan.kind}", call.struct, reads, writes, weights=plan.weights, output=output.address, alone=call.small
        )  # fmt: skip
        p.keep += [call, plan, output]

    return lay


def _output(node: Node, graph: Graph) -> native.KernelOutput:
    """What becomes of the integers of a layer of one term."""
    a, scale, add = node.attrs, graph.need(node, "scale"), graph.need(node, "add")
    if "emit" not in a:
        return native.FloatOutput(
            scale[0], add, relu=bool(a.get("relu")), grid=a.get("grid"), cuts=graph.tensor(node, "cuts"),
            flip=graph.tensor(node, "flip"), bytes=a.get("extra_form") == "bytes",
        )  # fmt: skip
    e = a["emit"]
    if "grid" in e:
        return native.GridOutput(scale[0], add, e["grid"])
    cuts, flip = graph.need(node, "int_thresholds"), graph.tensor(node, "int_flip")
    return native.CodeOutput(cuts, flip, code_planes(e["levels"]), int(e["groups"]), e["form"] == "bytes")


def _several(node: Node, graph: Graph, plans: list[native.ConvPlan]) -> Lay:
    """The integers of each term one after the other in memory, then their sum."""
    output, source, sums = native.KernelOutput(), node.inputs[0], f"{node.name} terms"
    scale, add = (kernel_table(graph.need(node, role), torch.float32) for role in ("scale", "add"))

    def lay(p: Program) -> None:
        n, h, w = p.laid[source].memory[:3]
        call = plans[0].call(n, h, w)
        image = n, call.oh, call.ow, plans[0].out_channels
        pixels, dtype = math.prod(image[:3]), torch.int32
        where: Any = Laid((len(plans), pixels, 1, image[3]), dtype)
        for i, plan in enumerate(plans):
            call = plan.call(n, h, w)
            writes = {"out": (sums, where if i == 0 else i * pixels * image[3] * dtype.itemsize)}
            p.add(
                f"conv_{plan.kind}", call.struct, {"x": source}, writes, weights=plan.weights, output=output.address,
                alone=call.small,
            )  # fmt: skip
            p.keep += [call, plan, output]
        struct = TermsStruct(pixels, image[3], len(plans), scale.data_ptr(), add.data_ptr())
        p.add("terms", struct, {"x": sums}, {"out": (node.name, Laid(image, torch.float32))}, alone=call.small)
        p.keep += [scale, add]

    return lay
