"""The path of a newcomer, as README tells it: train a shipped experiment, convert, bench, report. About an hour on one core.

    python bench/newcomer.py --data DIR [--runs DIR]

Six epochs a stage instead of twenty. A finished step is not done again; a training that was stopped continues. The run's
metrics and results are copied to docs/results/newcomer_*.csv.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from bitwright.cli.run import run as bitwright
from bitwright.runs import Run

ROOT = Path(__file__).resolve().parent.parent
NAME = "cifar10-bireal_resnet20-bireal"
OVERRIDES = ["stage.0.epochs=6", "stage.1.epochs=6", "train.threads=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=None, help="holds cifar-10-batches-py (default: BITWRIGHT_DATA)")
    parser.add_argument("--runs", default=str(ROOT / "runs"))
    parser.add_argument("--out", default=str(ROOT / "docs" / "results"))
    args = parser.parse_args()
    if args.data:
        os.environ["BITWRIGHT_DATA"] = args.data
    run = Run(Path(args.runs) / NAME)
    place = str(run.path)
    steps = {
        "model.safetensors": [
            "train",
            NAME,
            *OVERRIDES,
            "--out",
            place,
            *(["--resume"] if run.has("last.ckpt") else []),
        ],
        "packed.safetensors": ["convert", place],
        "bench.json": ["bench", place],
        "report.html": ["report", place],
    }
    for made, words in steps.items():
        if not run.has(made) and (code := bitwright(words)):
            raise SystemExit(code)
    for name in ("metrics.csv", "results.csv"):
        shutil.copyfile(run.file(name), Path(args.out) / f"newcomer_{name}")


if __name__ == "__main__":
    main()
