"""How much time a gate saves in one layer: a layer that skips beside its dense twins, at several shares of outputs that are on.

    python bench/skip.py [--rounds 25] [--only WORD]

3x3 layers in the middle of residual nets, one image, one thread. Channel gates: four splits, each share of outputs with a base of its
own. Precision gates: 8/4 means that the 4 high bits of 8 decide. Thresholds are set so that the wanted share of each channel is on;
which outputs these are depends on random numbers, so neighbors do not agree (the worst case for skipping).

"torch": float32 in channels_last (oneDNN). "bytes", "bits": the whole layer by our dense kernels for codes, which say nothing of a
gate. "high bits": the high bits alone by the dense kernel for bits, the least that a pass over bit planes would cost.
All take turns, a few calls each, in CPU time; a ratio is the median over rounds of the dense twin beside it. The answers are compared
with the masked dense result before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import native
from bitwright.engine.native_output import KernelOutput
from bitwright.engine.native_skip import ByteSkip, FloatSkip
from bitwright.measure.machine import machine
from bitwright.parts.channel_gate import base_mask
from methods import write
from training import ROOT, quartiles

LAYERS = {"64x28x28": (64, 28), "128x28x28": (128, 28), "256x14x14": (256, 14)}
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)
SPLITS = 4
CALLS = 3  # in one turn


class Kind(NamedTuple):
    """A gated layer: bits of weights and inputs (0: float), and how many of the inputs' bits decide (0: channels do)."""

    weights: int
    inputs: int
    high: int = 0


KINDS = {
    "channel gate, float32": Kind(0, 0),
    "channel gate, w8a8": Kind(8, 8),
    "channel gate, w2a4": Kind(2, 4),
    "precision gate 8/4, w8": Kind(8, 8, 4),
    "precision gate 8/4, w2": Kind(2, 8, 4),
    "precision gate 8/2, w1": Kind(1, 8, 2),
    "precision gate 4/2, w2": Kind(2, 4, 2),
}
Calls = dict[str, Callable[[], Tensor]]


def threshold_of(base: Tensor, share: float) -> Tensor:
    """[O]: with it about `share` of each channel of [N, O, H, W] is on; it lies between two values, not on one."""
    values = base.transpose(0, 1).flatten(1).double().sort(1).values
    at = round((1 - share) * values.shape[1])
    return (values[:, at - 1] + values[:, at]) / 2


def floats(channels: int, side: int) -> tuple[Calls, Tensor]:
    """The calls, and the share of outputs that is really on."""
    x = torch.randn(1, channels, side, side).relu().to(memory_format=torch.channels_last)
    weight = (torch.randn(channels, channels, 3, 3) / channels**0.5).to(memory_format=torch.channels_last)
    mask = base_mask(channels, channels, 1, SPLITS, True)[:, :, None, None]
    base, rest = (F.conv2d(x, weight * part, None, 1, 1) for part in (mask, ~mask))
    calls: Calls = {"torch": lambda: F.conv2d(x, weight, None, 1, 1)}
    shares = []
    for share in SHARES:
        threshold = threshold_of(base, share).float()
        layer = FloatSkip(weight, threshold, splits=SPLITS, padding=1)
        got, on = layer.run(x), base > threshold[:, None, None]
        shares.append(on.float().mean())
        different = (got - torch.where(on, base + rest, base)).abs() > 1e-4
        if different.float().mean() > 1e-4:  # a base may lie so near to the threshold that the two decide differently
            raise SystemExit("floats: not the masked dense result")
        calls[str(share)] = lambda layer=layer: layer.run(x)
    return calls, torch.stack(shares)


