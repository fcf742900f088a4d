"""Nets that prune themselves on MNIST and Fashion-MNIST, 1-bit pixels: accuracy, what is on, and the weight sweep.

    python bench/selfprune.py --data DIR               all rows, 15 epochs each
    python bench/selfprune.py --data DIR --rows mnist "mnist float"

Rows are shipped experiments with other epochs: the self-pruning net 784-4000x3-10 on both sets, the float MLP on the same
pixels beside it, and the published setting, whose schedule is meant for 60 epochs. Per row, into three CSV files:

    selfprune.csv         accuracy of the last epoch, with running statistics and with statistics estimated anew from 10,000
                          training images; share of weights that are on, live hidden units, bytes of the packed file
    selfprune_epochs.csv  accuracy and share of weights on after each epoch
    selfprune_sweep.csv   accuracy over the value of all weights, in the three norm modes, on all test images

The nets are large and few of their weights matter, so a step is bound by memory; where malloc gives large blocks back to the
system after each use (glibc), `MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=8000000000` avoids that.
You can stop and restart it: rows in the CSV are skipped, and a row that was stopped continues from its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bitwright as bw
from bitwright.analysis.connections import Connections, connections
from bitwright.experiment import Experiment, load
from bitwright.measure.machine import machine
from bitwright.runs import Run, dataset, example_of
from bitwright.runs.build import normalized
from methods import ROOT, read, write

STATISTICS = 10_000  # training images for statistics estimated anew
SWEPT = [i / 10 for i in (0, 1, 2, 3, 5, 7, 10, 12, 15, 20, 25, 30, 35, 40)] + [5.0, 10.0, 100.0]


@dataclass(frozen=True)
class Row:
    """One result: a shipped experiment.

    swept   whether selfprune_sweep.csv gets its rows: a sweep takes as long as several epochs
    """

    name: str
    experiment: str
    swept: bool = True


ROWS = [
    Row("mnist", "mnist-selfprune_mlp-selfprune"),
    Row("fashion", "fashion-mnist-selfprune_mlp-selfprune"),
    Row("mnist float", "mnist-mlp-float-pixels1"),
    Row("fashion float", "fashion-mnist-mlp-float-pixels1"),
    Row("mnist published", "mnist-selfprune_mlp-selfprune-published", swept=False),
]


def experiment_of(row: Row, args: argparse.Namespace) -> Experiment:
    settings = [
        f"stage.0.epochs={args.epochs}", f"train.threads={args.threads}", f"train.device={args.device}",
        f"seed={args.seed}", "log.tensorboard=false", "log.histograms_every=0", "train.checkpoint_every=100",
        "log.sweep_every=0",
    ]  # fmt: skip
    settings += [f"model.hidden={args.hidden}"] if args.hidden else []
    settings += [f"data.root={args.data}"] if args.data else []
    settings += [f"data.limit={args.images}", f"data.limit_test={args.images}"] if args.images else []
    return load(row.experiment, settings)


def batches(experiment: Experiment, split: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    images = dataset(experiment, split)
    images = images if limit is None else images.limit(limit)
    yield from images.batches(1000, normalize=normalized(experiment))


class Statistics:
    """The first training images, again each time they are asked for."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.experiment, "train", STATISTICS)


def sweeps(run: Run, experiment: Experiment, modes: tuple[str, ...], values: list[float]) -> list[dict[str, Any]]:
    """Rows of selfprune_sweep.csv."""
    found = []
    for norm in modes:
        train = Statistics(experiment) if norm == "recalibrate" else None
        sweep = bw.analyze.weight_sweep(run.model(), batches(experiment, "test"), on=values, norm=norm, train=train)
        found += [{"norm": norm, **row, "digital": sweep.digital} for row in sweep.rows]
    return found


