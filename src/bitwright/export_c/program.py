"""What emitters write into: constants, one C function a layer, the calls in order, and the values in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from bitwright.engine.graph import Graph, Node
from bitwright.errors import InputError
from bitwright.export_c import shared
from bitwright.export_c.inputs import Pixels
from bitwright.export_c.plan import Value
from bitwright.export_c.text import identifier, lines, literals

BYTES = {"float": 4, "uint32_t": 4, "int32_t": 4, "int16_t": 2, "int8_t": 1, "uint8_t": 1}


@dataclass
class CStep:
    """A C function without arguments, made when all values have their places."""

    name: str
    comment: str
    body: Callable[[], str]


@dataclass
class CProgram:
    """The net on its way to C."""

    graph: Graph
    pixels: Pixels
    takes_pixels: bool = True
    entry: Value | None = None  # the input as floats; None where only quantizers read the pixels
    pixel_arrays: tuple[str, str] = ("0", "0")  # scale and offset of a pixel
    values: dict[str, Value] = field(default_factory=dict)
    scratch: list[Value] = field(default_factory=list)
    steps: list[CStep] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    flash: int = 0  # bytes of constants
    floats: list[str] = field(default_factory=list)  # steps that compute in float, with what they do
    taken: set[str] = field(default_factory=shared.names)

    # what may be said in C, or not
    def refuse(self, node: Node, why: str, remedy: str) -> NoReturn:
        layer = node.owner or node.name
        raise InputError(
            f"export c: {layer} ({node.op}): {why}. {remedy}", code="export-operator", layer=layer, remedy=remedy
        )

    @property
    def takes_floats(self) -> bool:
        return self.entry is not None

    # values
    def enter(self, node: Node) -> None:
        """The input as floats in memory."""
        self.entry = self.value(node.name, node, "floats")
        if self.takes_pixels and self.pixels.scale is not None and self.pixels.offset is not None:
            self.pixel_arrays = (
                self.constant(node, "pixel_scale", self.pixels.scale, "float"),
                self.constant(node, "pixel_offset", self.pixels.offset, "float"),
            )

    def geometry(self, node: Node) -> tuple[int, int, int]:
        """Height, width, channels of a node's value."""
        shape = [int(s) for s in node.shape]
        if len(shape) == 1:
            return 1, 1, shape[0]
        if len(shape) == 3 and not node.attrs.get("last"):
            return shape[1], shape[2], shape[0]
        sizes = "x".join(map(str, shape))
        return self.refuse(
            node, f"its value is {sizes}", "A C file takes images (channels x height x width) and vectors"
        )

    def value(self, name: str, node: Node, form: str, planes: int = 0, shares: Sequence[Value] = ()) -> Value:
        """A new value written by the next step; `shares`: values in whose memory it may lie."""
        at = len(self.steps)
        found = Value(name, form, *self.geometry(node), planes, at, at, shares=list(shares))
        self.values[name] = found
        return found

    def alias(self, name: str, node: Node, of: Value) -> Value:
        """The same numbers under another name and shape."""
        return self.value(name, node, of.form, of.planes, [of])

    def read(self, name: str) -> Value:
        """A value that the next step reads."""
        found = self.values[name]
        found.last = max(found.last, len(self.steps))
        return found

    def room(self, what: str, form: str, count: int) -> Value:
        """Scratch memory of the next step."""
        at = len(self.steps)
        found = Value(what, form, 1, 1, count, 0, at, at)
        self.scratch.append(found)
        return found

    def dies(self, name: str, node: Node) -> bool:
        """Whether `node` is the last reader of a value, so that its result may lie in the same memory."""
        order = {n.name: i for i, n in enumerate(self.graph.nodes)}
        mine = self._memory(self.values[name])
        names = {v.name for v in self.values.values() if mine & self._memory(v)}
        return all(order[n.name] <= order[node.name] for n in self.graph.nodes if names & set(n.inputs))

    def _memory(self, v: Value) -> set[int]:
        """The value and all in whose memory it lies."""
        return {id(v)}.union(*(self._memory(s) for s in v.shares))

    # text
    def unique(self, wish: str) -> str:
        name, k = wish, 1
        while name in self.taken:
            name, k = f"{wish}_{k}", k + 1
        self.taken.add(name)
        return name

    def constant(self, node: Node, role: str, values: Tensor | np.ndarray, ctype: str, comment: str = "") -> str:
        """A constant array; returns its name."""
        name = self.unique(f"{_named(node)}_{role}")
        items = literals(values, ctype)
        said = f"/* {comment} */\n" if comment else ""
        self.arrays.append(
            f"{said}static NET_CONST {ctype} {name}[{len(items)}] NET_SECTION = {{\n{lines(items)}\n}};\n"
        )
        self.flash += len(items) * BYTES[ctype]
        return name

    def window(self, node: Node, numbers: Sequence[int]) -> str:
        name = self.unique(f"{_named(node)}_window")
        self.arrays.append(f"static NET_CONST net_window {name} NET_SECTION = {{{', '.join(map(str, numbers))}}};\n")
        self.flash += 4 * len(numbers)
        return name

    def step(self, node: Node, comment: str, body: Callable[[], str]) -> None:
        self.steps.append(CStep(self.unique(f"run_{_named(node)}"), comment, body))


def _named(node: Node) -> str:
    """After the layer of the trained net; its node may have the name of what reads it."""
    return identifier(node.owner or node.name)


def floats_at(v: Value) -> str:
    return f"NET_FLOATS({v.at})"


def bits_at(v: Value) -> str:
    """An initializer of `net_bits`."""
    return f"{{NET_WORDS({v.at}), {v.plane_words}u, {v.planes}}}"


def call(function: str, *arguments: Any) -> str:
    return f"{function}({', '.join(str(a) for a in arguments)});"
