"""Small packed nets of bits, made from whole numbers without training, for the tests of `export circuit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel
from bitwright.engine.reference import pack_bits

KINDS: dict[str, tuple[list[int], list[int], int]] = {  # of a weight: its values, and mult and zero of its planes
    "0/1": ([0, 1], [1], 0),
    "-1/1": ([-1, 1], [2], -1),
    "ternary": ([-1, 0, 1], [1, -1], 0),
    "2 bits": ([0, 1, 2, 3], [1, 2], 0),
}


@dataclass
class Layer:
    """Whole weights [outputs, inputs] of one kind behind a quantizer.

    norm        scale and add of each input, in front of the quantizer
    cut         thresholds of the quantizer, one per level, or [inputs, levels]
    mult, zero  the number of a code: mult * code + zero
    scale, add  of each output (one number: of all)
    """

    weight: list[list[int]]
    kind: str = "0/1"
    norm: tuple[list[float], list[float]] | None = None
    cut: Any = (0.5,)
    mult: int = 1
    zero: int = 0
    scale: Any = 1.0
    add: Any = 0.0


def planes(weight: Tensor, kind: str) -> Tensor:
    """0/1 [planes, outputs, inputs]."""
    if kind == "-1/1":
        return ((weight + 1) // 2)[None]
    if kind == "ternary":
        return torch.stack([weight > 0, weight < 0]).int()
    return torch.stack([weight >> k & 1 for k in range(len(KINDS[kind][1]))])


def packed(*layers: Layer, behind: tuple[str, dict[str, Any]] | None = None) -> PackedModel:
    """The folded graph of linear layers fc1, fc2, ...; `behind`: one more operator."""
    inputs = len(layers[0].weight[0])
    tensors: dict[str, Tensor] = {}
    nodes = [Node("input", "input", [], {"dtype": "float32", "shape": [inputs], "owner": "", "tensors": {}})]
    for i, layer in enumerate(layers, start=1):
        weight, name = torch.tensor(layer.weight).reshape(len(layer.weight), inputs), f"fc{i}"
        outputs, (_, mult, zero) = len(weight), KINDS[layer.kind]
        if layer.norm is not None:
            of = {"scale": f"{name}.x0.scale", "add": f"{name}.x0.add"}
            tensors |= {
                key: torch.tensor(v, dtype=torch.float32) for key, v in zip(of.values(), layer.norm, strict=True)
            }
            attrs = {"last": True, "shape": [inputs], "owner": f"{name}.x", "tensors": of}
            nodes.append(Node("affine", f"{name}.x0", [nodes[-1].name], attrs))
        cut = torch.tensor(layer.cut, dtype=torch.float32)
        tensors[f"{name}.x.thresholds"] = cut
        roles = {"thresholds": f"{name}.x.thresholds"}
        attrs = {"levels": cut.shape[-1], "mult": layer.mult, "zero": [layer.zero], "last": True, "shape": [inputs]}
        nodes.append(Node("quantize", f"{name}.x", [nodes[-1].name], {**attrs, "owner": f"{name}.x", "tensors": roles}))
        tensors[f"{name}.bits"] = pack_bits(planes(weight, layer.kind))
        tensors[f"{name}.scale"] = torch.tensor(layer.scale, dtype=torch.float32).expand(outputs)[None].clone()
        tensors[f"{name}.add"] = torch.tensor(layer.add, dtype=torch.float32).expand(outputs).clone()
        terms = [{"planes": list(range(len(mult))), "mult": mult, "zero": zero}]
        info = {"shape": [outputs, inputs], "planes": len(mult), "terms": terms}
        roles = {r: f"{name}.{r}" for r in ("bits", "scale", "add")}
        attrs = {"weight": info, "shape": [outputs], "owner": name, "tensors": roles}
        nodes.append(Node("coded_linear", name, [f"{name}.x"], attrs))
        inputs = outputs
    if behind is not None:
        op, more = behind
        nodes.append(
            Node(op, "behind", [nodes[-1].name], {"shape": [inputs], "owner": "behind", "tensors": {}, **more})
        )
    nodes.append(Node("output", "output", [nodes[-1].name], {"shape": [inputs], "owner": "", "tensors": {}}))
    return PackedModel(Graph(nodes, tensors))


def patterns(inputs: int) -> Tensor:
    """All 0/1 inputs, input 0 the fastest."""
    return (torch.arange(1 << inputs)[:, None] >> torch.arange(inputs) & 1).float()
