"""The zoo's float ResNet-20 on CIFAR-10 put on a few levels with 500 unlabeled images: accuracy, beside plain rounding.

    python bench/l_dnq.py --data DIR                 all rows
    python bench/l_dnq.py --data DIR --rows ternary  one of them

Each row starts from the float net. "rounded" takes the nearest levels for the scale of least squared error, and nothing else;
"without H" is the whole method (norm statistics estimated anew, the cascade after each layer), but with such rounding, which ignores
the layer's inputs; "layers alone" leaves the cascade out. Every layer is on the levels, also the first and the last. Writes
l_dnq.csv; rows that it has already are skipped.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitwright as bw
from bitwright.errors import BitwrightWarning
from bitwright.measure.machine import machine
from methods import ROOT, read, write

NET = "cifar10-resnet20-float"
BATCHES, SIZE = 4, 125
PLAIN = {"iterations": 0, "sweeps": 0}
ROWS: dict[str, dict[str, Any] | None] = {
    "float": None,
    "ternary rounded": {"levels": "ternary", "cascade": False, "norms": "keep", **PLAIN},
    "ternary without H, layers alone": {"levels": "ternary", "cascade": False, **PLAIN},
    "ternary without H": {"levels": "ternary", **PLAIN},
    "ternary layers alone": {"levels": "ternary", "cascade": False},
    "ternary": {"levels": "ternary"},
    "ternary per channel": {"levels": "ternary", "per_channel": True},
    "pow2:7 rounded": {"levels": "pow2:7", "cascade": False, "norms": "keep", **PLAIN},
    "pow2:7 without H, layers alone": {"levels": "pow2:7", "cascade": False, **PLAIN},
    "pow2:7 without H": {"levels": "pow2:7", **PLAIN},
    "pow2:7 layers alone": {"levels": "pow2:7", "cascade": False},
    "pow2:7": {"levels": "pow2:7"},
}


def run_row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    options = ROWS[name]
    net = bw.zoo.load(NET, form="float").eval()
    train, test = (bw.data.load("cifar10", root=args.data, split=split) for split in ("train", "test"))
    test = test.limit(args.images) if args.images else test
    batches = list(islice(train.batches(SIZE, shuffle=True, seed=args.seed, normalize=True), BATCHES))
    record: dict[str, Any] = {"row": name, "options": "", "images": len(batches) * SIZE, "seed": args.seed}
    start, worst = time.perf_counter(), None
    if options is not None:
        report = bw.procedures.l_dnq(net, batches, seed=args.seed, **options)
        worst = max(report.rows, key=lambda row: row.relative)
        record["options"] = " ".join(f"{key}={value}" for key, value in options.items())
    record["seconds"] = round(time.perf_counter() - start, 1)
    record["worst_layer"] = f"{worst.layer} {100 * worst.relative:.2g} %" if worst else ""
    record |= {"accuracy": round(share(net, test), 4), "test_images": len(test), "file_bytes": "", "verdict": ""}
    if options is not None:
        packed = bw.convert(net, batches[0][0])
        with tempfile.TemporaryDirectory() as folder:
            packed.save(Path(folder) / "packed.safetensors")
            record["file_bytes"] = (Path(folder) / "packed.safetensors").stat().st_size
        record["verdict"] = packed.report.status
    else:
        record["file_bytes"] = 4 * sum(p.numel() for p in net.parameters())
    return record | machine(args.threads)


@torch.no_grad()
def share(net: nn.Module, images: Any) -> float:
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in images.batches(500, normalize=True))
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=None, help="where CIFAR-10 lies (default: BITWRIGHT_DATA)")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=0, help="test images, for a trial (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "l_dnq.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", BitwrightWarning)
    for name in args.rows:
        if any(r["row"] == name for r in read(args.out)):
            continue
        record = run_row(name, args)
        print(
            {k: record[k] for k in ("row", "accuracy", "seconds", "worst_layer", "file_bytes", "verdict")}, flush=True
        )
        found = [*read(args.out), record]  # read again: other rows may have run beside this one
        write(args.out, sorted(found, key=lambda r: list(ROWS).index(r["row"])))


if __name__ == "__main__":
    main()
