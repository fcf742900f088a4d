"""Runs a graph on the compiled kernels: codes are packed words or bytes, float operators are torch's own."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch

from bitwright.engine import native, reference, run_reference
from bitwright.engine.forms import code_planes
from bitwright.engine.fuse_shortcuts import subsampled
from bitwright.engine.gates import SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_codes import SMALL, pool_struct
from bitwright.engine.native_floats import float_plan
from bitwright.engine.native_gates import gated_plan
from bitwright.engine.native_images import lay_image
from bitwright.engine.native_library import IMAGE_OPERATIONS, CodedConnectionsStruct, TermsStruct, kernel_table
from bitwright.engine.native_run import Laid, NativeRun, Program
from bitwright.engine.native_splits import ShuffledFloats, TorchSplit, lay_both_sums, lay_by_skipping, lay_floats
from bitwright.engine.rules import CODED, CODED_SPLITS, place_of
from bitwright.engine.run_reference import Step
from bitwright.engine.sparse_linear import CODED_ROWS, WeightList, coded_list, sparse_linear
from bitwright.engine.table_linear import table_linear

Lay = Callable[[Program], None]


def step(node: Node, graph: Graph, threads: int | None) -> Step:
    """The step of a node. Kernel layouts of its weights are made here, once."""
    if node.op == "quantize" and node.attrs["form"] != "plain":
        return NativeRun([node], [_pack(node, graph)], threads)
    if node.op == "max_pool_codes":
        return NativeRun([node], [_pool(node)], threads)
    if node.op in CODED:
        return NativeRun([node], [_coded(node, graph)], threads)
    if node.op == "gated_conv":
        return NativeRun([node], [_gated(node, graph)], threads)
    if node.op == "float_conv":
        return NativeRun([node], [_floats(node, graph)], threads)
    if node.op in IMAGE_OPERATIONS:
        return NativeRun([node], [lay_image(node)], threads)
    if node.op == "subsample":  # of floats that torch's operators made
        return run_reference.of_one(node, lambda x: subsampled(x, node.attrs))
    if node.op == "skipped_gate":
        order = SplitOperator(node, graph).order
        return (
            NativeRun([node], [lay_floats(node, graph)], threads)
            if order is None
            else ShuffledFloats(node, graph, order, threads)
        )
    if node.op in CODED_SPLITS and "way" in node.attrs:
        lay = lay_by_skipping if node.attrs["way"] == "gated" else lay_both_sums
        return NativeRun([node], [lay(node, graph, _output(node, graph))], threads)
    if node.op in CODED_SPLITS and node.attrs["x_form"] == "bytes":
        return run_reference.of_one(node, TorchSplit(node, graph))
    if node.op == "connections":
        layer, choose = sparse_linear(node, graph, threads)
        if choose is not None:
            return run_reference.of_one(node, choose)
        return NativeRun([node], [_connections(node, layer)], threads)
    if (tables := table_linear(node, graph, threads)) is not None:
        return run_reference.of_one(node, tables)
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


def _gated(node: Node, graph: Graph) -> Lay:
    """Its decisions lie in `extra`, for whoever wants to see them."""
    weight, add = reference.stored_weight(graph, node), graph.tensor(node, "bias")
    predictor, size = graph.need(node, "predictor"), graph.need(node, "size")
    plan = gated_plan(node, weight, add, predictor, size, node.attrs, bool(node.attrs.get("relu")))
    reads = {"x": node.inputs[0], "residual": node.inputs[1] if len(node.inputs) == 2 else None}

    def lay(p: Program) -> None:
        n, h, w = p.laid[node.inputs[0]].memory[:3]
        struct = plan.struct(n, h, w)
        outputs, f32 = plan.weight_shape[0], torch.float32
        writes = {
            "out": (node.name, Laid((n, struct.oh, struct.ow, outputs), f32)),
            "extra": (node.attrs["extra"], Laid((n, 1, 1, outputs), f32)),
        }
        p.add("conv_gated", struct, reads, writes, weights=plan.weights, alone=plan.small(struct))
        p.keep.append(plan)

    return lay


def _floats(node: Node, graph: Graph) -> Lay:
    plan = float_plan(node, graph)
    reads = {"x": node.inputs[0], "residual": node.inputs[1] if len(node.inputs) == 2 else None}

    def lay(p: Program) -> None:
        x = p.laid[node.inputs[0]]
        n, h, w = x.memory[:3]
        struct = plan.struct(n, h, w, x.nchw)
        out = Laid((n, struct.oh, struct.ow, plan.weight_shape[0]), torch.float32)
        p.add("conv_floats", struct, reads, {"out": (node.name, out)}, weights=plan.weights, alone=plan.small(struct))
        p.keep.append(plan)

    return lay


def _connections(node: Node, layer: WeightList) -> Lay:
    source = node.inputs[0]

    def lay(p: Program) -> None:
        n = p.laid[source].memory[0]
        out = {"out": (node.name, Laid((n, 1, 1, layer.shape[0]), torch.float32))}
        p.add("connections", layer.struct(n), {"x": source}, out, alone=layer.small(n))
        p.keep.append(layer)

    return lay


def conv_plans(node: Node, graph: Graph) -> list[native.ConvPlan]:
    a, x, info = node.attrs, node.attrs["x"], node.attrs["weight"]
    geometry = place_of(node)
    shape = [*info["shape"][:2], *geometry.pop("kernel")]
    geometry["x_zero"] = x["zero"][0] if len(x["zero"]) == 1 else torch.tensor(x["zero"])
    geometry["shift"] = graph.tensor(node, "shift")
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


def _coded(node: Node, graph: Graph) -> Lay:
    plans = conv_plans(node, graph)
    if len(plans) > 1:
        return _several(node, graph, plans)
    plan, output, source = plans[0], _output(node, graph), node.inputs[0]
    reads = {"x": source, "residual": node.inputs[1] if len(node.inputs) == 2 else None}
    others = coded_list(node, graph)

    def lay(p: Program) -> None:
        call = plan.call(*p.laid[source].memory[:3])
        writes = {"out": (node.name, Laid(*output.made(*call.image)))}
        if "extra" in node.attrs:
            writes["extra"] = (node.attrs["extra"], Laid(*output.beside(*call.image)))
        if others is None or (rows := math.prod(call.image[:3])) < CODED_ROWS:
            return p.convolve(plan, call, output, reads, writes)
        made = others.struct(rows)
        struct = CodedConnectionsStruct(ctypes.addressof(made), call.address)
        p.add("coded_connections", struct, reads, writes, output=output.address, alone=others.small(rows))
        p.keep += [others, made, call, plan, output]

    return lay


def _output(node: Node, graph: Graph) -> native.KernelOutput:
    """What becomes of the integers of a layer of one term."""
    a, scale, add = node.attrs, graph.need(node, "scale"), graph.need(node, "add")
    if "emit" not in a:
        return native.FloatOutput(
            scale[0], add, relu=bool(a.get("relu")), grid=a.get("grid"), cuts=graph.tensor(node, "cuts"),
            flip=graph.tensor(node, "flip"), bytes=a.get("extra_form") == "bytes", pool=a.get("pool"),
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
        calls = [plan.call(*p.laid[source].memory[:3]) for plan in plans]
        image, small = calls[0].image, calls[-1].small
        pixels, outputs, dtype = math.prod(image[:3]), image[3], torch.int32
        for i, (plan, call) in enumerate(zip(plans, calls, strict=True)):
            place = i * pixels * outputs * dtype.itemsize if i else Laid((len(plans), pixels, 1, outputs), dtype)
            p.convolve(plan, call, output, {"x": source}, {"out": (sums, place)})
        struct = TermsStruct(pixels, outputs, len(plans), scale.data_ptr(), add.data_ptr())
        p.add("terms", struct, {"x": sums}, {"out": (node.name, Laid(image, torch.float32))}, alone=small)
        p.keep += [scale, add]

    return lay
