"""`export.circuit`: a packed net whose values are bits becomes a netlist of gates, and is compared before it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.engine.convert import Converted, convert
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError
from bitwright.export.checks import checked, write
from bitwright.export_circuit import aiger, blif, c_source, compiled, json_form, verilog
from bitwright.export_circuit.compile import Circuit, Outputs
from bitwright.export_circuit.compile import compiled as gates_of
from bitwright.export_circuit.gates import Netlist, simulate
from bitwright.export_circuit.names import module_name
from bitwright.export_circuit.samples import Samples, samples_of, uncolumned

LIMIT = 2_000_000  # gates, as estimated beforehand
Writer = Callable[[Netlist, str, Sequence[str]], bytes]
FORMS: dict[str, tuple[Writer, Callable[[bytes], Netlist]]] = {
    ".v": (verilog.write, verilog.read),
    ".aag": (aiger.write_text, aiger.read),
    ".aig": (aiger.write_binary, aiger.read),
    ".blif": (blif.write, blif.read),
    ".c": (c_source.write, c_source.read),
    ".json": (json_form.write, json_form.read),
}


@dataclass(frozen=True)
class CircuitReport:
    """What was written, and how it was checked.

    path        the file, `bytes` its size
    inputs      bits of x; `outputs`: width of each output, `y` the class
    gates       of two inputs, by kind: and (each input may be inverted), nor, xor; `layers`: how many each layer takes
    depth       gates on the longest path
    thresholds  bit i of x is 1 where input i is at least thresholds[i]; one number where all are equal
    signed      whether the sums count_0, count_1, ... are two's complement, because one of them can be negative
    images      samples of the example that were compared, and `patterns`: further ones; `exhaustive`: all that there are
    ran         what ran the written file: a C compiler's name, or "read back": parsed again and simulated
    """

    path: str
    bytes: int
    inputs: int
    outputs: dict[str, int]
    gates: dict[str, int]
    layers: dict[str, int]
    depth: int
    thresholds: float | list[float]
    signed: bool
    images: int
    patterns: int
    exhaustive: bool
    ran: str

    def __str__(self) -> str:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.gates.items())
        size = f"{self.bytes / 1000:,.1f} kB, {self.inputs} inputs, {sum(self.outputs.values())} outputs"
        built = f"{sum(self.gates.values()):,} gates ({kinds}), depth {self.depth}"
        more = f"all {self.patterns:,} patterns" if self.exhaustive else f"{self.patterns:,} further patterns"
        how = "read back" if self.ran == "read back" else f"compiled by {self.ran}"
        return f"{self.path}: {size}, {built}; {how}: equal on {self.images:,} samples and {more}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def circuit(
    model: nn.Module | Converted,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    outputs: Outputs = "class",
    limit: int = LIMIT,
) -> CircuitReport:
    """Writes a net whose inputs and hidden values are bits as gates of two inputs, and compares the file with the net.

    model    a packed net in graph form, or a trained one, which is converted and verified first
    example  samples to compare on, as the net reads them
    path     its suffix chooses the form: .v structural Verilog, .aag or .aig AIGER, .blif BLIF, .c bit-parallel C, .json
    outputs  "class": y, the index of the largest score, the first of equal ones; "counts": also count_0, count_1, ..., the
             sum of each class
    limit    gates, as estimated before the work

    Bit i of x is the i-th number of a sample (channel, row, column), 1 where it is at least the threshold of the first layer. A
    hidden unit becomes one comparison of a sum of bits with a constant. Codes of a few levels are as many bits.

    The written file is read back (.c: compiled) and simulated on all patterns of up to 16 inputs, else on the example and on
    about 4,000 others. Every output bit must equal the packed net's.

    Errors: `InputError` for a layer that reads or writes floats, with its name; for more gates than `limit`; and for a
    difference. Nothing is written then.

    Example: `bw.export.circuit(bw.zoo.load("digits-mlp-zero_one"), images, "net.v")`
    """
    inputs, target = checked("export circuit", _unwrapped(model), example, path)
    if target.suffix not in FORMS:
        text = f"export circuit: {target.name!r} has no known suffix; possible: {', '.join(FORMS)}"
        raise InputError(text, code="export-argument", given=target.suffix, possible=", ".join(FORMS))
    if outputs not in ("class", "counts"):
        text = f"export circuit: outputs={outputs!r}; possible: 'class', 'counts'"
        raise InputError(text, code="export-argument", given=str(outputs), possible="class, counts")
    packed = _packed(model, example)
    read = next(iter(packed.environment(*inputs).values())).float()
    packed = packed.at_size(read)
    found = gates_of(packed.graph, outputs, limit)
    cut = sorted(set(found.cut.tolist()))
    thresholds = cut[0] if len(cut) == 1 else found.cut.tolist()
    name, form = module_name(target.stem), target.suffix
    data = _written(form, name, found, thresholds)
    samples = samples_of(packed, found, read)
    ran = _compared(form, name, data, found, samples)
    write("export circuit", target, data)
    return CircuitReport(
        path=str(target),
        bytes=len(data),
        inputs=found.net.inputs,
        outputs={k: len(v) for k, v in found.net.outputs.items()},
        gates=found.net.counts(),
        layers=found.net.of_layers(),
        depth=found.net.depth(),
        thresholds=thresholds,
        signed=found.signed,
        images=samples.images,
        patterns=len(samples.bits) - samples.images,
        exhaustive=samples.exhaustive,
        ran=ran,
    )


def _unwrapped(model: nn.Module | Converted) -> nn.Module:
    if not isinstance(model, Converted):
        return model
    if model.model is None:
        raise InputError(f"export circuit: nothing was converted: {model.report.verdict}", code="refused")
    return model.model


def _packed(model: nn.Module | Converted, example: Tensor) -> PackedModel:
    if not isinstance(model, (Converted, PackedModel)):
        model = convert(model, example, form="graph")
    model = _unwrapped(model)
    if not isinstance(model, PackedModel):
        text = f"export circuit: {type(model).__name__} is packed in layer form. Possible: convert(form='graph')"
        raise InputError(text, code="export-form")
    return model


def _written(form: str, name: str, found: Circuit, thresholds: float | list[float]) -> bytes:
    cut = f"{thresholds:g}" if isinstance(thresholds, float) else "its threshold"
    notes = ["bitwright: a packed net as gates", f"x[i]: input i, 1 where it is at least {cut}", "y: the class"]
    if len(found.net.outputs) > 1:
        notes.append("count_C: the sum of class C" + (", in two's complement" if found.signed else ""))
    if form == ".json":
        return json_form.write(found.net, name, notes, {"thresholds": found.cut.tolist(), "signed": found.signed})
    return FORMS[form][0](found.net, name, notes)


def _compared(form: str, name: str, data: bytes, found: Circuit, samples: Samples) -> str:
    """What ran the file. Errors: `InputError` with the first sample that has another answer."""
    ran = "read back"
    again = FORMS[form][1](data)
    wanted = {k: len(v) for k, v in found.net.outputs.items()}
    if again.inputs != found.net.inputs or {k: len(v) for k, v in again.outputs.items()} != wanted:
        raise InputError("export circuit: the file has other inputs or outputs than the net", code="export-differs")
    answers = [("the file", simulate(again, samples.inputs, len(samples.bits)))]
    if form == ".c" and (run := compiled.run(data, name, samples.bits, len(samples.want))) is not None:
        answers.append((f"the file compiled by {run[1]}", run[0]))
        ran = run[1]
    for what, got in answers:
        wrong = np.flatnonzero(
            uncolumned([a ^ b for a, b in zip(got, samples.want, strict=True)], len(samples.bits)).any(1)
        )
        if len(wrong):
            k = int(wrong[0])
            bits = [v >> k & 1 for v in got[: wanted["y"]]]
            said = sum(bit << i for i, bit in enumerate(bits))
            raise InputError(
                f"export circuit: {what} differs from the packed net on {len(wrong)} of {len(samples.bits)} samples: the first "
                f"is {k}, class {said}, the net's {samples.classes[k]}; nothing was written",
                code="export-differs",
            )
    return ran


def example_of_bits(shape: Sequence[int], count: int) -> Tensor:
    """Random 0/1 inputs."""
    return torch.randint(0, 2, (count, *shape), generator=torch.Generator().manual_seed(0)).float()
