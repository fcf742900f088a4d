"""A netlist of gates with two inputs, built so that no gate stands in it twice.

A literal is `2 * node + inverted`: inverters are free. Node 0 is the constant 0, nodes 1..inputs are the inputs, the others are
gates, each behind what it reads. What can be seen at once is never built: constants, a gate of a signal and itself, equal gates.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

FALSE, TRUE = 0, 1
Kind = Literal["and", "xor"]
Gate = tuple[Kind, int, int]  # the literals are in ascending order


def kind_of(gate: Gate) -> str:
    """What a gate is called where it is counted: an AND of two inverted signals is a NOR.

    >>> kind_of(("and", 2, 5)), kind_of(("and", 3, 5)), kind_of(("xor", 2, 4))
    ('and', 'nor', 'xor')
    """
    return "nor" if gate[0] == "and" and gate[1] & gate[2] & 1 else gate[0]


@dataclass
class Netlist:
    """Gates and what they give.

    outputs  literals of each output, lowest bit first, by name and in order
    marks    (gate, layer): from this gate on they belong to that layer
    """

    inputs: int
    gates: list[Gate] = field(default_factory=list)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The node of the first gate."""
        return self.inputs + 1

    def bits(self) -> list[tuple[str, int, int]]:
        """(output, bit, literal) of every bit that leaves the circuit."""
        return [(name, k, lit) for name, lits in self.outputs.items() for k, lit in enumerate(lits)]

    def counts(self) -> dict[str, int]:
        """How often each kind of gate is there."""
        found: dict[str, int] = {"and": 0, "nor": 0, "xor": 0}
        for gate in self.gates:
            found[kind_of(gate)] += 1
        return found

    def of_layers(self) -> dict[str, int]:
        """Gates of each layer."""
        ends = [at for at, _ in self.marks[1:]] + [len(self.gates)]
        found: dict[str, int] = {}
        for (start, name), end in zip(self.marks, ends, strict=True):
            found[name] = found.get(name, 0) + end - start
        return found

    def depth(self) -> int:
        """Gates on the longest path from an input to an output."""
        level = [0] * self.first
        for _, a, b in self.gates:
            level.append(1 + max(level[a >> 1], level[b >> 1]))
        return max((level[lit >> 1] for _, _, lit in self.bits()), default=0)


