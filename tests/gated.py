"""A small convolutional net with all three gates, as an experiment on digits; shared by tests of training and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitwright.experiment import Experiment

GATES: dict[str, Any] = {
    "3": {"part": "fbs", "keep": 0.5},
    "6": {"part": "channel_gate", "splits": 2, "target": 0.5},
    "9": {"part": "precision_gate", "bits": 4, "top": 2, "unit": "normalized"},
}
NET = """
from torch import nn

def block(i, o, stride=1):
    return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

def small(num_classes=10, **kw):
    body = [*block(1, 8), *block(8, 8), *block(8, 12, 2), *block(12, 12)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes))
"""


def experiment(folder: Path, gates: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    """A float stage, then the gates; seven steps an epoch. `folder` gets the net's file."""
    (folder / "net.py").write_text(NET)
    rules = [{"match": name, "gate": gate} for name, gate in (GATES if gates is None else gates).items()]
    adam = {"name": "adam", "lr": 5e-3}
    table: dict[str, Any] = {
        "seed": 3,
        "data": {"batch": 64, "limit": 420},
        "model": {"name": f"{folder / 'net.py'}:small"},
        "train": {"device": "cpu", "threads": 1, "checkpoint_every": 3},
        "log": {"health_every": 0, "histograms_every": 0, "tensorboard": False},
        "stage": [{"epochs": 1, "optimizer": adam}, {"epochs": 2, "optimizer": adam, "rule": rules}],
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    return Experiment.model_validate(table)
