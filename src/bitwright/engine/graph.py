"""The graph of a packed network: nodes in execution order and the tensors they name. Plain data, no behavior."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Node:
    """One operator. `inputs` are names of earlier nodes; a node's value has the node's name.

    `tensors` in attrs maps a role to a key of the file; `shape` is the shape of one sample of the value.
    """

    op: str
    name: str
    inputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)

    def key(self, role: str) -> str | None:
        """The file key of a tensor role (`weight`, `scale`, ...), if it has one."""
        return self.attrs.get("tensors", {}).get(role)

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.attrs.get("shape", ()))

    @property
    def last(self) -> bool:
        """Whether its channels are the last axis, not axis 1."""
        return self.op.endswith("linear") or bool(self.attrs.get("last")) or len(self.shape) == 1

    @property
    def channels(self) -> int:
        return int(self.shape[-1 if self.last else 0])

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of its value as kernels see it."""
        if self.last:
            return rows_as_image(self.shape)
        return (1, self.shape[1]) if len(self.shape) == 2 else self.shape[1:]

    @property
    def owner(self) -> str:
        """The module of the user's model that this node came from."""
        return str(self.attrs.get("owner", ""))


@dataclass
class Graph:
    """Nodes in execution order and the tensors they name.

    `work`: values and multiplications of one sample, once `store.check` has passed; the graph is not changed since.
    `answers`: of each answer its sizes for the two batches of that check, and its type.
    """

    nodes: list[Node]
    tensors: dict[str, Tensor]
    work: tuple[int, int] | None = None
    answers: list[tuple[torch.Size, torch.Size, torch.dtype]] = field(default_factory=list)

    def inputs(self) -> list[Node]:
        return [n for n in self.nodes if n.op == "input"]

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

    def need(self, node: Node, role: str) -> Tensor:
        """A tensor that the node must have."""
        found = self.tensor(node, role)
        assert found is not None, (node.name, role)
        return found

    def put(self, node: Node, role: str, value: Tensor) -> None:
        """Stores a tensor under `name.role`."""
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
        return Graph(copy.deepcopy(self.nodes), dict(self.tensors))


def rows_as_image(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width as which the axes in front of the last lie, of rows of features. Up to two keep their own lengths, so that
    these are known for images of every size."""
    rows = shape[:-1]
    return (1, rows[0] if rows else 1) if len(rows) < 2 else (rows[0], math.prod(rows[1:]))


def fresh(wish: str, taken: Iterable[str], mark: str = "#") -> str:
    """`wish`, or `wish#1`, `wish#2`, ... where that name is taken."""
    names, name, k = set(taken), wish, 1
    while name in names:
        name, k = f"{wish}{mark}{k}", k + 1
    return name


def ints(value: Any, rank: int) -> list[int]:
    """An ATen size argument as a list of `rank` ints."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def view(v: Tensor, rank: int, last: bool) -> Tensor:
    """[C] so that it broadcasts over a value of `rank` axes (batch included)."""
    return v if last else v.reshape(-1, *[1] * (rank - 2))
