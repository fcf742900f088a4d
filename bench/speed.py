"""Speed tables: single W1A1 convolutions and whole nets, one thread, side by side with torch and onnxruntime.

    python bench/speed.py [--out docs/results/speed.csv] [--rounds 15] [--only NAME ...]

Weights are random (speed does not depend on them). Needs the extra `onnx` for the onnxruntime peers.
"""

from __future__ import annotations

import argparse
import csv
import os
import warnings
from pathlib import Path

import torch

import bitwright as bw
from bitwright.measure.conv import conv_bench
from bitwright.measure.table import BenchTable

ROOT = Path(__file__).resolve().parent.parent
CONVS = {
    "conv 256x14x14": (256, 14, 1),
    "conv 64x56x56": (64, 56, 1),
    "conv 128x28x28": (128, 28, 1),
    "conv 512x7x7": (512, 7, 1),
    "conv 64x8x8 batch 128": (64, 8, 128),
}
NETS = {
    "vgg_small w1a1": ("vgg_small", "w1a1", {}, (1, 3, 32, 32)),
    "vgg_small w1a1-8": ("vgg_small", "w1a1-8", {}, (1, 3, 32, 32)),
    "bireal_resnet20 bireal": ("bireal_resnet20", "bireal", {}, (1, 3, 32, 32)),
    "bireal_resnet18 bireal": ("bireal_resnet18", "bireal", {"num_classes": 1000}, (1, 3, 224, 224)),
}


def net(name: str, recipe: str, options: dict[str, int], shape: tuple[int, ...], rounds: int) -> BenchTable:
    """A whole net, packed with random weights."""
    model = bw.models.create(name, **options)
    example = torch.rand(shape)
    bw.apply(model, recipe, example)
    packed = bw.convert(model.eval(), example, threads=1, verify=False)
    return bw.bench(packed, example, threads=1, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed tables: single convolutions and whole nets, one thread.")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "speed.csv"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers' own exporters
    out = Path(args.out)
    tables: dict[str, BenchTable] = {}
    for case, (channels, size, batch) in CONVS.items():
        if args.only is None or case in args.only:
            tables[case] = conv_bench(channels, size, batch=batch, rounds=args.rounds)
            print(f"{case}\n{tables[case]}\n", flush=True)
    for case, (name, recipe, options, shape) in NETS.items():
        if args.only is None or case in args.only:
            tables[case] = net(name, recipe, options, shape, args.rounds)
            print(f"{case}\n{tables[case]}\n", flush=True)
    records = [{"case": case, **r} for case, table in tables.items() for r in table.records()]
    if args.only is not None and out.exists():  # keep the other cases
        with out.open(newline="") as f:
            records = [r for r in csv.DictReader(f) if r["case"] not in tables] + records
    order = [*CONVS, *NETS]
    records.sort(key=lambda r: order.index(str(r["case"])))
    temporary = out.with_suffix(".tmp")
    with temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for r in records for k in r)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    os.replace(temporary, out)


if __name__ == "__main__":
    main()