class Builder:
    """Makes a netlist gate by gate. Each method returns a literal.

    >>> b = Builder(2)
    >>> b.all([2, 4]) == b.all([4, 2]), b.all([2, 3]), b.xor(2, 3), len(b.net.gates)
    (True, 0, 1, 1)
    """

    def __init__(self, inputs: int) -> None:
        self.net = Netlist(inputs)
        self.level = [0] * (inputs + 1)  # gates between the inputs and each node
        self._made: dict[Gate, int] = {}

    def mark(self, name: str) -> None:
        """The gates from here on belong to the layer `name`."""
        self.net.marks.append((len(self.net.gates), name))

    def _gate(self, gate: Gate) -> int:
        found = self._made.get(gate)
        if found is None:
            found = self._made[gate] = 2 * len(self.level)
            self.net.gates.append(gate)
            self.level.append(1 + max(self.level[gate[1] >> 1], self.level[gate[2] >> 1]))
        return found

    def both(self, a: int, b: int) -> int:
        """a AND b."""
        if a > b:
            a, b = b, a
        if a == FALSE or a ^ b == 1:
            return FALSE
        if a in (TRUE, b):
            return b
        seen = self._seen(a, b)
        return self._gate(("and", a, b)) if seen is None else seen

    def _read(self, lit: int) -> Gate | None:
        """The gate that gives a literal, without its inverter; None for an input."""
        node = lit >> 1
        return self.net.gates[node - self.net.first] if node >= self.net.first else None

    def _seen(self, a: int, b: int) -> int | None:
        """a AND b where the gates that give a and b show that less is enough."""
        one, other = self._read(a), self._read(b)
        for x, gate, y in ((a, other, b), (b, one, a)):
            for kind, c, d in _both_ways(gate):
                if c >> 1 != x >> 1:
                    continue
                if kind == "xor":  # where x is 1, c is known
                    return self.both(x, d ^ (c == x) ^ y & 1)
                if y & 1:  # x and not (x and d): d is 0; x and not (not x and d): always
                    return self.both(x, d ^ 1) if c == x else x
                return y if c == x else FALSE
        if one is None or other is None or "xor" in (one[0], other[0]):
            return None
        opposite = {c ^ 1 for c in one[1:]} & set(other[1:])
        if not a & b & 1:  # one is at least an AND: the other one of them cannot be 1 with it
            return (b if a & 1 else a if b & 1 else FALSE) if opposite else None
        same = set(one[1:]) & set(other[1:])  # not (c and d), and not (not c and d): d is 0
        return same.pop() ^ 1 if opposite and same else None

    def either(self, a: int, b: int) -> int:
        """a OR b."""
        return self.both(a ^ 1, b ^ 1) ^ 1

    def xor(self, a: int, b: int) -> int:
        """a XOR b; inverters move to its output."""
        invert = (a ^ b) & 1
        a, b = sorted((a & ~1, b & ~1))
        if a == b:
            return invert
        if a == FALSE:
            return b ^ invert
        for x, gate in ((a, self._read(b)), (b, self._read(a))):
            for kind, c, d in _both_ways(gate):
                if c >> 1 == x >> 1:
                    if kind == "xor":
                        return d ^ invert
                    return (self.both(x, d ^ 1) if c == x else self.either(x, d)) ^ invert
        return self._gate(("xor", a, b)) ^ invert

    def choose(self, s: int, a: int, b: int) -> int:
        """a where s is 1, else b."""
        if a == b:
            return a
        if a ^ b == 1:
            return self.xor(s, b)
        return self.either(self.both(s, a), self.both(s ^ 1, b))

    def all(self, literals: Iterable[int]) -> int:
        """AND of any number of signals, those that come first first: the tree is as flat as it can be."""
        heap = [(self.level[x >> 1], x) for x in set(literals)]
        heapq.heapify(heap)
        while len(heap) > 1:
            a, b = heapq.heappop(heap)[1], heapq.heappop(heap)[1]
            both = self.both(a, b)
            heapq.heappush(heap, (self.level[both >> 1], both))
        return heap[0][1] if heap else TRUE

    def any(self, literals: Iterable[int]) -> int:
        """OR of any number of signals."""
        return self.all(x ^ 1 for x in literals) ^ 1

    def add(self, a: int, b: int, c: int) -> tuple[int, int]:
        """(sum, carry) of three bits: a full adder, of five gates."""
        half = self.xor(a, b)
        return self.xor(half, c), self.either(self.both(a, b), self.both(half, c))

    def done(self, outputs: dict[str, list[int]]) -> Netlist:
        """The netlist of these outputs, without gates that none of them needs."""
        return live(Netlist(self.net.inputs, self.net.gates, outputs, self.net.marks))


def _both_ways(gate: Gate | None) -> tuple[Gate, ...]:
    """A gate, and the same with its inputs exchanged."""
    return () if gate is None else (gate, (gate[0], gate[2], gate[1]))


def live(net: Netlist) -> Netlist:
    """The gates that an output needs, numbered anew, in the same order."""
    first = net.first
    needed = bytearray(first + len(net.gates))
    for _, _, lit in net.bits():
        needed[lit >> 1] = 1
    for node in range(len(needed) - 1, first - 1, -1):
        if needed[node]:
            _, a, b = net.gates[node - first]
            needed[a >> 1] = needed[b >> 1] = 1
    new = list(range(first)) + [0] * len(net.gates)
    gates: list[Gate] = []
    marks, waiting = [], list(net.marks)
    for k, (kind, a, b) in enumerate(net.gates):
        while waiting and waiting[0][0] <= k:
            marks.append((len(gates), waiting.pop(0)[1]))
        if needed[first + k]:
            new[first + k] = first + len(gates)
            gates.append((kind, new[a >> 1] << 1 | a & 1, new[b >> 1] << 1 | b & 1))
    marks += [(len(gates), name) for _, name in waiting]
    outputs = {name: [new[x >> 1] << 1 | x & 1 for x in lits] for name, lits in net.outputs.items()}
    return Netlist(net.inputs, gates, outputs, marks)


def simulate(net: Netlist, inputs: Sequence[int], samples: int) -> list[int]:
    """Every output bit for many samples at once: bit k of each whole number is sample k.

    >>> b = Builder(2)
    >>> simulate(b.done({"y": [b.xor(2, 4)]}), [0b0011, 0b0101], 4) == [0b0110]
    True
    """
    ones = (1 << samples) - 1
    value = [0, *inputs]

    def of(lit: int) -> int:
        return value[lit >> 1] ^ (ones if lit & 1 else 0)

    for kind, a, b in net.gates:
        value.append(of(a) & of(b) if kind == "and" else of(a) ^ of(b))
    return [of(lit) for _, _, lit in net.bits()]
