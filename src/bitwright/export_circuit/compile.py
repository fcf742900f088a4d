"""From a packed net to gates: each layer whose inputs are bits becomes weighted sums of these bits.

A value of the net is an array of literals [levels, *shape]: code >= 1, code >= 2, ... So one bit is one signal, and a code of more
levels is as many signals, which a layer adds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.fuse import LIMIT, fuse
from bitwright.engine.graph import Graph, Node, ints
from bitwright.engine.run_reference import step
from bitwright.errors import InputError
from bitwright.export_circuit.gates import FALSE, TRUE, Builder, Netlist
from bitwright.export_circuit.scores import best_class, entries
from bitwright.export_circuit.sums import Sum, reaches, total, weighted

Outputs = Literal["class", "counts"]
LAYERS = ("coded_linear", "coded_conv")
BEHIND = ("affine", "relu", "clamp", "prelu", "add_scalar", "mul_scalar")  # of the last layer, each class by itself
BEHIND_ATEN = ("tanh", "sigmoid", "neg", "hardsigmoid", "elu", "selu", "erf", "atan", "softplus", "softsign")
ADDER = 5  # gates of one bit that is added
BITS = 'inputs of one bit, x = "heaviside" on the first layer, and weights of whole numbers'
FLOATS = 'x = "heaviside" or "sign", and weights of whole numbers'
MOST_ENTRIES = 1 << 16  # sums of all classes together


@dataclass(frozen=True)
class Circuit:
    """The gates of a net.

    cut         float32 [inputs]: bit i of x is 1 where input i is at least cut[i]
    signed      whether the sums `count_C` are two's complement, because one of them can be negative
    """

    net: Netlist
    cut: np.ndarray
    signed: bool


def compiled(folded: Graph, outputs: Outputs, limit: int) -> Circuit:
    """The gates of a folded graph. Errors: `InputError` for the first layer that is not whole sums of bits, and above `limit`."""
    # bits, whatever is faster on this CPU; all units: the sum of a class counts even if a scale of 0 makes it unread
    graph = fuse(folded, lambda layer, graph: False, smaller=False)
    return _Compiler(graph, outputs, limit).run()


def refuse(node: Node | str, has: str, possible: str) -> InputError:
    name = node if isinstance(node, str) else node.owner or node.name
    return InputError(
        f"export circuit: {name}: {has}. Possible: {possible}", code="export-operator", layer=name, possible=possible
    )


class _Compiler:
    def __init__(self, graph: Graph, outputs: Outputs, limit: int) -> None:
        self.graph, self.outputs, self.users = graph, outputs, graph.users()
        self.entry, self.cut, self.flip = self._entry()
        self._check(limit)
        self.b = Builder(self.cut.size)
        self.values: dict[str, np.ndarray] = {}

    def _entry(self) -> tuple[Node, np.ndarray, np.ndarray]:
        """(the quantizer that cuts the input into bits, the threshold of each input, whether the bit is inverted there)."""
        given = self.graph.inputs()
        if len(given) != 1:
            raise InputError(f"export circuit: the net takes {len(given)} inputs. Possible: one", code="export-form")
        readers = self.users[given[0].name]
        while len(readers) == 1 and readers[0].op == "flatten":
            readers = self.users[readers[0].name]
        q = readers[0]
        if q.op != "quantize":
            raise refuse(q, "it reads the input as floats", BITS)
        if len(readers) > 1:
            raise refuse(readers[1], "it cuts the input at other thresholds than the first layer", "one cut for all")
        if int(q.attrs["levels"]) != 1:
            raise refuse(q, f"it cuts the input into {int(q.attrs['levels']) + 1} levels", BITS)
        table, flip = self.graph.need(q, "thresholds").reshape(-1), self.graph.tensor(q, "flip")
        flip = torch.zeros(1, dtype=torch.bool) if flip is None else flip
        cut = _spread(table, q).numpy()
        cut = np.where(np.abs(cut) > LIMIT, np.copysign(np.float32(np.inf), cut), cut)  # as a gain of 0 leaves them
        return q, cut, _spread(flip, q).numpy()

    def _check(self, limit: int) -> None:
        """Before the long work: whether all nodes have gates, and about how many."""
        for node in self.graph.nodes:
            if node.op in ("linear", "conv"):
                raise refuse(node, "it computes with floats", FLOATS)
        needed, last = 0, self._last()
        for node in self.graph.nodes:
            if node.op in LAYERS:
                if len(node.attrs["weight"]["terms"]) != 1:
                    raise refuse(node, "its weights have levels of two units, as ttq's p and n", "twn, bwn, zero_one")
                if len(node.inputs) > 1 or "extra" in node.attrs:
                    raise refuse(node, "a shortcut is added to its sums", "a net without shortcuts")
                if node is not last and "emit" not in node.attrs:
                    reader = self.users[node.name][0]
                    has = f"its sums are read as floats by {reader.owner or reader.name}"
                    raise refuse(node, has, 'a quantizer behind each hidden layer, x = "heaviside" or "sign"')
                needed += ADDER * self._added(node)
        if needed > limit:
            text = f"export circuit: about {needed:,} gates, more than limit={limit:,}; files and checks would be large"
            raise InputError(
                f"{text}. Possible: a larger limit, or a net with fewer connections",
                code="export-argument",
                given=str(limit),
            )

    def _added(self, node: Node) -> int:
        """Bits that a layer adds up."""
        w = reference.weight_integers(self.graph, node)[0].abs()
        ones = sum(int((w >> k & 1).sum()) for k in range(int(w.max()).bit_length())) if w.numel() else 0
        places = math.prod(node.shape[1:]) if node.op == "coded_conv" else 1
        return ones * places * int(node.attrs["x"]["levels"])

    def _last(self) -> Node:
        """The layer whose sums rank the classes."""
        output = self.graph.nodes[-1]
        by_name = self.graph.by_name()
        if len(output.inputs) != 1:
            raise InputError(
                f"export circuit: the net has {len(output.inputs)} outputs. Possible: one", code="export-form"
            )
        node = by_name[output.inputs[0]]
        while node.op not in LAYERS:
            call = str(node.attrs.get("call", "")).partition(".")[0]
            if node.op not in BEHIND and not (node.op == "aten" and call in BEHIND_ATEN):
                name = call or node.op
                raise refuse(
                    node, f"{name} stands between the last sums and the answer", "a net that answers with scores"
                )
            node = by_name[node.inputs[0]]
        if math.prod(node.shape) != node.channels or "emit" in node.attrs:
            raise refuse(node, "the answer is no score per class", "a last layer with one sum for each class")
        return node

    def run(self) -> Circuit:
        last = self._last()
        for node in self.graph.nodes:
            if node is last:
                break
            if node.op == "quantize" and node is self.entry:
                self.values[node.name] = self._input(node)
            elif node.op in LAYERS:
                self.b.mark(node.owner or node.name)
                self.values[node.name] = self._hidden(node)
            elif node.op == "max_pool_codes":
                self.values[node.name] = self._pooled(node)
        self.b.mark(last.owner or last.name)
        sums = self._sums(last)
        if entries(sums) > MOST_ENTRIES:
            raise refuse(
                last, f"its sums take {entries(sums):,} values", f"up to {MOST_ENTRIES:,} of all classes together"
            )
        signed = self.outputs == "counts" and any(s.offset < 0 for s in sums)
        outputs = {"y": best_class(self.b, sums, lambda i: self._answer(last, i))}
        if self.outputs == "counts":
            outputs |= {f"count_{c}": self._count(s, signed) for c, s in enumerate(sums)}
        return Circuit(self.b.done(outputs), self.cut, signed)

    def _bits(self, node: Node) -> np.ndarray:
        """What a node reads."""
        name = node.inputs[0]
        if name not in self.values:
            source = self.graph.node(name)
            raise refuse(
                source,
                f"{source.attrs.get('call', source.op)} has no gates",
                "linear layers, convolutions, max pooling",
            )
        return self.values[name]

    def _count(self, s: Sum, signed: bool) -> list[int]:
        """The bits of a class's sum; signed: in two's complement."""
        most = s.offset + s.step * s.most
        width = max(most.bit_length(), (-s.offset - 1).bit_length() if s.offset < 0 else 0) + signed
        bits = total(self.b, [(lit, s.step * w) for lit, w in s.terms], s.offset % (1 << width))
        return (bits + [FALSE] * width)[: max(1, width)]

    def _input(self, q: Node) -> np.ndarray:
        literals = 2 * np.arange(1, self.cut.size + 1) ^ self.flip
        literals[self.cut == -np.inf] = TRUE ^ self.flip[self.cut == -np.inf]
        literals[self.cut == np.inf] = FALSE ^ self.flip[self.cut == np.inf]
        return literals.reshape(1, *q.shape)

    def _sums(self, node: Node) -> list[Sum]:
        """The whole sum of every output, in the order of its shape."""
        x, info = self._bits(node), node.attrs["x"]
        w = reference.weight_integers(self.graph, node)[0].numpy().astype(int)
        zero = np.broadcast_to(np.asarray(info["zero"], int), (len(info["zero"]),))
        taps = _windows(x.shape[1:], node)  # [groups, taps, places]: the element of x, or -1 in the padding
        groups, mult = len(taps), int(info["mult"])
        axis = 0 if node.op == "coded_conv" else -1
        channel = np.broadcast_to(_along(np.arange(x.shape[1:][axis]), x.ndim - 1, axis), x.shape[1:]).reshape(-1)
        added = zero[channel] if len(zero) > 1 else np.full(channel.shape, zero[0])
        levels, found = x.reshape(len(x), -1), []
        for o, row in enumerate(w.reshape(len(w), -1)):
            used = np.flatnonzero(row)
            for place in taps[o * groups // len(w)].T:
                at = place[used]
                at, weights = at[at >= 0], row[used][at >= 0]
                items = [(int(lit), mult * int(k)) for bits in levels for lit, k in zip(bits[at], weights, strict=True)]
                found.append(weighted(items, int((weights * added[at]).sum())))
        return found

    def _hidden(self, node: Node) -> np.ndarray:
        """The codes that a layer writes: its sums compared with whole thresholds."""
        table, flip = self.graph.need(node, "int_thresholds").numpy(), self.graph.tensor(node, "int_flip")
        levels, sums = len(table), self._sums(node)
        each = len(sums) // table.shape[1]
        out = np.zeros((levels, len(sums)), int)
        for i, s in enumerate(sums):
            c = i // each
            turned = flip is not None and bool(flip[c])
            for k in range(levels):
                bit = reaches(self.b, s, int(table[levels - 1 - k if turned else k, c]))
                out[k, i] = bit ^ turned
        return out.reshape(levels, *node.shape)

    def _pooled(self, node: Node) -> np.ndarray:
        """A pooling of codes: each level is reached where one of the window reaches it."""
        x, a = self._bits(node), node.attrs
        image = x.shape[2:]
        index = torch.arange(math.prod(image), dtype=torch.float64).reshape(1, 1, *image)
        marked = torch.nn.functional.pad(index + 1, [p for p in ints(a["padding"], 2)[::-1] for _ in range(2)]) - 1
        kernel, stride = ints(a["kernel"], 2), ints(a["stride"] or a["kernel"], 2)
        if a["ceil"]:  # windows that begin inside and end behind the image
            marked = torch.nn.functional.pad(marked, [0, kernel[1], 0, kernel[0]], value=-1.0)
        rows = [torch.arange(k) * d for k, d in zip(kernel, ints(a["dilation"], 2), strict=True)]
        out = np.zeros((*x.shape[:2], *node.shape[1:]), int)
        for r in range(node.shape[1]):
            for c in range(node.shape[2]):
                window = marked[0, 0][(r * stride[0] + rows[0])[:, None], c * stride[1] + rows[1]].reshape(-1)
                at = window[window >= 0].long().numpy()
                flat = x.reshape(*x.shape[:2], -1)
                for level in range(x.shape[0]):
                    for channel in range(x.shape[1]):
                        out[level, channel, r, c] = self.b.any(int(lit) for lit in flat[level, channel, at])
        return out

    def _answer(self, last: Node, i: Tensor) -> Tensor:
        """What the net answers where the last layer's sums are i [n, classes]."""
        y = reference.epilogue([i.float()], self.graph.need(last, "scale"), self.graph.need(last, "add"), True)
        env: dict[str, Any] = {last.name: y}
        if last.attrs.get("relu"):
            env[last.name] = y.relu()
        nodes = self.graph.nodes
        for node in nodes[nodes.index(last) + 1 :]:
            if node.op != "output" and node.inputs[0] in env:
                step(node, self.graph)(env)
        found = env[self.graph.nodes[-1].inputs[0]]
        if bool(found.isnan().any()):
            raise refuse(last, "the answer for some sums is NaN", "a net with finite answers")
        return found


