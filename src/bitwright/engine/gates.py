"""Gated layers in plain torch: what their operators compute and what must hold of them. The oracle of the kernels.

fbs      saliency (input -> g [N, O]) -> winners (0 or 1) -> switch (layer's output, g, winners): the layer itself is an
         ordinary one, its BatchNorm merged as ever
splits   one operator: y = base + on rest, on = base >= threshold. `channel_gate` reads numbers, `coded_channel_gate` and
         `precision_gate` read codes, whose sums are whole numbers wherever the weight's are: then y is one whole sum, scaled
         once, fl(fl(I scale) + bias), and so is the base that decides

A threshold is the smallest float32 at which the trained gate is on, norm and comparison included: so the decision is the
trained one for every base, and whatever norm lies behind the layer never moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import reference, rules
from bitwright.engine.attributes import MAX_LEVELS, need
from bitwright.engine.graph import Graph, Node, view
from bitwright.engine.rules import CODED_SPLITS, MAX_TABLE
from bitwright.fn.shares import base_mask, shuffled

EXACT = reference.EXACT_FLOAT32
DUAL = ("on_scale", "on_add", "off_scale", "off_add")


# -- fbs --------------------------------------------------------------------------------------------------------
def saliency(x: Tensor, attrs: Mapping[str, Any], weight: Tensor, bias: Tensor) -> Tensor:
    """relu(weight mean|x| + bias), the mean over all positions: [N, O]."""
    size = x.abs()
    mean = size.unsqueeze(1).flatten(1, -2).mean(1) if attrs["last"] else size.unsqueeze(-1).flatten(2).mean(2)
    return F.linear(mean, weight, bias).relu()


def winners(g: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    """1 for the channels of the `count` blocks with the largest mean g, where g > 0."""
    block, count = int(attrs["block"]), int(attrs["count"])
    blocks = g.unflatten(1, (-1, block)).mean(2)
    on = torch.zeros_like(blocks).scatter(1, blocks.topk(count, 1).indices, 1.0)
    return on.repeat_interleave(block, 1) * (g > 0)


def run_switch(node: Node, graph: Graph) -> Callable[..., Tensor]:
    last = bool(node.attrs["last"])

    def run(y: Tensor, g: Tensor, on: Tensor) -> Tensor:
        ones = [1] * (y.dim() - 2)
        return y * (g * on).reshape((len(y), *ones, g.shape[1]) if last else (*g.shape, *ones))

    return run


def check_saliency(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    weight, bias = graph.need(n, "weight"), graph.need(n, "bias")
    need(inputs[0].dim() >= 2 and weight.dim() == 2 and len(weight) > 0, f"a predictor of shape {list(weight.shape)}")
    have = inputs[0].shape[-1 if n.attrs["last"] else 1]
    need(weight.shape[1] == have, f"a predictor of {weight.shape[1]} channels, its input has {have}")
    need(tuple(bias.shape) == (len(weight),), f"bias is {list(bias.shape)}")


def check_winners(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    block, count = n.attrs["block"], n.attrs["count"]
    need(inputs[0].dim() == 2 and inputs[0].shape[1] % block == 0, f"channels do not divide by block={block}")
    need(count <= inputs[0].shape[1] // block, f"count={count} of {inputs[0].shape[1] // block} blocks")


def check_switch(n: Node, graph: Graph, inputs: list[Tensor], source: Node) -> None:
    y, g, on = inputs
    need(y.dim() >= 2 and g.dim() == 2 and g.shape == on.shape, "needs a layer's output and [N, O] twice")
    need(y.shape[-1 if n.attrs["last"] else 1] == g.shape[1], f"{g.shape[1]} channels for an output of {list(y.shape)}")


def bound_saliency(n: Node, graph: Graph, x: list[float]) -> float:
    weight = graph.need(n, "weight").double().abs().sum(1)
    return x[0] * float(weight.max()) + rules.most(graph.need(n, "bias"))


# -- splits -----------------------------------------------------------------------------------------------------
class SplitOperator:
    """A split gate of a graph: `y = finish(base, full, decide(base))` with `base, full = sums(x)`.

    x: numbers, or for an operator of codes the codes. full: what y is where on. Of floats it is base + rest; of whole numbers
    the whole sum, scaled once. So whoever adds the rest only where `decide` says so gives the same y.
    """

    def __init__(self, node: Node, graph: Graph) -> None:
        self.node, self.attrs, self.last = node, node.attrs, bool(node.attrs["last"])
        self.coded = node.op in CODED_SPLITS
        self.bias, self.threshold = graph.tensor(node, "bias"), graph.need(node, "threshold")
        self.dual = [graph.need(node, role) for role in DUAL] if node.key("on_scale") else None
        self.unit = float(node.attrs["unit"]) if "unit" in node.attrs else None
        self.scale = graph.tensor(node, "scale")
        # whole numbers where the weight is coded and so is the input; else floats
        self.whole = self.coded and self.unit is None
        bits = node.key("bits") is not None
        if self.whole and bits:
            self.weight = reference.weight_integers(graph, node)[0].float()
        else:
            self.weight = reference.stored_weight(graph, node)
        self.order: Tensor | None = None
        self.parts: tuple[Tensor, Tensor] | None = None
        self.groups = int(node.attrs.get("groups", 1))
        if node.op != "precision_gate":
            self._channels()
        if self.coded:
            self.x_info = node.attrs.get("x") or graph.node(node.inputs[0]).attrs
            self.codes_last = bool(graph.node(node.inputs[0]).attrs["last"])

    def _channels(self) -> None:
        a, w = self.attrs, self.weight
        splits, (outputs, fan) = int(a["splits"]), w.shape[:2]
        inputs = fan * self.groups
        mask = base_mask(fan, outputs // self.groups, self.groups, splits, bool(a["group"]))
        mask = mask.reshape(*mask.shape, *[1] * (w.dim() - 2)).to(w.dtype)
        base, self.base_groups = w * mask, self.groups
        even = self.groups == 1 and inputs % splits == 0 and outputs % splits == 0
        if a["group"] and even and not self.last:  # a convolution in groups: 1 / splits of the cost
            q, c = outputs // splits, inputs // splits
            base = torch.cat([w[j * q : (j + 1) * q, j * c : (j + 1) * c] for j in range(splits)])
            self.base_groups = splits
        self.parts = base, w * (1 - mask)
        self.order = shuffled(inputs, splits) if a["shuffle"] else None

    def numbers(self, x: Tensor) -> Tensor:
        if not self.coded:
            return x
        return reference.numbers(x, int(self.x_info["mult"]), self.x_info["zero"], self.codes_last)

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(base, full) as floats."""
        x = self.numbers(x)
        if self.parts is None:
            high = self.high(x)
            base, rest = self._product(high, self.weight), self._product(x - high, self.weight)
        else:
            x = x if self.order is None else x[..., self.order] if self.last else x[:, self.order]
            base, rest = self._product(x, self.parts[0], self.base_groups), self._product(x, self.parts[1])
        return self.scaled(base, rest)

    def scaled(self, base: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """(base, full) of sums of products: times the unit, plus the bias, each rounded."""
        bias = None if self.bias is None else view(self.bias, base.dim(), self.last)
        if self.whole:
            scale = view(self.scale[0], base.dim(), self.last)  # type: ignore[index]
            base, full = (y.float() * scale for y in (base, base + rest))
            return (base, full) if bias is None else (base + bias, full + bias)
        if self.unit is not None:
            base, rest = base * self.unit, rest * self.unit
        base = base if bias is None else base + bias
        return base, base + rest

    def high(self, x: Tensor) -> Tensor:
        """The part of whole numbers that their high bits say; it keeps the sign."""
        step = int(self.attrs["step"])
        return (x / step).trunc() * step

    def _product(self, x: Tensor, w: Tensor, groups: int | None = None) -> Tensor:
        if self.whole:
            bound = float(x.abs().max()) * float(w.abs().flatten(1).sum(1).max()) if x.numel() else 0.0
            exact = torch.float32 if bound < EXACT else torch.float64
            x, w = x.to(exact), w.to(exact)
        return applied(x, w, self.node, groups)

    def decide(self, base: Tensor) -> Tensor:
        """1 where the rest is added, else 0; NaN is off."""
        return (base >= view(self.threshold, base.dim(), self.last)).float()

    def finish(self, base: Tensor, full: Tensor, on: Tensor) -> Tensor:
        y = torch.where(on > 0, full, base)
        if self.dual is None:
            return y
        on_scale, on_add, off_scale, off_add = (view(t, y.dim(), self.last) for t in self.dual)
        return torch.where(on > 0, y * on_scale + on_add, y * off_scale + off_add)

    def __call__(self, x: Tensor) -> Tensor:
        base, full = self.sums(x)
        return self.finish(base, full, self.decide(base))


def applied(x: Tensor, w: Tensor, node: Node, groups: int | None = None) -> Tensor:
    """The linear operator of the node, without a bias."""
    a = node.attrs
    if not a["rank"]:
        return F.linear(x, w)
    if groups is None or groups == a["groups"]:
        return reference.convolve(x, w, None, node)
    return reference.convolve(x, w, None, Node(node.op, node.name, [], {**a, "groups": groups}))


def shape_of_split(n: Node, graph: Graph, x: Tensor, source: Node) -> Tensor:
    a, shape = n.attrs, rules.weight_shape(n, graph)
    rank, outputs, last = int(a["rank"]), shape[0], bool(a["last"])
    need(last == (rank == 0) and len(shape) == max(2, rank + 2), f"a weight of {len(shape)} axes, rank {rank}")
    need(x.dim() >= 2 if last else x.dim() == rank + 2, "its input has another number of axes")
    need(last or all(len(a[k]) == rank for k in ("stride", "padding", "dilation") if k in a), "one step for each axis")
    need(last or {"stride", "padding", "dilation"} <= set(a), "stride, padding or dilation is missing")
    groups = int(a["groups"])
    need(outputs % groups == 0 and (not last or groups == 1), f"{outputs} outputs in {groups} groups")
    need(all(k <= rules.MAX_STEP for k in shape[2:]), "the kernel is too large")
    for role in ("bias", "threshold", *DUAL):
        t = graph.tensor(n, role)
        need(t is None or tuple(t.shape) == (outputs,), f"{role} is not one number for each of {outputs} outputs")
    need(not bool(graph.need(n, "threshold").isnan().any()), "a threshold is NaN")
    need(len({role in n.attrs["tensors"] for role in DUAL}) == 1, "one of the two norms is missing")
    if n.op in CODED_SPLITS:
        need(x.dim() == 2 or source.attrs["last"] == last, "reads codes along another axis")
        need(
            "unit" in a or _whole(n, graph, source),
            "its weight is no table of whole numbers, or its sums exceed 32 bits",
        )
        most = max(abs(z) + source.attrs["mult"] * MAX_LEVELS for z in source.attrs["zero"])
        need(most < EXACT, "its input has numbers beyond 24 bits")
    if n.op != "precision_gate":
        fan, outs = shape[1], outputs // groups
        need(a["splits"] <= (min(fan, outs) if a["group"] else fan), f"{a['splits']} splits of {fan} channels")
    need(math.prod(shape) <= MAX_TABLE * 16, "the weight is too large")
    return applied(x, torch.empty(shape, device="meta"), n)


def _whole(n: Node, graph: Graph, source: Node) -> bool:
    """Whether the weight is whole numbers with one scale per channel, and so are its sums, within 32 bits."""
    if "weight" in n.attrs:
        return len(n.attrs["weight"]["terms"]) == 1 and rules.largest(n, source) <= rules.INT32
    w, scale, x = graph.need(n, "weight"), graph.tensor(n, "scale"), source.attrs
    if scale is None or tuple(scale.shape) != (1, len(w)):
        return False
    most = max(abs(z + e) for z in x["zero"] for e in (0, x["mult"] * x["levels"]))
    return bool((w == w.round()).all()) and float(w.abs().double().flatten(1).sum(1).max()) * most <= rules.INT32


def bound_split(n: Node, graph: Graph, x: list[float]) -> float:
    if n.key("on_scale") or "unit" in n.attrs:
        return math.inf
    if n.op not in CODED_SPLITS:
        return rules.bound_layer(n, graph, x)
    most = rules.INT32 * float(
        graph.need(n, "scale").abs().max()
    )  # `shape_of_split` has seen that no whole sum is larger
    bias = graph.tensor(n, "bias")
    return most if bias is None else most + rules.most(bias)
