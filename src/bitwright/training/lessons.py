"""Warnings that teach: what is wrong, since when, the usual cause, and what to type. Once per layer and stage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bitwright.measure.numbers import at_chance, percent

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.training.state import State

# Limits are judgment, not fitted to runs; each is a share unless it says otherwise.
FLIPS = 0.01  # of the signs, in every step, late in a stage
ONE_SIGN = 0.995
DEAD = 0.5
SHRUNK, GROWN = 0.1, 10.0  # mean |latent| against the stage's start
DROP = 0.01  # test accuracy at the switch to a stage
SILENT = 0.001  # of a gate's decisions: it never fires, or always
WAITING = 0.3  # of the time of a step

Lesson = tuple[str, str]  # key, text


def lessons(
    experiment: Experiment,
    state: State,
    signed: Callable[[str], bool],
    classes: int,
    images: int,
    on: Mapping[str, int] | None = None,
) -> list[str]:
    """What the epoch just ended (the last row of `state.rows`) has to teach that was not taught before.

    signed            whether a layer's inputs become {-1, +1}
    classes, images   of the test set
    on                connections of each layer of 0/1 weights
    """
    index = state.stage
    _recovered(state)
    new = []
    for key, text in _all(experiment, state, signed, classes, images, on or {}):
        told = f"{index} {key}"
        if told not in state.told:
            state.told.append(told)
            state.warnings.append(text)
            new.append(text)
    return new


def _all(
    experiment: Experiment,
    state: State,
    signed: Callable[[str], bool],
    classes: int,
    images: int,
    on: Mapping[str, int],
) -> Iterator[Lesson]:
    row = state.rows[-1]
    history = _history(state)
    yield from _layers(experiment, state, history, "flips", _flipping, "still flip each step", _slower)
    yield from _constant(state, history, signed)
    for rows, cure in ((history.keys() - on.keys(), _revive), (history.keys() & on.keys(), _connect)):
        chosen = {name: history[name] for name in history if name in rows}
        yield from _layers(experiment, state, chosen, "dead", lambda v, *_: v > DEAD, "get no gradient", cure)
    yield from _scale(experiment, state, history)
    yield from _off(experiment, state, on)
    yield from _gates(state)
    yield from _switch(experiment, state)
    yield from _loader(experiment, row)
    yield from _chance(experiment, state, 1 / classes, images)


def _history(state: State) -> dict[str, list[dict[str, Any]]]:
    """Rows of this stage per layer, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in state.health_rows:
        if row["stage"] == state.stage:
            found.setdefault(row["layer"], []).append(row)
    return found


def _layers(
    experiment: Experiment,
    state: State,
    history: dict[str, list[dict[str, Any]]],
    column: str,
    bad: Callable[[float, int, int], bool],
    what: str,
    cure: Callable[[Experiment, int], str],
) -> Iterator[Lesson]:
    """A column that was bad in two epochs in a row; many layers at once are one line."""
    epochs = experiment.stage[state.stage].epochs
    since: dict[str, int] = {}
    last: dict[str, float] = {}
    for name, rows in history.items():
        streak = []
        for row in reversed(rows):
            value = row[column]
            if value is None or not bad(value, row["epoch"], epochs):
                break
            streak.append(row)
        if len(streak) >= 2:
            since[name], last[name] = streak[-1]["epoch"], streak[0][column]
    fresh = [name for name in since if f"{state.stage} {column} {name}" not in state.told]
    if not fresh:
        return
    others = [v for n, rows in history.items() if n not in since and (v := rows[-1][column]) is not None]
    worst = max(fresh, key=lambda name: last[name])
    more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
    beside = f" (others {percent(statistics.mean(others))} %)" if others else ""
    noun = "signs or levels" if column == "flips" else "weights"
    text = (
        f"{worst}{more}: {percent(last[worst])} % of {noun} {what} since epoch {since[worst]}{beside}; "
        f"{cure(experiment, state.stage)}. help: bitwright help {column}"
    )
    state.told += [f"{state.stage} {column} {name}" for name in fresh if name != worst]
    yield f"{column} {worst}", text


