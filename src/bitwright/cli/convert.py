"""`bitwright convert`: trained weights -> packed file, verified, or the reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bitwright.cli.complete import complete_model, complete_run
from bitwright.cli.output import Output
from bitwright.cli.target import looks_like_run, only_for_files, quoted
from bitwright.errors import InputError


def convert(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            help="A run directory, or trained weights with their recipe, written by bw.save.",
            autocompletion=complete_run,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="For a file: the model its weights belong to: a name, file.py:fn or module:fn.",
            autocompletion=complete_model,
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="[default: FILE's name, .packed.safetensors]")
    ] = None,
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Outputs of a model by name. [default: 10]")] = None,
    data: Annotated[str | None, typer.Option(help="Verify on the test images of this data set, e.g. cifar10.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Where it lies. [default: BITWRIGHT_DATA]")] = None,
    form: Annotated[
        Literal["auto", "graph", "layers"],
        typer.Option(
            help="graph: needs no model code; layers: your module with packed layers; auto: the first that runs."
        ),
    ] = "auto",
    backend: Annotated[Literal["auto", "native", "reference"], typer.Option(help="Kernels, or plain torch.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="For the times per layer. [default: 1]")] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="For images of every size, where no layer fixes it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file even if nothing is gained; never if its answers differ.")
    ] = False,
    all: Annotated[bool, typer.Option("--all", help="Every layer, no runs of like layers cut short.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Every image whose class differs.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file. A run's own results always are.")
    ] = False,
) -> None:
    """Pack a trained low-bit net, verify it against the trained one, and write it.

    \b
    PASS    codes equal bit for bit, same class on at least 99.9 % of the
            inputs, faster than the float net; exit 0
    WARN    same class on at least 99 %, not faster, your code stays, or the
            trained net guesses; written all the same, exit 0
    REFUSE  below 99 %, codes or values that differ, or nothing to pack;
            nothing is written, exit 1

    In a run directory: all test images; packed.safetensors, convert.json, layers.csv and the row `bitwright` of
    results.csv are written anew. Narrow terminals leave out max diff, kB float, ms float, in this order.
    """
    out: Output = ctx.obj
    if looks_like_run(file):
        only_for_files(
            "convert", file, {"--model": model, "-o": output, "--input": input, "--classes": classes, "--data": data}
        )
        from bitwright.cli.convert_run import convert_run

        convert_run(out, file, data_root, backend, threads, force, None if all else 2, details, form, dynamic_size)
        return
    if not Path(file).is_file():
        raise InputError(f"convert: no file {file}", code="file-missing", given=file)
    if model is None:
        raise InputError(
            f"convert {file}: needs the model its weights belong to: --model resnet20 or --model file.py:fn. "
            "Or give a run directory instead",
            code="model-missing",
            given=file,
            possible="--model NAME",
        )
    target = _target(file, output, overwrite)
    out.begin(f"convert {file}: loading")
    import bitwright as bw
    from bitwright.cli.convert_text import show
    from bitwright.cli.model_argument import example, make_model, parse_shape, try_input

    batches = None if data is None else list(bw.data.load(data, data_root, "test").batches(256))
    shape = parse_shape(input, "convert")
    if shape is None and batches:
        shape = tuple(batches[0][0].shape[1:])
    net, shape = make_model(model, "convert", shape, classes or 10)
    x = example(shape)
    try_input(net, x, "convert", model)
    net = bw.load(file, net).eval()
    if batches:
        x = batches[0][0][:1]
    converted = bw.convert(
        net, x, form=form, backend=backend, threads=threads, verify=True if batches is None else batches, force=force,
        dynamic_size=dynamic_size,
    )  # fmt: skip
    what = "inputs" if batches is None else "test images"
    show(out, converted, target, what, limit=None if all else 2, details=details)
    if out.exit_code == 0:
        out.next(f"bitwright bench {quoted(target)} --model {quoted(model)}", "against the peers here")


def _target(file: str, output: str | None, overwrite: bool) -> Path:
    """Where the packed file goes; nothing is replaced unasked."""
    target = Path(output) if output else Path(file).with_suffix(".packed.safetensors")
    if target.exists() and not overwrite:
        raise InputError(
            f"convert: {target} exists. Give another -o, or --overwrite", code="file-exists", given=str(target)
        )
    if not target.parent.is_dir():
        raise InputError(f"convert: no folder {target.parent}", code="file-folder", given=str(target.parent))
    return target
