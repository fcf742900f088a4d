"""Single layers beside the best peer of each precision: what was asked of them, and how near they are to the CPU's limit.

    python bench/kernels.py [--only W1A2 ...] [--rounds 11] [--out ../docs/results/kernels_avx2.csv]

Random weights, one thread, medians of CPU time in turn. Convolutions are 3x3 with equal channels, codes in and codes out (int8 peers:
uint8 in and out); "f32" rows and linear layers get floats and give floats, quantizing included. "share" is the time that this CPU's
instructions need at least for the products (docs/results/ceilings_amd.txt: xor, popcount and add for pairs of bits, float
multiply-adds for W1A32, int8 products else; ceilings_avx2.txt: look-ups for bits), or the time to read the weights if that is longer,
over ours. Rows go to docs/results/kernels.csv as they are done. Rows that are there already are kept, or, named with --only, measured
again. Needs the extras `onnx` and `openvino`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.measure.conv import conv_bench
from bitwright.measure.machine import machine
from bitwright.measure.table import BenchTable
from methods import ROOT, put, read

# name: bits of the weight and of the input, channels, side, batch, and what was asked against fp32, bf16 and int8
CONVS = {
    "W1A1 64x56x56": (1, 1, 64, 56, 1, (17, 9, 4.8)),
    "W1A1 64x56x56 batch 8": (1, 1, 64, 56, 8, (17, 9, 4.8)),
    "W1A1 128x28x28": (1, 1, 128, 28, 1, (18, 9.8, 4.9)),
    "W1A1 128x28x28 batch 8": (1, 1, 128, 28, 8, (18, 9.8, 4.9)),
    "W1A1 256x14x14": (1, 1, 256, 14, 1, (18, 9.8, 4.9)),
    "W1A1 256x14x14 batch 8": (1, 1, 256, 14, 8, (18, 9.8, 4.9)),
    "W1A1 512x7x7": (1, 1, 512, 7, 1, (18, 9.5, 5.3)),
    "W1A2 256x14x14": (1, 2, 256, 14, 1, (9.5, 5, 2.6)),
    "W2A2 256x14x14": (2, 2, 256, 14, 1, (5, 2.7, 1.4)),
    "W1A1 64x8x8 batch 128": (1, 1, 64, 8, 128, (16, 8.7, 5)),
    "W1A1 32x16x16 batch 128": (1, 1, 32, 16, 128, (13, 5.8, 3.8)),
    "W1A1 16x32x32 batch 128": (1, 1, 16, 32, 128, (12, 5.5, 3.8)),
}
A8: dict[str, Any] = {"part": "uniform", "bits": 8}
# name: weight, input, inputs, outputs, batch, asked
LINEAR = {
    "FC W1A1 9216x4096": ("bwn", "sign", 9216, 4096, 1, (70, 38, 15)),
    "FC W1A8 9216x4096": ("bwn", A8, 9216, 4096, 1, (32, 17, 6.6)),
    "FC W1A32 9216x4096": ("bwn", "float", 9216, 4096, 1, (19, 10, 3.8)),
    "FC ternary A8 9216x4096": ("twn", A8, 9216, 4096, 1, (22, 11.5, 4.5)),
    "FC W1A1 9216x4096 batch 64": ("bwn", "sign", 9216, 4096, 64, (20, 9.5, 4.5)),
    "FC ternary A8 9216x4096 batch 64": ("twn", A8, 9216, 4096, 64, (4.7, 2.2, 1.07)),
}
F32_CONV = "W1A1 64x56x56 batch 8, f32 in and out"
PRECISIONS = ("fp32", "bf16", "int8")
# products a second, and bytes a second from the last cache, by instruction set: bench/ceilings.cpp. Of AVX2, look-ups take inputs of up
# to four bits at once
CEILINGS = {
    "avx512": {"bits": 1.19e12, "int8": 0.23e12, "float": 0.058e12, "cache": 98e9},
    "avx2": {"bits": 0.92e12, "int8": 0.143e12, "float": 0.051e12, "cache": 35e9},
}


def conv_calls(w: int, a: int, channels: int, side: int, batch: int) -> dict[str, Callable[[], object]]:
    """Our kernels, codes of `a` bits in and out: by bits and by bytes. The engine takes the faster one."""
    codes = torch.randint(0, 2**a, (batch, side, side, channels), dtype=torch.uint8)
    table = torch.sort(torch.randint(-50, 50, (2**a - 1, channels)), 0).values.int()
    bits = torch.randint(0, 2, (w, channels, channels, 3, 3))
    plan = native.ConvPlan.bits(
        bits, w_mult=[2 << i for i in range(w)], w_zero=1 - 2**w, x_mult=[1 << i for i in range(a)] if a > 1 else [2],
        x_zero=0 if a > 1 else -1, padding=1,
    )  # fmt: skip
    odd = torch.randint(0, 2**w, (channels, channels, 3, 3)) * 2 + 1 - 2**w
    wide = native.ConvPlan.bytes(odd, x_bits=a, padding=1)
    return {
        "bits": partial(plan.run, native.to_words(codes, a), native.CodeOutput(table, planes=a), None, 1),
        "bytes": partial(wide.run, codes, native.CodeOutput(table, bytes=True), None, 1),
    }


def layer(module: nn.Module, x: Tensor, rounds: int) -> BenchTable:
    model = nn.Sequential(module).eval()
    bw.calibrate(model, [x])
    with torch.no_grad():
        model.train()(x)
    return bw.bench(bw.convert(model.eval(), x[:2], verify=False), x, threads=1, rounds=rounds)


def row(name: str, table: BenchTable, asked: tuple[float, ...], limit: float) -> dict[str, Any]:
    times = {r.name: r for r in table.rows if r.median_ms is not None}
    ours = times.pop("bitwright")
    made: dict[str, Any] = {"layer": name, "us": round(1e3 * (ours.median_ms or 0), 2)}
    made["us_q1"], made["us_q3"] = round(1e3 * (ours.q1_ms or 0), 2), round(1e3 * (ours.q3_ms or 0), 2)
    for precision, wanted in zip(PRECISIONS, asked, strict=True):
        peers = [r for r in times.values() if r.precision == precision]
        best = min(peers, key=lambda r: r.median_ms or 0, default=None)
        made[f"best_{precision}"] = best.name if best else ""
        made[f"ratio_{precision}"] = round((best.median_ms or 0) / (ours.median_ms or 1), 2) if best else ""
        made[f"asked_{precision}"] = wanted
    return {**made, "limit_us": round(1e6 * limit, 1), "share": round(1e6 * limit / made["us"], 3), **machine(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="*", help="words that the name of a row must hold")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "kernels.csv"))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers' own exporters
    path = type(ROOT)(args.out)
    rates = CEILINGS["avx2" if native.isa() == "avx2" else "avx512"]
    planes = 4 if native.isa() == "avx2" else 1  # of an input, that one pass takes

    names, kept = [*CONVS, F32_CONV, *LINEAR], {r["layer"] for r in read(path)}
    chosen = [n for n in names if (any(word in n for word in args.only) if args.only else n not in kept)]
    print(f"{len(chosen)} rows to measure, {len(names) - len(chosen)} not; possible: {'; '.join(names)}", flush=True)

    def wanted(name: str) -> bool:
        return name in chosen

    def add(made: dict[str, Any]) -> None:
        put(path, made, ["layer"])
        ratios = ", ".join(f"{made[f'ratio_{p}']} ({made[f'asked_{p}']}) {p}" for p in PRECISIONS)
        print(f"{made['layer']}: {made['us']} us, {ratios}, share {made['share']}", flush=True)

    for name, (w, a, channels, side, batch, asked) in CONVS.items():
        if wanted(name):
            limit = w * -(-a // planes) * batch * side**2 * channels**2 * 9 / rates["bits"]
            ours = conv_calls(w, a, channels, side, batch)
            add(row(name, conv_bench(channels, side, batch=batch, rounds=args.rounds, ours=ours), asked, limit))
    if wanted(F32_CONV):
        x = torch.randn(8, 64, 56, 56).contiguous(memory_format=torch.channels_last)
        table = layer(bw.nn.Conv2d(64, 64, 3, padding=1, w="bwn", x="sign"), x, args.rounds)
        add(row(F32_CONV, table, (14, 7.5, 4), 8 * 56**2 * 64**2 * 9 / rates["bits"]))
    for name, (w, x, inputs, outputs, batch, asked) in LINEAR.items():
        if wanted(name):
            kind = "bits" if x == "sign" else "float" if x == "float" else "int8"
            bits = 2 if w == "twn" else 1
            limit = max(batch * inputs * outputs / rates[kind], bits * inputs * outputs / 8 / rates["cache"])
            module = bw.nn.Linear(inputs, outputs, w=w, x=None if x == "float" else x)
            add(row(name, layer(module, torch.randn(batch, inputs), args.rounds), asked, limit))


if __name__ == "__main__":
    main()
