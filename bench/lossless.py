"""When the codes of a binary layer are decided: how much a gate could skip that never changes an answer.

    python bench/lossless.py [--epochs 30]

A layer that is read by a sign or a step gives one bit, sum >= threshold. Read chunk by chunk, the bit is decided as soon as what is
left cannot move the sum across the threshold any more: with w the weights that are left, and inputs between low and high, the rest lies
between the sums of min(w low, w high) and of max(w low, w high). What a lossless gate saves is what lies behind that point.

Measured on test images of the digits that scikit-learn holds: the zoo's 0/1 net, and a net with signs (recipe w1a1) that is trained
here in seconds. "even": random signs, 1152 inputs, threshold 0: the inner layer of a convolutional net, which no training shaped.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bitwright as bw
from bitwright import zoo
from bitwright.data import load
from bitwright.engine import reference
from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel
from bitwright.runs import Run
from bitwright.runs.build import normalized
from methods import write
from training import ROOT

CHUNKS = (1, 32, 64)  # inputs read between two looks


def read_until_decided(weight: Tensor, x: Tensor, threshold: Tensor, low: float, high: float, chunk: int) -> Tensor:
    """How many inputs are read, in whole chunks, until the bit of each output is decided: int [N, O].

    weight [O, K], x [N, K] with low <= x <= high, threshold [O].

    >>> weight, x = torch.ones(1, 4), torch.tensor([[1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    >>> read_until_decided(weight, x, torch.tensor([1.0]), -1, 1, 1).tolist()
    [[3], [4]]
    """
    n, k = x.shape
    read, sums = torch.full((n, len(weight)), k), torch.zeros(n, len(weight))
    least, most = torch.minimum(weight * low, weight * high), torch.maximum(weight * low, weight * high)
    for first in range(0, k, chunk):
        end = min(first + chunk, k)
        sums += x[:, first:end] @ weight[:, first:end].T
        decided = (sums + least[:, end:].sum(1) >= threshold) | (sums + most[:, end:].sum(1) < threshold)
        read = torch.where(decided & (read == k), end, read)
    return read


def layers(model: Any, images: Tensor) -> list[tuple[str, Tensor, Tensor, Tensor, float, float]]:
    """Name, weight [O, K], inputs [N, K], threshold, least and largest input of each layer that gives one bit per output."""
    model = PackedModel(model.graph, "reference")  # its codes are plain numbers
    graph: Graph = model.runtime
    env, found = model.environment(images), []
    for node, step, _ in model.steps:
        table = graph.tensor(node, "int_thresholds")
        if table is not None and len(table) == 1:
            found.append(inner(node, graph, env[node.inputs[0]], table[0]))
        step(env)
    return found


def inner(
    node: Node, graph: Graph, code: Tensor, threshold: Tensor
) -> tuple[str, Tensor, Tensor, Tensor, float, float]:
    info = node.attrs.get("x") or graph.node(node.inputs[0]).attrs
    weight = reference.weight_integers(graph, node)[0].flatten(1).float()
    x = reference.numbers(code, int(info["mult"]), info["zero"], node.op == "coded_linear").flatten(1)
    if weight.shape[1] != x.shape[1]:
        raise SystemExit(f"{node.name}: not a linear layer")
    ends = [z + int(info["mult"]) * c for z in info["zero"] for c in (0, int(info["levels"]))]
    return node.name, weight, x, threshold.float(), min(ends), max(ends)


def rows(
    net: str, name: str, weight: Tensor, x: Tensor, threshold: Tensor, low: float, high: float
) -> list[dict[str, Any]]:
    k, made = weight.shape[1], []
    for chunk in CHUNKS:
        share = read_until_decided(weight, x, threshold, low, high, chunk).float() / k
        quartile = torch.quantile(share.flatten()[:1_000_000], torch.tensor([0.05, 0.25, 0.5]))
        made.append({
            "net": net, "layer": name, "inputs": k, "outputs": len(weight), "not_zero": round(float((weight != 0).float().mean()), 4),
            "images": len(x), "chunk": chunk, "read_mean": round(float(share.mean()), 4),
            **{f"read_p{p}": round(float(q), 4) for p, q in zip((5, 25, 50), quartile, strict=True)},
            "decided_at_half": round(float((share <= 0.5).float().mean()), 4),
        })  # fmt: skip
    return made


def zero_one() -> tuple[Any, Tensor]:
    """The zoo's 0/1 net, and test images."""
    images = load("digits", None, "test").binarized()
    return zoo.load("digits-mlp-zero_one"), next(iter(images.batches(len(images), normalize=False)))[0]


def signs(epochs: int) -> tuple[Any, Tensor]:
    """A net with signs, from the shipped experiment of its data and topology, and test images."""
    changes = [
        f"stage.1.epochs={epochs}",
        'stage.1.recipe="w1a1"',
        'train.device="cpu"',
        "log.tensorboard=false",
    ]
    experiment = bw.experiment.load("digits-mlp-dorefa-w2a2", changes)
    images = load("digits", None, "test")
    x = next(iter(images.batches(len(images), normalize=normalized(experiment))))[0]
    with tempfile.TemporaryDirectory() as folder:
        bw.train(experiment, folder)
        return bw.convert(Run(folder).model(), x[:1], force=True).model, x


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "lossless.csv"))
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    even = torch.randint(0, 2, (2, 256, 1152)).float() * 2 - 1
    records = rows("even", "random signs", even[0], even[1], torch.zeros(256), -1, 1)
    for name, (model, images) in {"digits-mlp-zero_one": zero_one(), "digits mlp w1a1": signs(args.epochs)}.items():
        for layer in layers(model, images):
            records += rows(name, *layer)
    for r in records:
        print(f"{r['net']}, {r['layer']}, {r['inputs']} inputs, chunks of {r['chunk']}: {r['read_mean']:.1%} are read")
    write(Path(args.out), records)


if __name__ == "__main__":
    main()