def _flipping(value: float, epoch: int, epochs: int) -> bool:
    return value > FLIPS and epoch >= max(2, epochs // 2)


def _slower(experiment: Experiment, stage: int) -> str:
    return f"usually the learning rate. try: {_rate(experiment, stage, 0.3)}"


def _revive(experiment: Experiment, stage: int) -> str:
    return (
        "their latents, or the layer's inputs, lie where the surrogate is flat. try: "
        f'{_rate(experiment, stage, 0.3)}, or a norm in front: x = ["norm", ...] in the recipe'
    )


def _connect(experiment: Experiment, stage: int) -> str:
    return (
        "a gradient comes back only through connections that are on, so what no later layer reads yet does not learn. "
        'If it stays: more of them at the start, init = "fan_in:8" in the recipe'
    )


def _rate(experiment: Experiment, stage: int, factor: float) -> str:
    return f"stage.{stage}.optimizer.lr={experiment.stage[stage].optimizer.lr * factor:.1g}"


def _constant(
    state: State, history: dict[str, list[dict[str, Any]]], signed: Callable[[str], bool]
) -> Iterator[Lesson]:
    for name, rows in history.items():
        share = rows[-1]["positive"]
        if share is None or not signed(name) or 1 - ONE_SIGN <= share <= ONE_SIGN:
            continue
        same = [row["epoch"] for row in rows if row["positive"] is not None]
        word, size = ("at or above", share) if share > 0.5 else ("below", 1 - share)
        yield (
            f"constant {name}",
            f"{name}: {percent(size)} % of its inputs are {word} zero since epoch {same[0] if same else state.epoch}, "
            "so their sign is nearly a constant; usually a ReLU in front. "
            'try: x = ["norm", "sign"] in the recipe, or model.activation=identity. help: bitwright help sign-after-relu',
        )


def _scale(experiment: Experiment, state: State, history: dict[str, list[dict[str, Any]]]) -> Iterator[Lesson]:
    decay = experiment.stage[state.stage].optimizer.weight_decay
    for name, rows in history.items():
        value = rows[-1]["scale"]
        if value is None or SHRUNK <= value <= GROWN:
            continue
        since = next(r["epoch"] for r in rows if r["scale"] is not None and not SHRUNK <= r["scale"] <= GROWN)
        if value < SHRUNK:
            cause, cure = (
                ("weight decay", f"stage.{state.stage}.optimizer.weight_decay=0")
                if decay
                else ("the learning rate", _rate(experiment, state.stage, 0.3))
            )
            word = "shrunk"
        else:
            word, cause, cure = "grown", "the learning rate", _rate(experiment, state.stage, 0.3)
        yield (
            f"scale {name}",
            f"{name}: its latent weights have {word} to {value:.2g} times their size since epoch {since}; "
            f"usually {cause}. try: {cure}",
        )


def _off(experiment: Experiment, state: State, on: Mapping[str, int]) -> Iterator[Lesson]:
    for name in (name for name, count in on.items() if not count):
        yield (
            f"off {name}",
            f"{name}: none of its connections is on at the end of epoch {state.rows[-1]['epoch']}, so its output, and that "
            "of a norm behind it, is a constant; usually too few at the start, or steps that switch all off at once. "
            f'try: init = "fan_in:8" in the recipe, or {_rate(experiment, state.stage, 0.3)}',
        )


def _gates(state: State) -> Iterator[Lesson]:
    """A gate that decides nothing; several layers of one kind are one line."""
    now = (state.stage, state.rows[-1]["epoch"])
    rows = [row for row in state.gate_rows if (row["stage"], row["epoch"]) == now and row["keep"] != 1]
    for word, silent in (("never", lambda r: r < SILENT), ("always", lambda r: r > 1 - SILENT)):
        for part in dict.fromkeys(row["gate"] for row in rows):
            found = [row for row in rows if row["gate"] == part and silent(row["rate"])]
            fresh = [row["layer"] for row in found if f"{state.stage} {word} {row['layer']}" not in state.told]
            if fresh:
                more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
                state.told += [f"{state.stage} {word} {name}" for name in fresh[1:]]
                row = next(row for row in found if row["layer"] == fresh[0])
                yield (
                    f"{word} {fresh[0]}",
                    f"{fresh[0]}{more}: the gate {part} {word} fires on the test images in epoch {now[1]}, "
                    f"{_silent(row, word)}. help: bitwright methods {part}",
                )


def _silent(row: dict[str, Any], word: str) -> str:
    """What that means, and what to try."""
    if row["gate"] == "fbs":
        if word == "never":
            return "so its output is zero; no channel has a positive saliency left. try: l1 = 0, or a smaller learning rate"
        return f'although keep is {row["keep"]:g}; too few channels to choose from. try: gate = "float" for it'
    effect = "only the cheap part is computed" if word == "never" else "nothing is saved"
    side = "lower" if word == "never" else "higher"
    if row["target"] is None:  # the thresholds follow a budget
        return f"so {effect} there. try: a {'larger' if word == 'never' else 'smaller'} stage.{row['stage']}.budget"
    at = f"target = {row['target']:g}, thresholds {row['threshold_mean']:.3g} in the mean"
    return (
        f'so {effect} there ({at}). try: a {side} target or init; unit = "normalized" makes one target fit all layers'
    )


def _switch(experiment: Experiment, state: State) -> Iterator[Lesson]:
    row = state.rows[-1]
    if state.stage == 0 or row["epoch"] != 0 or len(state.rows) < 2:
        return
    before = [r for r in state.rows if r.get("stage") == state.stage - 1][-1]["test_top1"]
    drop = before - row["test_top1"]
    if drop > DROP:
        stage = experiment.stage[state.stage]
        teacher = f"stage.{state.stage}.teacher=previous"
        cures = [] if stage.teacher else [teacher]
        if stage.recipe or stage.rule:
            cures.append("binarize inputs before weights, in two stages")
        else:  # nothing but rate and schedule have changed
            cures.insert(0, f"stage.{state.stage}.optimizer.lr={stage.optimizer.lr * 0.1:.1g}")
        within = max(1, math.ceil(stage.epochs / 3))
        yield (
            "switch",
            f"test accuracy fell {drop * 100:.1f} points at the switch to stage {state.stage}; a dip that recovers within "
            f"{within} epoch{'s' if within > 1 else ''} is normal. If it stays: {', or '.join(cures)}",
        )


def _recovered(state: State) -> None:
    """A dip at a switch that is over is no warning any more."""
    row, before = state.rows[-1], [r for r in state.rows if r.get("stage") == state.stage - 1]
    if before and row["test_top1"] >= before[-1]["test_top1"] - DROP:
        dip = f"at the switch to stage {state.stage};"
        state.warnings = [text for text in state.warnings if dip not in text]


def _loader(experiment: Experiment, row: dict[str, Any]) -> Iterator[Lesson]:
    data, step = row["data_ms"], row["step_ms"]
    if data is None or data < WAITING * (data + step) or data < 1:
        return
    cure = "data.augment=false or a larger data.batch" if experiment.data.workers else "data.workers=1"
    yield (
        "loader",
        f"{percent(data / (data + step))} % of each step is waiting for data in epoch {row['epoch']}: "
        f"the loader is the bottleneck. try: {cure}",
    )


def _chance(experiment: Experiment, state: State, chance: float, images: int) -> Iterator[Lesson]:
    row = state.rows[-1]
    done = row["epoch"] + 1
    if done < max(2, experiment.stage[state.stage].epochs // 3):
        return
    if at_chance(row["test_top1"], round(1 / chance), images):
        yield (
            "chance",
            f"test accuracy {percent(row['test_top1'])} % after {done} epochs is what guessing gives ({percent(chance)} %); "
            f"usually the learning rate, or labels that do not belong to the images. try: "
            f"{_rate(experiment, state.stage, 0.1)}, and look at the plan: bitwright train ... --dry-run. "
            "help: bitwright help low-accuracy",
        )
