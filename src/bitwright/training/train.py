"""`train`: an experiment becomes a run directory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bitwright.data import Dataset
from bitwright.errors import InputError
from bitwright.measure.machine import cpu_name, machine
from bitwright.runs import Run, build_model, example_of, recipe_of_stage
from bitwright.runs.build import rehearse
from bitwright.runs.tables import Skipped
from bitwright.tabular import shorten
from bitwright.training.display import Screen
from bitwright.training.finish import Result, finish
from bitwright.training.job import Job, accelerator, open_data, precision_of, rank_of, reseed
from bitwright.training.procedures import check_procedures
from bitwright.training.resume import check_same, discard, prepared
from bitwright.training.signals import Signals, Stopped, StopRequest
from bitwright.training.stages import begin_stage, run_stage
from bitwright.training.state import State
from bitwright.training.teacher import check_teachers

if TYPE_CHECKING:
    from bitwright.experiment import Experiment

__all__ = ["Result", "Stopped", "train"]

# Lightning's trainer and our callback hold each other, and the images with them: without a collection, trainings one after
# another in one process grow by a data set each until Python happens to look. With several processes it holds the DDP net too:
# left to the end of the process, that frees the process group while holding Python's lock, for which a thread of gloo may wait
COLLECT_FROM = 2**24  # bytes


def train(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    force: bool = False,
    command: str = "",
    echo: Callable[[str], None] | None = None,
    screen: Screen | None = None,
) -> Result:
    """Trains all stages and leaves the files of a run in `out`.

    resume    go on from `out`/last.ckpt: final weights are bit by bit those of an unbroken run, on the same machine
              with the same number of threads and processes. Without a checkpoint it starts from the beginning
    force     remove the run that is there
    command   what is written into command.txt
    echo      takes the lines of the log. [default: nobody];  screen   the same and more, for the command line

    Errors    `InputError` wrong input, full disk; `Negative` a loss that is not finite, a resume with another experiment;
              `Stopped` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, everything saved.
    The global random state, the number of threads and signal handlers are put back.
    """
    run, screen = Run(out), screen or Screen(echo)
    main = rank_of(experiment) == 0
    accelerator(experiment)  # its errors before any work
    check_teachers(experiment)
    for i in range(len(experiment.stage)):
        recipe_of_stage(experiment, i)  # one that does not exist is told now, not after the stages before it
    check_procedures(experiment)
    for spec, what in experiment.own_code().items():
        experiment.home.place(spec, what)  # a wrong name is told before anything is read or removed
    folder = prepared(run, experiment, resume=resume, force=force) if main else nullcontext()
    with Signals() as signals, _as_it_was(experiment.train.threads), folder:
        job: Job | None = None
        try:
            job, checkpoint = _begin(experiment, run, screen, signals, resume, command)
            return _go(job, checkpoint)
        except StopRequest:
            raise Stopped(f"{signals.wanted} stopped before the first step; nothing to save") from None
        except InputError:
            if main and not resume and not run.has("last.ckpt"):
                discard(run.path)  # nothing was trained: the corrected command must not meet a run that exists
            raise
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            kept = "The last checkpoint is whole. Make room, then go on with: --resume"
            if not run.has("last.ckpt"):
                kept = "Nothing was saved yet. Make room, then give the same command again"
                if main and not resume:
                    discard(run.path)
            raise InputError(
                f"train {run.path}: {name}{error.strerror or error}. {kept}", code="file-write", given=str(run.path)
            ) from None
        finally:
            if job is not None and (job.world > 1 or _in_memory(job) > COLLECT_FROM):
                gc.collect()


def _in_memory(job: Job) -> int:
    """Bytes of the images that this training holds."""
    return sum(s.images.nbytes for s in (job.train, job.test, job.val) if isinstance(s, Dataset))


def _begin(
    experiment: Experiment, run: Run, screen: Screen, signals: Signals, resume: bool, command: str
) -> tuple[Job, Path | None]:
    """Data, net and state; the path of the checkpoint if a stage is to go on in its middle."""
    main = rank_of(experiment) == 0
    saved: dict[str, Any] | None = None
    state = State()
    if resume:
        from bitwright.training.last_checkpoint import read_checkpoint, remove_leftovers

        if main:
            remove_leftovers(run.path)
        if run.has("last.ckpt"):
            saved = read_checkpoint(run.file("last.ckpt"))
            state = _state(run.file("last.ckpt"), saved)
            check_same(run, experiment, saved["bitwright"]["experiment"], state)
            _check_place(run.file("last.ckpt"), state, experiment)
        elif run.has("experiment.toml"):
            check_same(run, experiment, run.read_text("experiment.toml"), state)
    train_set, test_set, val_set = open_data(experiment)
    reseed(experiment.seed, -1)
    net = build_model(experiment, test_set, weights=saved is None)
    job = Job(experiment, run, screen, signals, train_set, test_set, val_set, net, state)
    skipped = [(which, *row) for which, s in (("train", train_set), ("test", test_set)) for row in s.skipped]
    state.skipped = len(skipped)
    if saved is None:
        rehearse(net, experiment, example_of(experiment, train_set))
    if main:
        _describe(job)
        if skipped:
            run.write(Skipped, [dict(zip(Skipped.columns(), row, strict=True)) for row in skipped])
            many = "1 picture" if len(skipped) == 1 else f"{len(skipped):,} pictures"
            screen.warn(f"{many} cannot be read and are left out; they are listed in {run.file('skipped.csv')}")
        run.keep_code(experiment)
        if command:
            run.write_text("command.txt", command + "\n")
        run.write_json("machine.json", machine(experiment.train.threads or torch.get_num_threads()))
        if saved is None:
            job.write_status("training")
            if resume:
                screen.note("resume: no checkpoint there yet, so it starts from the beginning")
    if saved is None:
        begin_stage(job, 0)
        state.begin_stage(0)
        return job, None
    for index in range(state.stage + 1):
        begin_stage(job, index, again=True)
    _load(job, saved)
    if main:
        from bitwright.training.epoch import write_tables

        write_tables(run, state)
    return job, run.file("last.ckpt")


def _state(path: Path, saved: dict[str, Any]) -> State:
    """Where the checkpoint stands. Errors: `InputError` where it does not say so."""
    from bitwright.training.last_checkpoint import damaged

    try:
        ours = saved["bitwright"]
        if not isinstance(ours["experiment"], str):
            raise TypeError("its experiment is not text")
        if not all(isinstance(rank["cpu"], torch.Tensor) and len(rank["sums"]) == 4 for rank in ours["ranks"]):
            raise TypeError("no random state")
        if not all(isinstance(value, torch.Tensor) for value in saved["state_dict"].values()):
            raise TypeError("its weights are not tensors")
        return State.from_dict(ours["state"])
    except Exception as error:
        raise damaged(path, error) from None


def _check_place(path: Path, state: State, experiment: Experiment) -> None:
    from bitwright.training.last_checkpoint import damaged

    stages = experiment.stage
    if state.stage >= len(stages) or state.epoch > stages[state.stage].epochs:
        raise damaged(path, ValueError(f"it stands at stage {state.stage}, epoch {state.epoch}"))


def _load(job: Job, saved: dict[str, Any]) -> None:
    """Weights of the checkpoint into the net; Lightning loads them again, with the optimizer, if the stage goes on."""
    state = job.state
    weights = {k.removeprefix("net."): v for k, v in saved["state_dict"].items()}
    try:
        job.net.load_state_dict(weights)
    except RuntimeError as error:
        first = next((t.strip() for t in str(error).splitlines()[1:]), str(error))
        raise InputError(
            f"resume {job.run.path}: last.ckpt does not fit the model: {first}", code="load-keys"
        ) from None
    if job.main:
        where = f"stage {state.stage}, epoch {state.epoch}, step {state.batch}"
        if state.epoch == job.experiment.stage[state.stage].epochs:
            where = f"stage {state.stage} is done"
        job.screen.note(f"resumed: {where} (same data order and random state as an unbroken run)")
    if state.batch == job.per_epoch:  # stopped while the epoch was evaluated: that comes first
        _evaluate_again(job, saved)


def _evaluate_again(job: Job, saved: dict[str, Any]) -> None:
    """The end of an epoch whose evaluation was stopped; afterwards the checkpoint says so."""
    from bitwright.training.epoch import end_epoch
    from bitwright.training.last_checkpoint import write_checkpoint

    ours = saved["bitwright"]
    sums = [float(sum(column)) for column in zip(*(rank["sums"] for rank in ours["ranks"]), strict=True)]
    end_epoch(job, lambda: sums)
    if job.main:
        ranks = [{**rank, "sums": [0.0] * 4} for rank in ours["ranks"]]
        saved["bitwright"] = {**ours, "state": job.state.to_dict(), "ranks": ranks}
        write_checkpoint(saved, job.run.file("last.ckpt"))


def _go(job: Job, checkpoint: Path | None) -> Result:
    """From where the state stands to the end."""
    state, stages = job.state, job.experiment.stage
    try:
        while True:
            if state.epoch < stages[state.stage].epochs:
                run_stage(job, checkpoint)
            checkpoint = None
            if state.stage + 1 == len(stages):
                break
            begin_stage(job, state.stage + 1)
            state.begin_stage(state.stage + 1)
        return finish(job) if job.main else Result(job.run.path, 0.0, 0.0, 0, state.seconds, ())
    except StopRequest:
        raise Stopped(_stopped(job)) from None


def _stopped(job: Job) -> str:
    """Where it stopped, and what that costs; also into state.json."""
    state, run = job.state, job.run
    word = job.signals.wanted or "another process"
    if job.main:
        job.write_status("stopped")
    where = f"{word} stopped at stage {state.stage}, epoch {state.epoch}, step {state.batch} of {job.per_epoch}"
    if not run.has("last.ckpt"):
        return f"{where}; nothing to save yet"
    return f"{where}; saved ({job.save_seconds:.1f} s). A second Ctrl-C quits without saving."


def _describe(job: Job) -> None:
    """The head of the log."""
    experiment, run = job.experiment, job.run
    parameters = sum(p.numel() for p in job.net.parameters())
    device = torch.cuda.get_device_name() if accelerator(experiment) == "gpu" else cpu_name()
    stages = len(experiment.stage)
    head = (
        f"{experiment.data.name} {len(job.train):,} train / {len(job.test):,} test | {experiment.model.name}, "
        f"{parameters / 1e6:.2f} M weights | {stages} stage{'s' if stages > 1 else ''} | seed {experiment.seed} | "
    )
    job.screen.line(head + shorten(device, max(12, 100 - len(head))))
    if precision_of(experiment) != experiment.train.precision:
        job.screen.line(
            "precision: fp32, because this CPU has no instructions for bf16 and would be many times as slow in it"
        )
    curves = f"       curves: tensorboard --logdir {run.path.parent}" if experiment.log.tensorboard else ""
    job.screen.line(f"run: {run.path}{curves}")


@contextmanager
def _as_it_was(threads: int | None) -> Iterator[None]:
    """Threads and random state of the caller are put back."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(before)