def codes(kind: Kind, channels: int, side: int) -> tuple[Calls, Tensor]:
    top = {1: 1, 2: 1, 8: 127}[kind.weights]
    weight = torch.randint(-top, top + 1, (channels, channels, 3, 3))
    if kind.weights == 1:
        weight = weight * 2 - 1
        weight = weight.sign()
    x = torch.randint(0, 2**kind.inputs, (1, side, side, channels)).to(torch.uint8)
    dense = native.ConvPlan.bytes(weight, x_bits=kind.inputs, padding=1)
    calls: Calls = {"bytes": lambda: dense.run(x, KernelOutput(), None, 1)}
    if kind.weights < 8:
        bits = weight[None] > 0 if kind.weights == 1 else torch.stack([weight & 1 != 0, weight < 0])
        grid: dict[str, Any] = {"w_mult": [2], "w_zero": -1} if kind.weights == 1 else {"w_mult": [1, -2], "w_zero": 0}
        for name, planes in {"bits": kind.inputs, "high bits": kind.high}.items():
            if not planes:
                continue
            plan = native.ConvPlan.bits(bits, x_mult=[2**i for i in range(planes)], padding=1, **grid)
            words = native.to_words(x >> (kind.inputs - planes), planes)
            calls[name] = lambda plan=plan, words=words: plan.run(words, KernelOutput(), None, 1)
    low = kind.inputs - kind.high if kind.high else 0
    mask = base_mask(channels, channels, 1, 1 if low else SPLITS, True)[:, :, None, None]
    planes = x.permute(0, 3, 1, 2).double()
    high = planes.div(2**low, rounding_mode="floor") * 2**low
    if low:
        base, rest = (F.conv2d(part, weight.double(), None, 1, 1) for part in (high, planes - high))
    else:
        base, rest = (F.conv2d(planes, (weight * part).double(), None, 1, 1) for part in (mask, ~mask))
    shares = []
    for share in SHARES:
        threshold = threshold_of(base, share).floor().long()
        gate: dict[str, Any] = {"low_bits": low} if low else {"splits": SPLITS}
        layer = ByteSkip(weight, threshold, padding=1, x_bits=kind.inputs, **gate)
        on = base > threshold[:, None, None]
        shares.append(on.float().mean())
        if not torch.equal(layer.run_int(x).double(), base + on * rest):
            raise SystemExit(f"{kind}: not the masked dense result")
        calls[str(share)] = lambda layer=layer: layer.run_int(x)
    return calls, torch.stack(shares)


def measure(name: str, layer: str, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    kind, place = KINDS[name], LAYERS[layer]
    calls, shares = codes(kind, *place) if kind.inputs else floats(*place)
    times: dict[str, list[float]] = {call: [] for call in calls}
    with torch.inference_mode():
        for i in range(rounds + 2):
            for call in calls if i % 2 else reversed(calls):
                start = time.process_time()
                for _ in range(CALLS):
                    calls[call]()
                if i >= 2:  # warm
                    times[call].append((time.process_time() - start) / CALLS)
    records = []
    for share, real in zip(SHARES, shares.tolist(), strict=True):
        mine = times[str(share)]
        record: dict[str, Any] = {"layer": layer, "gate": name, "on_share": share, "on_really": round(real, 4)}
        q1, middle, q3 = quartiles(mine)
        record |= {
            "skip_ms": round(middle * 1e3, 4),
            "skip_q1_ms": round(q1 * 1e3, 4),
            "skip_q3_ms": round(q3 * 1e3, 4),
        }
        for peer in ("torch", "bytes", "bits", "high bits"):
            found = times.get(peer)
            ratio = (
                "" if found is None else round(statistics.median(a / b for a, b in zip(found, mine, strict=True)), 3)
            )
            record[f"{peer}_ms"] = "" if found is None else round(statistics.median(found) * 1e3, 4)
            if peer != "high bits":
                record[f"{peer}_over_skip"] = ratio
        records.append({**record, "rounds": rounds, "clock": "CPU time", **machine(1)})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "skip.csv"))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", default="", help="gates with this word in their name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for name in KINDS:
        for layer in LAYERS if args.only in name else ():
            found = measure(name, layer, args.rounds)
            records += found
            peers = {
                p: found[0][f"{p}_ms"] for p in ("torch", "bytes", "bits", "high bits") if found[0][f"{p}_ms"] != ""
            }
            print(f"{layer}, {name}: {', '.join(f'{p} {v} ms' for p, v in peers.items())}")
            for r in found:
                ratios = [f"{r[f'{p}_over_skip']} times {p}" for p in peers if p != "high bits"]
                print(f"  {r['on_share']:.0%} on: {r['skip_ms']} ms, {', '.join(ratios)}", flush=True)
    write(Path(args.out), records)


if __name__ == "__main__":
    main()
