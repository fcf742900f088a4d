"""BLIF, the Berkeley Logic Interchange Format: a table of rows that give 1 for each gate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from bitwright.export_circuit.gates import Netlist
from bitwright.export_circuit.names import WIDTH, Read, bit_of, plain, signal


def write(net: Netlist, name: str, notes: Sequence[str]) -> bytes:
    names = [signal(k, net.inputs) for k in range(net.first + len(net.gates))]
    out = [*(f"# {plain(n)}" for n in notes), f".model {name}"]
    out += _wrapped(".inputs", names[1 : net.first])
    out += _wrapped(".outputs", [f"{output}[{k}]" for output, k, _ in net.bits()])
    marks = dict(net.marks)
    for k, (kind, a, b) in enumerate(net.gates):
        if k in marks:
            out.append(f"# {plain(marks[k])}")
        out.append(f".names {names[a >> 1]} {names[b >> 1]} {names[net.first + k]}")
        x, y = 1 - (a & 1), 1 - (b & 1)
        out += [f"{x}{y} 1"] if kind == "and" else [f"{x}{1 - y} 1", f"{1 - x}{y} 1"]
    for output, k, lit in net.bits():
        if lit < 2:
            out += [f".names {output}[{k}]", *["1"] * lit]
        else:
            out += [f".names {names[lit >> 1]} {output}[{k}]", f"{1 - (lit & 1)} 1"]
    return ("\n".join([*out, ".end"]) + "\n").encode()


def _wrapped(head: str, words: Sequence[str]) -> list[str]:
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line + " \\")
            line = " "
        line += f" {word}"
    return [*lines, line]


def read(data: bytes) -> Netlist:
    """What `write` has written: tables of 0 and 1. Errors: `InputError`."""
    text = data.decode().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    inputs = next(words[1:] for words in lines if words[0] == ".inputs")
    outputs = next(words[1:] for words in lines if words[0] == ".outputs")
    found = Read("export circuit: BLIF", len(inputs))
    if inputs != list(found.of):
        raise found.wrong("its inputs")
    k = 0
    while k < len(lines):
        words, k = lines[k], k + 1
        if words[0] in (".model", ".inputs", ".outputs", ".end"):
            continue
        rows = []
        while k < len(lines) and not lines[k][0].startswith("."):
            rows, k = [*rows, lines[k]], k + 1
        if words[0] != ".names" or any(row[-1] != "1" or len(row) > 2 or set(row[0]) - {"0", "1"} for row in rows):
            raise found.wrong(" ".join(words))
        found.of[words[-1]] = _table(found, [found.of[w] for w in words[1:-1]], [row[0] for row in rows])
    for name in outputs:
        found.output(*bit_of(found, name), found.literal(name))
    return found.net


def _table(found: Read, given: list[int], rows: list[str]) -> int:
    """The literal of a table: the OR of its rows, each an AND."""
    if len(given) == 0:
        return int(rows == ["1"])
    made = [
        reduce(
            lambda a, b: found.gate(("and", a, b)), [lit ^ (bit == "0") for lit, bit in zip(given, row, strict=True)]
        )
        for row in rows
    ]
    return reduce(lambda a, b: found.gate(("and", a ^ 1, b ^ 1)) ^ 1, made)
