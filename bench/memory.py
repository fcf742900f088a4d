"""Memory and time of a long-running process: many batch sizes, trainings in one process, large batches, widths doubled.

    python bench/memory.py [--out docs/results/memory.csv] [--only calls trainings batch width]

Every row is measured in a process of its own. Growth is resident memory less the memory before; peak is the process's maximum.
Random images: neither memory nor time depends on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitwright as bw
from bitwright.measure.machine import machine

ROOT = Path(__file__).resolve().parent.parent
FIELDS: tuple[str, ...] = ("case", "size", "seconds", "growth_mb", "peak_mb", "per_unit_us")
CALLS, SIZES, TRAININGS = 3000, 700, 5
Row = dict[str, Any]


def resident() -> float:
    """Resident memory of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def net(width: int) -> nn.Sequential:
    """Three convolutions, the first in float; w1a1 behind it."""

    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.Hardtanh()]

    body = [*block(3, width), *block(width, width), *block(width, width)]
    made = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    bw.apply(made, "w1a1", torch.rand(1, 3, 8, 8))
    return made.eval()


def packed_net(source: nn.Module | int) -> nn.Module:
    model = net(source) if isinstance(source, int) else source
    packed = bw.convert(model, torch.rand(8, 3, 8, 8), force=True).model
    assert packed is not None
    return packed


def calls() -> Iterator[Row]:
    """A packed net in a server: every call has another batch size."""
    packed = packed_net(32)
    images = torch.rand(SIZES, 3, 8, 8)
    packed(images)
    before, start = resident(), time.perf_counter()
    for i in range(CALLS):
        packed(images[: 1 + i * 37 % SIZES])
        if i + 1 in (CALLS // 3, CALLS):
            spent = time.perf_counter() - start
            yield row(f"packed net, {SIZES} batch sizes", f"{i + 1} calls", spent, resident() - before, i + 1)


def trainings() -> Iterator[Row]:
    """One process trains again and again, as a sweep in a notebook does."""
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(TRAININGS):
            start = time.perf_counter()
            changes = ["stage.0.epochs=2", 'train.device="cpu"', "log.tensorboard=false"]
            bw.train(bw.experiment.load("digits-mlp-dorefa-w2a2", changes), f"{folder}/{i}")
            yield row(
                "trainings in one process", f"number {i + 1}", time.perf_counter() - start, resident() - before, 1
            )


def batch(size: int) -> Iterator[Row]:
    """One step of training."""
    model, images = net(32).train(), torch.rand(size, 3, 8, 8)
    step(model, images[:2])
    before, start = resident(), time.perf_counter()
    step(model, images)
    yield row("training step", f"batch {size}", time.perf_counter() - start, peak() - before, size)


def width(size: int) -> Iterator[Row]:
    """From float net to packed file; weights grow by four where the width doubles."""
    start, before = time.perf_counter(), resident()
    model = net(size)
    with tempfile.TemporaryDirectory() as folder:
        bw.save(packed_net(model), f"{folder}/net.bw")
    weights = sum(p.numel() for p in model.parameters())
    yield row("apply, convert, save", f"width {size}", time.perf_counter() - start, peak() - before, weights)


def step(model: nn.Module, images: torch.Tensor) -> None:
    model(images).square().mean().backward()
    model.zero_grad()


def row(case: str, size: str, seconds: float, growth: float, units: int) -> Row:
    return dict(zip(FIELDS, (case, size, seconds, growth, peak(), seconds / units * 1e6), strict=True))


CASES: dict[str, tuple[Callable[..., Iterator[Row]], list[int | None]]] = {
    "calls": (calls, [None]),
    "trainings": (trainings, [None]),
    "batch": (batch, [512, 1024, 2048, 4096]),
    "width": (width, [64, 128, 256, 512]),
}


def measured(name: str, size: int | None) -> list[Row]:
    """The rows of a case, from a process of its own."""
    command = [sys.executable, __file__, "--one", name, *([] if size is None else [str(size)])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "memory.csv"))
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        for found in CASES[args.one[0]][0](*map(int, args.one[1:])):
            print(json.dumps(found), flush=True)
        return
    print(machine(1))
    rows = [r for name in args.only for size in CASES[name][1] for r in measured(name, size)]
    with open(args.out, "w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        for r in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()})
            print(" | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()))


if __name__ == "__main__":
    main()
