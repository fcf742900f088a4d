"""The graph of a packed network: a list of nodes over a closed table of operators. Plain data, checked on load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError

BATCH = "N"  # stands for the batch size in a shape

# op -> (number of inputs, attributes it may have). -1 inputs: any number of at least one.
# `tensors` in attrs maps a role to a key of the file, or lists roles whose key is `name.role`;
# `shape` is the shape of one sample of the output.
OPERATORS: dict[str, tuple[int, frozenset[str]]] = {
    name: (count, frozenset(attrs.split()) | {"shape", "tensors", "owner", "frame"})
    for name, count, attrs in [
        ("input", 0, ""),
        ("output", 1, ""),
        # ours
        ("quantize", 1, "levels mult zero last"),
        ("coded_conv", 1, "rank stride padding dilation groups weight"),
        ("coded_linear", 1, "weight"),
        ("decode", 1, "unit"),
        ("affine", 1, "last keep"),
        # float layers; `weight` describes a weight that is stored as bits
        ("conv", 1, "rank stride padding dilation groups weight"),
        ("conv_transpose", 1, "stride padding output_padding dilation groups weight"),
        ("linear", 1, "weight"),
        # ATen, by its own names
        ("relu", 1, ""),
        ("relu6", 1, ""),
        ("hardtanh", 1, "low high"),
        ("clamp", 1, "low high"),
        ("leaky_relu", 1, "slope"),
        ("prelu", 1, ""),
        ("sigmoid", 1, ""),
        ("tanh", 1, ""),
        ("gelu", 1, "approximate"),
        ("silu", 1, ""),
        ("hardswish", 1, ""),
        ("softmax", 1, "dim"),
        ("log_softmax", 1, "dim"),
        ("layer_norm", 1, "normalized eps"),
        ("max_pool", 1, "rank kernel stride padding dilation ceil"),
        ("avg_pool", 1, "rank kernel stride padding ceil count_pad"),
        ("adaptive_avg_pool", 1, "rank size"),
        ("mean", 1, "dims keepdim"),
        ("flatten", 1, "start end"),
        ("reshape", 1, "sizes"),
        ("permute", 1, "dims"),
        ("transpose", 1, "dim0 dim1"),
        ("squeeze", 1, "dims"),
        ("unsqueeze", 1, "dim"),
        ("slice", 1, "dim start end step"),
        ("pad", 1, "pads value mode"),
        ("cat", -1, "dim"),
        ("add", 2, ""),
        ("sub", 2, ""),
        ("mul", 2, ""),
        ("add_scalar", 1, "value"),
        ("mul_scalar", 1, "value"),
        ("neg", 1, ""),
        ("abs", 1, ""),
    ]
}

NAMED = ("coded_conv", "coded_linear", "conv", "linear", "conv_transpose", "quantize")

INLINE = 3  # so many thresholds stand in the graph itself: a tensor of its own costs a file more
MAX_NODES, MAX_TEXT = 5_000, 1 << 24


@dataclass
class Node:
    """One operator. `inputs` are names of earlier nodes; a node's value has the node's name."""

    op: str
    name: str
    inputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)

    def key(self, role: str) -> str | None:
        """The file key of a tensor role (`weight`, `scale`, ...), if it has one."""
        return self.attrs.get("tensors", {}).get(role)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.attrs.get("shape", ()))

    @property
    def owner(self) -> str:
        """The module of the user's model that this node came from."""
        return str(self.attrs.get("owner", ""))

    @property
    def usual_owner(self) -> str:
        """The owner where a file names none: layers and quantizers have their module's name, calls numbered by #."""
        return self.name.split("#")[0] if self.op in NAMED else ""


