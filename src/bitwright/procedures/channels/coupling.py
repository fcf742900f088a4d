"""Which channels of which layers can only go together, from the dependency graph of torch-pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.errors import InputError
from bitwright.transforms.forward import run_model

Place = tuple[str, int]  # a layer's name, a channel of it
PIP = "pip install 'bitwright[shrink]'"


@dataclass
class Channel:
    """One channel with all that depends on it.

    makes   outputs of layers that are added, or stand for each other, in it;   reads   inputs of layers that read it
    on      channels of what lies between: norms, PReLU, depthwise convolutions
    fixed   why it cannot go, "" if it can
    """

    makes: set[Place] = field(default_factory=set)
    reads: set[Place] = field(default_factory=set)
    on: set[Place] = field(default_factory=set)
    fixed: str = ""

    @property
    def first(self) -> Place:
        return min(self.makes)


def torch_pruning() -> Any:
    """The library. Errors: `InputError` with the command that installs it."""
    try:
        return import_module("torch_pruning")
    except ImportError:
        raise InputError(
            f"shrink: torch-pruning is not installed; {PIP}, or pip install torch-pruning",
            code="extra-missing",
            possible=PIP,
        ) from None


class _Ends(nn.Module):
    """The net with an operator behind each output, so that outputs are nodes of the graph of their own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, example: Any) -> Any:
        out = tree_leaves(run_model(self.net, example))
        return [t + 0 for t in out if isinstance(t, Tensor) and t.requires_grad]


def coupled(model: nn.Module, example: Any) -> list[Channel]:
    """Every channel that a convolution or linear layer of `model` puts out, coupled ones as one; the first in order first.

    model   without slots, in plain layers; its parameters must ask for gradients, since the graph is that of autograd
    """
    tp = torch_pruning()
    names = {module: name for name, module in model.named_modules()}
    graph, kinds = tp.DependencyGraph(), tp.ops.OPTYPE
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            graph.build_dependency(_Ends(model), example, forward_fn=lambda net, given: net(given), verbose=False)
        except Exception as error:  # a library of its own, on any model: its reasons are of many kinds
            why = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise InputError(f"shrink: torch-pruning cannot follow this model: {why}", code="shrink-graph") from None
    silent = {kinds.CONCAT, kinds.SPLIT, kinds.ELEMENTWISE, kinds.RESHAPE, kinds.UNBIND, kinds.EXPAND, kinds.SLICE}
    through = {kinds.BN, kinds.PRELU, kinds.DEPTHWISE_CONV}
    classes = _Classes()
    for root, node in list(graph.module2node.items()):
        if node.type not in (kinds.CONV, kinds.LINEAR) or root not in names:
            continue
        pruner = graph.get_pruner_of_module(root)
        group = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(pruner.get_out_channels(root))))
        for item in group.items:
            target, kind = item.dep.target, item.dep.target.type
            if kind in silent:
                continue
            name = names.get(target.module, "")
            for index, start in zip(item.idxs, item.root_idxs, strict=True):
                here = ("makes", names[root], start)
                if kind in (kinds.CONV, kinds.LINEAR):
                    side = "makes" if graph.is_out_channel_pruning_fn(item.dep.handler) else "reads"
                    classes.join(here, (side, name, index))
                elif kind in through:
                    classes.join(here, ("on", name, index))
                else:
                    classes.fix(here, _word(kind, kinds, name))
    return classes.channels(list(names.values()))


def _word(kind: Any, kinds: Any, name: str) -> str:
    if kind == kinds.OUTPUT:
        return "the net puts it out"
    if kind == kinds.PARAMETER:
        return "a parameter outside of layers is computed with it"
    return f"{name} mixes it with other channels" if name else "it is mixed with other channels"


class _Classes:
    """Sets of places that grow together."""

    def __init__(self) -> None:
        self.parent: dict[Any, Any] = {}
        self.fixed: dict[Any, str] = {}

    def top(self, one: Any) -> Any:
        self.parent.setdefault(one, one)
        while self.parent[one] != one:
            self.parent[one] = one = self.parent[self.parent[one]]
        return one

    def join(self, one: Any, other: Any) -> None:
        self.parent[self.top(other)] = self.top(one)

    def fix(self, one: Any, why: str) -> None:
        self.fixed.setdefault(one, why)
        self.top(one)

    def channels(self, order: list[str]) -> list[Channel]:
        place = {name: i for i, name in enumerate(order)}
        found: dict[Any, Channel] = {}
        for one in self.parent:
            side, name, index = one
            channel = found.setdefault(self.top(one), Channel())
            getattr(channel, side).add((name, index))
            channel.fixed = channel.fixed or self.fixed.get(one, "")
        return sorted(found.values(), key=lambda c: min((place[name], index) for name, index in c.makes))
