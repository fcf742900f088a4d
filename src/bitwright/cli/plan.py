"""`bitwright plan`: what a recipe would do to a model, before it does; or each stage of an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_plan, complete_recipe
from bitwright.cli.output import Output
from bitwright.cli.target import experiment_net, experiment_of, looks_like_run, open_run, quoted
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.transforms.plan import Plan

LIMIT = 2  # like layers shown before `...  n more`
DROP = ("shape", "kind", "rule")


def plan(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model (resnet20, file.py:fn, module:fn), an experiment (name or TOML) or a run directory.",
            autocompletion=complete_plan,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A shipped recipe or a TOML file. [default: each stage of the experiment]",
            autocompletion=complete_recipe,
        ),
    ] = None,
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of a model by name.")] = 10,
    all: Annotated[bool, typer.Option("--all", help="Every layer, no runs of like layers cut short.")] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Rules of two recipes side by side; each may be a run or a trained file.")
    ] = False,
) -> None:
    """Show per layer what a recipe would do: rule, slots, bits, MACs. Nothing is changed or run but shapes.

    Narrow terminals leave out shape, kind and rule, in this order.
    """
    out: Output = ctx.obj
    if diff:
        from bitwright.cli.plan_diff import plan_diff

        return plan_diff(out, model, recipe)
    if looks_like_run(model):
        open_run(out, model, "plan")
    experiment = experiment_of(model)
    if experiment is not None:
        return _experiment(out, experiment, model, recipe, input, classes, None if all else LIMIT)
    if recipe is None:
        from bitwright.cli.model_argument import check_model

        check_model(model, "plan")
        raise InputError(
            f"plan {model}: a model needs a recipe, e.g. bitwright plan {quoted(model)} xnor. Experiments, whose "
            "stages have their own: bitwright experiments",
            code="recipe-missing",
            given=model,
            remedy="bitwright recipes",
        )
    from bitwright.cli.model_argument import example, make_model, parse_shape, try_input
    from bitwright.transforms.plan import plan as make_plan

    net, shape = make_model(model, "plan", parse_shape(input, "plan"), classes)
    x = example(shape)
    try_input(net, x, "plan", model)
    try:
        table = make_plan(net, recipe, x)
    except InputError as error:  # under the name that the user typed
        raise error.reworded(str(error).replace(f"plan {type(net).__name__}:", f"plan {model}:", 1)) from None
    out.data["plan"] = {"model": model, "recipe": recipe, "input": list(shape), **table.to_dict()}
    show_table(out, table, None if all else LIMIT, model)
    more = f" --input {input}" if input else ""
    out.next(f"bitwright bench {quoted(model)} --recipe {quoted(recipe)}{more}", "is it faster here?")


def _experiment(
    out: Output,
    experiment: Experiment,
    target: str,
    recipe: str | None,
    input: str | None,
    classes: int,
    limit: int | None,
) -> None:
    """A table per stage, each on the net as the stages before leave it; with a recipe, that one on the float net."""
    from bitwright.cli.model_argument import parse_shape
    from bitwright.transforms.plan import plan as make_plan

    net, x = experiment_net(experiment, parse_shape(input, "plan"), classes)
    head = f"{experiment.data.name} {'x'.join(map(str, x.shape[1:]))} | {experiment.model.name}"
    if recipe is not None:
        table = make_plan(net, recipe, x)
        out.data["plan"] = {"model": target, "recipe": recipe, "input": list(x.shape[1:]), **table.to_dict()}
        out.result(head)
        show_table(out, table, limit, target)
        return
    from bitwright.runs import apply_stage, recipe_of_stage

    many = len(experiment.stage)
    stages = []
    recipes = [recipe_of_stage(experiment, i) for i in range(many)]  # one that does not exist is the whole answer
    out.result(f"{head} | {many} stage{'s' if many != 1 else ''} | seed {experiment.seed}")
    for i, stage in enumerate(experiment.stage):
        own = recipes[i]
        name = stage.recipe or ("own rules" if own.rules else "no recipe")
        if stage.procedure is not None:
            name = f"procedure {stage.procedure.name}"
        out.result(f"\nstage {i}  {name}, {stage.epochs} epoch{'s' if stage.epochs != 1 else ''}")
        table = make_plan(net, own, x)
        stages.append({"stage": i, "recipe": name, "epochs": stage.epochs, **table.to_dict()})
        if own.rules or i == 0:
            show_table(out, table, limit, f"{target}: stage {i}")
        apply_stage(net, experiment, i, x)
    out.data["plan"] = {"experiment": target, "input": list(x.shape[1:]), "stages": stages}
    if looks_like_run(target):
        out.next(f"bitwright cost {quoted(target)}", "MACs, bytes and energy of its trained net")
    else:
        out.next(f"bitwright train {quoted(target)}", "train it")


def show_table(out: Output, table: Plan, limit: int | None, name: str) -> None:
    """The table; a plan that `apply` refuses ends the command with the same words."""
    head, *rows = table.cells(limit)
    assert not isinstance(head, str)
    out.table(head, rows, right=(len(head) - 2,), drop=DROP)
    for line in table.summary():
        out.prose(line, 9)
    if table.refused is not None:
        raise table.refused.reworded(str(table.refused).replace("plan:", f"plan {name}:", 1))