@dataclass
class Graph:
    """Nodes in execution order and the tensors they name."""

    nodes: list[Node]
    tensors: dict[str, Tensor]

    def node(self, name: str) -> Node:
        return next(n for n in self.nodes if n.name == name)

    def by_name(self) -> dict[str, Node]:
        return {n.name: n for n in self.nodes}

    def users(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for n in self.nodes:
            for i in n.inputs:
                found[i].append(n)
        return found

    def tensor(self, node: Node, role: str) -> Tensor | None:
        key = node.key(role)
        return None if key is None else self.tensors[key]

    def put(self, node: Node, role: str, value: Tensor) -> None:
        """Stores a tensor under `owner.role` or a numbered variant of it."""
        base = f"{node.name}.{role}"
        self.tensors[base] = value.contiguous()
        node.attrs.setdefault("tensors", {})[role] = base

    def replace_uses(self, old: str, new: str) -> None:
        for n in self.nodes:
            n.inputs = [new if i == old else i for i in n.inputs]

    def prune(self) -> None:
        """Drops nodes and tensors that no output needs."""
        needed: set[str] = set()
        for n in reversed(self.nodes):
            if n.op in ("output", "input") or n.name in needed:
                needed.add(n.name)
                needed.update(n.inputs)
        self.nodes = [n for n in self.nodes if n.name in needed]
        kept = {k for n in self.nodes for k in n.attrs.get("tensors", {}).values()}
        self.tensors = {k: v for k, v in self.tensors.items() if k in kept}

    def copy(self) -> Graph:
        """Nodes are copied, tensors shared."""
        data = json.loads(self.to_json())
        return Graph([Node(**d) for d in data], dict(self.tensors))

    def to_json(self) -> str:
        """Every attribute written out."""
        nodes = [{"op": n.op, "name": n.name, "inputs": n.inputs, "attrs": n.attrs} for n in self.nodes]
        return json.dumps(nodes, separators=(",", ":"))

    def stored(self) -> tuple[str, dict[str, Tensor]]:
        """What a file holds: the graph without what goes without saying, and the tensors it names.

        Left out: lines of the user's code, owners and tensor keys that follow from the name, shapes (worked out
        again on load), attributes at their usual value. A threshold or three stand in the graph itself.
        """
        nodes, tensors = [], dict(self.tensors)
        for n in self.nodes:
            skip = {"frame"} | ({"owner"} if n.owner == n.usual_owner else set())
            skip |= set() if n.op == "input" else {"shape"}
            attrs = {k: v for k, v in n.attrs.items() if k not in skip and usual(k, n.attrs) != v}
            roles = dict(attrs.pop("tensors", {}))
            table = self.tensor(n, "thresholds")
            if table is not None and table.dim() == 1 and table.numel() <= INLINE and bool(table.isfinite().all()):
                tensors.pop(roles.pop("thresholds"), None)
                attrs["thresholds"] = table.tolist()
            if roles:
                plain = all(key == f"{n.name}.{role}" for role, key in roles.items())
                attrs["tensors"] = list(roles) if plain else roles
            nodes.append({"op": n.op, "name": n.name, "inputs": n.inputs, "attrs": attrs})
        return json.dumps(nodes, separators=(",", ":")), tensors

    @staticmethod
    def from_json(text: str, tensors: dict[str, Tensor]) -> Graph:
        """Reads and checks a graph; `InputError` says what is wrong. Nothing in it is ever executed."""
        from bitwright.engine.check import check  # it reads this table

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
            attrs = d["attrs"]
            if isinstance(attrs, dict):
                attrs = _spelled_out(i, str(d["op"]), str(d["name"]), dict(attrs), tensors)
            node = Node(d["op"], d["name"], d["inputs"], attrs)
            if isinstance(attrs, dict) and isinstance(node.name, str):
                node.attrs = {**attrs, "owner": attrs.get("owner", node.usual_owner)}
            nodes.append(node)
        graph = Graph(nodes, tensors)
        check(graph)
        return graph


def usual(key: str, attrs: dict[str, Any]) -> Any:
    """The value of an attribute that a file leaves out, or ... where it must be written."""
    rank = attrs.get("rank")
    if key in ("stride", "dilation") and "kernel" not in attrs and isinstance(rank, int) and 0 < rank <= 3:
        return [1] * rank
    return {"groups": 1, "last": False, "mult": 1}.get(key, ...)


def _spelled_out(i: int, op: str, name: str, attrs: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The attributes of a stored node with what it left out; its inline thresholds become a tensor."""
    table = attrs.pop("thresholds", None)
    roles = attrs.get("tensors", [])
    if isinstance(roles, list):
        attrs["tensors"] = {str(r): f"{name}.{r}" for r in roles}
    if table is not None:
        key = f"{name}.thresholds"
        numbers = isinstance(table, list) and 0 < len(table) <= INLINE and all(type(t) in (int, float) for t in table)
        if not numbers or key in tensors or not isinstance(attrs["tensors"], dict):
            raise InputError(
                f"packed file: node {i} {name[:60]!r}: thresholds are not {INLINE} numbers", code="file-graph"
            )
        tensors[key] = torch.tensor([float(t) for t in table], dtype=torch.float64).float()
        attrs["tensors"] = {**attrs["tensors"], "thresholds": key}
    if op in ("coded_conv", "conv", "conv_transpose"):
        for left_out in ("stride", "dilation", "groups"):
            if left_out not in attrs and (value := usual(left_out, attrs)) is not ...:
                attrs[left_out] = value
    elif op in ("quantize", "affine"):
        for left_out in ("last", *(["mult"] if op == "quantize" else [])):
            attrs.setdefault(left_out, usual(left_out, attrs))
    return attrs


def ints(value: Any, rank: int) -> list[int]:
    """An ATen size argument as a list of `rank` ints."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def view(v: Tensor, rank: int, last: bool) -> Tensor:
    """[C] so that it broadcasts over a value of `rank` axes (batch included)."""
    return v if last else v.reshape(-1, *[1] * (rank - 2))


__all__ = ["BATCH", "OPERATORS", "Graph", "Node", "ints", "view"]
