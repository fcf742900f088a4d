"""The trainings of `bitwright demo`: two run directories, as `bitwright train` leaves them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.cli.output import Output
from bitwright.experiment import Experiment
from bitwright.numbers import percent
from bitwright.runs import Run
from bitwright.training import train
from bitwright.training.display import Screen

BATCH = 64
# The stem reads pixels as the bytes they are, with 8-bit weights; the classifier, 1 % of the work, stays float.
_ENDS = [
    {"match": "first", "w": {"part": "uniform", "bits": 8}, "x": "input8"},
    {"match": "last", "w": "float", "x": "float"},
]
BINARY = [{"match": "*", "w": "bwn", "x": "sign"}, *_ENDS]
TWO_BIT = [{"match": "*", "w": "bwn", "x": {"part": "dorefa_a", "bits": 2}}, *_ENDS]
ADAM, COSINE = {"name": "adam", "lr": 2e-3, "weight_decay": 1e-4}, {"name": "cosine"}


@dataclass(frozen=True)
class Title:
    """What a stage is called on screen."""

    head: str
    epochs: int


class DemoScreen(Screen):
    """One line per stage; its bar is gone when the stage is done."""

    def __init__(self, out: Output, titles: list[Title], images: int, loader: float) -> None:
        super().__init__(out.result, live=out.live, color=out.colored(sys.stderr))
        self.titles, self.images, self.loader = titles, images, loader
        self.seconds, self.done = 0.0, 0

    def line(self, text: str) -> None:
        """The head of an ordinary training log is not shown here."""

    note = line

    def warn(self, text: str) -> None:
        """Not shown: short trainings often warn. The warnings are in state.json and in the report."""

    def step(self, head: str, done: int, total: int, tail: Callable[[], str]) -> None:
        title = self.titles[0]
        if self._live:
            whole = title.epochs * total
            super().step(title.head, self.done * total + done, whole, lambda: f"{self.done}/{title.epochs} epochs")

    def epoch(self, row: dict[str, Any], text: str) -> None:
        title = self.titles[0]
        self.done, self.seconds = self.done + 1, self.seconds + float(row["seconds"])
        if self.done < title.epochs:
            return
        rate = title.epochs * self.images / self.seconds
        super().line(
            f"{title.head} {title.epochs} epoch{'s' if title.epochs > 1 else ' '}  {self.seconds:5.1f} s   "
            f"test {percent(row['test_top1'])} %   {rate:,.0f} img/s (loader alone {self.loader:,.0f})"
        )
        self.titles, self.seconds, self.done = self.titles[1:], 0.0, 0


def train_nets(out: Output, folder: Path, seed: int, quick: bool, images: int, loader: float) -> list[Run]:
    """A float net and its W1A1 student, then a W1A2 student of the same float net."""
    float_epochs, epochs = (1, 1) if quick else (8, 10)
    heads = [
        f"[{i}/5] train  {name:<14}" for i, name in enumerate(("float teacher", "W1A1 student", "W1A2 student"), 1)
    ]
    titles = [Title(head, float_epochs if i == 0 else epochs) for i, head in enumerate(heads)]
    screen = DemoScreen(out, titles, images, loader)
    first, second = Run(folder / "w1a1"), Run(folder / "w1a2")
    plain = {"epochs": float_epochs, "optimizer": ADAM, "schedule": COSINE}
    train(_experiment(seed, [plain, _student(BINARY, epochs, "previous")]), first.path, force=True, screen=screen)
    teacher = first.file("stages/0.safetensors").as_posix()
    student = _experiment(seed, [_student(TWO_BIT, epochs, teacher)], weights=teacher)
    train(student, second.path, force=True, screen=screen)
    second.put_results([row for row in first.read_csv("results.csv") if row["net"] == "float"])
    return [first, second]


def _student(rules: list[dict[str, Any]], epochs: int, teacher: str) -> dict[str, Any]:
    """Half of what it learns are the labels, half the teacher's answers."""
    goal = {"source": teacher, "weight": 0.5, "temperature": 1.0}
    return {"epochs": epochs, "rule": rules, "optimizer": ADAM, "schedule": COSINE, "teacher": goal}


def _experiment(seed: int, stages: list[dict[str, Any]], weights: str | None = None) -> Experiment:
    """TensorBoard is left out here: importing it takes longer than an epoch."""
    return Experiment.model_validate(
        {
            "seed": seed,
            "data": {"name": "digits", "batch": BATCH, "normalize": False},
            "model": {"name": "demo", "weights": weights},
            "stage": stages,
            "train": {"threads": 1, "device": "cpu", "checkpoint_every": 1000},
            "log": {"tensorboard": False, "histograms_every": 0},
        }
    )
