"""What a file holds of a graph, reading it back, and the question whether a graph is one that we would have written.

What passes `check` cannot ask for more memory than its tensors and its declared sizes say, and no number of it reaches a
kernel unchecked. Shapes come from torch's own operators on the meta device: no values, no memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import LAYERS, MAX_RANK, MAX_VALUES, OPERATORS, Unfit, function, need, weight_shape
from bitwright.engine.operators import listed as _listed
from bitwright.engine.operators import whole as _whole
from bitwright.errors import InputError

INLINE = 3  # so many thresholds stand in the graph itself: a tensor of its own costs a file more
MAX_NODES, MAX_TEXT = 5_000, 1 << 24
MAX_TOTAL = 1 << 31  # of all values together, per sample
MAX_TRIAL_VALUES, MAX_TRIAL_MACS = 1 << 24, 1 << 33
COMMON = frozenset({"shape", "tensors", "owner", "frame"})  # attributes of every node


def usual_owner(op: str, name: str) -> str:
    """The owner where a file names none: layers and quantizers have their module's name, calls numbered by #."""
    return name.split("#")[0] if op in (*LAYERS, "quantize") else ""


def stored(graph: Graph) -> tuple[str, dict[str, Tensor]]:
    """What a file holds: the graph without what goes without saying, and the tensors it names.

    Left out: lines of the user's code, owners and tensor keys that follow from the name, shapes (worked out
    again on load), attributes at their usual value. A threshold or three stand in the graph itself.
    """
    nodes, tensors = [], dict(graph.tensors)
    for n in graph.nodes:
        skip = {"frame"} | ({"owner"} if n.owner == usual_owner(n.op, n.name) else set())
        skip |= set() if n.op == "input" else {"shape"}
        known = OPERATORS[n.op].attrs
        usual = {k: a.usual(n.attrs) for k, a in known.items() if a.usual is not None}
        attrs = {k: v for k, v in n.attrs.items() if k not in skip and usual.get(k, ...) != v}
        roles = dict(attrs.pop("tensors", {}))
        table = graph.tensor(n, "thresholds")
        if table is not None and table.dim() == 1 and table.numel() <= INLINE and bool(table.isfinite().all()):
            tensors.pop(roles.pop("thresholds"), None)
            attrs["thresholds"] = table.tolist()
        if roles:
            plain = all(key == f"{n.name}.{role}" for role, key in roles.items())
            attrs["tensors"] = list(roles) if plain else roles
        nodes.append({"op": n.op, "name": n.name, "inputs": n.inputs, "attrs": attrs})
    return json.dumps(nodes, separators=(",", ":")), tensors


def from_json(text: str, tensors: dict[str, Tensor]) -> Graph:
    """Reads and checks a graph; `InputError` says what is wrong. Nothing in it is ever executed."""
    if len(text) > MAX_TEXT:
        raise InputError(f"packed file: graph of more than {MAX_TEXT} characters", code="file-graph")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"packed file: graph is not JSON ({error})", code="file-graph") from None
    if not isinstance(data, list) or not data or len(data) > MAX_NODES:
        raise InputError(f"packed file: graph is not a list of 1 to {MAX_NODES} nodes", code="file-graph")
    nodes, tensors = [], dict(tensors)
    for i, d in enumerate(data):
        if not isinstance(d, dict) or set(d) != {"op", "name", "inputs", "attrs"}:
            raise InputError(f"packed file: node {i} needs op, name, inputs, attrs", code="file-graph")
        node = Node(d["op"], d["name"], d["inputs"], d["attrs"])
        if isinstance(node.attrs, dict) and isinstance(node.name, str) and isinstance(node.op, str):
            node.attrs = _spelled_out(i, node, tensors)
        nodes.append(node)
    graph = Graph(nodes, tensors)
    check(graph)
    return graph


def _spelled_out(i: int, node: Node, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The attributes of a stored node with what it left out; its inline thresholds become a tensor."""
    attrs = dict(node.attrs)
    table = attrs.pop("thresholds", None)
    roles = attrs.get("tensors", [])
    if isinstance(roles, list):
        attrs["tensors"] = roles = {str(r): f"{node.name}.{r}" for r in roles}
    if table is not None:
        key = f"{node.name}.thresholds"
        numbers = isinstance(table, list) and 0 < len(table) <= INLINE and all(_threshold(t) for t in table)
        if not numbers or key in tensors or not isinstance(roles, dict):
            where = f"packed file: node {i} {node.name[:60]!r}"
            raise InputError(f"{where}: thresholds are not up to {INLINE} numbers", code="file-graph")
        tensors[key] = torch.tensor([float(t) for t in table], dtype=torch.float64).float()
        attrs["tensors"] = {**roles, "thresholds": key}
    for name, attr in OPERATORS[node.op].attrs.items() if node.op in OPERATORS else ():
        if name not in attrs and attr.usual is not None and (value := attr.usual(attrs)) is not ...:
            attrs[name] = value
    attrs.setdefault("owner", usual_owner(node.op, node.name))
    return attrs


def _threshold(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e39


# -- checks -------------------------------------------------------------------------------------------------
def check(graph: Graph) -> None:
    """`InputError` naming the first node that is not as `docs/format.md` says."""
    seen: dict[str, Node] = {}
    values: dict[str, Tensor] = {}
    counts = {"input": 0, "output": 0}
    total = 0
    for i, n in enumerate(graph.nodes):
        try:
            _form(n, seen, graph)
            for name, attr in OPERATORS[n.op].attrs.items():
                if name in n.attrs:
                    need(attr.fits(n.attrs[name]), f"{name}={str(n.attrs[name])[:60]} is out of bounds")
                else:
                    need(not attr.required, f"{name} is missing")
            _tensors(n, graph)
            try:
                value = _value(n, graph, seen, values)
            except (RuntimeError, IndexError, TypeError, OverflowError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise Unfit(first[:160]) from None
            n.attrs.setdefault("shape", [int(v) for v in value.shape[1:]])  # a file may leave it to us
            need(tuple(value.shape) == (2, *n.shape), f"shape {list(n.shape)}, but it gives {list(value.shape[1:])}")
            need(math.prod(max(1, v) for v in n.shape) <= MAX_VALUES, f"more than {MAX_VALUES} values a sample")
        except Unfit as reason:
            name, op = str(n.name)[:60], str(n.op)[:40]
            raise InputError(f"packed file: node {i} {name!r} ({op}): {reason}", code="file-graph") from None
        values[n.name] = value
        total += math.prod(n.shape)
        counts[n.op] = counts.get(n.op, 0) + 1
        seen[n.name] = n
    ends = graph.nodes[0].op == "input" and graph.nodes[-1].op == "output"
    if counts["input"] != 1 or counts["output"] != 1 or not ends:
        raise InputError("packed file: a graph begins with one input and ends with one output", code="file-graph")
    if total > MAX_TOTAL:
        raise InputError(f"packed file: {total} values a sample, at most {MAX_TOTAL}", code="file-graph")
    graph.checked = True


def light(graph: Graph) -> bool:
    """Whether one sample through a checked graph takes little memory and less than seconds: a load may try it."""
    values = sum(math.prod(n.shape) for n in graph.nodes)
    macs = sum(math.prod(weight_shape(n, graph)) * math.prod(n.shape[1:]) for n in graph.nodes if n.op in LAYERS)
    return values <= MAX_TRIAL_VALUES and macs <= MAX_TRIAL_MACS


def _form(n: Node, seen: dict[str, Node], graph: Graph) -> None:
    """Names, inputs and the keys every node may have."""
    need(isinstance(n.op, str) and n.op in OPERATORS, "unknown operator")
    need(isinstance(n.name, str) and 0 < len(n.name) <= 300 and n.name not in seen, "name missing, too long or taken")
    known = isinstance(n.inputs, list) and all(isinstance(s, str) and s in seen for s in n.inputs)
    need(known, "reads a value that does not exist yet")
    op = OPERATORS[n.op]
    fits = len(n.inputs) == op.inputs if op.inputs >= 0 else len(n.inputs) > 0
    need(fits, f"takes {op.inputs} inputs, has {len(n.inputs)}")
    need(isinstance(n.attrs, dict) and set(n.attrs) <= COMMON | set(op.attrs), "unknown attributes")
    for key in ("owner", "frame"):
        text = n.attrs.get(key, "")
        need(isinstance(text, str) and len(text) <= 1000, f"{key} is no short text")
    shape = n.attrs.get("shape", None if n.op == "input" else [])
    need(_listed(_whole(0, MAX_VALUES), 0, MAX_RANK)(shape), "shape is not a short list of sizes")
    need(math.prod(max(1, s) for s in n.shape) <= MAX_VALUES, f"more than {MAX_VALUES} values a sample")
    roles = n.attrs.get("tensors", {})
    found = isinstance(roles, dict) and all(isinstance(k, str) and k in graph.tensors for k in roles.values())
    need(found, "names a tensor that the file does not hold")
    for s in n.inputs:
        need((seen[s].op == "quantize") == op.codes, f"reads {s[:60]!r}, {seen[s].op}")


def _tensors(n: Node, graph: Graph) -> None:
    roles = n.attrs.get("tensors", {})
    wanted = OPERATORS[n.op].tensors
    if "weight" in n.attrs and n.op in ("conv", "linear", "conv_transpose"):
        wanted = "bits scale [bias]"
    must = {r for r in wanted.split() if r[0] != "["}
    may = {r.strip("[]") for r in wanted.split()}
    need(must <= set(roles) <= may, f"has tensors {sorted(map(str, roles))}, takes {wanted or 'none'}")
    for role, key in roles.items():
        t = graph.tensors[key]
        dtype = torch.uint8 if role == "bits" else torch.float32
        need(t.dtype == dtype and t.is_contiguous(), f"{role} is {t.dtype}")


def _value(n: Node, graph: Graph, seen: dict[str, Node], values: dict[str, Tensor]) -> Tensor:
    """The node's value without its numbers: two samples on the meta device."""
    if n.op == "input":
        return torch.empty((2, *n.shape), device="meta")
    inputs, source = [values[s] for s in n.inputs], seen[n.inputs[0]]
    op = OPERATORS[n.op]
    if op.check is not None:
        op.check(n, graph, inputs, source)
    if op.shape is not None:
        return op.shape(n, graph, inputs[0], source)
    only = {k: graph.tensors[k].to("meta") for k in n.attrs.get("tensors", {}).values()}
    return function(n, replace(graph, tensors=only))(*inputs)
