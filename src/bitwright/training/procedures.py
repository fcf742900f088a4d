"""A stage that begins with a procedure: it runs once, and a resumed training only rebuilds what it left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitwright import procedures
from bitwright.engine.files import save
from bitwright.errors import InputError
from bitwright.runs.build import recipe_of_stage
from bitwright.runs.result_tables import Procedures
from bitwright.training.display import Screen, clock
from bitwright.transforms import Recipe, apply, recipe_of
from bitwright.transforms.decide import is_float
from bitwright.transforms.widths import KEY, put_widths, widths_of

if TYPE_CHECKING:
    from torch import nn

    from bitwright.experiment import Experiment
    from bitwright.runs import Run
    from bitwright.training.job import Job
    from bitwright.transforms.recipe import Rule


def check_procedures(experiment: Experiment) -> None:
    """Errors: `InputError`, before any work, for a procedure or an option that does not exist, and for one that prunes
    weights which an earlier stage has put on levels: prune, then quantize, then train on."""
    leveled = ""
    for index, stage in enumerate(experiment.stage):
        if stage.procedure is None:
            if any(_has_levels(rule.slots.get("w")) for rule in _rules(experiment, index)):
                leveled = f"the recipe of stage {index}"
            continue
        try:
            found = procedures.get(stage.procedure.name)
            options = found.check(stage.procedure.options)
        except InputError as error:
            raise error.reworded(f"stage {index}: {error}") from None
        if found.verb == "prune" and leveled and not options.get("latent"):
            raise InputError(
                f"stage {index}: {found.name} would move weights that {leveled} put on levels; possible: prune first, then "
                "quantize, then train; or latent = true",
                code="procedure-order",
                given=found.name,
            )
        if found.verb == "quantize":
            leveled = f"{found.name} of stage {index}"


def _rules(experiment: Experiment, index: int) -> tuple[Rule, ...]:
    stage = experiment.stage[index]
    if stage.recipe is None and not stage.rule:
        return ()
    return recipe_of_stage(experiment, index).rules


def _has_levels(value: Any) -> bool:
    """Whether a weight slot gets more than a mask."""
    if isinstance(value, (list, tuple)):
        return any(_has_levels(one) for one in value)
    name = value.get("part") if isinstance(value, dict) else value
    return name not in (None, "mask") and not is_float(value)


@contextmanager
def showing(screen: Screen, name: str) -> Iterator[None]:
    """Inside, a procedure says on the screen at which layer it is and how long it will take."""

    def show(step: procedures.Step) -> None:
        left = "" if step.left is None else f"left {clock(step.left)}"
        screen.step(f"{name}  {step.layer}", step.done, step.total, lambda: left)

    with procedures.watching(show):
        try:
            yield
        finally:
            screen.pause()


def run_procedure(job: Job, index: int, again: bool) -> None:
    """The procedure of a stage, on the first training batches.

    again   it ran before the checkpoint: the net gets the slots that it left, and their weights come from there
    """
    stage = job.experiment.stage[index]
    if stage.procedure is None:
        return
    if again:
        kept = next((row for row in reversed(done(job.run)) if row["stage"] == index), {"recipe": ""})
        put_widths(job.net, kept.get(KEY, {}), f"stage {index}")
        follow(job.net, Recipe.from_toml(kept["recipe"]), job.example())
        return
    found = procedures.get(stage.procedure.name)
    count = stage.procedure.batches
    job.screen.line(f"stage {index}  procedure {found.name}, {count} batch{'' if count == 1 else 'es'}")
    options = stage.procedure.options
    if job.main and "journal" in found.options.model_fields:  # a killed run goes on behind the layers that are done
        options = {"journal": job.run.file(f"journal-{index}"), **options}
    with showing(job.screen, found.name):
        result = found(job.net, job.first_batches(stage.procedure.batches), **options)
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
    if widths := widths_of(net):
        row[KEY] = widths
    before = [r for r in done(run) if stage is None or r["stage"] != stage]
    run.write(Procedures, [{"procedures": [*before, row]}])
