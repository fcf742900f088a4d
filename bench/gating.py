"""Gated nets beside static ones on CIFAR-10, from one float net per topology and seed; accuracy and work on all test images.

    python bench/gating.py --data DIR [--epochs 6] [--rows NAME ...]
    python bench/gating.py --data DIR --epochs 20 --float-epochs 40 --parents resnet20=zoo:cifar10-resnet20-float ...

"float" rows train a net from scratch (SGD, cosine) for `--epochs`. All rows but these and the "static" ones start from the float
net of their topology and train it for as many epochs again, all in the same way: Adam, cosine. "dense" rows
do that without changing the net: the distance to them is the cost of gates and quantizers. FBS lowers the share of channels in
steps, within the same epochs. With --parents, nets of a topology start from the net that is named for it, and there is no float row.
"static" rows are narrower nets with the MACs that the row beside them really spent: as many
epochs as a float net, then as many as the others.
Work is counted by `bw.count_macs` on every test image: MACs per image, their 5th, 50th and 95th percentile, the reduction
against all gates open, and bit operations (a float counts 32 bits).

You can stop and restart it: rows in the CSV are skipped, and a row that was stopped continues from its checkpoint. Several processes
may share one CSV when their --rows differ and the float rows exist. Accuracy is that of the last epoch, never of the best.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bitwright as bw
from bitwright.experiment import Experiment
from bitwright.measure.machine import machine
from bitwright.runs import Run, dataset
from bitwright.runs.build import normalized
from methods import ENDS, ROOT, read, write

W8 = {"part": "sign_magnitude", "bits": 8}
OPEN = [{**rule, "gate": "float"} for rule in ENDS]
STEPS = (0.9, 0.7, 0.5)  # of FBS


@dataclass(frozen=True)
class Row:
    """One result.

    rules     of a stage, each net from the float net of `model`; none: the float net, or with `on` that net trained further
    keep      of FBS: the share of channels at the end
    like      of a static net: the row whose MACs it has
    """

    name: str
    model: str = "resnet20"
    rules: tuple[dict[str, Any], ...] = ()
    keep: float = 0.0
    on: bool = False
    like: str = ""

    @property
    def starts(self) -> bool:
        """Whether it starts from the float net."""
        return bool(self.rules or self.keep or self.on)


def quantized(w: Any, x: Any, gate: dict[str, Any] | None = None) -> tuple[dict[str, Any], ...]:
    gated = [{"match": "*conv1", "kind": "Conv2d", "gate": gate}] if gate else []
    return ({"match": "*", "w": w, "x": x}, *gated, *OPEN)


def pact(bits: int, top: int = 0) -> tuple[dict[str, Any], ...]:
    """8-bit weights, PACT inputs; with `top`, precision gating of the first conv of each block."""
    gate = {"part": "precision_gate", "bits": bits, "top": top, "target": 1.0, "weight": 1e-3}
    return quantized(W8, {"part": "pact", "bits": bits}, gate if top else None)


def uniform(bits: int) -> tuple[dict[str, Any], ...]:
    return quantized({"part": "uniform", "bits": 8, "granularity": "channel"},
                     {"part": "uniform", "bits": bits, "observer": "percentile"})  # fmt: skip


def channels(match: str, target: float) -> tuple[dict[str, Any], ...]:
    gate = {"part": "channel_gate", "splits": 4, "group": True, "target": target}
    return ({"match": match, "kind": "Conv2d", "gate": gate}, *OPEN)


ROWS = [
    Row("float"),
    Row("float post-activated", "resnet20_postact"),
    Row("dense", on=True),
    Row("dense post-activated", "resnet20_postact", on=True),
    Row("FBS keep 0.7", keep=0.7),
    Row("FBS keep 0.5", keep=0.5),
    Row("CG original", rules=channels("*conv1", 1.0)),
    Row("CG post-activated", "resnet20_postact", channels("*", 0.6)),
    Row("static of CG original", like="CG original"),
    Row("static of CG post-activated", "resnet20_postact", like="CG post-activated"),
    Row("PG 3/2", rules=pact(3, 2)),
    Row("PG 8/4", rules=pact(8, 4)),
    Row("PACT 2", rules=pact(2)),
    Row("PACT 3", rules=pact(3)),
    Row("PACT 8", rules=pact(8)),
    Row("uniform 3", rules=uniform(3)),
    Row("uniform 8", rules=uniform(8)),
]


def float_row(row: Row) -> Row:
    """The float net of a row's topology."""
    return next(r for r in ROWS if r.model == row.model and not r.starts and not r.like)


def stages(row: Row, epochs: int, float_epochs: int) -> list[dict[str, Any]]:
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    schedule = {"name": "cosine", "warmup": 0.5}
    first = {"epochs": float_epochs, "optimizer": sgd, "schedule": schedule}
    then = {"epochs": epochs, "optimizer": {"name": "adam", "lr": 1e-3}, "schedule": schedule}
    if row.keep:
        return [
            {**then, "epochs": count, "rule": [{"match": "*", "kind": "Conv2d", "gate": {"part": "fbs", "keep": keep}}, *OPEN]}
            for keep, count in steps(row.keep, epochs)
        ]  # fmt: skip
    if row.starts:
        return [{**then, "rule": list(row.rules)}]
    return [first, then] if row.like else [first]


