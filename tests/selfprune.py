"""A self-pruning net as an experiment on 1-bit digits; shared by tests of training, command line and report."""

from __future__ import annotations

from typing import Any

from bitwright.experiment import Experiment


def experiment(norm: str = "batch_norm", epochs: int = 3, **changes: Any) -> Experiment:
    """A float stage, then 0/1 weights at a rate that moves connections; six steps an epoch."""
    adam = {"name": "adam", "lr": 1e-2}
    table: dict[str, Any] = {
        "seed": 3,
        "data": {"batch": 50, "limit": 300, "limit_test": 90, "binarize": True, "augment": False, "eval_batch": 40},
        "model": {"name": "selfprune_mlp", "hidden": 24, "depth": 2, "norm": norm},
        "train": {"device": "cpu", "threads": 1, "checkpoint_every": 3},
        "log": {"health_every": 0, "histograms_every": 0, "tensorboard": False},
        "stage": [
            {"epochs": 1, "optimizer": adam},
            {"epochs": epochs, "optimizer": {"name": "adam", "lr": 0.1}, "rule": [{"match": "*", "w": "zero_one"}]},
        ],
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    return Experiment.model_validate(table)
