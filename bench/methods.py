"""Test accuracy of the quantizers, from one float net per topology and seed: row by row, each committed to a CSV when done.

    python bench/methods.py mnist   --data DIR     XNOR LeNet-5, 15 epochs
    python bench/methods.py fashion --data DIR     every w and x part in lenet5, first and last layer float, 5 epochs
    python bench/methods.py cifar10 --data DIR     ten rows of the literature on all 50,000 images, 8 epochs each
    python bench/methods.py short   --data DIR     the other methods: 3 epochs on 10,000 CIFAR-10 images, no ranking meant

You can stop and restart it: rows in the CSV are skipped, and a row that was stopped continues from its checkpoint. Several processes
may share one CSV when their --rows differ and the float rows exist. Accuracy is that of the last epoch, never of the
best. Every row is an ordinary run directory below --runs.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitwright as bw
from bitwright.experiment import Experiment
from bitwright.measure.machine import machine
from bitwright.runs import Run

ROOT = Path(__file__).resolve().parent.parent
ENDS = [{"match": end, "w": "float", "x": "float"} for end in ("first", "last")]


@dataclass(frozen=True)
class Row:
    """One result. recipe: a shipped name; rule: slots for all layers but the first and last; neither: the float net."""

    name: str
    model: str
    epochs: int
    recipe: str = ""
    rule: dict[str, Any] | None = None
    lr: float = 1e-3
    images: int | None = None

    def stage(self) -> dict[str, Any]:
        optimizer = {"name": "adam", "lr": self.lr}
        if not self.low_bit:
            optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        stage: dict[str, Any] = {
            "epochs": self.epochs,
            "optimizer": optimizer,
            "schedule": {"name": "cosine", "warmup": 0.5},
        }
        if self.recipe:
            stage["recipe"] = self.recipe
        if self.rule is not None:
            stage["rule"] = [{"match": "*", **self.rule}, *ENDS]
        return stage

    @property
    def low_bit(self) -> bool:
        return bool(self.recipe) or self.rule is not None


def _part(name: str, **options: Any) -> dict[str, Any]:
    return {"part": name, **options}


_W = {
    "binaryconnect": _part("binaryconnect"), "bwn": _part("bwn"), "xnor": _part("xnor"), "bireal": _part("bireal"),
    "dorefa_w 1": _part("dorefa_w", bits=1), "dorefa_w 2": _part("dorefa_w", bits=2), "ttq": _part("ttq"),
    "twn": _part("twn"), "lsq 2": _part("lsq", bits=2), "uniform 4": _part("uniform", bits=4),
    "sign_magnitude 2": _part("sign_magnitude", bits=2), "kbit 2": _part("kbit", bits=2),
}  # fmt: skip
_X: dict[str, Any] = {
    "sign": ["norm", "sign"], "rsign": ["norm", "rsign"], "dorefa_a 2": _part("dorefa_a", bits=2),
    "pact 2": _part("pact", bits=2), "lsq 2": _part("lsq", bits=2, signed=False), "uniform 4": _part("uniform", bits=4),
    "sign_magnitude 2": _part("sign_magnitude", bits=2), "kbit 2": ["norm", _part("kbit", bits=2)],
}  # fmt: skip
_LENET: dict[str, Any] = {"model": "lenet5", "epochs": 5}
FASHION = [
    Row("float", **_LENET),
    *(Row(f"w {name}", rule={"w": part}, **_LENET) for name, part in _W.items()),
    *(Row(f"x {name}", rule={"x": part}, **_LENET) for name, part in _X.items()),
    Row("g dorefa_g 6", rule={"w": _part("dorefa_w", bits=1), "g": _part("dorefa_g", bits=6)}, **_LENET),
    *(Row(f"w {w}, x sign", rule={"w": w, "x": ["norm", "sign"]}, **_LENET) for w in ("bwn", "xnor", "bireal")),
    Row("w xnor, x sign, gate xnor_k", rule={"w": "xnor", "x": ["norm", "sign"], "gate": "xnor_k"}, **_LENET),
]
_RESNET: dict[str, Any] = {"model": "resnet20", "epochs": 8}
CIFAR10 = [
    Row("float", **_RESNET),
    Row("BWN", recipe="bwn", **_RESNET),
    Row("TTQ", recipe="ttq", **_RESNET),
    Row("TWN", recipe="twn", **_RESNET),
    Row("LSQ 4/4", recipe="lsq-w4a4", **_RESNET),
    Row("LSQ 2/2", recipe="lsq-w2a2", **_RESNET),
    Row("PACT 4/4", recipe="pact-w4a4", **_RESNET),
    Row("DoReFa 1/2", recipe="dorefa-w1a2", **_RESNET),
    Row("XNOR 1/1", recipe="xnor", **_RESNET),
    Row("float bireal", "bireal_resnet20", 8),
    Row("Bi-Real 1/1", "bireal_resnet20", 8, recipe="bireal"),
]
_SHORT: dict[str, Any] = {"epochs": 3, "images": 10_000}
SHORT = [
    Row("float", "resnet20", **_SHORT),
    *(
        Row(name, "resnet20", recipe=name, **_SHORT)
        for name in ("binaryconnect", "dorefa-w1a32", "dorefa-w2a2", "dorefa-w1a4", "dorefa-w1a2g6", "w1a1", "w8a8",
                     "pact-w2a2", "pact-w3a3", "pact-w5a5", "lsq-w3a3")
    ),
    Row("uniform 4/4", "resnet20", rule={"w": _W["uniform 4"], "x": _X["uniform 4"]}, **_SHORT),
    Row("sign_magnitude 2/2", "resnet20", rule={"w": _W["sign_magnitude 2"], "x": _X["sign_magnitude 2"]}, **_SHORT),
    Row("kbit 2/2", "resnet20", rule={"w": _W["kbit 2"], "x": _X["kbit 2"]}, **_SHORT),
    Row("xnor with K", "resnet20", rule={"w": "xnor", "x": ["norm", "sign"], "gate": "xnor_k"}, **_SHORT),
    Row("float bireal", "bireal_resnet20", **_SHORT),
    *(Row(name, "bireal_resnet20", recipe=name, **_SHORT) for name in ("react", "bireal8")),
]  # fmt: skip
GROUPS: dict[str, tuple[str, list[Row]]] = {
    "mnist": ("mnist", [Row("float", "lenet5", 6), Row("XNOR LeNet-5", "lenet5", 15, recipe="xnor", lr=2e-3)]),
    "fashion": ("fashion-mnist", FASHION),
    "cifar10": ("cifar10", CIFAR10),
    "short": ("cifar10", SHORT),
}


def float_row(row: Row, rows: list[Row]) -> Row:
    """The float net that a row starts from."""
    return next(r for r in rows if not r.low_bit and r.model == row.model)


def run_row(row: Row, group: str, data: str, rows: list[Row], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    folder = Path(args.runs) / group

    def path(r: Row) -> Path:
        return folder / f"{r.name.replace(' ', '-').replace('/', '').replace(',', '')}-{seed}"

    start = path(float_row(row, rows)) / "model.safetensors" if row.low_bit else None
    experiment = Experiment.model_validate(
        {
            "seed": seed,
            "data": {"name": data, "root": args.data, "limit": row.images},
            "model": {"name": row.model, "weights": start and start.as_posix()},
            "stage": [row.stage()],
            "train": {"threads": args.threads, "precision": "bf16", "device": args.device},
            "log": {"tensorboard": False, "histograms_every": 0, "health_every": 100},
        }
    )
    run = Run(path(row))
    print(f"== {group}: {row.name}, seed {seed}", flush=True)
    result = bw.train(experiment, run.path, resume=run.has("experiment.toml"), echo=lambda t: print(t, flush=True))
    facts = machine(args.threads)
    return {
        "row": row.name, "seed": seed, "model": row.model, "recipe": row.recipe or str(row.rule or "float"),
        "epochs": row.epochs, "images": row.images or "all", "lr": experiment.stage[0].optimizer.lr,
        "accuracy": round(result.top1, 4), "test_images": result.images, "seconds": round(result.seconds),
        **{key: facts[key] for key in ("cpu", "threads", "torch", "bitwright", "date")},
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Beside the target, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for r in records for k in r)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    os.replace(temporary, path)


def put(path: Path, record: dict[str, Any], keys: Sequence[str]) -> None:
    """The record into a table: in place of the row that has the same `keys`, or at its end."""
    records = read(path)
    places = [i for i, r in enumerate(records) if all(r[k] == str(record[k]) for k in keys)]
    if places:
        records[places[0]] = record
    else:
        records.append(record)
    write(path, records)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("group", choices=list(GROUPS))
    parser.add_argument("--data", default=None, help="where the data sets lie (default: BITWRIGHT_DATA)")
    parser.add_argument("--rows", nargs="*", default=None)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", default=str(ROOT / "runs" / "methods"), help="run directories")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results"), help="CSV files")
    args = parser.parse_args()
    data, rows = GROUPS[args.group]
    path = Path(args.out) / f"methods_{args.group}.csv"
    named = [row for row in rows if args.rows is None or row.name in args.rows]
    wanted = [*named, *(float_row(row, rows) for row in named)]
    for seed in args.seeds:
        for row in rows:
            there = any(r["row"] == row.name and r["seed"] == str(seed) for r in read(path))
            if there or row not in wanted:
                continue
            record = run_row(row, args.group, data, rows, seed, args)
            write(path, [*read(path), record])  # read again: another process may have written its rows meanwhile


if __name__ == "__main__":
    main()
