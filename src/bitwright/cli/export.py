"""`bitwright export`: a packed net in the form of another program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.export_c import c
from bitwright.cli.export_circuit import circuit
from bitwright.cli.export_qonnx import qonnx
from bitwright.cli.export_record import record
from bitwright.cli.export_target import RANDOM, ExportTarget, export_target
from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.command()(c)
app.command()(qonnx)
app.command()(circuit)


@app.callback()
def export() -> None:
    """Write a packed net in the form of another program, run it there, and compare."""


@app.command()
def onnx(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="A run directory with a packed net, a packed .safetensors file, or zoo:NAME.",
            autocompletion=complete_run,
        ),
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help="[default: TARGET's name, .onnx]")] = None,
    standard: Annotated[
        bool, typer.Option("--standard", help="Standard operators only: nothing of ours in the file.")
    ] = False,
    qdq: Annotated[
        bool, typer.Option("--qdq", help="Standard operators, 8-bit integers in QDQ form: for other int8 kernels.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Test images of a run to compare on.")] = 256,
) -> None:
    """One ONNX file that every onnxruntime runs with the same numbers.

    It carries our operators' meaning in standard ones; `bw.ort.session(FILE)` runs them with our kernels instead.
    """
    out: Output = ctx.obj
    found = export_target(out, target)
    x, where = _inputs(out, target, found, images)
    path = found.place(output, ".onnx")
    out.note(f"export {target}: compared on {where}")
    from bitwright.export import onnx as write

    report = write(found.net, x, path, packed=not standard, qdq=qdq)
    out.result(str(report))
    out.data["export"] = report.to_dict()
    record(found.run, "onnx", "packed.safetensors", report)
    if not (standard or qdq):
        out.next(f"python -c \"import bitwright as bw; s = bw.ort.session('{path}')\"", "runs it with our kernels")


def _inputs(out: Output, target: str, found: ExportTarget, images: int) -> tuple[Tensor, str]:
    """What to compare on, and what that is."""
    from bitwright.cli.model_argument import example

    if found.run is not None:
        try:
            return _test_images(found.run, images), "its test images"
        except InputError as error:
            out.warn(f"export: no test images ({error}); random inputs instead")
    inputs = found.net.inputs
    if len(inputs) > 1:
        raise InputError(
            f"export {target}: takes {len(inputs)} inputs; possible from Python: bw.export.onnx(net, (a, b), path)",
            code="export-form",
        )
    return example(tuple(inputs[0].shape), RANDOM), f"{RANDOM} random inputs"


def _test_images(run: object, count: int) -> Tensor:
    from bitwright.runs import Run, dataset, example_of

    assert isinstance(run, Run)
    return example_of(run.experiment, dataset(run.experiment, "test"), count)
