"""`export.c`: a packed net becomes one C file that needs no library, and is compared with the net before it is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.atomic import replacing
from bitwright.engine.convert import Converted
from bitwright.engine.forms import planes_read
from bitwright.engine.fuse import fuse
from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel
from bitwright.engine.rules import SPLITS
from bitwright.errors import InputError
from bitwright.export_c import codes, compiled, elementwise, floats, layers, moves, oracle
from bitwright.export_c.inputs import Pixels
from bitwright.export_c.plan import place
from bitwright.export_c.program import CProgram
from bitwright.export_c.write import Checks, Sizes, header, source

CHECKS = 8  # inputs that the file stores for its self-check
PLANES, PAIRS = (
    4,
    16,
)  # of the input, and pairs of planes, up to which a layer counts bits; with more it multiplies bytes
CLOSE = 1e-3  # of the largest value; beyond it a code on the border of two went the other way
GATES = ("saliency", "winners", "switch", *SPLITS)
FLOAT = ("conv", "linear", "aten")  # whose sums torch adds in an order of its own

OPERATORS: dict[str, Callable[[CProgram, Node], None]] = {
    "quantize": codes.quantize,
    "max_pool_codes": moves.max_codes,
    "decode": moves.decode,
    "coded_conv": layers.coded,
    "coded_linear": layers.coded,
    "conv": floats.layer,
    "linear": floats.layer,
    "relu": elementwise.relu,
    "clamp": elementwise.clamp,
    "prelu": elementwise.prelu,
    "affine": elementwise.affine,
    "add_scalar": elementwise.add_scalar,
    "mul_scalar": elementwise.mul_scalar,
    "add": elementwise.add,
    "max_pool": moves.max_floats,
    "adaptive_avg_pool": moves.average_all,
    "avg_pool2d.default": moves.average_windows,
    "flatten": moves.flatten,
    "slice": moves.cut,
    "pad": moves.pad,
}


@dataclass(frozen=True)
class CReport:
    """What was written, and how it was checked.

    path, header  the files; `bytes`: size of the C file
    flash         bytes of constants; arena: bytes of static memory
    floats        steps that compute in float
    compiled      the compiler that made the program which was compared; None: there was none, and the program was compared
                  as it is defined, in Python
    images        samples compared with the packed net
    largest       the largest difference of a value, as a share of the largest value; 0 where all bits are equal
    differ        samples with a difference beyond 1e-3 of the largest value: a code near a threshold went the other way, because
                  a float layer in front of it adds in another order
    """

    path: str
    header: str
    bytes: int
    flash: int
    arena: int
    floats: list[str]
    compiled: str | None
    images: int
    largest: float
    differ: int

    def __str__(self) -> str:
        said = f"largest difference {self.largest:.1e}" if self.largest else "equal to the bit"
        more = f", {self.differ} at the border of two codes" if self.differ else ""
        how = f"compiled by {Path(self.compiled).name}" if self.compiled else "not compiled (no C compiler here)"
        return (
            f"{self.path}: constants {self.flash:,} bytes, memory {self.arena:,} bytes, {len(self.floats)} steps in float; "
            f"{self.images} samples, {how}: {said}{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def c(
    model: nn.Module | Converted,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 1,
    progmem: bool = False,
    bare: bool = False,
) -> CReport:
    """Writes `path` and the header beside it, and checks the program on `example`.

    model      a packed net (`convert(...).model` or `bw.load`)
    example    images [N, C, H, W]. uint8: pixels, and the file has `net_run`; float: what the net reads, and the file has only
               `net_run_float`. The first eight become the file's self-check
    mean, std  of the data set, per channel, where the net was trained on (k / 255 - mean) / std; else pixel k is k / 255
    batch      images of a call
    progmem    constants in a section of their own, NET_SECTION
    bare       no `main` beside the self-check: for machines without an operating system

    A net whose layers all have codes answers with the same bits. Float layers add their products in the order of the file,
    which is not torch's: the report says how far that goes.

    Errors: `InputError` for a net in layer form, for an operator that has no C, and for answers that differ; nothing is
    written then.

    Example: `bw.export.c(bw.load("net.packed.safetensors"), images, "net.c")`
    """
    net = _packed(model).at_size(example)
    target = Path(path)
    if target.suffix != ".c" or not re.fullmatch(r"[A-Za-z0-9_.+-]+", target.name):
        raise InputError(
            f"export c: {target.name!r} is no name of letters, digits and _.+- that ends in .c",
            code="export-argument",
            given=str(target),
            possible="net.c",
        )
    if batch < 1:
        raise InputError(f"export c: batch={batch}; possible: at least 1", code="export-argument", given=str(batch))
    entry = tuple(int(s) for s in net.inputs[0].shape)
    pixels = Pixels.of(mean, std, entry[0])
    given = pixels.floats(example) if example.dtype == torch.uint8 else example
    if example.dim() and not len(example):
        raise InputError("export c: the example is empty; possible: at least one image", code="export-argument")
    read = net.environment(given)[net.inputs[0].name]  # checks the example
    graph = fuse(net.graph, _bytes_pay)
    p = program(graph, pixels, example.dtype == torch.uint8)
    answer = tuple(int(s) for s in graph.node(net.outputs[0]).shape)
    sizes, checks = Sizes(entry, answer, batch), Checks(example[:CHECKS], oracle.answers(graph, read[:CHECKS]))
    arena = place([*p.values.values(), *p.scratch])
    names = target.stem, checks, progmem, bare
    with torch.no_grad():
        want = net(given).float().flatten(1).numpy()
    one = source(p, Sizes(entry, answer, 1), arena, *names), header(p, Sizes(entry, answer, 1), arena, target.stem)
    function = "net_run" if p.takes_pixels else "net_run_float"
    got, program_name = compiled.run(*one, target.stem, function, example, sizes.outputs), compiled.compiler()
    if got is None:
        got = oracle.answers(graph, read).flatten(1).numpy()
    else:
        _same_bits(got[:CHECKS], checks.want.flatten(1).numpy())
    largest, differ = _compare(got, want, exact=not any(n.op in FLOAT for n in graph.nodes))
    text = source(p, sizes, arena, *names).encode()
    with replacing(target) as file:
        file.write_bytes(text)
    with replacing(target.with_suffix(".h")) as file:
        file.write_bytes(header(p, sizes, arena, target.stem).encode())
    return CReport(
        str(target), str(target.with_suffix(".h")), len(text), p.flash, arena * 4, p.floats, program_name, len(example),
        largest, differ,
    )  # fmt: skip


def program(graph: Graph, pixels: Pixels, as_pixels: bool) -> CProgram:
    """The net's steps in C, values not placed yet."""
    p = CProgram(graph, pixels, takes_pixels=as_pixels)
    first = graph.inputs()[0]
    if not as_pixels or any(n.op != "quantize" for n in graph.users()[first.name]):
        p.enter(first)
    for node in graph.nodes:
        if node.op in ("input", "output", "emitted"):
            continue
        if node.op in GATES:
            p.refuse(node, "a gate has no form in C", "Possible: the packed file or ONNX, which run gates")
        name = str(node.attrs["call"]) if node.op == "aten" else node.op
        if name not in OPERATORS:
            p.refuse(node, f"{name} has no form in C", f"Possible: {', '.join(sorted(OPERATORS))}")
        OPERATORS[name](p, node)
    answer = p.read(graph.nodes[-1].inputs[0])
    if answer.form != "floats":
        p.refuse(graph.nodes[-1], "its answer is codes", "Return the numbers of a layer")
    return p


