"""The graph of a packed network: a list of nodes over a closed table of operators. Plain data, checked on load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

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

    def to_json(self, lean: bool = False) -> str:
        """lean: as a file holds it, without lines of the user's code, owners and keys that go without saying."""
        nodes = []
        for n in self.nodes:
            attrs = n.attrs
            if lean:
                skip = {"frame"} | ({"owner"} if n.owner == n.usual_owner else set())
                attrs = {k: v for k, v in attrs.items() if k not in skip}
                roles = attrs.get("tensors", {})
                if roles and all(key == f"{n.name}.{role}" for role, key in roles.items()):
                    attrs["tensors"] = list(roles)
            nodes.append({"op": n.op, "name": n.name, "inputs": n.inputs, "attrs": attrs})
        return json.dumps(nodes, separators=(",", ":"))

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
        nodes = []
        for i, d in enumerate(data):
            if not isinstance(d, dict) or set(d) != {"op", "name", "inputs", "attrs"}:
                raise InputError(f"packed file: node {i} needs op, name, inputs, attrs", code="file-graph")
            attrs = d["attrs"]
            if isinstance(attrs, dict) and isinstance(roles := attrs.get("tensors"), list):
                attrs = {**attrs, "tensors": {str(r): f"{d['name']}.{r}" for r in roles}}
            node = Node(d["op"], d["name"], d["inputs"], attrs)
            if isinstance(attrs, dict) and isinstance(node.name, str):
                node.attrs = {**attrs, "owner": attrs.get("owner", node.usual_owner)}
            nodes.append(node)
        graph = Graph(nodes, tensors)
        check(graph)
        return graph


def ints(value: Any, rank: int) -> list[int]:
    """An ATen size argument as a list of `rank` ints."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def view(v: Tensor, rank: int, last: bool) -> Tensor:
    """[C] so that it broadcasts over a value of `rank` axes (batch included)."""
    return v if last else v.reshape(-1, *[1] * (rank - 2))


__all__ = ["BATCH", "OPERATORS", "Graph", "Node", "ints", "view"]
