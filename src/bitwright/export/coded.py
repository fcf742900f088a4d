"""Layers with bits, quantizers and pooling of codes as operators of the domain `bitwright`: a step of `FusedNet` each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.forms import code_planes
from bitwright.engine.graph import Graph, Node
from bitwright.engine.reference import tap_sums
from bitwright.engine.rules import place_of
from bitwright.engine.thresholds import EvenGrid
from bitwright.export.images import pooled_sides, window_attributes

if TYPE_CHECKING:
    from bitwright.export.net import FusedNet

Values = dict[str, Tensor]
AS_IT_IS = {"perm": [0, 1, 2, 3], "channels_last": 1}  # floats that have their channels last already


def pack(net: FusedNet, node: Node) -> Callable[[Values], None]:
    a, name, source = node.attrs, node.name, node.inputs[0]
    of_input = net.graph.node(source).op == "input"
    channels, levels = node.channels, int(a["levels"])
    if "grid" in a and a["grid"].kind != "step":
        op, more = "PackRound", {}
        constants = [net.keep(node, "grid", _numbers(a["grid"]), torch.float32)]
    else:
        op = "PackBytes" if a["form"] == "bytes" else "PackBits"
        more = {} if a["form"] == "bytes" else {"planes": code_planes(levels), "groups": int(a["groups"])}
        constants = [
            net.keep(node, "thresholds", net.graph.need(node, "thresholds"), torch.float32),
            net.keep(node, "flip", _turned(net.graph, node, "flip", channels), torch.uint8),
        ]

    def run(values: Values) -> None:
        x = net.channels_last.get(source)
        if x is not None and not bool(a["last"]):
            tables = [net.get_buffer(b) for b in constants]
            values[name] = net.call(op, [x, *tables], {**AS_IT_IS, **more}, (torch.uint8, x.shape))
            return
        net.rows[name] = values[source].shape[:-1]
        x = images(values[source], bool(a["last"]))
        if of_input and x.dim() == 4 and not bool(a["last"]):
            n, c, h, w = x.shape  # as it came: the library reads both orders
            order: dict[str, Any] = {"perm": [0, 2, 3, 1], "channels_last": 0}
        else:
            x = x.permute(0, 2, 3, 1)
            n, h, w, c = x.shape
            order = AS_IT_IS
        tables = [net.get_buffer(b) for b in constants]
        values[name] = net.call(op, [x, *tables], {**order, **more}, (torch.uint8, (n, h, w, c)))

    return run


def pool(net: FusedNet, node: Node) -> Callable[[Values], None]:
    a, name, source = node.attrs, node.name, node.inputs[0]
    planes = 0 if a["form"] == "bytes" else code_planes(int(a["levels"]))
    attrs = window_attributes(a["kernel"], a["stride"], a["padding"], a["dilation"], bool(a["ceil"]))

    def run(values: Values) -> None:
        codes = values[source]
        shape = (codes.shape[0], *pooled_sides(codes.shape[1:3], attrs), codes.shape[3])
        values[name] = net.call("MaxPool", [codes], {"planes": planes, **attrs}, (torch.uint8, shape))

    return run


def coded(net: FusedNet, node: Node) -> Callable[[Values], None]:
    a, graph, name, source = node.attrs, net.graph, node.name, node.inputs[0]
    info, x = a["weight"], a["x"]
    place = _Place(node)
    planes = code_planes(int(x["levels"]))
    attrs = {"x_planes": -planes if a["x_form"] == "bytes" else planes, **place.attrs}
    scale, add = graph.need(node, "scale"), graph.need(node, "add")
    outputs, count = int(info["shape"][0]), len(info["terms"])
    convolutions, signs = [], []
    for number, (term, values, turned) in enumerate(_convolutions(node, reference.weight_integers(graph, node))):
        taps = tap_sums(values.reshape(*values.shape[:2], *place.kernel), x["zero"], place.groups)
        if (shift := graph.tensor(node, "shift")) is not None:
            taps[:, 0, 0] += shift  # only layers without padding have one: all taps lie inside the image
        convolutions.append(
            [
                *weight_constants(net, node, term, number, place.kernel),
                net.keep(node, "x_mult", [int(x["mult"])], torch.int32),
                net.keep(node, f"taps{number}", taps if bool(taps.any()) else taps[:1], torch.int32),
            ]
        )
        signs += turned
    if count > 1:
        line = [
            net.keep(node, "scale", scale * torch.tensor(signs)[:, None], torch.float32),
            net.keep(node, "add", add, torch.float32),
        ]

        def several(values: Values) -> None:
            codes = values[source]
            net.rows[name] = net.rows.get(source)
            size = (codes.shape[0], *place.out(codes))
            wide = (*size, count * outputs // len(convolutions))
            sums = [
                net.call("ConvInt", [codes, *map(net.get_buffer, c)], attrs, (torch.int32, wide)) for c in convolutions
            ]
            integers = sums[0] if len(sums) == 1 else torch.cat(sums, -1)
            y = net.call("Terms", [integers, *map(net.get_buffer, line)], {}, (torch.float32, (*size, outputs)))
            values[name] = _torch_order(net, y, node)
            if len(node.shape) == 3:
                net.channels_last[name] = y

        return several

    constants = convolutions[0]
    tail, more, op, codes_too = _outcome(net, node, outputs)
    step = _step_table(net, node, outputs)
    floats = op in ("Conv", "ConvCut", "ConvLadder", "ConvRound")
    window: tuple[int, int, int] | None = a.get("pool")
    if window is not None:
        (kernel, stride, pad), op = window, f"{op}Pool"
        more = {**more, "pool_kernel": [kernel] * 2, "pool_strides": [stride] * 2, "pool_pads": [pad] * 4}
    residual = node.inputs[1] if len(node.inputs) == 2 else None
    beside = a.get("extra")

    def run(values: Values) -> None:
        codes = values[source]
        net.rows[name] = net.rows[str(beside)] = net.rows.get(source)
        given = [codes, *map(net.get_buffer, constants), *[net.get_buffer(t) for t in tail]]
        if residual is not None:
            other = net.channels_last.get(residual)
            given[len(constants) + 4] = images(values[residual], False).permute(0, 2, 3, 1) if other is None else other
        sides = place.out(codes)
        if window is not None:
            kernel, stride, pad = window
            sides = [(s + 2 * pad - kernel) // stride + 1 for s in sides]
        shape = (codes.shape[0], *sides, outputs)
        kinds = [(torch.float32 if floats else torch.uint8, shape)]
        kinds += [(torch.uint8, shape)] if codes_too else []
        made = net.call(op, given, {**attrs, **more}, *kinds)
        y, written = made if codes_too else (made, None)
        if step:
            written = net.call("PackBytes", [y, *map(net.get_buffer, step)], AS_IT_IS, (torch.uint8, shape))
        if "emit" in a:
            values[name] = y if written is None else written
        else:
            values[name] = _torch_order(net, y, node)
            if len(node.shape) == 3:
                net.channels_last[name] = y
        if beside is not None:
            assert written is not None
            values[beside] = written

    return run


def float_conv(net: FusedNet, node: Node, weight: Callable[[], Tensor]) -> Callable[[Values], None]:
    """A float layer of the kernels, [N, C, H, W], [N, C, L] or [N, C]."""
    a, name, source, missing = node.attrs, node.name, node.inputs[0], 2 - int(node.attrs["rank"])
    of_input, outputs = net.graph.node(source).op == "input" and not missing, int(node.shape[0])
    stride, pads, dilation = (
        [usual] * missing + list(a[k]) for k, usual in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    attrs = {"strides": stride, "pads": [*pads, *pads], "dilations": dilation}
    bias = net.graph.tensor(node, "bias")
    constants = [
        net.keep(node, "add", torch.zeros(outputs) if bias is None else bias, torch.float32),
        net.keep(node, "floor", 0.0 if a.get("relu") else -torch.inf, torch.float32),
    ]
    residual = node.inputs[1] if len(node.inputs) == 2 else None
    none = net.keep(node, "residual", [0.0], torch.float32) if residual is None else ""

    def last(values: Values, value: str) -> Tensor:
        x = net.channels_last.get(value)
        return images(values[value], False).permute(0, 2, 3, 1) if x is None else x

    def run(values: Values) -> None:
        w = weight()
        w = w.reshape(*w.shape[:2], *[1] * missing, *w.shape[2:])
        if of_input and w.shape[1] < 16:  # as it came: the kernel reads both orders
            x, order = values[source], {"perm": [0, 1, 2, 3], "channels_last": 0}
        else:
            x, order = last(values, source), {"perm": [0, 3, 1, 2], "channels_last": 1}
        other = net.get_buffer(none) if residual is None else last(values, residual)
        places = zip(
            x.shape[2:] if x is values[source] else x.shape[1:3], w.shape[2:], stride, pads, dilation, strict=True
        )
        size = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in places]
        given = [x, w, *map(net.get_buffer, constants), other]
        y = net.call("ConvFloats", given, {**order, **attrs}, (torch.float32, (x.shape[0], *size, outputs)))
        values[name] = _torch_order(net, y, node)
        if not missing:
            net.channels_last[name] = y

    return run


def _outcome(net: FusedNet, node: Node, outputs: int) -> tuple[list[str], dict[str, Any], str, bool]:
    """(constants, attributes, operator, whether it gives codes beside floats) of a layer of one term."""
    a, graph = node.attrs, net.graph
    line = [
        net.keep(node, "scale", graph.need(node, "scale")[0], torch.float32),
        net.keep(node, "add", graph.need(node, "add"), torch.float32),
    ]
    if "emit" in a:
        e = a["emit"]
        if "grid" in e and e["grid"].kind != "step":
            return (
                [*line, net.keep(node, "grid", _numbers(e["grid"]), torch.float32)],
                {},
                "ConvRoundCodes",
                False,
            )
        if "grid" not in e:
            return _integer_outcome(net, node, outputs)
    line += [
        net.keep(node, "floor", 0.0 if a.get("relu") else -torch.inf, torch.float32),
        net.keep(node, "residual", [0.0], torch.float32),
    ]
    if "extra" not in a or ("grid" in a and a["grid"].kind == "step"):
        return line, {}, "Conv", False
    if "grid" in a:
        return [*line, net.keep(node, "grid", _numbers(a["grid"]), torch.float32)], {}, "ConvRound", True
    cuts = graph.need(node, "cuts")
    if len(cuts) > 1:
        return [*line, net.keep(node, "cuts", cuts, torch.float32)], {}, "ConvLadder", True
    cut = [
        net.keep(node, "cuts", cuts[0], torch.float32),
        net.keep(node, "flip", _turned(graph, node, "flip", outputs), torch.uint8),
    ]
    return [*line, *cut], {"out_bytes": int(a["extra_form"] == "bytes")}, "ConvCut", True


def _integer_outcome(net: FusedNet, node: Node, outputs: int) -> tuple[list[str], dict[str, Any], str, bool]:
    """Codes by comparing integers."""
    e, graph = node.attrs["emit"], net.graph
    tables = [
        net.keep(node, "int_thresholds", graph.need(node, "int_thresholds"), torch.int32),
        net.keep(node, "int_flip", _turned(graph, node, "int_flip", outputs), torch.uint8),
    ]
    as_bytes = int(e["form"] == "bytes")
    more = {"out_bytes": as_bytes, "out_planes": code_planes(e["levels"]), "out_groups": int(e["groups"])}
    return tables, more, "ConvCodes", False


def _step_table(net: FusedNet, node: Node, outputs: int) -> list[str]:
    """Thresholds and flips of a code of one step, which no operator of a layer writes: `PackBytes` behind it does."""
    grid = node.attrs.get("emit", node.attrs).get("grid")
    if grid is None or grid.kind != "step":
        return []
    table = torch.tensor([-torch.inf] * grid.low + [grid.value])
    return [
        net.keep(node, "thresholds", table, torch.float32),
        net.keep(node, "flip", torch.zeros(outputs), torch.uint8),
    ]


def _convolutions(node: Node, values: list[Tensor]) -> list[tuple[dict[str, Any], Tensor, list[int]]]:
    """(weight, its integers, the sign of each term's integers) of each convolution that gives the sums of the terms: one with
    the outputs of all terms side by side, or, where terms are unlike or outputs lie in groups, one a term."""
    terms = node.attrs["weight"]["terms"]
    first = terms[0]
    signs = [1 if t["mult"] == first["mult"] and t["zero"] == first["zero"] else -1 for t in terms]
    alike = all(
        [s * int(m) for m in t["mult"]] == list(first["mult"]) and s * int(t["zero"]) == int(first["zero"])
        for s, t in zip(signs, terms, strict=True)
    )
    if len(terms) == 1 or not alike or int(node.attrs.get("groups", 1)) > 1:
        return [(t, v, [1]) for t, v in zip(terms, values, strict=True)]
    joined = {**first, "planes": [p for t in terms for p in t["planes"]], "count": len(terms)}
    return [(joined, torch.cat([s * v for s, v in zip(signs, values, strict=True)]), signs)]


def weight_constants(net: FusedNet, node: Node, term: dict[str, Any], number: int, kernel: list[int]) -> list[str]:
    """The names of bits, shape, mult, zero of one term of a weight, or of several alike, their outputs side by side."""
    info, count = node.attrs["weight"], int(term.get("count", 1))
    bit = reference.unpack_bits(net.graph.need(node, "bits"), (info["planes"], *info["shape"]))[term["planes"]]
    planes = len(term["planes"]) // count
    bit = bit.reshape(count, planes, *info["shape"]).transpose(0, 1)
    shape = [planes, count * info["shape"][0], info["shape"][1], *kernel]
    return [
        net.keep(node, f"bits{number}", reference.pack_bits(bit), torch.uint8),
        net.keep(node, f"shape{number}", shape, torch.int64),
        net.keep(node, f"mult{number}", term["mult"], torch.int32),
        net.keep(node, f"zero{number}", [int(term["zero"])], torch.int32),
    ]


def expanded(net: FusedNet, node: Node) -> Callable[[], Tensor]:
    info, scale = node.attrs["weight"], net.graph.need(node, "scale")
    shape = list(info["shape"])
    flat = [shape[1], 1, 1] if len(shape) == 2 else [shape[1], 1, math.prod(shape[2:])]
    terms = []
    for number, term in enumerate(info["terms"]):
        names = weight_constants(net, node, term, number, flat[1:])
        terms.append([*names, net.keep(node, f"scale{number}", scale[number], torch.float32)])

    def weight() -> Tensor:
        total: Tensor | None = None
        for names in terms:
            given = [net.get_buffer(n) for n in names]
            part = net.call("FloatWeight", given, {}, (torch.float64, (shape[0], *flat)))
            total = part if total is None else total + part
        assert total is not None
        return total.float().reshape(shape)

    return weight


class _Place:
    """The geometry of a coded layer."""

    def __init__(self, node: Node) -> None:
        self.kernel, stride, padding, dilation, self.groups = place_of(node).values()
        self.attrs = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": self.groups}

    def out(self, codes: Tensor) -> list[Any]:
        """The sides of the result: numbers, or symbols of free sizes."""
        a = self.attrs
        steps = zip(codes.shape[1:3], self.kernel, a["strides"], a["pads"], a["dilations"], strict=False)
        return [(s + 2 * p - d * (k - 1) - 1) // step + 1 for s, k, step, p, d in steps]


def _turned(graph: Graph, node: Node, role: str, outputs: int) -> Tensor:
    """Which channels count down."""
    found = graph.tensor(node, role)
    return torch.zeros(outputs) if found is None else found


def images(x: Tensor, last: bool) -> Tensor:
    """[N, C, H, W] of any float value that a quantizer reads."""
    if last and x.dim() > 2:
        return x.flatten(1, -2).transpose(1, 2).unsqueeze(2)
    if x.dim() == 2:
        return x.unsqueeze(-1).unsqueeze(-1)
    return x.unsqueeze(2) if x.dim() == 3 else x


def _torch_order(net: FusedNet, y: Tensor, node: Node) -> Tensor:
    """[N, H, W, O] as the value that torch would have."""
    rank = len(node.shape)
    if rank == 1:
        return y.flatten(1)
    if node.op == "coded_linear":
        return y.reshape(*net.rows[node.name], y.shape[3])
    y = y.permute(0, 3, 1, 2)
    return y.squeeze(2) if rank == 2 else y


def _numbers(grid: EvenGrid) -> list[float]:
    """multiply, divide, base, low, high."""
    multiply, divide = (1.0, grid.value) if grid.kind == "divide" else (grid.value, 1.0)
    assert grid.kind != "step", grid
    return [multiply, divide, grid.base, grid.low, grid.high]
