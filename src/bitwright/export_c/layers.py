"""Layers whose weights and inputs are codes: exact sums of whole numbers, then thresholds, or one multiply and one add."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.forms import code_planes
from bitwright.engine.fuse import integer_range
from bitwright.engine.graph import Node
from bitwright.export_c.codes import Codes, cut_line, round_line
from bitwright.export_c.plan import Value
from bitwright.export_c.program import CProgram, bits_at, floats_at
from bitwright.export_c.text import flags, words

INT16 = 2**15 - 1
FEW = 4  # bits of a weight up to which it stays bits beside inputs that are bytes


def window_numbers(p: CProgram, node: Node, source: Value, kernel: list[int]) -> list[int]:
    """The fields of `net_window`."""
    a, (rows, columns, _) = node.attrs, p.geometry(node)
    if "stride" in a:
        if len(a["stride"]) != 2:
            p.refuse(node, f"a convolution over {len(a['stride'])} axes", "A C file takes convolutions over images")
        place = [*a["stride"], *a["padding"], *a["dilation"], a["groups"]]
    else:
        place = [1, 1, 0, 0, 1, 1, 1]
    return [int(v) for v in (source.height, source.width, source.channels, rows, columns, *kernel, *place)]


def coded(p: CProgram, node: Node) -> None:
    a, info, x = node.attrs, node.attrs["weight"], node.attrs["x"]
    source = p.read(node.inputs[0])
    shape = [int(s) for s in info["shape"]]
    outputs, kernel = shape[0], shape[2:] or [1, 1]
    if len(kernel) != 2:
        p.refuse(node, f"a convolution over {len(kernel)} axes", "A C file takes convolutions over images")
    numbers = window_numbers(p, node, source, kernel)
    if math.prod(shape[1:]) * _largest_product(info, x) > 2**31 - 1:
        p.refuse(node, "its sums may exceed 32 bits", "Fewer bits for weights or inputs")
    window = p.window(node, numbers)
    sums = p.room("sums", "words", outputs * len(info["terms"]))
    inner, describe = (
        _bits(p, node, source, window, numbers, sums)
        if a["x_form"] == "bits"
        else _bytes(p, node, source, window, numbers, sums)
    )
    shift = p.graph.tensor(node, "shift")
    added = None if shift is None else p.constant(node, "shift", shift, "int32_t")
    outer, codes = _outcome(p, node, sums, outputs)
    rows, columns = numbers[3], numbers[4]

    def body() -> str:
        shifted = "" if added is None else f"net_add_whole(NET_SUMS({sums.at}), {added}, {outputs});\n"
        declared = inner[0]() + ("" if codes is None else codes.declared())
        return (
            f"    int32_t row, column, pixel = 0;\n{declared}"
            f"    for (row = 0; row < {rows}; row++)\n"
            f"        for (column = 0; column < {columns}; column++, pixel++) {{\n"
            f"{indented(inner[1]() + shifted)}{indented(outer())}        }}\n"
        )

    where = "" if kernel == [1, 1] else f" {kernel[0]}x{kernel[1]}"
    kind = "linear" if source.pixels == 1 else "convolution"
    p.step(node, f"{node.owner}: {kind}{where}, {source.channels} -> {outputs} channels, {describe}", body)


def indented(text: str) -> str:
    return "".join(f"            {line}\n" for line in text.splitlines())


def _largest_product(info: dict, x: dict) -> int:
    each = max(abs(int(t["zero"])) + sum(abs(int(m)) for m in t["mult"]) for t in info["terms"])
    return each * (max(abs(int(z)) for z in x["zero"]) + int(x["mult"]) * int(x["levels"]))


Lines = Callable[[], str]


def _bits(
    p: CProgram, node: Node, source: Value, window: str, numbers: list[int], sums: Value
) -> tuple[tuple[Lines, Lines], str]:
    """(declarations, what one pixel computes) for codes as bits, and words for both."""
    info, x = node.attrs["weight"], node.attrs["x"]
    shape, groups, padded = [int(s) for s in info["shape"]], numbers[-1], numbers[9] or numbers[10]
    outputs, each = shape[0], math.prod(shape[1:])
    row, planes = -(-each // 32), code_planes(int(x["levels"]))
    bit = stored_bits(p, node)
    zeros = [int(z) for z in x["zero"]]
    border = bool(padded) and any(zeros)
    input_mult = [int(x["mult"]) << i for i in range(planes)] + ([zeros[0]] if border else [])
    mult = p.constant(node, "input_mult", np.array(input_mult), "int32_t")
    patch = p.room("patch", "words", row * (planes + border))
    terms = []
    for number, (term, whole) in enumerate(zip(info["terms"], reference.weight_integers(p.graph, node), strict=True)):
        rows = bit[term["planes"]].transpose(0, 1).reshape(-1, each)
        terms.append(
            (
                p.constant(node, f"weight{number or ''}", words(rows.numpy()), "uint32_t", _said(term, "weight")),
                p.constant(node, f"weight_mult{number or ''}", np.array(term["mult"]), "int32_t"),
                len(term["planes"]),
                int(term["zero"]),
                p.constant(node, f"base{number or ''}", _base(whole, zeros, groups), "int32_t") if any(zeros) else "0",
            )
        )
    share = outputs // groups

    def declared() -> str:
        more = "    int inside;\n" if border else ""
        return f"    const net_bits in = {bits_at(source)};\n    net_word *const patch = NET_WORDS({patch.at});\n{more}"

    def pixel() -> str:
        out = f"inside = net_inside(&{window}, row, column);\n" if border else ""
        for g in range(groups):
            out += f"net_gather_bits(&{window}, in, {g}, row, column, patch, {row}u);\n"
            if border:
                out += f"if (!inside)\n    net_gather_mask(&{window}, row, column, patch + {planes * row}, {row}u);\n"
            for number, (weight, weight_mult, q, zero, base) in enumerate(terms):
                first = number * outputs + g * share
                weight_at = weight if g == 0 else f"{weight} + {g * share * q * row}"
                base_at = base if g == 0 or base == "0" else f"{base} + {g * share}"
                seen, constant = (
                    (f"inside ? {planes} : {planes + 1}", f"inside ? {base_at} : 0") if border else (planes, base_at)
                )
                out += (
                    f"net_dot_bits({weight_at}, {weight_mult}, {q}, {zero}, patch, {mult}, {seen}, {row}u, {constant}, "
                    f"{share}, NET_SUMS({sums.at + first}));\n"
                )
        return out

    return (declared, pixel), f"{info['planes']}-bit weights, {planes}-bit inputs"


def _bytes(
    p: CProgram, node: Node, source: Value, window: str, numbers: list[int], sums: Value
) -> tuple[tuple[Lines, Lines], str]:
    """The same for codes as bytes: whole numbers are multiplied."""
    info, x = node.attrs["weight"], node.attrs["x"]
    groups, shape = numbers[-1], [int(s) for s in info["shape"]]
    outputs, each = shape[0], math.prod(shape[1:])
    share, mult, zeros = outputs // groups, int(x["mult"]), [int(z) for z in x["zero"]]
    if max(abs(z + e) for z in zeros for e in (0, mult * int(x["levels"]))) > INT16:
        p.refuse(node, "its input has numbers beyond 16 bits", "Fewer bits for this layer's input")
    zero = p.constant(node, "zero", np.array(zeros), "int16_t")
    whole = reference.weight_integers(p.graph, node)
    if max(int(w.abs().max()) for w in whole) > INT16:
        p.refuse(node, "its weights are beyond 16 bits", "Fewer bits for this layer's weights")
    row = -(-each // 32)  # words
    size = 32 * row if int(info["planes"]) <= FEW else each
    patch = p.room("patch", "words", -(-size // 2))
    rows = [w.movedim(1, -1).reshape(outputs, each) for w in whole]
    if int(info["planes"]) <= FEW:
        bits = stored_bits(p, node)
        terms = [_as_bits(p, node, number, term, bits, f"patch, {row}u") for number, term in enumerate(info["terms"])]
    else:
        terms = [_as_numbers(p, node, number, r, f"patch, {each}") for number, r in enumerate(rows)]

    def declared() -> str:
        return f"    net_short *const patch = NET_SHORTS({patch.at});\n"

    def pixel() -> str:
        out = ""
        for g in range(groups):
            place = f"NET_BYTES({source.at}), {mult}, {zero}, {int(len(zeros) > 1)}, {g}"
            out += f"net_gather_bytes(&{window}, {place}, row, column, patch, {size});\n"
            for number, term in enumerate(terms):
                out += term(g * share) + f", {share}, NET_SUMS({sums.at + number * outputs + g * share}));\n"
        return out

    return (declared, pixel), f"{info['planes']}-bit weights, {code_planes(int(x['levels']))}-bit inputs as bytes"


def _as_bits(p: CProgram, node: Node, number: int, term: dict, bits: Tensor, window: str) -> Callable[[int], str]:
    """The start of a call that multiplies bytes by a term of the weight, from some output on; its bits stay bits."""
    rows = words(bits[term["planes"]].transpose(0, 1).reshape(-1, bits.shape[-1]).numpy())
    name = p.constant(node, f"weight{number or ''}", rows, "uint32_t", _said(term, "weight"))
    mult = p.constant(node, f"weight_mult{number or ''}", np.array(term["mult"]), "int32_t")
    planes, step = len(term["planes"]), len(term["planes"]) * rows.shape[1]
    return lambda first: (
        f"net_dot_bytes1({name}{f' + {first * step}' if first else ''}, {mult}, {planes}, {int(term['zero'])}, {window}"
    )


def _as_numbers(p: CProgram, node: Node, number: int, rows: Tensor, window: str) -> Callable[[int], str]:
    """The same for weights of many bits, stored as numbers of 8 or 16."""
    small = int(rows.min()) >= -128 and int(rows.max()) <= 127
    name = p.constant(node, f"weight{number or ''}", rows, "int8_t" if small else "int16_t")
    function, each = "net_dot_bytes8" if small else "net_dot_bytes16", rows.shape[1]
    return lambda first: f"{function}({name}{f' + {first * each}' if first else ''}, {window}"


def stored_bits(p: CProgram, node: Node) -> Tensor:
    """0/1 [planes, outputs, numbers of a window in its order: rows, columns, channels]."""
    info = node.attrs["weight"]
    shape = [int(s) for s in info["shape"]]
    bit = reference.unpack_bits(p.graph.need(node, "bits"), (info["planes"], *shape))
    return bit.movedim(2, -1).reshape(info["planes"], shape[0], math.prod(shape[1:]))


def _said(term: dict, what: str) -> str:
    """What the bits of a term mean."""
    bits = " + ".join(f"{int(m)} * bit{i}" for i, m in enumerate(term["mult"]))
    return (
        f"{what} = {int(term['zero'])} + {bits}, times the scale of its output" if term["zero"] else f"{what} = {bits}"
    )


def _base(whole: Tensor, zeros: list[int], groups: int) -> np.ndarray:
    """What the constant of the input adds to each output where the whole window lies inside."""
    sums = reference.tap_sums(whole.reshape(*whole.shape[:2], -1, 1), zeros[0] if len(zeros) == 1 else zeros, groups)
    return sums.sum((1, 2)).numpy()


def _outcome(p: CProgram, node: Node, sums: Value, outputs: int) -> tuple[Lines, Codes | None]:
    """From the sums of a pixel to what the layer writes."""
    a, graph = node.attrs, p.graph
    if "emit" in a and "grid" not in a["emit"]:
        return _by_thresholds(p, node, sums, outputs)
    terms = len(a["weight"]["terms"])
    scale = p.constant(node, "scale", graph.need(node, "scale"), "float")
    add = p.constant(node, "add", graph.need(node, "add"), "float")
    other = p.read(node.inputs[1]) if len(node.inputs) == 2 else None
    codes: Codes | None = None
    if "emit" in a:
        y = p.room("y", "words", outputs)
        codes = Codes(p, node, node.name, a["emit"]["form"], int(a["emit"]["levels"]))
    else:
        shares = [other] if other is not None and p.dies(node.inputs[1], node) else []
        y = p.value(node.name, node, "floats", shares=shares)
        if "extra" in a:
            emitted = graph.node(a["extra"])
            codes = Codes(p, emitted, emitted.name, a["extra_form"], int(emitted.attrs["levels"]))
    p.floats.append(f"{node.owner}: one multiply and one add an output" + (", residual sum" if other else ""))
    line: Callable[[str, int, str], str] | None = None
    if codes is not None:
        grid = a["emit"].get("grid") if "emit" in a else a.get("grid")
        line = round_line(grid) if grid is not None else cut_line(p, node)

    def lines() -> str:
        at = floats_at(y) + ("" if "emit" in a else f" + pixel * {outputs}")
        beside = "0" if other is None else f"{floats_at(other)} + pixel * {outputs}"
        out = f"net_scale_sums(NET_SUMS({sums.at}), {terms}, {outputs}, {scale}, {add}, {beside}, {at});\n"
        if a.get("relu"):
            out += f"net_relu({at}, {outputs}, {at});\n"
        if codes is not None and line is not None:
            out += codes.row(functools.partial(line, at, outputs), "pixel", outputs)
        return out

    return lines, codes


def _by_thresholds(p: CProgram, node: Node, sums: Value, outputs: int) -> tuple[Lines, Codes]:
    """Codes by comparing integers."""
    emit, graph = node.attrs["emit"], p.graph
    table = graph.need(node, "int_thresholds").T.to(torch.int64)  # [outputs, levels]
    low, high = (t[:, None] for t in integer_range(graph, node))
    table = torch.minimum(torch.maximum(table, low), high + 1)
    small = int(table.abs().max()) <= INT16
    ctype, suffix = ("int16_t", "16") if small else ("int32_t", "32")
    thresholds = p.constant(node, "thresholds", table, ctype)
    turned = graph.tensor(node, "int_flip")
    flip = "0" if turned is None else p.constant(node, "flip", flags(turned), "uint8_t")
    levels = int(emit["levels"])
    codes = Codes(p, node, node.name, emit["form"], levels)

    def lines() -> str:
        made = f"net_codes_of_sums{suffix}(NET_SUMS({sums.at}), {outputs}, {thresholds}, {levels}, {flip}, {{to}});"
        return codes.row(lambda to: made.replace("{to}", to), "pixel", outputs)

    return lines, codes
