"""`bitwright cost`: MACs, bit operations, bytes and energy per layer, counted, not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_plan, complete_recipe
from bitwright.cli.output import Output
from bitwright.cli.target import (
    experiment_net,
    experiment_of,
    looks_like_run,
    open_run,
    quoted,
    test_images,
    trained_net,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

DROP = ("kind", "activations, kB", "bits", "density")


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

    Narrow terminals leave out kind, activations, bits and density, in this order.
    """
    out: Output = ctx.obj
    net, x, is_run = _net(out, model, recipe, input, classes)
    from bitwright.analysis import cost as count
    from bitwright.nn import SlotLayer
    from bitwright.numbers import percent
    from bitwright.parts.moments import moment
    from bitwright.transforms import apply

    if recipe is not None:
        apply(net, recipe, x)
    table = count(net, x, energy=energy)
    out.data["cost"] = {"model": model, "recipe": recipe, "input": list(x.shape[1:]), **table.to_dict()}
    head, *rows = table.cells()
    gates, measured = open_gates(net), measured_gates(model) if is_run and recipe is None else {}
    for row in rows:
        if row[0] in measured and row[0] in gates:
            row[-1] = "; ".join(filter(None, [row[-1], f"on {percent(measured[row[0]])} %, counted"]))
    out.table(head, rows, right=range(4, 10), drop=DROP)
    for line in table.notes():
        out.prose(line, 6)
    if gates:
        out.prose(gate_note(model, gates, measured, is_run), 6)
        out.data["cost"]["gates"] = {"open": list(gates), "rates": measured or None}
    if is_run and any(moment(layer.gate, "spent") for layer in net.modules() if isinstance(layer, SlotLayer)):
        out.next(f"bitwright eval {quoted(model)}", "the work its gates leave, image by image")
    elif is_run:
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
    from bitwright.cli.model_argument import example, make_model, parse_shape, try_input

    shape = parse_shape(input, "cost")
    if looks_like_run(target):
        run = open_run(out, target, "cost")
        if recipe is not None:
            return *experiment_net(run.experiment, shape, classes), True
        if not run.has("model.safetensors"):
            run.model()
        from bitwright.runs import example_of

        images = test_images(run.experiment)
        return trained_net(run, images), example_of(run.experiment, images, 1), True
    experiment = experiment_of(target)
    if experiment is not None:
        return *experiment_net(experiment, shape, classes), False
    net, shape = make_model(target, "cost", shape, classes)
    x = example(shape)
    try_input(net, x, "cost", target)
    return net, x, False


def open_gates(net: nn.Module) -> dict[str, str]:
    """Layer -> gate, where what the gate saves depends on the data: no table can know it."""
    from bitwright.nn import SlotLayer
    from bitwright.parts.moments import moment
    from bitwright.parts.traits import title_of

    found = {name: m.gate for name, m in net.named_modules() if isinstance(m, SlotLayer)}
    return {
        name: title_of(gate)
        for name, gate in found.items()
        if moment(gate, "spent") is not None and moment(gate, "density") is None
    }


def measured_gates(target: str) -> dict[str, float]:
    """Layer -> rate in the last epoch of a run, from its gates.csv."""
    from pathlib import Path

    from bitwright.runs import Run
    from bitwright.runs.cells import last_epoch
    from bitwright.runs.tables import Gate

    last = last_epoch(Run(Path(target)).read(Gate))
    return {row.layer: row.rate for row in last if row.rate is not None}


def gate_note(target: str, gates: dict[str, str], measured: dict[str, float], is_run: bool) -> str:
    """What the table cannot know, and the command that counts it."""
    names = ", ".join(dict.fromkeys(gates.values()))
    head = f"{names} ({len(gates)} layer{'s' if len(gates) > 1 else ''}): the table prices every gate as open"
    if not is_run:
        return f"{head}; what they save depends on the data. Counted in training, and by: bitwright eval RUN"
    source = "in the run's last epoch (gates.csv)" if measured else "not counted in this run"
    return f"{head}; what they save depends on the data: {source}, and anew by: bitwright eval {quoted(target)}"
