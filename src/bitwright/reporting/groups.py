"""Runs of one experiment with other seeds are one group: mean, standard deviation and n of each figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bitwright.reporting.run_data import RunData
from bitwright.runs.tables import Status
from bitwright.toml import read_toml


@dataclass(frozen=True)
class Spread:
    """Values of the runs that have one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample; None below two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Group:
    """Runs of the same experiment. `places` maps a machine to the latencies measured there.

    macs, bops   per image: counted on the test images for a net with gates; else all that the layers have, bops unknown
    """

    name: str
    runs: tuple[RunData, ...]
    accuracy: Spread = Spread(())
    size: Spread = Spread(())
    places: dict[str, Spread] = field(default_factory=dict)
    macs: Spread = Spread(())
    bops: Spread = Spread(())

    @property
    def first(self) -> RunData:
        return self.runs[0]

    @property
    def seeds(self) -> str:
        """The seeds, or how many runs where one is unknown."""
        seeds = [run.origin.seed for run in self.runs]
        known = [str(seed) for seed in seeds if seed is not None]
        return ", ".join(known) if len(known) == len(seeds) else f"{len(seeds)} runs"

    @property
    def verdicts(self) -> str:
        """ "PASS", or "PASS 2, not converted 1"."""
        words = [run.conversion.status if run.conversion else "not converted" for run in self.runs]
        names = list(dict.fromkeys(words))
        return names[0] if len(names) == 1 else ", ".join(f"{name} {words.count(name)}" for name in names)

    @property
    def same(self) -> tuple[int, int] | None:
        """(same answers, images) summed over the runs that compared them."""
        found = [run.conversion for run in self.runs if run.conversion is not None and run.conversion.images]
        return (sum(c.same for c in found), sum(c.images for c in found)) if found else None

    @property
    def guesses(self) -> bool:
        """Whether one of its runs is no better than guessing: no accuracy is worth comparing with that."""
        return any(run.guesses(accuracy_of(run)) for run in self.runs)

    @property
    def warnings(self) -> int | None:
        found = [status for run in self.runs if (status := run.one(Status)) is not None]
        return sum(len(status.warnings) for status in found) if found else None


def accuracy_of(run: RunData) -> float | None:
    """Accuracy of the packed net; of the trained one where none was packed."""
    return run.accuracy if run.accuracy is not None else run.trained_accuracy


def grouped(runs: Iterable[RunData]) -> list[Group]:
    """The groups, in order of first appearance."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    names = _names(list(found.values()))
    return [_group(name, members) for name, members in zip(names, found.values(), strict=True)]


def _key(run: RunData) -> str:
    """The experiment without its seed and without what does not change the result."""
    table: dict[str, Any] = read_toml(run.origin.experiment) if run.origin.experiment else {}
    for name in ("seed", "log", "expected"):
        table.pop(name, None)
    return json.dumps(table, sort_keys=True, default=str) if table else f"run {run.origin.path or run.origin.name}"


def _names(groups: list[list[RunData]]) -> list[str]:
    """A run's own name; of several, what their names have in common; made different where two are equal."""
    names: list[str] = []
    for members in groups:
        own = [run.origin.name for run in members]
        common = own[0] if len(own) == 1 else _common(own) or own[0]
        name, n = common, 2
        while name in names:
            name, n = f"{common} ({n})", n + 1
        names.append(name)
    return names


def _common(names: list[str]) -> str:
    """
    >>> _common(["bwn-1", "bwn-2"]), _common(["bwn-seed0", "bwn-seed1"]), _common(["a", "b"])
    ('bwn', 'bwn', '')
    """
    first, last = min(names), max(names)
    end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    text = first[:end].rstrip("0123456789")
    return text.rstrip("-_. ").removesuffix("seed").rstrip("-_. =")


def _group(name: str, runs: list[RunData]) -> Group:
    places: dict[str, list[float]] = {}
    for run in runs:
        if run.speed is not None and run.speed.ours is not None and run.speed.ours.ms is not None:
            places.setdefault(place_of(run), []).append(run.speed.ours.ms)
    return Group(
        name,
        tuple(runs),
        _spread(accuracy_of(run) for run in runs),
        _spread(run.file_bytes for run in runs),
        {place: Spread(tuple(values)) for place, values in places.items()},
        _spread(run.work.macs if run.work else run.total("macs") for run in runs),
        _spread(run.work.bops if run.work else None for run in runs),
    )


def _spread(values: Iterable[float | None]) -> Spread:
    return Spread(tuple(v for v in values if v is not None))


def place_of(run: RunData) -> str:
    """What two times must share to be compared: CPU, kernels, threads, batch."""
    assert run.speed is not None
    machine, threads = run.speed.machine, run.speed.machine.get("threads", 1)
    cpu, kernels = machine.get("cpu") or "unknown CPU", machine.get("kernels") or "unknown"
    return f"{cpu}, {kernels}, {threads} thread{'' if threads == 1 else 's'}, batch {run.speed.batch}"
