"""C that computes many samples at once: bit k of every word is sample k.

Gates lie in functions of `PART` gates, because a compiler's time rises faster than the length of a function. A value that another
function reads goes through an array, whose places are used again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bitwright.export_circuit.gates import Netlist
from bitwright.export_circuit.names import Read, bit_of, expression, plain, signal

PART = 400
_INPUTS = re.compile(r".* x\[(\d+)\].* y\[(\d+)\].*")
_LOCAL = re.compile(r"    const CIRCUIT_WORD (\w+) = (.+);")
_STORE = re.compile(r"    (t\[\d+\]) = (.+);")
_OUTPUT = re.compile(r"    y\[\d+\] = (.+); /\* (\S+) \*/")


def write(net: Netlist, name: str, notes: Sequence[str]) -> bytes:
    bits = net.bits()
    out = ["/*", *(f" * {plain(n).replace('*/', '* /')}" for n in notes), " */", "#include <stdint.h>", ""]
    out += [
        "#ifndef CIRCUIT_WORD",
        "#define CIRCUIT_WORD uint64_t /* any type with & | ^ ~: a sample per bit */",
        "#endif",
    ]
    out += ["#if defined(__GNUC__)", "#define CIRCUIT_PART static __attribute__((noinline)) void", "#else"]
    out += ["#define CIRCUIT_PART static void", "#endif", ""]
    places, size = _places(net)
    parts = range(0, len(net.gates), PART)
    for start in parts:
        names = _Names(net, start, places)
        out += [f"CIRCUIT_PART {name}_part_{start // PART}(const CIRCUIT_WORD *x, CIRCUIT_WORD *t)", "{"]
        ends = range(start, min(start + PART, len(net.gates)))
        out += [f"    const CIRCUIT_WORD n{net.first + k} = {expression(net.gates[k], names)};" for k in ends]
        out += [f"    t[{places[k]}] = n{net.first + k};" for k in ends if k in places]
        out += ["    (void)x;", "    (void)t;", "}", ""]
    out += [f"/* x[{net.inputs}] are the inputs, y[{len(bits)}] the outputs, lowest bit first */"]
    out += [f"void {name}_circuit(const CIRCUIT_WORD *x, CIRCUIT_WORD *y);"]
    out += [f"void {name}_circuit(const CIRCUIT_WORD *x, CIRCUIT_WORD *y)", "{", f"    CIRCUIT_WORD t[{max(1, size)}];"]
    out += [f"    {name}_part_{start // PART}(x, t);" for start in parts]
    names = _Names(net, len(net.gates), places)
    for i, (output, k, lit) in enumerate(bits):
        value = (
            ("~" * lit + "(x[0] ^ x[0])" if lit else "x[0] ^ x[0]") if lit < 2 else "~" * (lit & 1) + names[lit >> 1]
        )
        out.append(f"    y[{i}] = {value}; /* {output}[{k}] */")
    return ("\n".join([*out, "    (void)t;", "}"]) + "\n").encode()


class _Names(dict[int, str]):
    """What nodes are called in the function that begins with gate `start`."""

    def __init__(self, net: Netlist, start: int, places: dict[int, int]) -> None:
        super().__init__()
        self.inputs, self.start, self.places = net.inputs, start + net.first, places

    def __missing__(self, node: int) -> str:
        if self.inputs < node < self.start:
            return f"t[{self.places[node - self.inputs - 1]}]"
        return signal(node, self.inputs)


def _places(net: Netlist) -> tuple[dict[int, int], int]:
    """(gate -> its place in the array, for gates that another function reads; how long the array is)."""
    first, last = net.first, {}
    for k, (_, a, b) in enumerate(net.gates):
        for node in (a >> 1, b >> 1):
            if node >= first and (node - first) // PART < k // PART:
                last[node - first] = k // PART
    end = len(net.gates) // PART + 1
    last |= {(lit >> 1) - first: end for _, _, lit in net.bits() if lit >> 1 >= first}
    free: list[int] = []
    leaving: dict[int, list[int]] = {}
    places, size, part = {}, 0, -1
    for k in sorted(last):
        while part < k // PART:  # what was read for the last time in a part before this one leaves its place
            free += leaving.pop(part, [])
            part += 1
        if not free:
            free, size = [size], size + 1
        places[k] = free.pop()
        leaving.setdefault(last[k], []).append(places[k])
    return places, size


def read(data: bytes) -> Netlist:
    """What `write` has written, as text. Errors: `InputError`."""
    lines = data.decode().splitlines()
    sizes = next(found for line in lines if (found := _INPUTS.fullmatch(line)))
    found = Read("export circuit: C", int(sizes[1]))
    for line in lines:
        if (gate := _LOCAL.fullmatch(line)) or (gate := _STORE.fullmatch(line)):
            found.of[gate[1]] = found.value(gate[2])
        elif output := _OUTPUT.fullmatch(line):
            found.output(*bit_of(found, output[2]), found.value(output[1]))
    if len(found.net.bits()) != int(sizes[2]):
        raise found.wrong("its outputs")
    return found.net
