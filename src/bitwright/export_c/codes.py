"""What makes codes: quantizers of pixels and of floats, pooling of codes, and the rows of codes that layers write."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.forms import code_planes
from bitwright.engine.graph import Node
from bitwright.engine.thresholds import EvenGrid
from bitwright.export_c.program import CProgram, bits_at, floats_at
from bitwright.export_c.text import flags, number


class Codes:
    """A value of codes that the next step writes row by row: one byte a code, or bits."""

    def __init__(self, p: CProgram, node: Node, name: str, form: str, levels: int) -> None:
        if levels > 255:
            p.refuse(node, f"codes of 0 to {levels}", "At most 8 bits: convert with fewer bits for this layer's input")
        bits = form == "bits"
        self.value = p.value(name, node, "bits" if bits else "bytes", code_planes(levels) if bits else 0)
        self.scratch = p.room("codes", "bytes", self.value.channels) if bits else None

    def row(self, made: Callable[[str], str], pixel: str, count: int) -> str:
        """Lines that write the codes of a pixel; `made(target)` writes them as bytes."""
        at = f"{pixel} * {count}" if pixel != "0" else "0"
        if self.scratch is None:
            return made(f"NET_BYTES({self.value.at}) + {at}") + "\n"
        to = f"NET_BYTES({self.scratch.at})"
        return f"{made(to)}\nnet_pack_row({to}, {count}, out, (uint32_t)({at}));\n"

    def declared(self) -> str:
        return "" if self.scratch is None else f"    const net_bits out = {bits_at(self.value)};\n"


def round_line(grid: EvenGrid) -> Callable[[str, int, str], str]:
    """C that rounds floats to codes of an even ladder."""

    def line(y: str, count: int, to: str) -> str:
        if grid.kind == "step":
            return f"net_step_codes({y}, {count}, {number(grid.value)}, {grid.low}, {grid.high}, {to});"
        value = number(grid.value)
        how = f"1.0F, {value}" if grid.kind == "divide" else f"{value}, 1.0F"
        return f"net_round_codes({y}, {count}, {how}, {grid.base}, {grid.low}, {grid.high}, {to});"

    return line


def _threshold_line(
    p: CProgram, node: Node, table: Tensor, step: int, flip: Tensor | None
) -> Callable[[str, int, str], str]:
    """C that compares floats with thresholds; `step` 0: one row serves all channels."""
    name, levels = p.constant(node, "thresholds", table, "float"), table.shape[-1]
    turned = "0" if flip is None else p.constant(node, "flip", flags(flip), "uint8_t")
    return lambda y, count, to: f"net_codes_of_floats({y}, {count}, {name}, {levels}, {step}, {turned}, {to});"


def cut_line(p: CProgram, node: Node) -> Callable[[str, int, str], str]:
    """C that cuts floats into codes of few levels, beside the floats that a layer writes."""
    cuts = p.graph.need(node, "cuts")
    return _threshold_line(p, node, cuts.T, cuts.shape[0], p.graph.tensor(node, "flip"))


def quantize(p: CProgram, node: Node) -> None:
    """Codes of floats, or of the pixels that the caller gives."""
    table, flip = p.graph.need(node, "thresholds"), p.graph.tensor(node, "flip")
    levels, form = int(node.attrs["levels"]), node.attrs["form"]
    form = "bytes" if form == "plain" else form
    source = p.graph.node(node.inputs[0])
    if source.op == "input" and node.inputs[0] not in p.values:
        _of_pixels(p, node, source, form, levels)
        return
    x = p.read(node.inputs[0])
    grid = node.attrs.get("grid")
    if grid is not None:
        line = round_line(grid)
    else:
        turned = None if flip is None else flip.expand(x.channels)
        line = _threshold_line(p, node, table, 0 if table.dim() == 1 else levels, turned)
    codes = Codes(p, node, node.name, form, levels)
    p.floats.append(
        f"{node.owner}: comparisons with thresholds" if grid is None else f"{node.owner}: one rounding a code"
    )

    def body() -> str:
        made = codes.row(lambda to: line(f"{floats_at(x)} + pixel * {x.channels}", x.channels, to), "pixel", x.channels)
        return _each_pixel(x.pixels, codes.declared(), made)

    p.step(node, f"{node.owner}: floats to codes 0..{levels}", body)


def _each_pixel(pixels: int, declared: str, lines: str) -> str:
    inner = "".join(f"        {line}\n" for line in lines.splitlines())
    return f"{declared}    int32_t pixel;\n    for (pixel = 0; pixel < {pixels}; pixel++) {{\n{inner}    }}\n"


def _of_pixels(p: CProgram, node: Node, source: Node, form: str, levels: int) -> None:
    channels = int(source.shape[0])
    height, width, _ = p.geometry(source)
    pixels = height * width
    x = p.pixels.table(channels)
    code = reference.quantize(
        x, p.graph.need(node, "thresholds"), p.graph.tensor(node, "flip"), True
    ).T  # [channels, 256]
    alike = bool((code == code[:1]).all())
    table = p.constant(node, "of_pixel", code[:1] if alike else code, "uint8_t", "the code of each value of a pixel")
    step = 0 if alike else 256
    codes = Codes(p, node, node.name, form, levels)

    def body() -> str:
        made = codes.row(
            lambda to: f"net_pixel_codes(net_in + pixel, {channels}, {pixels}, {table}, {step}, {to});",
            "pixel",
            channels,
        )
        return _each_pixel(pixels, codes.declared(), made)

    p.step(node, f"{node.owner}: pixels to codes 0..{levels}", body)
