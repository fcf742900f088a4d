"""Does PCA choose the right layers? CIFAR-100, one schedule for all: binary, all 2-bit, hybrid by PCA, random hybrids.

    python bench/hybrid.py --data DIR               # all rows, 8 epochs each
    python bench/hybrid.py --data DIR --epochs 15 --rows "plain 1/1" "hybrid 2/2"

Rows, in their order: `plain 1/1` trains resnet20_plain with one bit, `bitwright analyze` on it writes hybrid.toml and the random
choices beside it (equal extra weight bits, shortcuts float);
then bireal_resnet20 is trained with each recipe, from
scratch, on the same schedule and seed: `1/1`, `2/2`, `hybrid 2/2`, `random-0` ... Each row is converted and checked on test
images, and then written to docs/results/hybrid.csv: accuracy of the last epoch, bytes of the packed file, energy efficiency
and compression as `bitwright cost --energy hybrid45` counts them. In the end the packed nets of all rows are timed side by
side, one image on one thread. You can stop and restart it: rows in the CSV are skipped, and a row that was stopped continues from
its checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import bitwright as bw
from bitwright.cli.run import run as command
from bitwright.experiment import Experiment
from bitwright.measure.machine import machine
from bitwright.runs import Run, dataset, example_of
from bitwright.runs.build import normalized
from bitwright.timing import clock_for, interleave
from methods import read, write

ROOT = Path(__file__).resolve().parent.parent
PLAIN = "plain 1/1"
ROUNDS = 31  # of timing
SIDES = {"ms": "median", "ms_q1": "q1", "ms_q3": "q3"}
VERIFIED = 2000  # test images on which the packed net is compared with the trained one


@dataclass(frozen=True)
class Row:
    """One result. recipe: the choice of layers, as `bitwright analyze --baselines` names its file."""

    name: str
    model: str
    recipe: str


def rows(random: int) -> list[Row]:
    net = "bireal_resnet20"
    return [
        Row(PLAIN, "resnet20_plain", "xnor"), Row("1/1", net, "binary"), Row("2/2", net, "kbit"),
        Row("hybrid 2/2", net, "pca"), *(Row(f"random-{i}", net, f"random-{i}") for i in range(random)),
    ]  # fmt: skip


def experiment_of(row: Row, recipe: str, args: argparse.Namespace) -> Experiment:
    model: dict[str, Any] = {"name": row.model}
    if row.name != PLAIN:
        model["activation"] = "identity"  # the norm and the quantizer of the slot stand there
    return Experiment.model_validate(
        {
            "seed": args.seed,
            "data": {"name": "cifar100", "root": args.data, "limit": args.images, "limit_test": args.test_images},
            "model": model,
            "stage": [
                {
                    "recipe": recipe,
                    "epochs": args.epochs,
                    "optimizer": {"name": "adam", "lr": args.lr},
                    "schedule": {"name": "cosine", "warmup": 0.5},
                }
            ],
            "train": {"threads": args.threads, "precision": args.precision, "device": args.device},
            "log": {"tensorboard": False, "histograms_every": 0, "health_every": 100},
        }
    )


def choices(plain: Run, args: argparse.Namespace) -> Path:
    """The recipes of all choices, once the plain net is trained."""
    folder = plain.file(f"choices-delta{args.delta:g}")
    if len(list(folder.glob("random-*.toml"))) < args.random:
        shutil.rmtree(folder, ignore_errors=True)
        words = ["analyze", "pca", str(plain.path), "--for", "bireal_resnet20", "--baselines", str(folder)]
        words += ["--random", str(args.random), "--seed", str(args.seed), "--delta", str(args.delta), "--plain"]
        if command(words) != 0:
            raise SystemExit("the analysis failed")
    return folder


def run_row(row: Row, plain: Run, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    recipe = row.recipe
    if row.name != PLAIN:
        if not plain.has("model.safetensors"):
            raise SystemExit(f"row {row.name!r} needs row {PLAIN!r} first")
        recipe = (choices(plain, args) / f"{row.recipe}.toml").as_posix()
    experiment = experiment_of(row, recipe, args)
    run = run_of(row, folder)
    print(f"== {row.name}, seed {args.seed}", flush=True)
    result = bw.train(experiment, run.path, resume=run.has("experiment.toml"), echo=lambda t: print(t, flush=True))
    chosen = plain_choice(plain, row)
    return {
        "row": row.name, "model": row.model, "seed": args.seed, "epochs": args.epochs, "images": args.images or "all",
        "layers": " ".join(chosen), "accuracy": round(result.top1, 4), "test_images": result.images,
        **packed(run, experiment, args), "lr": args.lr, "seconds": round(result.seconds),
        "epoch_seconds": round(median(float(r["seconds"]) for r in run.read_csv("metrics.csv"))),  # pauses do not count
    }  # fmt: skip


def run_of(row: Row, folder: Path) -> Run:
    return Run(folder / ("plain" if row.name == PLAIN else row.name.replace(" ", "-").replace("/", "")))


def timed(records: list[dict[str, Any]], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The records with ms of their packed nets: all of them side by side, in one run."""
    torch.set_num_threads(1)
    x, calls = torch.randn(1, 3, 32, 32), {}
    for row in rows(args.random):
        run = run_of(row, folder)
        if run.has("packed.safetensors"):
            calls[row.name] = partial(bw.load(run.file("packed.safetensors")), x)
    with torch.inference_mode():
        found = interleave(calls, rounds=ROUNDS, clock=clock_for(1)[0])
    for r in records:
        time = found.get(r["row"]) if (r["seed"], r["epochs"]) == (str(args.seed), str(args.epochs)) else None
        for key in ("ms", "ms_q1", "ms_q3"):
            r[key] = r.get(key, "") if time is None else round(1000 * getattr(time, SIDES[key]), 4)
    return records