def _along(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    return values.reshape([-1 if k == axis % rank else 1 for k in range(rank)])


def _spread(of_channels: Tensor, q: Node) -> Tensor:
    """One number per element of the quantizer's value, from one, or one per channel."""
    shape = tuple(int(s) for s in q.shape)
    if of_channels.numel() == 1:
        return of_channels.expand(math.prod(shape))
    axis = len(shape) - 1 if q.attrs["last"] else 0
    return of_channels.reshape([-1 if k == axis else 1 for k in range(len(shape))]).expand(shape).reshape(-1)


def _windows(shape: tuple[int, ...], node: Node) -> np.ndarray:
    """[groups, taps, places]: which element of the input each tap of each output place reads; -1: none, in the padding."""
    if node.op == "coded_linear":
        if len(shape) > 1:
            rows = "x".join(map(str, shape))
            raise refuse(node, f"a linear layer over each row of {rows} values", "flatten in front of it")
        return np.arange(math.prod(shape)).reshape(1, -1, 1)
    a = node.attrs
    if int(a["rank"]) != 2:
        raise refuse(node, f"a convolution over {a['rank']} axes", "over two")
    index = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
    kernel, stride, padding, dilation = (
        _pair(v) for v in (a["weight"]["shape"][2:], a["stride"], a["padding"], a["dilation"])
    )
    found = torch.nn.functional.unfold(index, kernel, dilation, padding, stride)[0].long() - 1
    return found.reshape(int(a["groups"]), -1, found.shape[-1]).numpy()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = ints(value, 2)
    return height, width
