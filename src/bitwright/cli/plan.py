"""`bitwright plan`: what a recipe would do to a model, before it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from bitwright.cli.output import Output


def plan(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name (resnet20), file.py:fn or module:fn.")],
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (bitwright recipes) or a TOML file.")],
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of a model by name.")] = 10,
    all: Annotated[bool, typer.Option("--all", help="Every layer, no runs of like layers cut short.")] = False,
) -> None:
    """Show per layer what a recipe would do: rule, slots, bits, MACs. Nothing is changed or run but shapes."""
    out: Output = ctx.obj
    from bitwright.cli.resolve import example, make_model, parse_shape, try_input
    from bitwright.transforms.plan import plan as make_plan

    net, shape = make_model(model, "plan", parse_shape(input, "plan"), classes)
    x = example(shape)
    try_input(net, x, "plan", model)
    table = make_plan(net, recipe, x)
    out.data["plan"] = {"model": model, "recipe": recipe, "input": list(shape), **table.to_dict()}
    out.result(replace(table, warnings=[]).text(None if all else 3))
    for text in table.warnings:
        out.warn(text)
    out.next(
        f"bitwright bench {model} --recipe {recipe}" + (f" --input {input}" if input else ""), "is it faster here?"
    )
