"""A tracer for measuring: follows one example, so that branches on shapes are no obstacle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg


def sole_readers(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(call of a module, its reader), where each of the two modules is called once, and the second reads the first's result
    alone, and nothing else reads it."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for reader in list(graph.nodes):
        node = reader.args[0] if reader.op == "call_module" and len(reader.args) == 1 else None
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            continue
        if calls[str(node.target)] == calls[str(reader.target)] == 1:
            yield node, reader


class ExampleTracer(fx.Tracer):
    """Symbolic tracing that computes every node on an example as it goes.

    Tensors stay symbolic; numbers and shapes become constants, so the graph is right for inputs of this shape only,
    and has no shape arithmetic left in it.
    """

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.inputs = list(inputs)
        self.values: dict[fx.Node, Any] = {}
        self.computing = False  # while tracing, torch routes module calls and parameters through the tracer

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind != "output":
            self.computing = True
            try:
                self.values[node] = self._compute(node)
            finally:
                self.computing = False
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        if kind in ("output", "placeholder") or target is getattr:  # x.shape stays lazy, x.shape[1] is a number
            return proxy
        value = self.values[proxy.node]
        return proxy if _holds_tensor(value) else value

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.inputs:
                return self.inputs.pop(0)
            return node.args[0] if node.args else None  # an argument left at its default
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "get_attr":
            value: Any = self.root
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(v) for v in value)
    if isinstance(value, dict):
        return any(_holds_tensor(v) for v in value.values())
    return isinstance(value, Tensor)


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph of `model` on inputs of these shapes; shares the model's parameters.

    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return x.relu() if x.shape[1] == 3 else x
    >>> [n.name for n in trace(Net(), (torch.zeros(1, 3),)).graph.nodes]
    ['x', 'relu', 'output']
    """
    tracer = ExampleTracer(inputs)
    with torch.no_grad():
        graph = tracer.trace(model)
    traced = fx.GraphModule(tracer.root, graph)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced
