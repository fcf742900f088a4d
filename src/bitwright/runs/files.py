"""The files of a run directory, each with what it holds: the one list that `--force`, the documentation and tests go by."""

from __future__ import annotations

import shutil
from pathlib import Path

LOCK = "train.lock"  # only while a training runs; see `lock.py`

FILES = {
    "experiment.toml": "the experiment as run: overrides and defaults filled in",
    "command.txt": "the command line",
    "machine.json": "CPU, instruction sets, versions",
    "state.json": "status, stage, epoch, test accuracy, warnings so far, pictures left out",
    "last.ckpt": "everything needed to go on",
    "model.safetensors": "the weights of the last epoch: results quote these",
    "best.safetensors": "the best epoch on held-out images, with data.val",
    "metrics.csv": "a row per epoch",
    "health.csv": "a row per epoch and low-bit layer",
    "gates.csv": "a row per epoch and gate",
    "gate_classes.csv": "a row per gate and class",
    "compute.csv": "work per test image of a net with gates",
    "compute.safetensors": "the images of least and most work",
    "work.json": "what the work of a net with gates is made of",
    "connections.csv": "a row per epoch and layer of 0/1 weights",
    "sweep.csv": "a row per sweep in training, norm mode and weight value",
    "sweep.json": "what analyze --judge weight_sweep found",
    "pca.json": "what analyze found",
    "hybrid.toml": "the recipe that follows from it",
    "predictions.csv": "what the net said of each test image",
    "worst.safetensors": "the surest mistakes",
    "classes.json": "names of the classes",
    "skipped.csv": "pictures that could not be read and were left out, with data.skip_bad",
    "packed.safetensors": "the packed net",
    "convert.json": "the proof",
    "layers.csv": "a row per layer",
    "procedures.json": "what the procedures of stages and of compress did: a row per layer, and the recipe they left",
    "compressed.safetensors": "the net as compress left it",
    "bench.json": "times beside other programs",
    "results.csv": "a row per net and peer",
    "report.html": "the page",
    "error.txt": "details of an internal error",
}
FOLDERS = {
    "stages": "the net as each stage left it",
    "tensorboard": "curves and histograms",
    "code": "the Python files that the experiment named",
}


def clear(path: Path, keep: tuple[str, ...] = ()) -> None:
    """Removes what a run wrote; anything else in the folder is the user's."""
    for name in FILES:
        if name not in keep:
            (path / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if name not in keep:
            shutil.rmtree(path / name, ignore_errors=True)
