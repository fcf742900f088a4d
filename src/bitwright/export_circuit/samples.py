"""The inputs on which a circuit is compared, and what the packed net answers to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.graph import Node
from bitwright.engine.packed import PackedModel
from bitwright.export_circuit.compile import LAYERS, Circuit

EXHAUSTIVE = 16  # inputs up to which every pattern is tried
RANDOM = 4096  # further patterns for larger circuits
BATCH = 1024


@dataclass(frozen=True)
class Samples:
    """bits      bool [samples, inputs]
    want      of every output bit a whole number: bit k is that of sample k
    classes   the packed net's class of each sample
    images    how many of the samples, the first ones, are the caller's
    """

    bits: np.ndarray
    want: list[int]
    classes: np.ndarray
    images: int
    exhaustive: bool

    @property
    def inputs(self) -> list[int]:
        return columns(self.bits)


def columns(bits: np.ndarray) -> list[int]:
    """bool [samples, n] -> n whole numbers, bit k of each is sample k.

    >>> columns(np.array([[1, 0], [1, 1]]))
    [3, 2]
    """
    packed = np.packbits(bits.astype(np.uint8).T, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def uncolumned(values: list[int], samples: int) -> np.ndarray:
    """Back to uint8 [samples, n]."""
    size = (samples + 7) // 8
    rows = [np.frombuffer(v.to_bytes(size, "little"), np.uint8) for v in values]
    return np.unpackbits(np.stack(rows), axis=1, bitorder="little", count=samples).T


def samples_of(model: PackedModel, circuit: Circuit, images: Tensor) -> Samples:
    """The images, and every pattern of the inputs (up to `EXHAUSTIVE` of them) or all 0, all 1, single bits and random ones."""
    n = circuit.cut.size
    given = images.to(torch.float32).flatten(1).numpy() >= circuit.cut
    exhaustive = n <= EXHAUSTIVE
    made = np.arange(1 << n)[:, None] >> np.arange(n) & 1 if exhaustive else _patterns(n)
    bits = np.concatenate([given, made.astype(bool)])
    shape = model.inputs[0].shape
    classes, sums = [], []
    for x in _batches(images, _values(made.astype(bool), circuit.cut).reshape(-1, *shape)):
        classes.append(model.answers(model.environment(x))[0].flatten(1).argmax(1).numpy())
        if "count_0" in circuit.net.outputs:
            sums.append(_sums(model, x))
    found = np.concatenate(classes)
    want = _binary(found, len(circuit.net.outputs["y"]))
    for c, whole in enumerate(np.concatenate(sums).T if sums else []):
        want += _binary(whole, len(circuit.net.outputs[f"count_{c}"]))
    return Samples(bits, want, found, len(given), exhaustive)


def _binary(numbers: np.ndarray, width: int) -> list[int]:
    return columns(numbers.astype(int)[:, None] >> np.arange(width) & 1)


def _patterns(n: int) -> np.ndarray:
    """All 0, all 1, each input alone, and random ones: a quarter each with an eighth, a half, and seven eighths of the bits 1, and
    a quarter with shares in between."""
    draw = np.random.default_rng(0)
    shares = np.concatenate([np.repeat([1 / 8, 1 / 2, 7 / 8], RANDOM // 4), np.linspace(0, 1, RANDOM // 4)])
    return np.concatenate([np.zeros((1, n)), np.ones((1, n)), np.eye(n), draw.random((RANDOM, n)) < shares[:, None]])


def _values(bits: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Inputs that are cut into these bits: 0 and 1 where the threshold lies between them, else the threshold and the float below."""
    between = (cut > 0) & (cut <= 1) | ~np.isfinite(cut)
    high, low = np.where(between, np.float32(1), cut), np.where(between, np.float32(0), np.nextafter(cut, -np.inf))
    return np.where(bits, high, low).astype(np.float32)


def _batches(images: Tensor, made: np.ndarray) -> Iterator[Tensor]:
    for part in (images, torch.from_numpy(made)):
        yield from part.split(BATCH)


def _sums(model: PackedModel, x: Tensor) -> np.ndarray:
    """The whole sums of the last layer, from the codes that the folded graph has there in plain torch."""
    graph = model.graph
    by_name = graph.by_name()
    node: Node = by_name[graph.nodes[-1].inputs[0]]
    while node.op not in LAYERS:
        node = by_name[node.inputs[0]]
    codes, q = model.values(model.environment(x), plain=True)[node.inputs[0]], by_name[node.inputs[0]].attrs
    numbers = reference.numbers(codes, int(q["mult"]), q["zero"], node.op == "coded_linear")
    products = reference.integer_products(numbers, reference.weight_integers(graph, node), node)
    return products[0].reshape(len(x), math.prod(node.shape)).long().numpy()
