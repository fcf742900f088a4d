"""`bitwright prune`, `quantize`, `compress`: a procedure on a trained net."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.method import SETTINGS, run_method

Target = Annotated[
    str, typer.Argument(help="A run directory (bitwright train), or zoo:NAME.", autocompletion=complete_run)
]
Batches = Annotated[int, typer.Option(min=1, help="Training batches, not augmented, that the procedure sees.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File of the net. [default: RUN/compressed.safetensors]")
]
Root = Annotated[str | None, typer.Option("--data-root", help="Where the data set lies here.")]
Test = Annotated[int, typer.Option(min=0, help="Test images for the accuracy before and after; 0: none.")]


def prune(
    ctx: typer.Context,
    run: Target,
    method: Annotated[
        str, typer.Option(help="l_obs, sparse_gpt, magnitude, reconstruct, shrink; its options follow.")
    ] = "l_obs",
    batches: Batches = 4,
    output: Output = None,
    data_root: Root = None,
    test: Test = 1000,
) -> None:
    """Prune a trained net from a few images, without retraining, e.g. --method l_obs --keep .5 (or --keep "conv1=.8,*=.5").

    Options are those of the Python function: bw.procedures.l_obs(..., keep=0.5, rounds=8) is --keep .5 --rounds 8. The run
    keeps its own weights; the changed net becomes a file of its own, which eval --weights reads.
    """
    run_method(ctx.obj, "prune", run, method, ctx.args, batches, output, data_root, test)


def quantize(
    ctx: typer.Context,
    run: Target,
    method: Annotated[str, typer.Option(help="gptq, l_dnq; its options follow.")] = "gptq",
    batches: Batches = 4,
    output: Output = None,
    data_root: Root = None,
    test: Test = 1000,
) -> None:
    """Put the weights of a trained net on few levels, from a few images, without retraining, e.g. --method gptq --bits 4.

    Options are those of the Python function: bw.procedures.gptq(..., bits=4, group=64) is --bits 4 --group 64. The run
    keeps its own weights; the changed net becomes a file of its own, which eval --weights reads.
    """
    run_method(ctx.obj, "quantize", run, method, ctx.args, batches, output, data_root, test)


def compress(
    ctx: typer.Context,
    run: Target,
    method: Annotated[
        str, typer.Option(help="Procedure of bw.procedures, e.g. recalibrate_batchnorm; its options follow.")
    ],
    batches: Batches = 8,
    output: Output = None,
    data_root: Root = None,
    test: Test = 0,
) -> None:
    """Run any procedure of bw.procedures on a trained net, e.g. --method recalibrate_batchnorm --batches 20.

    A procedure changes the net without training it, or says by a recipe how to go on. Its options are those of the Python
    function: bw.procedures.pca_hybrid(..., delta=3) is --method pca_hybrid --delta 3. The run keeps its own weights; the
    changed net becomes a file of its own, which eval --weights reads.
    """
    run_method(ctx.obj, "compress", run, method, ctx.args, batches, output, data_root, test)


__all__ = ["SETTINGS", "compress", "prune", "quantize"]
