"""Split gates on the kernels.

lay_floats         of floats: the rest is added only where the gate is on; its dense way computes it everywhere
lay_by_skipping    of codes, in whole numbers: the same
lay_both_sums      its dense way: the base and the whole sum of every output, and the gate selects
TorchSplit         of codes that no kernel takes
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native
from bitwright.engine.gates import SplitOperator
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_library import HighBitsStruct, SkipCallStruct, SkipStruct, optional
from bitwright.engine.native_output import address
from bitwright.engine.native_run import Laid, NativeRun, Program
from bitwright.engine.native_skip import ByteSkip, FloatSkip, by_winograd

Lay = Callable[[Program], None]


def floats_fit(gate: SplitOperator) -> bool:
    """Whether the kernels compute this gate over floats: of lines or images."""
    return not gate.coded and 0 < int(gate.attrs["rank"]) <= 2


def has_dense_kernel(gate: SplitOperator) -> bool:
    """Whether `floats_fit`, and both sums are computed from the same transformed inputs."""
    if not floats_fit(gate):
        return False
    a, place = gate.attrs, _place(gate)
    weight = _plane(gate.weight)
    return by_winograd(weight, int(a["splits"]), not a["group"], place["stride"], place["dilation"], gate.groups)


def lay_floats(node: Node, graph: Graph) -> Lay:
    """A channel gate over floats, with the norm, the residual and the ReLU behind it: `bw_skip_floats`."""
    gate, a, source = SplitOperator(node, graph), node.attrs, node.inputs[0]
    scale, add = graph.tensor(node, "y_scale"), graph.tensor(node, "y_add")
    norms = dict(zip(("scale", "add", "off_scale", "off_add"), gate.dual or (scale, add, None, None), strict=True))
    plan = FloatSkip(
        _plane(gate.weight), torch.nextafter(gate.threshold, torch.tensor(-torch.inf)),  # it asks for more, not for as much
        splits=int(a["splits"]), shared=not a["group"], bias=gate.bias, relu=bool(a.get("relu")), dense=bool(a.get("dense")),
        groups=gate.groups, **norms, **_place(gate),
    )  # fmt: skip
    reads = {"x": source, "residual": node.inputs[1] if len(node.inputs) == 2 else None}

    def lay(p: Program) -> None:
        call, skip, rest = plan.call(*p.laid[source].memory[:3])
        struct = SkipCallStruct(conv=call.address, skip=ctypes.addressof(skip))
        out = Laid(tuple(call.image), torch.float32)
        p.add("skip_floats", struct, reads, {"out": (node.name, out)}, weights=plan.weights, alone=call.small)
        p.keep += [plan, call, skip, rest]

    return lay


class ShuffledFloats:
    """The same of a gate that reads the channels in another order, as a step of its own."""

    def __init__(self, node: Node, graph: Graph, order: Tensor, threads: int | None) -> None:
        self.run, self.source, self.name = (
            NativeRun([node], [lay_floats(node, graph)], threads),
            node.inputs[0],
            node.name,
        )
        self.order = order

    def __call__(self, env: dict[str, Tensor]) -> None:
        mine = {self.source: env[self.source][:, self.order]}
        self.run(mine)
        env[self.name] = mine[self.name]


class TorchSplit(SplitOperator):
    """A gate over byte codes [N, H, W, C] that no kernel takes, in plain torch."""

    def __call__(self, codes: Tensor) -> Tensor:
        shape = self.node.shape
        if self.last:
            return super().__call__(_rows_of(codes, shape).long())
        x = codes.permute(0, 3, 1, 2).long()
        return super().__call__(x if len(shape) == 3 else x.flatten(2))


def _rows_of(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[N, H, W, C] with as many axes as `shape` of a sample has; of more than two in front of the last, with its lengths."""
    if len(shape) < 3:
        return y.flatten(1, 4 - len(shape))
    return y if len(shape) == 3 else y.reshape(len(y), *shape[:-1], y.shape[3])


def takes(gate: SplitOperator) -> bool:
    """Whether the kernels compute this gate: whole numbers that fit bytes, and scales that keep their order."""
    if not gate.whole or int(gate.attrs["rank"]) > 2 or gate.order is not None or len(gate.x_info["zero"]) != 1:
        return False
    assert gate.scale is not None
    step, most = int(gate.attrs.get("step", 1)), float(gate.weight.abs().max()) * int(gate.x_info["mult"])
    return most <= 255 and not step & (step - 1) and bool((gate.scale >= 0).all())


