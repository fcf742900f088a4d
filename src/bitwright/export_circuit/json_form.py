"""The netlist as JSON, for programs of your own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bitwright.export_circuit.gates import Netlist
from bitwright.export_circuit.names import Read

VERSION = 1


def write(net: Netlist, name: str, notes: Sequence[str], more: dict[str, Any] | None = None) -> bytes:
    """`more`: what else a reader may want to know, such as the thresholds of the inputs."""
    head: dict[str, Any] = {"format": "bitwright circuit", "version": VERSION, "name": name, "notes": list(notes)}
    head |= {"literal": "2 * node + inverted; node 0 is 0, nodes 1 to inputs are x, then come the gates in order"}
    head |= {"inputs": net.inputs, "outputs": net.outputs, **(more or {})}
    head["layers"] = [{"first_gate": at, "name": layer} for at, layer in net.marks]
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    gates = ",\n".join(json.dumps(list(gate)) for gate in net.gates)
    return ("{\n" + ",\n".join([*fields, '"gates": [\n' + gates + "\n]"]) + "\n}\n").encode()


def read(data: bytes) -> Netlist:
    """Errors: `InputError` for another version, and for a gate that reads one behind it."""
    given = json.loads(data)
    found = Read("export circuit: JSON", given["inputs"])
    if given["format"] != "bitwright circuit" or given["version"] != VERSION:
        raise found.wrong(str(given["format"]))
    for kind, a, b in given["gates"]:
        if kind not in ("and", "xor") or not 0 <= min(a, b) <= max(a, b) < 2 * (found.net.first + len(found.net.gates)):
            raise found.wrong(f"{kind} {a} {b}")
        found.gate((kind, a, b))
    for name, literals in given["outputs"].items():
        for k, literal in enumerate(literals):
            found.output(name, k, literal)
    return found.net
