"""A run that exists: go on, refuse, or begin again; and what may differ when going on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright import experiment as experiments
from bitwright.atomic import PREFIX
from bitwright.errors import InputError, Negative
from bitwright.experiment import to_toml
from bitwright.runs import Run, file_list, is_run
from bitwright.runs.lock import locked
from bitwright.usercode import KEPT

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.training.state import State

# How it runs and what it writes down, not what is learned. (Threads, precision, devices and memory format change
# the last bits, and the promise is: bit by bit the unbroken run.)
HARMLESS = ("log", "expected", "data.root", "data.workers", "data.eval_batch", "train.checkpoint_every")


@contextmanager
def prepared(run: Run, experiment: Experiment, *, resume: bool, force: bool) -> Iterator[None]:
    """Makes the folder and keeps other trainings out of it, or says what to type where there is one already; `force`
    removes what a run left there."""
    path = run.path
    _check_folder(run, resume)
    with locked(path):
        there = _content(path)
        if there and not (resume or force):
            raise InputError(
                f"train: {path} exists. Go on: --resume; another folder: --out DIR; begin again: --force",
                code="run-exists",
                given=str(path),
                possible="--resume, --out DIR, --force",
            )
        if there and force and not resume:
            _check_reads(run, experiment)
            own = experiment.home.run is not None and experiment.home.run.resolve() == path.resolve()
            file_list.clear(path, keep=(KEPT, "experiment.toml") if own else ())  # its own code is still needed
        yield


def _check_folder(run: Run, resume: bool) -> None:
    """Errors: `InputError` where no run can be."""
    path = run.path
    if not _is_utf8(path):
        raise InputError(
            f"train: the name of {str(path)!r} is not UTF-8 text, which the weights' format needs. "
            "Give another folder: --out DIR",
            code="run-name",
            given=str(path),
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"train: {path} is a file. Give another folder: --out DIR", code="run-exists", given=str(path))
    if _content(path) and not is_run(path) and not resume and not run.has("last.ckpt"):
        raise InputError(
            f"train: {path} is not empty and not a run. Give another folder: --out DIR",
            code="run-exists",
            given=str(path),
        )


def _content(path: Path) -> bool:
    """Whether anything is there but a lock and what a killed process was writing."""
    return path.is_dir() and any(p.name != file_list.LOCK and not p.name.startswith(PREFIX) for p in path.iterdir())


def _check_reads(run: Run, experiment: Experiment) -> None:
    """What the experiment reads must not be among what `--force` removes."""
    reads: dict[str, str | None] = {"model.weights": experiment.model.weights}
    for i, stage in enumerate(experiment.stage):
        reads[f"stage.{i}.recipe"] = stage.recipe
        reads[f"stage.{i}.teacher"] = None if stage.teacher is None else stage.teacher.source
    for key, value in reads.items():
        if value and Path(value).exists() and Path(value).resolve().is_relative_to(run.path.resolve()):
            raise InputError(
                f"train: {key} = {value} lies in {run.path}, which --force would clear. Copy it elsewhere, or give another "
                "folder: --out DIR",
                code="run-exists",
                given=value,
            )


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def discard(path: Path) -> None:
    """What a run wrote, and the folder if nothing else is in it."""
    file_list.clear(path)
    (path / file_list.LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def check_same(run: Run, experiment: Experiment, saved_text: str, state: State) -> None:
    """Errors: `Negative` naming the first value that differs from the saved experiment and may not."""
    saved = experiments.parse(saved_text, title=f"experiment {run.path}")
    old, new = _flat(saved), _flat(experiment)
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after or any(key == h or key.startswith(f"{h}.") for h in HARMLESS):
            continue
        if _epochs_may(key, experiment, state):
            continue
        raise Negative(
            f"resume {run.path}: experiment differs from the saved one ({key} {_text(before)} -> {_text(after)}). "
            f"Allowed: {', '.join(HARMLESS)}; epochs of a stage that is not over, unless its schedule is cosine or linear. "
            f"For others start anew: --out {run.path}2",
            code="resume-differs",
            given=key,
            possible=", ".join(HARMLESS),
        )


def _epochs_may(key: str, experiment: Experiment, state: State) -> bool:
    """More or fewer epochs change nothing that was done, if the rate so far did not depend on their number."""
    pieces = key.split(".")
    if len(pieces) != 3 or pieces[0] != "stage" or pieces[2] != "epochs":
        return False
    index = int(pieces[1])
    if index >= len(experiment.stage) or index < state.stage:
        return False
    stage = experiment.stage[index]
    started = index == state.stage and state.step > 0
    return not started or (stage.schedule.name not in ("cosine", "linear") and stage.epochs >= max(1, state.epoch))


def _flat(experiment: Experiment) -> dict[str, Any]:
    """Dotted key -> value, as on the command line."""
    found: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{key}.{name}" if key else name)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            for i, item in enumerate(value):
                walk(item, f"{key}.{i}")
        elif value is not None:
            found[key] = list(value) if isinstance(value, tuple) else value

    # by way of TOML text, as the saved experiment: equal values then compare equal
    walk(experiments.parse(to_toml(experiment)).model_dump(), "")
    return found


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)
