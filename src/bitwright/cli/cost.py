"""`bitwright cost`: MACs, bit operations, bytes and energy per layer, counted, not measured."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.output import Output


def cost(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name, file.py:fn or module:fn.")],
    recipe: Annotated[str | None, typer.Argument(help="A recipe to apply first; without it the float net.")] = None,
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of a model by name.")] = 10,
    energy: Annotated[str, typer.Option(help="Energy table.")] = "horowitz45",
) -> None:
    """Count what a model costs per layer and in total, with or without a recipe."""
    out: Output = ctx.obj
    from bitwright.analysis import cost as count
    from bitwright.cli.resolve import example, make_model, parse_shape, try_input
    from bitwright.transforms import apply

    net, shape = make_model(model, "cost", parse_shape(input, "cost"), classes)
    x = example(shape)
    try_input(net, x, "cost", model)
    if recipe is not None:
        apply(net, recipe, x)
    table = count(net, x, energy=energy)
    out.data["cost"] = {"model": model, "recipe": recipe, "input": list(shape), **table.to_dict()}
    out.result(str(table))
    out.next(f"bitwright bench {model}" + (f" --recipe {recipe}" if recipe else ""), "measured on this machine")
