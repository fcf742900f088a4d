"""Gates in the proof: a decision on floats may fall to either side of a threshold within rounding, and everything behind
it follows. So a walk of the graph is told the decisions of the net that it is compared with, each judged by how far the
value lies from the threshold; on whole numbers it must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.gates import SplitOperator, winners
from bitwright.engine.graph import Graph, Node
from bitwright.engine.rules import LAYERS, SPLITS

DECIDING = ("winners", *SPLITS)
KERNELS = ("gated_conv", "skipped_gate", "float_conv")  # of floats, in an order of their own
ROUNDING = 256 * 2.0**-24  # of the largest value: what another order of a float sum may change
NEAR = 2.0**-18  # of the largest value of one gated layer with the same decisions
NEAR_FLOATS = 2.0**-16  # of a float layer: Winograd adds before it multiplies


@dataclass
class Off:
    """A decision, or a value behind it, that rounding cannot explain: which layer, by how much, the bound."""

    layer: str
    off: Tensor  # of each sample
    bound: float


@dataclass
class Told:
    """Decisions of another run, by layer and call, and what is wrong with them."""

    decided: dict[str, list[Tensor]]
    calls: dict[str, int] = field(default_factory=dict)
    wrong: list[Off] = field(default_factory=list)

    def step(self, node: Node, graph: Graph, env: dict[str, Tensor]) -> bool:
        """Runs a deciding node with the other run's decision; False where there is none for it."""
        k = self.calls.get(node.owner, 0)
        self.calls[node.owner] = k + 1
        calls = self.decided.get(node.owner, [])
        if k >= len(calls):
            return False
        on, x = calls[k], env[node.inputs[0]]
        if node.op == "winners":
            own, off, bound = _of_winners(node, x, on)
            if on.shape == own.shape:
                env[node.name] = torch.where(on.isnan(), own, on)
        else:
            gate = SplitOperator(node, graph)
            base, full = gate.sums(x)
            own = gate.decide(base)
            off = (base - gate.threshold.reshape(-1, *[1] * (0 if gate.last else base.dim() - 2))).abs()
            bound = 0.0 if gate.whole else ROUNDING * _largest(base)
            if on.shape == own.shape:
                on = torch.where(on.isnan(), own, on)
                env[node.name] = gate.finish(base, full, on)
        if on.shape != own.shape:
            return False
        off = torch.where((own == on) | off.isnan(), 0.0, off.clamp_min(torch.finfo(torch.float32).tiny))
        if bool((off > bound).any()):
            self.wrong.append(Off(node.owner, off.reshape(len(off), -1).amax(1), bound))
        return True


def _of_winners(node: Node, g: Tensor, on: Tensor) -> tuple[Tensor, Tensor, float]:
    """(own decision, how far each channel is from the other one, bound)."""
    block, count = int(node.attrs["block"]), int(node.attrs["count"])
    blocks = g.unflatten(1, (-1, block)).mean(2)
    edge = blocks.topk(count, 1).values[:, -1:]
    far = (blocks - edge).abs().repeat_interleave(block, 1)
    return winners(g, node.attrs), torch.minimum(far, g.abs()), ROUNDING * _largest(g)


def _largest(t: Tensor) -> float:
    return float(t.abs().nan_to_num(nan=0.0, posinf=0.0).max()) if t.numel() else 0.0


def decisions_of(graph: Graph, env: dict[str, Tensor], runtime: list[Node]) -> dict[str, list[Tensor]]:
    """What the gates of a run decided, by layer and call: from the values it left. runtime: the nodes that ran."""
    kernels = {str(n.attrs["gate"]): n for n in runtime if n.op == "skipped_gate"}
    found: dict[str, list[Tensor]] = {}
    for node in graph.nodes:
        if node.op == "winners" and node.name in env:
            found.setdefault(node.owner, []).append(env[node.name].flatten(1))
        elif node.op == "channel_gate" and env.get(node.inputs[0]) is not None:
            gate = SplitOperator(node, graph)
            base, full = gate.sums(env[node.inputs[0]])
            on = gate.decide(base)
            if node.name in kernels:
                on = _seen(gate, base, full, on, kernels[node.name], graph, env)
            found.setdefault(node.owner, []).append(on)
    return found


def _seen(
    gate: SplitOperator, base: Tensor, full: Tensor, own: Tensor, kernel: Node, graph: Graph, env: dict[str, Tensor]
) -> Tensor:
    """What a kernel decided that writes its answers alone: the one of both answers that lies nearer, `own` where they are
    the same up to rounding."""
    scale, add = graph.tensor(kernel, "y_scale"), graph.tensor(kernel, "y_add")

    def answer(on: float) -> Tensor:
        y = gate.finish(base, full, torch.full_like(base, on))
        y = y if scale is None or add is None else reference.affine(y, scale, add, gate.last)
        y = y + env[kernel.inputs[1]] if len(kernel.inputs) == 2 else y
        return y.relu() if kernel.attrs.get("relu") else y

    y, shut, opened = env[kernel.name], answer(0.0), answer(1.0)
    apart = (opened - shut).abs() > NEAR * max(_largest(shut), _largest(opened))
    return torch.where(apart, ((y - opened).abs() < (y - shut).abs()).float(), own)


def starts(graph: Graph, gated: set[str]) -> Iterator[tuple[str, str, bool]]:
    """(node, layer, whether it begins a call) of nodes of a gated layer that read the layer's own input."""
    by_name = graph.by_name()
    parts = {n.owner for n in graph.nodes if n.owner.endswith(".x")}
    for node in graph.nodes:
        if node.owner not in gated or not node.inputs or node.op == "switch":
            continue
        if by_name[node.inputs[0]].owner not in (node.owner, f"{node.owner}.x"):
            yield node.name, node.owner, node.op in LAYERS and f"{node.owner}.x" not in parts
