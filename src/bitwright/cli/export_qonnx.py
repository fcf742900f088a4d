"""`bitwright export qonnx`: a net with quantizers as a QONNX file."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.export_record import record
from bitwright.cli.export_target import RANDOM, export_target, placed
from bitwright.cli.output import Output
from bitwright.cli.target import looks_like_run, open_run, test_images, trained_net


def qonnx(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="A run directory, a packed .safetensors file, or zoo:NAME.",
            autocompletion=complete_run,
        ),
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help="[default: TARGET's name, .qonnx.onnx]")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images of a run to compare on.")] = 64,
) -> None:
    """One QONNX file, for FINN and hls4ml.

    Quantizers of weights and inputs are its nodes Quant and BipolarQuant.

    The qonnx package cleans and runs it, and its answers are compared with the net's; without the package it is only written.
    """
    out: Output = ctx.obj
    if looks_like_run(target):
        run = open_run(out, target, "export")
        from bitwright.runs import example_of

        data = test_images(run.experiment)
        net, x = trained_net(run, data), example_of(run.experiment, data, images)
        stem, where = run.file("packed"), f"{len(x)} test images"
    else:
        from bitwright.cli.model_argument import example

        run, found = None, export_target(out, target)
        net, stem, where = found.net, found.stem, f"{RANDOM} random inputs"
        x = tuple(example(tuple(node.shape), RANDOM) for node in found.net.inputs)
    path = placed(stem, output, ".qonnx.onnx")
    out.note(f"export {target}: compared on {where}")
    from bitwright.export import qonnx as write

    report = write(net, x, path)
    out.result(str(report))
    for name in report.floats:
        out.note(f"float  {name}")
    out.data["export"] = report.to_dict()
    record(run, "qonnx", "model.safetensors", report)
