"""`bitwright cost`: MACs, bit operations, bytes and energy per layer, counted, not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_plan, complete_recipe
from bitwright.cli.output import Output
from bitwright.cli.target import experiment_of, float_net, looks_like_run, open_run, quoted, test_images, trained_net

if TYPE_CHECKING:
    from torch import Tensor, nn

DROP = ("kind", "activations", "bits", "density")


def cost(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A run directory, a model's name, file.py:fn, module:fn or an experiment.",
            autocompletion=complete_plan,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe for the float net. [default: a run as trained; else float]", autocompletion=complete_recipe
        ),
    ] = None,
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of a model by name.")] = 10,
    energy: Annotated[str, typer.Option(help="Energy table.")] = "horowitz45",
) -> None:
    """Count what a model costs per layer and in total, with or without a recipe.

    Narrow terminals lose kind, activations, bits and density, in this order.
    """
    out: Output = ctx.obj
    net, x, is_run = _net(out, model, recipe, input, classes)
    from bitwright.analysis import cost as count
    from bitwright.transforms import apply

    if recipe is not None:
        apply(net, recipe, x)
    table = count(net, x, energy=energy)
    out.data["cost"] = {"model": model, "recipe": recipe, "input": list(x.shape[1:]), **table.to_dict()}
    head, *rows = table.cells()
    out.table(head, rows, right=range(4, 10), drop=DROP)
    for line in table.notes():
        out.prose(line, 6)
    if is_run:
        out.next(f"bitwright convert {quoted(model)}", "packed and verified")
    elif experiment_of(model) is not None:
        out.next(f"bitwright train {quoted(model)}", "train it")
    else:
        more = f" --recipe {quoted(recipe)}" if recipe else ""
        out.next(f"bitwright bench {quoted(model)}{more}", "measured on this machine")


def _net(
    out: Output, target: str, recipe: str | None, input: str | None, classes: int
) -> tuple[nn.Module, Tensor, bool]:
    """The net to count, one input, and whether it is a run's."""
    from bitwright.cli.resolve import example, make_model, parse_shape, try_input

    shape = parse_shape(input, "cost")
    if looks_like_run(target):
        run = open_run(out, target, "cost")
        if recipe is not None:
            return *float_net(run.experiment, shape, classes), True
        if not run.has("model.safetensors"):
            run.model()
        from bitwright.runs import example_of

        images = test_images(run.experiment)
        return trained_net(run, images), example_of(run.experiment, images, 1), True
    experiment = experiment_of(target)
    if experiment is not None:
        return *float_net(experiment, shape, classes), False
    net, shape = make_model(target, "cost", shape, classes)
    x = example(shape)
    try_input(net, x, "cost", target)
    return net, x, False
