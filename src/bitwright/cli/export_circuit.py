"""`bitwright export circuit`: a packed net of bits as gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.export_record import record
from bitwright.cli.export_target import RANDOM, ExportTarget, export_target
from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def circuit(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="A run directory with a packed net, a packed .safetensors file, or zoo:NAME.",
            autocompletion=complete_run,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="The suffix chooses the form: .v Verilog, .aag or .aig AIGER, .blif, .c, .json. [default: TARGET's name, .v]",
        ),
    ] = None,
    outputs: Annotated[
        str, typer.Option(help="class: the index of the class; counts: also the sum of each class.")
    ] = "class",
    limit: Annotated[int, typer.Option(min=1, help="Refuse nets of more gates, as estimated.")] = 2_000_000,
    images: Annotated[int, typer.Option(min=1, help="Test images to compare on.")] = 10_000,
) -> None:
    """Gates of two inputs, of a net whose values are bits.

    The file is read back (.c: compiled and run) and must answer as the net does: on all patterns of up to 16 inputs, else on the
    test images and about 4,000 other inputs.
    """
    from typing import Literal, cast

    out: Output = ctx.obj
    found = export_target(out, target)
    path = found.place(output, Path(output).suffix if output else ".v")
    x, where = _images(out, target, found, images)
    out.note(f"export {target}: compared on {where}")
    from bitwright.export import circuit as write

    report = write(found.net, x, path, outputs=cast(Literal["class", "counts"], outputs), limit=limit)
    out.result(str(report))
    for layer, gates in report.layers.items():
        out.note(f"gates  {layer}  {gates:,}")
    out.data["export"] = report.to_dict()
    record(found.run, "circuit", "packed.safetensors", report)


def _images(out: Output, target: str, found: ExportTarget, count: int) -> tuple[Tensor, str]:
    """What to compare on, as the net reads it, and what that is."""
    import bitwright as bw

    if len(found.net.inputs) > 1:
        raise InputError(
            f"export circuit {target}: takes {len(found.net.inputs)} inputs. Possible: one", code="export-form"
        )
    try:
        if found.run is not None:
            from bitwright.runs import dataset, example_of

            data = dataset(found.run.experiment, "test")
            count = min(count, len(data))
            return example_of(found.run.experiment, data, count), f"{count:,} test images"
        if found.card is not None:
            data = bw.zoo.data(found.card).limit(count)
            return next(iter(data.batches(len(data), normalize=found.card.normalize)))[0], f"{len(data):,} test images"
    except InputError as error:
        out.warn(f"export: no test images ({error}); random bits instead")
    from bitwright.export.to_circuit import example_of_bits

    return example_of_bits(found.net.inputs[0].shape, RANDOM), f"{RANDOM} inputs of random bits"
