"""Training speed: one step (forward, loss, backward, optimizer) of a low-bit net beside the float net of the SAME topology.

    python bench/training.py [--out docs/results/training.csv] [--rounds 15] [--only NAME ...] [--threads 1 2]
    python bench/training.py --profile [--only NAME ...]   # which operators a step is made of; writes nothing

"plain torch" is the same low-bit net without the native training kernels (BITWRIGHT_FUSED=0). The nets take turns, one
step each; a ratio is the median over rounds of a step over the float step next to it, so that other work on the machine
affects both. One thread is measured in CPU time, two in wall time. Random images: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import bitwright as bw
from bitwright.fn import kernels
from bitwright.measure.machine import machine
from bitwright.timing import clock_for

ROOT = Path(__file__).resolve().parent.parent
BATCH = 128
NETS: dict[str, tuple[str, dict[str, Any], str]] = {  # case: model, its options, recipe
    "bireal_resnet20 bireal": ("bireal_resnet20", {}, "bireal"),
    "resnet20 w1a1": ("resnet20", {"activation": "hardtanh"}, "w1a1"),
    "resnet20 dorefa-w2a2": ("resnet20", {}, "dorefa-w2a2"),
    "resnet20 lsq-w2a2": ("resnet20", {}, "lsq-w2a2"),
    "resnet20 channel_gate": ("resnet20", {}, "channel_gate"),
    "resnet20_postact channel_gate-postact": ("resnet20_postact", {}, "channel_gate-postact"),
    "resnet20 precision_gate-w8a3p2": ("resnet20", {}, "precision_gate-w8a3p2"),
    "resnet20 precision_gate-w8a8p4": ("resnet20", {}, "precision_gate-w8a8p4"),
}
# w1a1 puts a norm before every sign; the float net with these norms is the one of its topology
NORMS: list[dict[str, Any]] = [{"match": "*", "x": "norm"}, *({"match": m, "x": "float"} for m in ("first", "last"))]
PRECISIONS = {"fp32": False, "bf16 autocast": True}


def stepper(model_name: str, options: dict[str, Any], recipe: Any, half: bool, native: bool) -> Callable[[], None]:
    """A function that makes one training step of a fresh net."""
    torch.manual_seed(0)
    model = bw.models.create(model_name, **options)
    if recipe:
        bw.apply(model, recipe, torch.rand(1, 3, 32, 32))
    model = model.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(bw.param_groups(model, 0.05, 1e-4), momentum=0.9)
    bw.attach(model, optimizer)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    classes = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        with kernels.switched(native):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), classes) + bw.penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def profiled(step: Callable[[], None], rounds: int = 5) -> dict[str, float]:
    """Milliseconds of each operator in a step, the least of some rounds."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            step()
        for row in seen.key_averages():
            ms = float(row.self_cpu_time_total) / 1e3
            best[row.key] = min(ms, best.get(row.key, ms))
    return best


def profile(case: str) -> None:
    """Prints the operators of a step, in float steps, and what the step would be if only its convolutions differed."""
    name, options, recipe = NETS[case]
    torch.set_num_threads(1)
    shares = [profiled(stepper(name, options, r, False, True)) for r in (None, recipe)]
    convs = [sum(ms for key, ms in s.items() if "convolution" in key and key.startswith("aten::")) for s in shares]
    whole = sum(shares[0].values())
    print(
        f"{case}: {sum(shares[1].values()) / whole:.2f} float steps, {1 + (convs[1] - convs[0]) / whole:.2f} by convolutions alone"
    )
    for key, ms in sorted(shares[1].items(), key=lambda item: -item[1])[:12]:
        print(f"  {ms / whole:6.3f} {key} (float net: {shares[0].get(key, 0.0) / whole:.3f})")


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:  # a trial with one round
        return values[0], values[0], values[0]
    q1, middle, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, middle, q3


def measure(case: str, precision: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """One record per net of a case."""
    torch.set_num_threads(threads)
    name, options, recipe = NETS[case]
    half = PRECISIONS[precision]
    steps = {
        "float": stepper(name, options, None, half, True),
        **({"float + norms": stepper(name, options, NORMS, half, True)} if recipe == "w1a1" else {}),
        "bitwright": stepper(name, options, recipe, half, True),
        "plain torch": stepper(name, options, recipe, half, False),
    }
    clock, clock_name = clock_for(threads)
    times: dict[str, list[float]] = {key: [] for key in steps}
    for i in range(rounds + 2):
        for key, step in steps.items():
            start = clock()
            step()
            if i >= 2:  # warm
                times[key].append(clock() - start)
    records = []
    for key, values in times.items():
        q1, middle, q3 = quartiles(values)
        low, ratio, high = quartiles([v / f for v, f in zip(values, times["float"], strict=True)])
        records.append(
            {
                "case": case, "precision": precision, "name": key, "step_ms": round(middle * 1e3, 2),
                "step_q1_ms": round(q1 * 1e3, 2), "step_q3_ms": round(q3 * 1e3, 2), "ratio": round(ratio, 3),
                "ratio_q1": round(low, 3), "ratio_q3": round(high, 3), "images_per_second": round(BATCH / middle, 1),
                "batch": BATCH, "rounds": rounds, "clock": clock_name, **machine(threads),
            }
        )  # fmt: skip
    return records


def keep(out: Path, new: list[dict[str, Any]]) -> None:
    """Puts the records of one measurement into the file, in place of older records of the same one."""

    def key(r: dict[str, Any]) -> tuple[int, int, int]:
        return list(NETS).index(r["case"]), int(r["threads"]), list(PRECISIONS).index(r["precision"])

    records = list(new)
    if out.exists():
        with out.open(newline="") as f:
            records += [r for r in csv.DictReader(f) if r["case"] in NETS and key(r) != key(new[0])]
    records.sort(key=key)
    temporary = out.with_suffix(".tmp")
    with temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(new[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    os.replace(temporary, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps of low-bit nets beside the float net.")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "training.csv"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # random nets: filters of zeros are expected here
    out = Path(args.out)
    if args.profile:
        for case in [c for c in NETS if args.only is None or c in args.only]:
            profile(case)
        return
    for threads in args.threads:
        for case in [c for c in NETS if args.only is None or c in args.only]:
            for precision in PRECISIONS:
                rows = measure(case, precision, threads, args.rounds)
                keep(out, rows)
                text = ", ".join(f"{r['name']} {r['step_ms']} ms ({r['ratio']:.2f}x)" for r in rows)
                print(f"{case}, {precision}, {threads} thread(s): {text}", flush=True)


if __name__ == "__main__":
    main()
