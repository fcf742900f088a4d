"""Warnings that teach: what is wrong, since when, the usual cause, and what to type. Once per layer and stage.

Here are those of the epoch as a whole; what a table of the run teaches stands with its watcher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from bitwright.numbers import at_chance, percent
from bitwright.runs.tables import Epoch
from bitwright.training.watch import WATCHERS
from bitwright.training.watch.watcher import Lesson, Past

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.training.state import State

# Limits are judgment, not fitted to runs.
DROP = 0.01  # test accuracy at the switch to a stage
WAITING = 0.3  # share of the time of a step


def lessons(
    experiment: Experiment, state: State, signed: Callable[[str], bool], classes: int, images: int
) -> list[str]:
    """What the epoch just ended (the last rows of `state`) has to teach that was not taught before. Arguments: `Past`."""
    _recovered(state)
    past, new = Past(experiment, state, signed, classes, images), []
    of_tables = chain.from_iterable(watcher.lessons(past) for watcher in WATCHERS)
    for key, text in chain(of_tables, _switch(past), _loader(past), _chance(past)):
        told = f"{state.stage} {key}"
        if told not in state.told:
            state.told.append(told)
            state.warnings.append(text)
            new.append(text)
    return new


def _switch(past: Past) -> Iterator[Lesson]:
    state, rows = past.state, past.state.rows(Epoch)
    row = rows[-1]
    if state.stage == 0 or row["epoch"] != 0 or len(rows) < 2:
        return
    before = rows[-2]["test_top1"]  # of the last stage that trained; a procedure alone has no epochs
    drop = before - row["test_top1"]
    if drop > DROP:
        stage = past.stage
        teacher = f"stage.{state.stage}.teacher=previous"
        cures = [] if stage.teacher else [teacher]
        if stage.recipe or stage.rule:
            cures.append("binarize inputs before weights, in two stages")
        else:  # nothing but rate and schedule have changed
            cures.insert(0, past.rate(0.1))
        within = max(1, math.ceil(stage.epochs / 3))
        yield (
            "switch",
            f"test accuracy fell {drop * 100:.1f} points at the switch to stage {state.stage}; a dip that recovers within "
            f"{within} epoch{'s' if within > 1 else ''} is normal. If it stays: {', or '.join(cures)}",
        )


def _recovered(state: State) -> None:
    """Drops the warning of a dip at a switch that is over."""
    rows = state.rows(Epoch)
    row, before = rows[-1], [r for r in rows if r.get("stage") == state.stage - 1]
    if before and row["test_top1"] >= before[-1]["test_top1"] - DROP:
        dip = f"at the switch to stage {state.stage};"
        state.warnings = [text for text in state.warnings if dip not in text]


def _loader(past: Past) -> Iterator[Lesson]:
    row = past.state.rows(Epoch)[-1]
    data, step = row["data_ms"], row["step_ms"]
    if data is None or data < WAITING * (data + step) or data < 1:
        return
    cure = "data.augment=false or a larger data.batch" if past.experiment.data.workers else "data.workers=1"
    yield (
        "loader",
        f"{percent(data / (data + step))} % of each step is waiting for data in epoch {row['epoch']}: "
        f"the loader is the bottleneck. try: {cure}",
    )


def _chance(past: Past) -> Iterator[Lesson]:
    row = past.state.rows(Epoch)[-1]
    done = row["epoch"] + 1
    if done < max(2, past.stage.epochs // 3):
        return
    if at_chance(row["test_top1"], past.classes, past.images):
        yield (
            "chance",
            f"test accuracy {percent(row['test_top1'])} % after {done} epochs is what guessing gives ({percent(1 / past.classes)} %); "
            f"usually the learning rate, or labels that do not belong to the images. try: "
            f"{past.rate(0.1)}, and look at the plan: bitwright train ... --dry-run. "
            "help: bitwright help low-accuracy",
        )
