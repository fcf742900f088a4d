"""What signals are called in files, and gates as expressions of Verilog and C, written and read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bitwright.errors import InputError
from bitwright.export_c.text import identifier
from bitwright.export_circuit.gates import Gate, Netlist

WIDTH = 110  # characters of a line
_KEYWORDS = """
always and assign begin buf bufif0 bufif1 case casex casez cell cmos config deassign default defparam design disable
edge else end endcase endconfig endfunction endgenerate endmodule endprimitive endspecify endtable endtask event for force
forever fork function generate genvar highz0 highz1 if ifnone incdir include initial inout input instance integer join large
liblist library localparam macromodule medium module nand negedge nmos nor noshowcancelled not notif0 notif1 or output
parameter pmos posedge primitive pull0 pull1 pulldown pullup rcmos real realtime reg release repeat rnmos rpmos rtran
rtranif0 rtranif1 scalared showcancelled signed small specify specparam strong0 strong1 supply0 supply1 table task time tran
tranif0 tranif1 tri tri0 tri1 triand trior trireg unsigned use vectored wait wand weak0 weak1 while wire wor xnor xor
logic bit byte class do enum int interface package program property return string struct type union var void
"""
_OPERAND = r"~?[a-z]\w*(?:\[\d+\])?"
_GATE = re.compile(rf"({_OPERAND}) ([&|^]) ({_OPERAND})")


def module_name(stem: str) -> str:
    """A file's name as the name of a module: no keyword of Verilog.

    >>> module_name("net"), module_name("my-net.2"), module_name("wire")
    ('net', 'my_net_2', 'wire_net')
    """
    name = identifier(stem)
    return f"{name}_net" if name.lower() in _KEYWORDS.split() else name


def plain(text: str) -> str:
    """Text of a one-line comment."""
    return re.sub(r"[^ -~]", "?", text)


def signal(node: int, inputs: int) -> str:
    """Of an input or a gate."""
    return f"x[{node - 1}]" if node <= inputs else f"n{node}"


def expression(gate: Gate, names: Sequence[str] | Mapping[int, str]) -> str:
    """A gate as Verilog and C write it; `names` of nodes.

    >>> expression(("and", 2, 5), ["", "a", "b"]), expression(("and", 3, 5), ["", "a", "b"])
    ('a & ~b', '~(a | b)')
    """
    kind, a, b = gate
    x, y = names[a >> 1], names[b >> 1]
    if kind == "and" and a & b & 1:
        return f"~({x} | {y})"
    x, y = "~" * (a & 1) + x, "~" * (b & 1) + y
    return f"{x} & {y}" if kind == "and" else f"{x} ^ {y}"


class Read:
    """A netlist as a file says it, gate by gate; nothing is simplified. `of` maps what is named to literals."""

    def __init__(self, what: str, inputs: int) -> None:
        self.what, self.net = what, Netlist(inputs)
        self.of = {f"x[{i}]": 2 * i + 2 for i in range(inputs)}

    def wrong(self, text: str) -> InputError:
        return InputError(f"{self.what}: cannot read {text[:60]!r}", code="export-run")

    def literal(self, operand: str) -> int:
        name = operand.removeprefix("~")
        if name not in self.of:
            raise self.wrong(operand)
        return self.of[name] ^ (name != operand)

    def gate(self, gate: Gate) -> int:
        self.net.gates.append(gate)
        return 2 * (self.net.inputs + len(self.net.gates))

    def value(self, text: str) -> int:
        """The literal of an operand or of a gate's expression."""
        inside = text.removeprefix("~(").removesuffix(")") if text.startswith("~(") else text
        found = _GATE.fullmatch(inside)
        if found is None:
            return self.literal(text)
        invert, a, op, b = inside != text, self.literal(found[1]), found[2], self.literal(found[3])
        if op == "|":
            return self.gate(("and", a ^ 1, b ^ 1)) ^ 1 ^ invert
        return self.gate(("and" if op == "&" else "xor", a, b)) ^ invert

    def output(self, name: str, k: int, literal: int) -> None:
        bits = self.net.outputs.setdefault(name, [])
        if k != len(bits):
            raise self.wrong(f"{name}[{k}]")
        bits.append(literal)


_BIT = re.compile(r"(\w+)\[(\d+)\]")


def bit_of(read: Read, text: str) -> tuple[str, int]:
    """(output, bit) of `y[3]`."""
    found = _BIT.fullmatch(text)
    if found is None:
        raise read.wrong(text)
    return found[1], int(found[2])
