"""health.csv: how the low-bit layers are doing, from the steps of the epoch that were probed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from bitwright.numbers import percent
from bitwright.runs.tables import Connected, Health
from bitwright.training.probe import MEASURES, means
from bitwright.training.watch.watcher import Ended, Lesson, Past, Rows, Watcher, more

# Limits are judgment, not fitted to runs; each is a share unless it says otherwise.
FLIPS = 0.01  # of the signs, in every step, late in a stage
ONE_SIGN = 0.995
DEAD = 0.5
SHRUNK, GROWN = 0.1, 10.0  # mean |latent| against the stage's start

History = dict[str, Rows]  # rows of this stage per layer, oldest first


class HealthWatcher(Watcher):
    table = Health

    def rows(self, ended: Ended) -> Rows:
        return [{**ended.at, "layer": name, **row} for name, row in means(ended.job.state.health).items()]

    def scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
        for key in MEASURES:
            yield f"{key}/{row['layer']}", row[key]

    def lessons(self, past: Past) -> Iterator[Lesson]:
        history: History = {}
        for row in past.state.rows(Health):
            if row["stage"] == past.state.stage:
                history.setdefault(row["layer"], []).append(row)
        zero_one = {row["layer"] for row in past.now(Connected)}
        yield from _bad(past, history, "flips", _flipping, "still flip each step", _slower)
        yield from _constant(past, history)
        for wanted, cure in ((history.keys() - zero_one, _revive), (zero_one, _connect)):
            chosen = {name: rows for name, rows in history.items() if name in wanted}
            yield from _bad(past, chosen, "dead", lambda v, *_: v > DEAD, "get no gradient", cure)
        yield from _scale(past, history)


def _bad(
    past: Past,
    history: History,
    column: str,
    bad: Callable[[float, int, int], bool],
    what: str,
    cure: Callable[[Past], str],
) -> Iterator[Lesson]:
    """A column that was bad in two epochs in a row; many layers at once are one line."""
    since: dict[str, int] = {}
    last: dict[str, float] = {}
    for name, rows in history.items():
        streak = []
        for row in reversed(rows):
            value = row[column]
            if value is None or not bad(value, row["epoch"], past.stage.epochs):
                break
            streak.append(row)
        if len(streak) >= 2:
            since[name], last[name] = streak[-1]["epoch"], streak[0][column]
    fresh = past.fresh(column, sorted(since, key=lambda name: -last[name]))  # the worst one first
    if not fresh:
        return
    others = [v for n, rows in history.items() if n not in since and (v := rows[-1][column]) is not None]
    beside = f" (others {percent(statistics.mean(others))} %)" if others else ""
    noun = "signs or levels" if column == "flips" else "weights"
    yield (
        f"{column} {fresh[0]}",
        f"{more(fresh)}: {percent(last[fresh[0]])} % of {noun} {what} since epoch {since[fresh[0]]}{beside}; "
        f"{cure(past)}. help: bitwright help {column}",
    )


def _flipping(value: float, epoch: int, epochs: int) -> bool:
    return value > FLIPS and epoch >= max(2, epochs // 2)


def _slower(past: Past) -> str:
    return f"usually the learning rate. try: {past.rate(0.3)}"


def _revive(past: Past) -> str:
    return (
        "their latents, or the layer's inputs, lie where the surrogate is flat. try: "
        f'{past.rate(0.3)}, or a norm in front: x = ["norm", ...] in the recipe'
    )


def _connect(past: Past) -> str:
    return (
        "a gradient comes back only through connections that are on, so what no later layer reads yet does not learn. "
        'If it stays: more of them at the start, init = "fan_in:8" in the recipe'
    )


def _constant(past: Past, history: History) -> Iterator[Lesson]:
    for name, rows in history.items():
        share = rows[-1]["positive"]
        if share is None or not past.signed(name) or 1 - ONE_SIGN <= share <= ONE_SIGN:
            continue
        same = [row["epoch"] for row in rows if row["positive"] is not None]
        word, size = ("at or above", share) if share > 0.5 else ("below", 1 - share)
        yield (
            f"constant {name}",
            f"{name}: {percent(size)} % of its inputs are {word} zero since epoch {same[0] if same else past.epoch}, "
            "so their sign is nearly a constant; usually a ReLU in front. "
            'try: x = ["norm", "sign"] in the recipe, or model.activation=identity. help: bitwright help sign-after-relu',
        )


def _scale(past: Past, history: History) -> Iterator[Lesson]:
    for name, rows in history.items():
        value = rows[-1]["scale"]
        if value is None or SHRUNK <= value <= GROWN:
            continue
        since = next(r["epoch"] for r in rows if r["scale"] is not None and not SHRUNK <= r["scale"] <= GROWN)
        word, cause, cure = ("shrunk" if value < SHRUNK else "grown"), "the learning rate", past.rate(0.3)
        if value < SHRUNK and past.stage.optimizer.weight_decay:
            cause, cure = "weight decay", f"stage.{past.state.stage}.optimizer.weight_decay=0"
        yield (
            f"scale {name}",
            f"{name}: its latent weights have {word} to {value:.2g} times their size since epoch {since}; "
            f"usually {cause}. try: {cure}",
        )