def plain_choice(plain: Run, row: Row) -> list[str]:
    """Layers of 2 bits, from the analysis kept in the run of the plain net."""
    found = [c for c in plain.read_json("pca.json").get("compared", []) if c["choice"] == row.recipe]
    return list(found[0]["layers"]) if found else []


def packed(run: Run, experiment: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """Bytes, equality and time of the packed net, and its counted cost."""
    torch.set_num_threads(1)
    images = dataset(experiment, "test").limit(VERIFIED)
    net, x = run.model(), example_of(experiment, images, 1)
    batches = images.batches(200, normalize=normalized(experiment))
    converted = bw.convert(net, x, verify=batches, threads=1)
    report, facts = converted.report, machine(1)
    if converted.model is not None:
        converted.save(run.file("packed.safetensors"))
    runs_as = [r.runs_as for r in report.rows]
    totals = bw.cost(net, x, energy="hybrid45").totals
    return {
        "verdict": report.status, "same": f"{report.same} of {report.images}", "bytes": report.file_bytes,
        "storage_bytes": round(totals["storage_bytes"]), "compression": round(totals["compression"], 2),
        "energy_efficiency": round(totals["energy_efficiency"], 2), "bops": totals["bops"],
        "ms": "", "ms_q1": "", "ms_q3": "",
        "runs_as": ", ".join(f"{runs_as.count(kind)} {kind}" for kind in dict.fromkeys(runs_as)),
        **{key: facts[key] for key in ("kernels", "isa", "cpu", "torch", "bitwright", "date")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=None, help="where cifar-100-python lies (default: BITWRIGHT_DATA)")
    parser.add_argument("--rows", nargs="*", default=None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--random", type=int, default=3, help="random choices of layers")
    parser.add_argument("--delta", type=float, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=None, help="fewer training images, to try the script")
    parser.add_argument("--test-images", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", default=str(ROOT / "runs" / "hybrid"), help="run directories")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "hybrid.csv"))
    args = parser.parse_args()
    trial = f"-{args.images}" if args.images else ""
    path, folder = Path(args.out), Path(args.runs) / f"seed{args.seed}-epochs{args.epochs}{trial}"
    folder.mkdir(parents=True, exist_ok=True)
    plain = Run(folder / "plain")
    for row in rows(args.random):
        key = {"row": row.name, "seed": str(args.seed), "epochs": str(args.epochs)}
        there = any(all(r[k] == v for k, v in key.items()) for r in read(path))
        if there or (args.rows is not None and row.name not in args.rows):
            continue
        record = run_row(row, plain, folder, args)
        write(path, [*read(path), record])  # read again: another process may have written its rows meanwhile
    if read(path):
        write(path, timed(read(path), args, folder))


if __name__ == "__main__":
    main()
