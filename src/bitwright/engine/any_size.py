"""Nets for images of every size: whether a graph would be another one for another image, and its check for a size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bitwright.engine.graph import Graph, Node
from bitwright.engine.prepare import Prepared, first_line, without_hooks
from bitwright.engine.store import sized
from bitwright.errors import InputError
from bitwright.nn import is_slot_layer
from bitwright.transforms.call import as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.geometry import describe

LARGER = ((32, 64), (96, 32))  # added to height and width: nets that halve images five times take these too
ODD = (1, 3)
REMEDY = (
    "Possible: a mean over all of the image (adaptive_avg_pool2d(1)) in front of linear layers; or dynamic_size=False"
)


def free_size(prepared: Prepared, graph: Graph, again: Callable[[Prepared], Graph]) -> None:
    """Marks a folded graph as one that takes images of every size. again: the graph for another example.

    The net is traced for other sizes: a larger one must give the same nodes and tensors, an odd one too, if the net takes it at all.
    Errors: `InputError` with the layer that fixes the size.
    """
    shapes = [tuple(n.shape) for n in graph.inputs()]
    if len(shapes) != 1 or len(shapes[0]) not in (2, 3):
        given = ", ".join("x".join(map(str, s)) for s in shapes)
        raise InputError(
            f"convert: dynamic_size=True takes a net of one input, images [N, C, H, W] or rows [N, C, L]; this one reads {given}",
            code="convert-size",
            given=given,
        )
    sides = shapes[0][1:]
    for more in (*LARGER, ODD):
        size = tuple(s + d for s, d in zip(sides, more, strict=False))
        other = replace(prepared, call=prepared.call.map(lambda t, s=size: t.new_zeros(2, t.shape[1], *s)))
        try:
            found = again(other)
        except InputError as error:
            if more is ODD:  # nets that halve images may refuse odd ones; so does the check of each size in the run
                continue
            raise _refused(_where(other), size, str(error)) from None
        if (node := _first_difference(graph, found)) is not None:
            name = node.owner or node.name
            raise _refused(f"{name} ({node.attrs.get('call', node.op)})", size, "it is another operation there")
        try:
            there = sized(graph, (shapes[0][0], *size)).nodes
        except InputError as error:
            raise _refused("the net", size, str(error).removeprefix("packed file: ")) from None
        if [n.shape for n in there] != [n.shape for n in found.nodes]:
            raise _refused("the net", size, "its values get other shapes")
    graph.inputs()[0].attrs["any_size"] = True


def _refused(where: str, size: Sequence[int], why: str) -> InputError:
    why = why.partition(" Convert a part, ")[0].rpartition("cannot trace forward: ")[2]
    at, why = "x".join(map(str, size)), first_line(ValueError(why)).rstrip(".")
    text = f"convert: dynamic_size=True: {where} fixes the size of the image; at {at}: {why}. {REMEDY}"
    return InputError(text, code="convert-size", layer=where, given=at, possible=REMEDY)


def _first_difference(one: Graph, two: Graph) -> Node | None:
    """The first node that is not the same in both, sizes of values left out."""

    def facts(n: Node) -> list[Any]:
        attrs = {k: v for k, v in n.attrs.items() if k not in ("shape", "frame", "tensors")}
        return [n.op, n.name, n.inputs, attrs, sorted(n.attrs.get("tensors", {}))]

    for a, b in zip(one.nodes, two.nodes, strict=False):
        if a.op == b.op == "input":
            continue
        if facts(a) != facts(b):
            return a
        pairs = [(one.need(a, role), two.need(b, role)) for role in a.attrs.get("tensors", {})]
        if any(x.shape != y.shape or not torch.equal(x, y) for x, y in pairs):
            return a
    return one.nodes[-1] if len(one.nodes) != len(two.nodes) else None


def _where(prepared: Prepared) -> str:
    """The layer in which the net stops at this size."""
    model = without_hooks(copy_model(prepared.model))
    entered: list[tuple[str, nn.Module]] = []
    left: list[str] = []
    parts = {id(m) for layer in model.modules() if is_slot_layer(layer) for m in layer.modules() if m is not layer}
    for name, module in model.named_modules():
        if is_slot_layer(module) or not (list(module.children()) or id(module) in parts):
            module.register_forward_pre_hook(lambda m, x, name=name: entered.append((name, m)))
            module.register_forward_hook(lambda m, x, y, name=name: left.append(name))
    try:
        with torch.no_grad():
            prepared.call.map(as_pixels)(model)
    except Exception:
        name, module = entered[-1] if entered else ("the net", model)
        after = "what follows " if len(left) == len(entered) and entered else ""
        return f"{after}{name or 'the net'} ({describe(module)})"
    return "the net"