def run_row(row: Row, args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    experiment = experiment_of(row, args)
    trial = f"-{args.hidden or ''}-{args.images or ''}" if args.hidden or args.images else ""
    run = Run(Path(args.runs) / f"{row.name.replace(' ', '-')}-{args.seed}-epochs{args.epochs}{trial}")
    print(f"== {row.name}, seed {args.seed}", flush=True)
    result = bw.train(experiment, run.path, resume=run.has("experiment.toml"), echo=lambda t: print(t, flush=True))
    torch.set_num_threads(args.threads)
    facts, key = machine(args.threads), {"row": row.name, "seed": args.seed, "epochs": args.epochs}
    record: dict[str, Any] = {
        **key, "experiment": row.experiment, "images": args.images or "all", "accuracy": round(result.top1, 4),
        "accuracy_recalibrated": "", "test_images": result.images, "weights": "", "on_share": "", "hidden_units": "",
        "live_units": "", "file_bytes": 4 * sum(p.numel() for p in run.model().parameters()), "verdict": "",
    }  # fmt: skip
    swept: list[dict[str, Any]] = []
    curve = [
        {**key, "epoch": int(r["epoch"]) + 1, "accuracy": r["test_top1"], "on_share": ""}
        for r in run.read_csv("metrics.csv")
    ]
    if "float" not in row.name:
        if row.swept:
            swept = [{**key, **r} for r in sweeps(run, experiment, ("running", "recalibrate", "batch"), SWEPT)]
        evaluated = swept or sweeps(run, experiment, ("recalibrate",), [1.0])
        one = next(r for r in evaluated if r["norm"] == "recalibrate" and r["on"] == 1.0)
        net, example = run.model(), example_of(experiment, dataset(experiment, "test"), 2)
        found = connections(net, example)
        for point, counts in zip(curve, on_shares(run), strict=True):
            point["on_share"] = counts
        converted = bw.convert(net, example, verify=batches(experiment, "test", 2000), threads=args.threads)
        if converted.model is not None:
            converted.save(run.file("packed.safetensors"))
        record |= {
            "accuracy_recalibrated": round(one["accuracy"], 4), "weights": found.weights, "on_share": found.share,
            "hidden_units": found.units - found.rows[-1].units, "live_units": hidden_live(found),
            "file_bytes": converted.report.file_bytes, "verdict": converted.report.status,
        }  # fmt: skip
    record |= {
        "seconds": round(result.seconds),
        **{k: facts[k] for k in ("cpu", "threads", "torch", "bitwright", "date")},
    }
    return record, curve, swept


def hidden_live(found: Connections) -> int | str:
    """Live units of all layers but the classifier."""
    live = [r.live for r in found.rows[:-1]]
    return "" if None in live else sum(n for n in live if n is not None)


def on_shares(run: Run) -> list[float]:
    """Share of weights on after each epoch, from connections.csv."""
    totals: dict[tuple[int, int], list[int]] = {}
    for r in run.read_csv("connections.csv"):
        sums = totals.setdefault((int(r["stage"]), int(r["epoch"])), [0, 0])
        sums[0] += int(r["on"])
        sums[1] += int(r["weights"])
    return [on / weights for on, weights in totals.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=None, help="where MNIST and FashionMNIST lie (default: BITWRIGHT_DATA)")
    parser.add_argument("--rows", nargs="*", default=None, choices=[row.name for row in ROWS])
    parser.add_argument("--epochs", type=int, default=15, help="of every row; the same for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=None, help="of training and of the test: a trial, no result")
    parser.add_argument("--hidden", type=int, default=None, help="units of a hidden layer: a trial, no result")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", default=str(ROOT / "runs" / "selfprune"), help="run directories")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results"), help="CSV files")
    args = parser.parse_args()
    files = [Path(args.out) / f"selfprune{name}.csv" for name in ("", "_epochs", "_sweep")]
    for row in ROWS:
        key = {"row": row.name, "seed": str(args.seed), "epochs": str(args.epochs)}
        there = any(all(r[k] == v for k, v in key.items()) for r in read(files[0]))
        if there or (args.rows is not None and row.name not in args.rows):
            continue
        record, curve, swept = run_row(row, args)
        for path, new in zip(
            files[1:] + files[:1], (curve, swept, [record]), strict=True
        ):  # selfprune.csv last: it says done
            kept = [r for r in read(path) if any(r[k] != v for k, v in key.items())]
            write(path, [*kept, *new])


if __name__ == "__main__":
    main()