def steps(keep: float, epochs: int) -> list[tuple[float, int]]:
    """(share, epochs): a quarter of the epochs for each share on the way, the rest for the last.

    >>> steps(0.5, 6), steps(0.5, 1)
    ([(0.9, 1), (0.7, 1), (0.5, 4)], [(0.5, 1)])
    """
    on_the_way = [s for s in STEPS if s > keep][: epochs - 1]
    each = max(1, epochs // 4)
    return [*((s, each) for s in on_the_way), (keep, epochs - each * len(on_the_way))]


def width_for(model: str, macs: float) -> float:
    """The width at which a net's MACs per image are nearest to `macs`."""

    def of(width: float) -> int:
        return bw.cost(bw.models.create(model, width=width), torch.zeros(1, 3, 32, 32)).totals["macs"]

    return min((n / 64 for n in range(8, 65)), key=lambda width: (abs(of(width) - macs), width))


def count(experiment: Experiment, net: torch.nn.Module) -> dict[str, Any]:
    """Work on every test image."""
    with bw.count_macs(net.eval()) as macs, torch.inference_mode():
        for images, _ in dataset(experiment, "test").batches(250, normalize=normalized(experiment)):
            net(images)
    spread, n = macs.spread(), macs.samples
    return {
        "counted_images": n, "macs": round(macs.total / n), "dense_macs": macs.dense // n,
        "mac_reduction": round(macs.reduction, 4), "macs_p5": spread["p5"], "macs_p50": spread["p50"],
        "macs_p95": spread["p95"], "bops": round(macs.bops / n),
        "bops_reduction": round(macs.dense_bops / macs.bops, 4),
        "gates_on": round(sum(macs.fired.values()) / sum(macs.decided.values()), 4) if macs.rates else "",
    }  # fmt: skip


def run_row(row: Row, seed: int, args: argparse.Namespace, done: list[dict[str, Any]]) -> dict[str, Any]:
    def folder(r: Row) -> Path:
        return Path(args.runs) / f"{r.name.replace(' ', '-').replace('/', '')}-{seed}"

    model: dict[str, Any] = {"name": row.model}
    if row.starts:
        model["weights"] = args.parents.get(row.model) or (folder(float_row(row)) / "model.safetensors").as_posix()
    if row.like:
        macs = next((float(r["macs"]) for r in done if r["row"] == row.like and r["seed"] == str(seed)), None)
        if macs is None:
            raise SystemExit(f"{row.name}: first run --rows '{row.like}': its MACs are not in the CSV yet")
        model["width"] = width_for(row.model, macs)
    experiment = Experiment.model_validate(
        {
            "seed": seed,
            "data": {"name": "cifar10", "root": args.data, "limit": args.limit, "limit_test": args.limit},
            "model": model,
            "stage": stages(row, args.epochs, args.float_epochs),
            "train": {"threads": args.threads, "precision": args.precision, "device": args.device},
            "log": {"tensorboard": False, "histograms_every": 0, "health_every": 100},
        }
    )
    run = Run(folder(row))
    print(f"== {row.name}, seed {seed}", flush=True)
    result = bw.train(experiment, run.path, resume=run.has("experiment.toml"), echo=lambda t: print(t, flush=True))
    facts = machine(args.threads)
    last = stages(row, args.epochs, args.float_epochs)[-1]
    return {
        "row": row.name, "seed": seed, "model": row.model, "width": model.get("width", 1),
        "gate": _gate(last.get("rule", [])), "epochs": args.epochs, "images": args.limit or "all",
        "accuracy": round(result.top1, 4), "test_images": result.images, **count(experiment, run.model()),
        "seconds": round(result.seconds), **{key: facts[key] for key in ("cpu", "threads", "torch", "bitwright", "date")},
    }  # fmt: skip


def _gate(rules: list[dict[str, Any]]) -> str:
    """The slots that the rules set, in words."""
    found = {}
    for rule in rules:
        found |= {slot: value for slot in ("w", "x", "gate") if isinstance(value := rule.get(slot), dict)}
    return ", ".join(f"{slot} {' '.join(map(str, value.values()))}" for slot, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=None, help="where cifar-10-batches-py lies (default: BITWRIGHT_DATA)")
    parser.add_argument("--rows", nargs="*", default=None, choices=[row.name for row in ROWS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=6, help="of every row; the same for all")
    parser.add_argument("--float-epochs", type=int, default=None, help="of the float nets. [default: --epochs]")
    parser.add_argument("--parents", nargs="*", default=[], metavar="MODEL=WEIGHTS", help="float nets to start from")
    parser.add_argument(
        "--limit", type=int, default=None, help="images of training and of the test: a trial, no result"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", default=str(ROOT / "runs" / "gating"), help="run directories")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "gating.csv"), help="the CSV file")
    args = parser.parse_args()
    args.float_epochs = args.float_epochs or args.epochs
    args.parents = dict(p.split("=", 1) for p in args.parents)
    path = Path(args.out)
    named = [row for row in ROWS if args.rows is None or row.name in args.rows]
    wanted = [*named, *(float_row(row) for row in named if row.starts and row.model not in args.parents)]
    for seed in args.seeds:
        for row in ROWS:
            there = any(r["row"] == row.name and r["seed"] == str(seed) for r in read(path))
            if there or row not in wanted:
                continue
            record = run_row(row, seed, args, read(path))
            write(path, [*read(path), record])  # read again: another process may have written its rows meanwhile


if __name__ == "__main__":
    main()
