"""The ONNX graph while it is written: nodes, constants, names; and what a layer is refused with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bitwright.engine.graph import Graph, Node, fresh
from bitwright.errors import InputError

DOMAIN = "qonnx.custom_op.general"
OPSET, IR_VERSION = 13, 8
FLOATS = 1


class QonnxGraph:
    """`graph` in standard operators and those of QONNX, for a batch of `batch`.

    values   the tensor that holds the value of a node of `graph`
    coded    layers whose weights have a quantizer; `plain`: those that have none
    """

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph, self.batch = graph, batch
        self.by_name = graph.by_name()
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: dict[str, str] = {}
        self.taken: set[str] = set()
        self.coded: list[str] = []
        self.plain: list[str] = []

    def constant(self, name: str, value: Any, kind: Any = np.float32) -> str:
        value = value.detach().numpy() if isinstance(value, Tensor) else value
        name = fresh(name, self.taken)
        self.taken.add(name)
        self.constants[name] = np.ascontiguousarray(np.asarray(value, dtype=kind)).reshape(np.shape(value))
        return name

    def put(self, op: str, inputs: Sequence[str], name: str, domain: str = "", **attrs: Any) -> str:
        """Adds a node; the tensor that it gives has the node's name."""
        from onnx import helper

        name = fresh(name, self.taken)
        self.taken.add(name)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attrs))
        return name

    def quant(
        self, x: str, name: str, scale: Any, bits: int, signed: bool, narrow: bool, rounding: str = "ROUND"
    ) -> str:
        """Quant: scale * round(clip(x / scale)), its zero point 0."""
        given = [
            x,
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero", np.float32(0)),
            self.constant(f"{name}.bits", np.float32(bits)),
        ]
        attrs: dict[str, Any] = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": rounding}
        return self.put("Quant", given, name, DOMAIN, **attrs)

    def bipolar(self, x: str, name: str, scale: Any) -> str:
        """BipolarQuant: scale where x >= 0, else -scale."""
        return self.put("BipolarQuant", [x, self.constant(f"{name}.scale", scale)], name, DOMAIN)

    def scaled(self, op: str, x: str, name: str, by: Any, idle: float) -> str:
        """`x` after Mul, Div or Add with a constant; `x` itself where that changes nothing."""
        value = by.detach().float().numpy() if isinstance(by, Tensor) else np.float32(by)
        return (
            x
            if bool((value == np.float32(idle)).all())
            else self.put(op, [x, self.constant(f"{name}.by", value)], name)
        )

    def along(self, v: Tensor, node: Node, last: bool) -> Tensor:
        """One number, or one per channel, with as many axes as the node's value has."""
        if v.numel() == 1:
            return v.reshape(())
        rank = len(node.shape)
        return v.reshape(1, *[1] * (rank - 1), -1) if last or rank == 1 else v.reshape(1, -1, *[1] * (rank - 1))

    def read(self, node: Node, k: int = 0) -> str:
        return self.values[node.inputs[k]]

    def shape(self, node: Node) -> list[int]:
        return [self.batch, *(int(s) for s in node.shape)]

    def model(self) -> Any:
        """The finished ONNX model."""
        from onnx import TensorProto, helper, numpy_helper

        from bitwright.version import __version__

        kinds = {"float32": TensorProto.FLOAT}
        ins = [
            helper.make_tensor_value_info(self.values[n.name], kinds[str(n.attrs["dtype"])], self.shape(n))
            for n in self.graph.inputs()
        ]
        outs = [
            helper.make_tensor_value_info(self.values[name], TensorProto.FLOAT, self.shape(self.by_name[name]))
            for name in dict.fromkeys(self.graph.nodes[-1].inputs)
        ]
        tensors = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        return helper.make_model(
            helper.make_graph(self.nodes, "bitwright", ins, outs, tensors),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
            ir_version=IR_VERSION,
            producer_name="bitwright",
            producer_version=__version__,
        )


def whole_type(low: int, high: int) -> tuple[int, bool, bool, bool]:
    """(bits, signed, narrow, exactly) of the smallest type of Quant that holds low..high; exactly: it holds nothing else.

    >>> whole_type(0, 3), whole_type(-1, 1), whole_type(-2, 1), whole_type(0, 4)
    ((2, False, False, True), (2, True, True, True), (2, True, False, True), (3, False, False, False))
    """
    if low >= 0:
        bits = max(1, high.bit_length())  # never narrow: FINN takes no unsigned narrow type
        return bits, False, False, low == 0 and high == (1 << bits) - 1
    bits = max(2, 1 + max(high.bit_length(), (-low - 1).bit_length()))
    half = 1 << (bits - 1)
    narrow = low >= 1 - half
    return bits, True, narrow, low == (1 - half if narrow else -half) and high == half - 1


def refuse(node: Node, why: str, possible: str) -> NoReturn:
    """Errors: `InputError`, always: the layer, why QONNX cannot hold it, and what can be done."""
    layer = (node.owner or node.name).removesuffix(".x")
    raise InputError(
        f"export qonnx: {layer}: {why}. {possible}", code="export-operator", layer=layer, possible=possible
    )


def levels_of(term: dict[str, Any]) -> torch.Tensor:
    """All whole numbers that the planes of one term can give, ascending."""
    found = {int(term["zero"])}
    for mult in term["mult"]:
        found |= {v + int(mult) for v in found}
    return torch.tensor(sorted(found))


def common(levels: Tensor) -> int:
    """The largest whole number that divides all levels."""
    return max(1, math.gcd(*(int(v) for v in levels)))
