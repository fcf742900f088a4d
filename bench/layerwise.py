"""Compression without retraining: accuracy of pruned and quantized nets, seconds and memory of the work itself.

    python bench/layerwise.py [--only lenet resnet20 speed] [--out docs/results/layerwise.csv] [--threads 2]

lenet     LeNet-300-100 on MNIST, trained here for 12 epochs: 7 % of the weights kept, no retraining
resnet20  the zoo's float ResNet-20 on CIFAR-10, 512 training images: half pruned, 2:4, 4 and 3 bits
speed     ResNet-20 and ResNet-18 of random weights, all layers; one 9216 x 4096 layer. Each in a process of its own

Rows are written as they are done; a row that is in the file already is skipped. `lost` is in points of test accuracy. `cpu_seconds`
counts this process alone, so it is the figure to trust on a machine that others use too; `peak_mb` is the peak memory less the
memory before the work.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitwright as bw
from bitwright.data import Images
from bitwright.errors import BitwrightWarning
from bitwright.measure.machine import machine
from bitwright.training.evaluate import evaluate
from methods import ROOT, read, write

P = bw.procedures
Row = dict[str, Any]
Method = Callable[[nn.Module, list[Any]], Any]

LENET: dict[str, Method] = {
    "magnitude": lambda n, f: P.magnitude(n, keep=0.07),
    "magnitude, global": lambda n, f: P.magnitude(n, keep=0.07, scope="global"),
    "l_obs": lambda n, f: P.l_obs(n, f, keep=0.07),
    "l_obs, global": lambda n, f: P.l_obs(n, f, keep=0.07, scope="global"),
    "l_obs 8 rounds, global": lambda n, f: P.l_obs(n, f, keep=0.07, scope="global", rounds=8),
    "l_obs obc, global": lambda n, f: P.l_obs(n, f, keep=0.07, scope="global", rounds="obc"),
}
RESNET: dict[str, Method] = {
    "magnitude": lambda n, f: P.magnitude(n, keep=0.5),
    "l_obs": lambda n, f: P.l_obs(n, f, keep=0.5),
    "gptq 4 bits": lambda n, f: P.gptq(n, f, bits=4),
    "l_obs, then gptq 4 bits": lambda n, f: (P.l_obs(n, f, keep=0.5), P.gptq(n, f, bits=4)),
    "magnitude 2:4": lambda n, f: P.magnitude(n, pattern="2:4"),
    "sparse_gpt 2:4": lambda n, f: P.sparse_gpt(n, f, pattern="2:4"),
    "sparse_gpt": lambda n, f: P.sparse_gpt(n, f, keep=0.5),
    "l_obs lobs": lambda n, f: P.l_obs(n, f, keep=0.5, compensation="lobs"),
    "l_obs 8 rounds": lambda n, f: P.l_obs(n, f, keep=0.5, rounds=8),
    "magnitude + reconstruct": lambda n, f: (P.magnitude(n, keep=0.5), P.reconstruct(n, f)),
    "magnitude, norms again": lambda n, f: (P.magnitude(n, keep=0.5), P.recalibrate_batchnorm(n, f))[0],
    "l_obs, norms again": lambda n, f: P.l_obs(n, f, keep=0.5, norms="recalibrate"),
    "gptq 3 bits": lambda n, f: P.gptq(n, f, bits=3),
    "l_obs obc": lambda n, f: P.l_obs(n, f, keep=0.5, rounds="obc"),
}
SPEED = (
    "resnet20 l_obs",
    "resnet20 gptq 4 bits",
    "resnet18 l_obs",
    "fc 9216x4096 sparse_gpt",
    "fc 9216x4096 gptq 4 bits",
)


def batches(images: Images, count: int, size: int = 128) -> list[Any]:
    return list(islice(images.batches(size, shuffle=True, seed=0, normalize=True), count))


def lenet() -> tuple[nn.Module, Images, list[Any]]:
    """The net is trained here, the same each time; its file stays below runs/."""
    folder = ROOT / "runs" / "bench-layerwise-lenet"
    text = """
    seed = 0
    [data]
    name = "mnist"
    batch = 128
    [model]
    name = "lenet300"
    [[stage]]
    epochs = 12
    optimizer = { name = "adam", lr = 1e-3 }
    schedule = { name = "cosine" }
    [log]
    tensorboard = false
    """
    run = bw.runs.Run(folder)
    if not run.has("model.safetensors"):
        bw.train(bw.experiment.parse("\n".join(line.strip() for line in text.splitlines())), folder)
    train = bw.data.load("mnist", split="train")
    return run.model().eval(), bw.data.load("mnist", split="test"), batches(train, 80)


def resnet20() -> tuple[nn.Module, Images, list[Any]]:
    net = bw.zoo.load("cifar10-resnet20-float", form="float")
    return net, bw.data.load("cifar10", split="test"), batches(bw.data.load("cifar10", split="train"), 4)


def quality(case: str, methods: dict[str, Method], load: Callable[[], Any], done: list[Row], wanted: list[str]) -> None:
    there = {(r["case"], r["method"]) for r in done}
    left = {n: m for n, m in methods.items() if (case, n) not in there and (not wanted or n in wanted)}
    if not left:
        return
    net, test, feed = load()
    dense = evaluate(net, test).top1
    for name, method in left.items():
        one = copy.deepcopy(net)
        start, cpu = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BitwrightWarning)
            found = method(one, feed)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        after = evaluate(one, test).top1
        report = found[-1] if isinstance(found, tuple) else found
        yield_row(
            done, case=case, method=name, kept=round(report.kept, 4), images=sum(len(f[0]) for f in feed),
            dense=round(100 * dense, 2), after=round(100 * after, 2), lost=round(100 * (dense - after), 2),
            seconds=round(seconds, 1), cpu_seconds=round(cpu, 1),
        )  # fmt: skip


def yield_row(done: list[Row], **row: Any) -> None:
    done.append({**row, **machine(torch.get_num_threads())})
    print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    write(OUT, done)


def speed(name: str) -> Row:
    """In this process: build, one small call to warm up, the call that counts."""
    torch.manual_seed(0)
    kind, _, method = name.partition(" ")
    if kind == "fc":
        method = method.partition(" ")[2]
        net, feed = nn.Sequential(nn.Linear(9216, 4096)), list(torch.relu(torch.randn(20_480, 9216)).split(2048))
    elif kind == "resnet18":
        net, feed = bw.models.create("resnet18", size=224).eval(), list(torch.rand(128, 3, 224, 224).split(16))
    else:
        net, feed = bw.models.create("resnet20").eval(), list(torch.rand(512, 3, 32, 32).split(128))
    calls: dict[str, Method] = {
        "l_obs": lambda n, f: P.l_obs(n, f, keep=0.5),
        "sparse_gpt": lambda n, f: P.sparse_gpt(n, f, keep=0.5),
        "gptq 4 bits": lambda n, f: P.gptq(n, f, bits=4),
    }
    P.l_obs(nn.Sequential(nn.Linear(8, 4)), [torch.rand(64, 8)], keep=0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        report = calls[method](net, feed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return {
        "case": "speed", "method": name, "kept": round(report.kept, 4), "images": sum(len(f) for f in feed),
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(peak),
    }  # fmt: skip


OUT = ROOT / "docs" / "results" / "layerwise.csv"


def main() -> None:
    global OUT
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="*", default=["lenet", "resnet20", "speed"])
    parser.add_argument("--methods", nargs="*", default=[], help="only these rows")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help="one row of speed, as JSON: what the process of that row runs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(speed(given.one)))
        return
    OUT = given.out
    done: list[Row] = list(read(OUT))
    if "lenet" in given.only:
        quality("lenet300 mnist", LENET, lenet, done, given.methods)
    if "resnet20" in given.only:
        quality("resnet20 cifar10", RESNET, resnet20, done, given.methods)
    for name in SPEED if "speed" in given.only else ():
        if ("speed", name) not in {(r["case"], r["method"]) for r in done}:
            words = [sys.executable, __file__, "--one", name, "--threads", str(given.threads)]
            made = subprocess.run(words, capture_output=True, text=True, check=True)
            yield_row(done, **json.loads(made.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