def _packed(model: nn.Module | Converted) -> PackedModel:
    if isinstance(model, Converted):
        if model.model is None:
            raise InputError(f"export c: nothing was converted: {model.report.verdict}", code="refused")
        model = model.model
    if not isinstance(model, PackedModel):
        raise InputError(
            f"export c: {type(model).__name__} is not packed as one graph. Possible: a net from convert(form='graph')",
            code="export-form",
        )
    if any(n.attrs["dtype"] != "float32" for n in model.inputs):
        raise InputError(
            "export c: the net reads no float32; possible: images or numbers as float32", code="export-form"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(
            f"export c: the net has {len(model.inputs)} inputs and {len(model.outputs)} outputs; possible: one of each",
            code="export-form",
        )
    return model


def _bytes_pay(layer: Node, graph: Graph) -> bool:
    """Bytes for many pairs of planes; and where the input's constant differs from channel to channel at a padded border."""
    each = len(layer.attrs["x"]["zero"]) > 1 and any(layer.attrs.get("padding", [0]))
    planes = planes_read(layer)
    return each or planes > PLANES or planes * int(layer.attrs["weight"]["planes"]) > PAIRS


def _same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """The compiled program and its definition in Python."""
    if not np.array_equal(got.view(np.uint32), want.view(np.uint32)):
        raise InputError(
            "export c: the compiled program does not give the answers of its definition; nothing was written. "
            f"Compiler: {compiled.compiler()}",
            code="export-differs",
        )


def _compare(got: np.ndarray, want: np.ndarray, exact: bool) -> tuple[float, int]:
    """(largest difference, samples that differ) of the program against the packed net."""
    scale = float(np.abs(want).max(initial=0.0)) or 1.0
    gap = np.where(got.view(np.uint32) == want.view(np.uint32), 0.0, np.abs(got.astype(np.float64) - want) / scale)
    gap = np.nan_to_num(gap, nan=np.inf)
    largest, differ = float(gap.max(initial=0.0)), int((gap.max(1, initial=0.0) > CLOSE).sum())
    if differ > max(1, len(got) // 100) or (exact and largest > 0):
        raise InputError(
            f"export c: {differ} of {len(got)} samples differ from the net, by up to {largest:.1e} of the largest value; "
            "nothing was written",
            code="export-differs",
        )
    return largest, differ
