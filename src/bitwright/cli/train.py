"""`bitwright train`: an experiment becomes a run directory."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.complete import complete_experiment, complete_override
from bitwright.cli.output import Output

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.training import Result

# What may be overridden while the result still compares with what the experiment expects.
_COMPARABLE = (
    "seed", "log.", "data.root", "data.workers", "data.eval_batch", "train.threads", "train.device",
    "train.checkpoint_every",
)  # fmt: skip


def train(
    ctx: typer.Context,
    experiment: Annotated[
        str,
        typer.Argument(
            help="A shipped name (bitwright experiments), a TOML file, or a run.", autocompletion=complete_experiment
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value]...",
            help="E.g. seed=3 stage.0.epochs=2 data.limit=1000.",
            autocompletion=complete_override,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder. [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in that folder stands.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove the run in that folder and begin again.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Where the data sets lie. [default: BITWRIGHT_DATA]")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be read; the run names them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, steps and disk; nothing is written.")] = False,
) -> None:
    """Train an experiment, all its stages. Ctrl-C saves; the same command with --resume goes on."""
    screen: Output = ctx.obj
    from bitwright import experiment as experiments

    given = [*(overrides or []), *(["data.skip_bad=true"] if skip_bad else [])]
    loaded = experiments.load(experiment, given)
    if data_root is not None:
        loaded = loaded.model_copy(update={"data": loaded.data.model_copy(update={"root": str(data_root)})})
    if any(not text.startswith(_COMPARABLE) for text in given):
        loaded = loaded.model_copy(update={"expected": None})
    folder = out or default_folder(experiment, resume)
    child = loaded.train.devices > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
    if not child and not dry_run:
        # shown before the slow imports; the sizes follow once the data is read
        screen.head(f"{experiment_name(experiment)}: {summary(loaded)}")
    if dry_run:
        from bitwright.cli.train_plan import show_plan

        show_plan(screen, loaded, folder)
        screen.next(command_line(experiment, given, out, data_root))
        return
    command = command_line(experiment, given, out, data_root)
    _run(screen, loaded, folder, command, resume=resume, force=force, child=child)


def _run(
    screen: Output, loaded: Experiment, folder: Path, command: str, *, resume: bool, force: bool, child: bool
) -> None:
    from bitwright.training import Stopped
    from bitwright.training import train as run_training
    from bitwright.training.display import Screen

    words = Screen(screen.result, screen.note, screen.live)
    if child:
        words = Screen()
    try:
        result = run_training(loaded, folder, resume=resume, force=force, command=command, screen=words)
    except Stopped as stopped:
        if child:
            return  # a child that ends with an error code would have the others killed while they save
        screen.note(str(stopped))
        screen.status, screen.exit_code = "stopped", 130
        screen.data["stopped"] = str(stopped)
        screen.next(f"{command} --resume")
        return
    if not child:
        _end(screen, loaded, result)


def _end(screen: Output, loaded: Experiment, result: Result) -> None:
    """The result line, the band, what comes next."""
    from bitwright.numbers import percent
    from bitwright.training.display import clock

    count = len(result.warnings)
    words = "1 warning" if count == 1 else f"{count} warnings"
    screen.data["train"] = {
        "run": str(result.out), "test_top1": result.top1, "test_top5": result.top5, "test_images": result.images,
        "seconds": result.seconds, "lessons": list(result.warnings), "band": result.band,
    }  # fmt: skip
    screen.verdict(f"done: test {percent(result.top1)} % (last epoch), {clock(result.seconds)}, {words}")
    if result.work is not None:
        from bitwright.training.work_words import spread_text

        screen.data["train"] |= {"work": result.work.to_dict()}
        screen.result(f"      {result.work.text()} than with every gate open; {spread_text(result.work)}")
    band = loaded.expected
    if band is not None and result.band is not None:
        seeds = f"{band.seeds} seed{'s' if band.seeds > 1 else ''}"
        screen.result(
            f"      expected for this recipe: {percent(band.low)}-{percent(band.high)} %, {seeds}: {result.band}"
        )
        if result.band == "BELOW":
            screen.status, screen.exit_code = "BELOW", 1
    if any(stage.recipe or stage.rule for stage in loaded.stage):
        screen.next(f"bitwright convert {shlex.quote(str(result.out))}")
    else:
        screen.next(f"bitwright eval {shlex.quote(str(result.out))}")


def experiment_name(given: str) -> str:
    """The name that the run gets: of the experiment, of its file, of the run that is repeated.

    >>> experiment_name("my/toy.toml"), experiment_name("digits-mlp-bwn")
    ('toy', 'digits-mlp-bwn')
    """
    path = Path(given)
    if path.name == "experiment.toml":
        return path.resolve().parent.name
    return path.stem if path.suffix == ".toml" else path.name or path.resolve().name


def default_folder(given: str, resume: bool) -> Path:
    """runs/NAME; where a run is to go on, that run."""
    path = Path(given)
    folder = path.parent if path.name == "experiment.toml" else path
    if resume and (folder / "experiment.toml").is_file():
        return folder
    return Path("runs") / experiment_name(given)


def command_line(experiment: str, overrides: list[str], out: Path | None, data_root: Path | None) -> str:
    """What to type for the same training again.

    >>> command_line("digits-mlp-bwn", ["seed=3"], Path("my runs/a"), None)
    "bitwright train digits-mlp-bwn seed=3 --out 'my runs/a'"
    """
    words: list[Any] = ["bitwright", "train", experiment, *overrides]
    words += [] if out is None else ["--out", out]
    words += [] if data_root is None else ["--data-root", data_root]
    return shlex.join(str(word) for word in words)


def summary(experiment: Experiment) -> str:
    """What is known before anything is imported."""
    epochs = sum(stage.epochs for stage in experiment.stage)
    stages = len(experiment.stage)
    return (
        f"{stages} stage{'s' if stages > 1 else ''}, {epochs} epoch{'s' if epochs > 1 else ''}, seed {experiment.seed}"
    )