def skips(gate: SplitOperator) -> bool:
    """Whether the kernel that skips does: for a precision gate the low bits of a number are those of its code."""
    step, mult, zero = int(gate.attrs.get("step", 0)), int(gate.x_info["mult"]), int(gate.x_info["zero"][0])
    return takes(gate) and (not step or (zero == 0 and step % mult == 0 and 2 <= step // mult <= 128))


def _place(gate: SplitOperator) -> dict[str, Any]:
    missing = 2 - int(gate.attrs["rank"])  # axes that the kernel has and the layer has not
    steps = (("stride", 1), ("padding", 0), ("dilation", 1))
    return {k: [usual] * missing + list(gate.attrs.get(k, [])) for k, usual in steps}


def _plane(w: Tensor) -> Tensor:
    """[O, C / groups, kh, kw]"""
    return w.reshape(*w.shape[:2], *[1] * (4 - w.dim()), *w.shape[2:])


def _norms(node: Node, graph: Graph) -> dict[str, Tensor | None]:
    roles = {"scale": "norm_scale", "add": "norm_add", "off_scale": "off_scale", "off_add": "off_add"}
    return {name: graph.tensor(node, role) for name, role in roles.items()}


def _writes(node: Node, output: native.KernelOutput, image: tuple[int, ...]) -> dict[str, tuple[str, Laid]]:
    writes = {"out": (node.name, Laid(*output.made(*image)))}
    if "extra" in node.attrs:
        writes["extra"] = (str(node.attrs["extra"]), Laid(*output.beside(*image)))
    return writes


def lay_by_skipping(node: Node, graph: Graph, output: native.KernelOutput) -> Lay:
    """The base of all outputs, the rest of those that are on: `bw_skip_bytes`."""
    gate, source = SplitOperator(node, graph), node.inputs[0]
    mult, levels = int(gate.x_info["mult"]), int(gate.x_info["levels"])
    low = int(node.attrs.get("step", 0)) // mult
    options: dict[str, Any] = (
        {"low_bits": low.bit_length() - 1}
        if low
        else {
            "splits": int(node.attrs["splits"]),
            "shared": not node.attrs["group"],
            "x_zero": int(gate.x_info["zero"][0]),
        }
    )
    plan = ByteSkip(
        _plane(gate.weight).to(torch.int32) * mult, graph.need(node, "cut"), groups=gate.groups, x_bits=levels.bit_length(),
        norms=_norms(node, graph), **options, **_place(gate),
    )  # fmt: skip
    reads = {"x": source, "residual": node.inputs[1] if len(node.inputs) == 2 else None}

    def lay(p: Program) -> None:
        call, skip, rest = plan.call(*p.laid[source].memory[:3])
        struct = SkipCallStruct(conv=call.address, skip=ctypes.addressof(skip))
        writes = _writes(node, output, call.image)
        p.add("skip_bytes", struct, reads, writes, weights=plan.weights, output=output.address, alone=call.small)
        p.keep += [plan, call, skip, rest, output]

    return lay


def lay_both_sums(node: Node, graph: Graph, output: native.KernelOutput) -> Lay:
    """The base and the whole sum of all outputs by the dense kernels, then the gate takes one of them: `bw_select`."""
    gate, source, sums = SplitOperator(node, graph), node.inputs[0], f"{node.name} sums"
    mult, zero, levels = int(gate.x_info["mult"]), int(gate.x_info["zero"][0]), int(gate.x_info["levels"])

    def plan(w: Tensor, **inputs: int) -> native.ConvPlan:
        return native.ConvPlan.bytes(_plane(w).to(torch.int32), groups=gate.groups, **inputs, **_place(gate))

    inputs = {"x_mult": mult, "x_zero": zero, "x_bits": levels.bit_length()}
    full, table, shift, step = plan(gate.weight, **inputs), None, 0, int(node.attrs.get("step", 1))
    if gate.parts is not None:
        base = plan(gate.weight - gate.parts[1], **inputs)  # with zeros: faster than a convolution in groups
    else:  # the numbers of the high bits, as codes of their own
        high = gate.high(torch.arange(256).clamp_max(levels).double() * mult + zero)
        least, table = int(high.min()), ((high - high.min()) / step).to(torch.uint8)
        base = plan(gate.weight, x_zero=least // step, x_bits=max(1, int(table.max()).bit_length()))
        if skips(gate):
            shift, table = (step // mult).bit_length() - 1, None
    cut, norms = graph.need(node, "cut"), _norms(node, graph)
    tables = {
        "threshold": cut.to(torch.int32).contiguous(),
        **{k: optional(v, torch.float32) for k, v in norms.items()},
    }
    skip = SkipStruct(low_bits=step.bit_length() - 1, **{k: address(v) for k, v in tables.items()})
    residual, ints = node.inputs[1] if len(node.inputs) == 2 else None, native.KernelOutput()

    def lay(p: Program) -> None:
        memory = p.laid[source].memory
        call, read = full.call(*memory[:3]), source
        pixels, outputs = math.prod(call.image[:3]), call.image[3]
        if gate.parts is None:
            read, count = f"{node.name} high bits", math.prod(memory)
            struct = HighBitsStruct(count=count, shift=shift, table=address(table))
            p.add("high_bits", struct, {"x": source}, {"out": (read, Laid(memory, torch.uint8))})
        p.convolve(
            base, base.call(*memory[:3]), ints, {"x": read}, {"out": (sums, Laid((2, pixels, 1, outputs), torch.int32))}
        )
        p.convolve(full, call, ints, {"x": source}, {"out": (sums, pixels * outputs * 4)})
        struct = SkipCallStruct(conv=call.address, skip=ctypes.addressof(skip))
        writes = _writes(node, output, call.image)
        p.add("select", struct, {"x": sums, "residual": residual}, writes, output=output.address, alone=call.small)
        p.keep += [call, skip, tables, table, output]

    return lay
