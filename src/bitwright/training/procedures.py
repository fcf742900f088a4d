"""A stage that begins with a procedure: it runs once, and a resumed training only rebuilds what it left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitwright import procedures
from bitwright.engine.files import save
from bitwright.errors import InputError
from bitwright.runs.result_tables import Procedures
from bitwright.transforms import Recipe, apply, recipe_of

if TYPE_CHECKING:
    from torch import nn

    from bitwright.experiment import Experiment
    from bitwright.runs import Run
    from bitwright.training.job import Job


def check_procedures(experiment: Experiment) -> None:
    """Errors: `InputError` for a procedure or an option that does not exist, before any work."""
    for index, stage in enumerate(experiment.stage):
        if stage.procedure is not None:
            try:
                procedures.get(stage.procedure.name).check(stage.procedure.options)
            except InputError as error:
                raise error.reworded(f"stage {index}: {error}") from None


def run_procedure(job: Job, index: int, again: bool) -> None:
    """The procedure of a stage, on the first training batches.

    again   it ran before the checkpoint: the net gets the slots that it left, and their weights come from there
    """
    stage = job.experiment.stage[index]
    if stage.procedure is None:
        return
    if again:
        kept = next((row for row in reversed(done(job.run)) if row["stage"] == index), {"recipe": ""})
        follow(job.net, Recipe.from_toml(kept["recipe"]), job.example())
        return
    found = procedures.get(stage.procedure.name)
    job.screen.line(f"stage {index}  procedure {found.name}, {stage.procedure.batches} batches")
    result = found(job.net, job.first_batches(stage.procedure.batches), **stage.procedure.options)
    if isinstance(result, Recipe):
        follow(job.net, result, job.example())
    if job.main:
        record(job.run, found.name, result, job.net, index)
        if not stage.epochs:  # no training follows that would write this
            job.run.file("stages").mkdir(exist_ok=True)
            save(job.net, job.run.file(f"stages/{index}.safetensors"))


def follow(net: nn.Module, recipe: Recipe, example: Any) -> None:
    """Applies a recipe that a procedure gave, or left, where the net does not follow it already."""
    if recipe.rules and recipe.rules != recipe_of(net).rules:
        apply(net, recipe, example)


def done(run: Run) -> list[dict[str, Any]]:
    """What the procedures of a run did, in order."""
    return run.read_json(Procedures.file).get("procedures", [])


def record(run: Run, name: str, result: procedures.Report | Recipe, net: nn.Module, stage: int | None) -> None:
    """Adds what a procedure did to the run. stage: None, from the command line."""
    table = {} if isinstance(result, Recipe) else result.to_dict()
    row = {"stage": stage, "procedure": name, **table, "recipe": recipe_of(net).to_toml()}
    before = [r for r in done(run) if stage is None or r["stage"] != stage]
    run.write(Procedures, [{"procedures": [*before, row]}])
