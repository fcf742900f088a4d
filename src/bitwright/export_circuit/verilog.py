"""Structural Verilog: one module, one wire for each gate."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bitwright.export_circuit.gates import Netlist
from bitwright.export_circuit.names import Read, bit_of, expression, plain, signal

_PORT = re.compile(r"  (input|output) \[(\d+):0\] (\w+),?")
_WIRE = re.compile(r"  wire (\w+) = (.+);")
_ASSIGN = re.compile(r"  assign (\S+) = (.+);")


def write(net: Netlist, name: str, notes: Sequence[str]) -> bytes:
    names = [signal(k, net.inputs) for k in range(net.first + len(net.gates))]
    names[0] = "1'b0"
    ports = [f"  input [{net.inputs - 1}:0] x", *(f"  output [{len(v) - 1}:0] {k}" for k, v in net.outputs.items())]
    out = [*(f"// {plain(n)}" for n in notes), f"module {name} (", ",\n".join(ports), ");"]
    marks = dict(net.marks)
    for k, gate in enumerate(net.gates):
        if k in marks:
            out.append(f"  // {plain(marks[k])}")
        out.append(f"  wire {names[net.first + k]} = {expression(gate, names)};")
    for output, bit, lit in net.bits():
        value = f"1'b{lit}" if lit < 2 else "~" * (lit & 1) + names[lit >> 1]
        out.append(f"  assign {output}[{bit}] = {value};")
    return ("\n".join([*out, "endmodule"]) + "\n").encode()


def read(data: bytes) -> Netlist:
    """What `write` has written. Errors: `InputError` for any other line."""
    lines = [line for line in data.decode().splitlines() if not line.lstrip().startswith("//")]
    ports = [found for line in lines if (found := _PORT.fullmatch(line))]
    found = Read("export circuit: Verilog", int(ports[0][2]) + 1)
    found.of |= {"1'b0": 0, "1'b1": 1}
    widths = {p[3]: int(p[2]) + 1 for p in ports[1:]}
    for line in lines:
        if wire := _WIRE.fullmatch(line):
            found.of[wire[1]] = found.value(wire[2])
        elif assign := _ASSIGN.fullmatch(line):
            found.output(*bit_of(found, assign[1]), found.value(assign[2]))
        elif not (_PORT.fullmatch(line) or re.fullmatch(r"module \w+ \(|\);|endmodule", line)):
            raise found.wrong(line)
    if {k: len(v) for k, v in found.net.outputs.items()} != widths:
        raise found.wrong("the width of its outputs")
    return found.net
