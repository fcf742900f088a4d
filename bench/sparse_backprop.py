"""Sparse back-propagation: a training step of a channel-gated ResNet-20 with and without it, side by side in one run.

    python bench/sparse_backprop.py [--out docs/results/sparse_backprop.csv] [--rounds 25]

With it, the backward pass does not need what a gate left out, so hardware that skips it would save that work. Here the gradient
of what is off is set to 0, in a pass of its own. Thresholds begin at the target of their paper's net, so that most gates are off, as
they are late in a training. The nets take turns, one step each (batch 128, forward, loss, backward, optimizer). The ratio is the
median over rounds of a step with it over the step without it next to it. One thread, CPU time: other work on the machine has little
effect. Random images: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import bitwright as bw
from bitwright.measure.machine import machine
from methods import write
from training import BATCH, PRECISIONS, ROOT, quartiles

CASES: dict[str, tuple[str, str]] = {  # case: model, recipe
    "CG original": ("resnet20", "channel_gate"),
    "CG post-activated": ("resnet20_postact", "channel_gate-postact"),
}


def stepper(model: str, recipe: str, sparse: bool, half: bool) -> tuple[Callable[[], None], torch.nn.Module]:
    """(a function that makes one training step of a fresh net, the net)."""
    torch.manual_seed(0)
    rules = [rule.to_dict() for rule in bw.Recipe.load(recipe).rules]
    gate = rules[0]["gate"]
    gate |= {"sparse_backprop": sparse, "init": gate["target"]}
    net = bw.apply(bw.models.create(model), rules, torch.rand(1, 3, 32, 32)).train()
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(bw.param_groups(net, 0.05, 1e-4), momentum=0.9)
    bw.attach(net, optimizer)
    images, classes = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), classes) + bw.penalty(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, net


def share_on(net: torch.nn.Module) -> float:
    with bw.count_macs(net) as macs, torch.no_grad():
        net(torch.randn(BATCH, 3, 32, 32))
    return sum(macs.fired.values()) / sum(macs.decided.values())


def measure(case: str, precision: str, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    nets = {sparse: stepper(*CASES[case], sparse, PRECISIONS[precision]) for sparse in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(rounds + 2):
        for sparse in (True, False) if i % 2 else (False, True):
            start = time.process_time()
            nets[sparse][0]()
            if i >= 2:  # warm
                times[sparse].append(time.process_time() - start)
    low, ratio, high = quartiles([a / b for a, b in zip(times[True], times[False], strict=True)])
    record: dict[str, Any] = {"case": case, "precision": precision, "gates_on": round(share_on(nets[True][1]), 3)}
    for name, sparse in (("sparse", True), ("dense", False)):
        q1, middle, q3 = quartiles(times[sparse])
        record |= {
            f"{name}_ms": round(middle * 1e3, 2),
            f"{name}_q1_ms": round(q1 * 1e3, 2),
            f"{name}_q3_ms": round(q3 * 1e3, 2),
        }
    ratios = {"ratio": round(ratio, 3), "ratio_q1": round(low, 3), "ratio_q3": round(high, 3)}
    return {**record, **ratios, "batch": BATCH, "rounds": rounds, "clock": "CPU time", **machine(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "sparse_backprop.csv"))
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    out = Path(args.out)
    records = []
    for case in CASES:
        for precision in PRECISIONS:
            records.append(measure(case, precision, args.rounds))
            r = records[-1]
            print(f"{case}, {precision}: {r['sparse_ms']} and {r['dense_ms']} ms, {r['ratio']:.3f}x "
                  f"({r['ratio_q1']:.3f}-{r['ratio_q3']:.3f}), {r['gates_on']:.0%} on", flush=True)  # fmt: skip
    write(out, records)


if __name__ == "__main__":
    main()
