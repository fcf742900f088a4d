"""AIGER 1.9, of ANDs and inverters alone: `aag` is text, `aig` its binary form (A. Biere, FMV report 07/1, 2007).

An XOR becomes three ANDs. Literals are numbered as here: 2 * node + inverted.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.export_circuit.gates import Builder, Netlist
from bitwright.export_circuit.names import Read, bit_of, plain


def ands(net: Netlist) -> Netlist:
    """The same with ANDs alone, without those that are there twice.

    >>> b = Builder(2)
    >>> ands(b.done({"y": [b.xor(2, 4)]})).counts()
    {'and': 1, 'nor': 2, 'xor': 0}
    """
    b = Builder(net.inputs)
    new = [2 * k for k in range(net.first)]
    for kind, left, right in net.gates:
        x, y = new[left >> 1] ^ left & 1, new[right >> 1] ^ right & 1
        new.append(b.both(x, y) if kind == "and" else b.both(b.both(x, y) ^ 1, b.both(x ^ 1, y ^ 1) ^ 1))
    return b.done({name: [new[x >> 1] ^ x & 1 for x in lits] for name, lits in net.outputs.items()})


def write_text(net: Netlist, name: str, notes: Sequence[str]) -> bytes:
    net = ands(net)
    lines = [str(2 * k + 2) for k in range(net.inputs)] + [str(lit) for _, _, lit in net.bits()]
    lines += [f"{2 * (net.first + k)} {b} {a}" for k, (_, a, b) in enumerate(net.gates)]
    return "\n".join([_head("aag", net), *lines, *_tail(net, notes)]).encode()


def write_binary(net: Netlist, name: str, notes: Sequence[str]) -> bytes:
    net = ands(net)
    out = bytearray("".join(f"{s}\n" for s in [_head("aig", net), *(lit for _, _, lit in net.bits())]).encode())
    for k, (_, a, b) in enumerate(net.gates):
        out += _leb128(2 * (net.first + k) - b) + _leb128(b - a)
    return bytes(out) + "\n".join(_tail(net, notes)).encode()


def _head(form: str, net: Netlist) -> str:
    return f"{form} {net.inputs + len(net.gates)} {net.inputs} 0 {len(net.bits())} {len(net.gates)}"


def _tail(net: Netlist, notes: Sequence[str]) -> list[str]:
    names = [f"i{k} x[{k}]" for k in range(net.inputs)]
    names += [f"o{i} {name}[{k}]" for i, (name, k, _) in enumerate(net.bits())]
    return [*names, "c", *map(plain, notes), ""]


def _leb128(value: int) -> bytes:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read(data: bytes) -> Netlist:
    """Either form, of circuits without latches. Errors: `InputError`."""
    head = data.partition(b"\n")[0]
    form, *numbers = head.decode().split()
    most, inputs, latches, outputs, gates = map(int, numbers)
    found = Read("export circuit: AIGER", inputs)
    if form not in ("aag", "aig") or latches or most != inputs + gates:
        raise found.wrong(head.decode())
    at = len(head) + 1
    lines = data[at:].split(b"\n", (inputs if form == "aag" else 0) + outputs + (gates if form == "aag" else 0))
    rest = lines.pop()
    if form == "aag":
        given, lines = lines[:inputs], lines[inputs:]
        if [int(x) for x in given] != [2 * k + 2 for k in range(inputs)]:
            raise found.wrong("its inputs")
        pairs = [tuple(map(int, line.split())) for line in lines[outputs:]]
    else:
        pairs, rest = _pairs(rest, inputs, gates)
    for k, (left, b, a) in enumerate(pairs):
        if left != 2 * (inputs + 1 + k) or not left > b >= a >= 0:
            raise found.wrong(f"AND {left}")
        found.gate(("and", a, b))
    literals = [int(x) for x in lines[:outputs]]
    symbols = rest.decode().split("\nc\n")[0].split("\n")
    for i, literal in enumerate(literals):
        label, _, name = symbols[inputs + i].partition(" ")
        if label != f"o{i}":
            raise found.wrong(symbols[inputs + i])
        found.output(*bit_of(found, name), literal)
    return found.net


def _pairs(data: bytes, inputs: int, gates: int) -> tuple[list[tuple[int, ...]], bytes]:
    """(lhs, rhs0, rhs1) of each AND of the binary form, and what follows."""
    at, found = 0, []
    for k in range(gates):
        numbers = []
        for _ in range(2):
            value, shift = data[at] & 127, 7
            while data[at] & 128:
                at += 1
                value |= (data[at] & 127) << shift
                shift += 7
            at += 1
            numbers.append(value)
        left = 2 * (inputs + 1 + k)
        found.append((left, left - numbers[0], left - sum(numbers)))
    return found, data[at:]
