"""What stands in the place of missing data: one sentence why, and the command that fills it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from bitwright.reporting.sections import RunData


@dataclass(frozen=True)
class Gap:
    why: str
    command: str


def gaps(run: RunData) -> dict[str, Gap]:
    """By section; only sections (or pieces of one) that lack something."""
    commands = _run_commands(run.origin.path) if run.origin.path is not None else _PYTHON
    found = {key: Gap(why, commands[key]) for key, why in _reasons(run).items()}
    return found


def _reasons(run: RunData) -> dict[str, str]:
    reasons: dict[str, str] = {}
    training = run.training
    if run.conversion is None:
        reasons["convert"] = "This net has not been packed, so size and equality are unknown."
    if not run.layers:
        reasons["layers"] = "No layer has been packed, so there is nothing to share out."
    if run.speed is None:
        reasons["speed"] = "Not measured against other programs."
    if run.file_bytes is None or (run.accuracy is None and run.trained_accuracy is None):
        reasons["worth"] = "Accuracy and size of the packed net are not both known."
    if training is None or not training.epochs:
        reasons["curves"] = "No epoch of training is recorded."
    if training is None or not any(h.flips is not None for h in training.health):
        reasons["flips"] = "Sign flips were not recorded, or no layer has low-bit weights."
    if not run.histograms:
        reasons["weights"] = "There are no latent weights of a low-bit layer to look at."
    if run.errors is None:
        reasons["errors"] = "The answers to the test images are not recorded."
    elif not run.errors.mistakes and run.errors.right < run.errors.images:
        reasons["mistakes"] = "The images of the surest mistakes are not recorded."
    if run.gates is not None and not run.gates.macs:
        reasons["gates"] = "What each test image costs is not recorded."
    if run.selfprune is not None and not run.selfprune.sweeps:
        reasons["sweep"] = "Accuracy over the weight value was not measured."
    if training is not None and training.status in ("training", "stopped"):
        reasons["unfinished"] = "Training has not finished; the figures are of the last epoch so far."
    return reasons


def _run_commands(path: str) -> dict[str, str]:
    run, again = shlex.quote(path), shlex.quote(f"{path}/experiment.toml")
    convert, resume = f"bitwright convert {run}", f"bitwright train {again} --out {run} --resume"
    watched = f"bitwright train {again} log.health_every=25 --out {shlex.quote(path + '-watched')}"
    return {
        "convert": convert, "layers": convert, "worth": convert, "speed": f"bitwright bench {run}",
        "curves": resume, "flips": watched, "weights": resume, "unfinished": resume,
        "errors": f"bitwright eval {run}", "mistakes": f"bitwright eval {run}", "gates": f"bitwright eval {run}",
        "sweep": f"bitwright analyze {run} --judge weight_sweep",
    }  # fmt: skip


_TRAIN = "bitwright train digits-lenet5-bwn --out runs/mine"
_REPORT = 'bw.report([bw.convert(model, example), bw.bench(model, example)], "report.html")'
_PYTHON = {
    "convert": _REPORT, "layers": _REPORT, "worth": _TRAIN, "speed": _REPORT, "curves": _TRAIN, "flips": _TRAIN,
    "weights": _TRAIN, "unfinished": _TRAIN, "errors": _TRAIN, "mistakes": _TRAIN, "gates": _TRAIN, "sweep": _TRAIN,
}  # fmt: skip
