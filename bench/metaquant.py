"""MetaQuant beside the straight-through estimator: the same quantizer, float net, images, epochs and optimizer.

    python bench/metaquant.py --data DIR

A row trains ResNet-20 from the float net of the zoo, every layer 1 bit (the first and the last too, as in the paper), 2 epochs on
12,800 CIFAR-10 images, rate 1e-3. "STE" is `dorefa_w` with compat="seed", whose values are the published ones, -1 and +1; the
other rows put `metaquant` in its place. Accuracy is that of the last epoch on all test images. You can stop and restart it: rows in
the CSV are skipped, and a row that was stopped continues from its checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import bitwright as bw
from bitwright.experiment import Experiment
from bitwright.measure.machine import machine
from bitwright.runs import Run
from methods import ROOT, read, write

IMAGES, EPOCHS, RATE, START = 12_800, 2, 1e-3, "zoo:cifar10-resnet20-float"
GRADIENTS: dict[str, dict[str, Any]] = {
    "STE": {"part": "dorefa_w", "bits": 1, "compat": "seed"},
    "FC-Grad": {"part": "metaquant", "net": "fc_grad"},
    "MLP": {"part": "metaquant", "net": "mlp"},
    # the effect of FC-Grad's factor alone: it grows to about 5 in so few steps
    "STE, rate x 5": {"part": "dorefa_w", "bits": 1, "compat": "seed"},
}


def train(gradient: str, optimizer: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    rate = 5 * RATE if gradient.endswith("x 5") else RATE
    stage = {
        "rule": [{"match": "*", "w": GRADIENTS[gradient]}],
        "epochs": EPOCHS,
        "optimizer": {"name": optimizer, "lr": rate},
        "schedule": {"name": "cosine"},
    }
    experiment = Experiment.model_validate(
        {
            "seed": seed,
            "data": {"name": "cifar10", "root": args.data, "limit": IMAGES, "batch": 128},
            "model": {"name": "resnet20", "weights": START},
            "stage": [stage],
            "train": {"threads": args.threads, "precision": "bf16", "channels_last": True},
            "log": {"tensorboard": False, "histograms_every": 0, "health_every": 0},
        }
    )
    run = Run(Path(args.runs) / f"{gradient.replace(', ', '-').replace(' ', '-')}-{optimizer}-{seed}")
    print(f"== {gradient}, {optimizer}, seed {seed}", flush=True)
    result = bw.train(experiment, run.path, resume=run.has("experiment.toml"), echo=lambda t: print(t, flush=True))
    facts = machine(args.threads)
    return {
        "gradient": gradient, "optimizer": optimizer, "seed": seed, "epochs": EPOCHS, "images": IMAGES, "lr": rate,
        "accuracy": round(result.top1, 4), "factor": factor(run) if gradient == "FC-Grad" else "", "test_images": result.images, "seconds": round(result.seconds),
        **{key: facts[key] for key in ("cpu", "threads", "torch", "bitwright", "date")},
    }  # fmt: skip


def factor(run: Run) -> float:
    """What FC-Grad has learned: the number that multiplies every gradient; it began at 1."""
    state = load_file(run.file("model.safetensors"))
    first, second = next(value for key, value in state.items() if key.endswith(".w.meta.phi")).chunk(2)
    return round(float(first @ second), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=None, help="where the data sets lie (default: BITWRIGHT_DATA)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default=str(ROOT / "runs" / "metaquant"), help="run directories")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "metaquant.csv"))
    args = parser.parse_args()
    path = Path(args.out)
    # the paper's pair first, for every seed, so that a stop leaves a complete comparison
    groups = [(("sgd", "adam"), ("STE", "FC-Grad")), (("sgd",), ("STE, rate x 5",)), (("sgd", "adam"), ("MLP",))]
    order = [(g, o, s) for optimizers, each in groups for s in args.seeds for o in optimizers for g in each]
    for gradient, optimizer, seed in order:
        row = {"gradient": gradient, "optimizer": optimizer, "seed": str(seed)}
        if not any(row.items() <= r.items() for r in read(path)):
            record = train(gradient, optimizer, seed, args)
            write(path, [*read(path), record])


if __name__ == "__main__":
    main()
