"""`bitwright export`: a packed net in the form of another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.export_c import c
from bitwright.cli.output import Output
from bitwright.cli.target import looks_like_run, open_run, quoted
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.command()(c)
RANDOM = 16  # random inputs, where no images are at hand


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
    net, x, where, path = _net_and_inputs(out, target, images)
    path = path if output is None else Path(output)
    if path.is_dir() or not path.parent.is_dir():
        text = f"{path} is a folder" if path.is_dir() else f"no folder {path.parent}"
        raise InputError(f"export: {text}; give -o FILE.onnx", code="file-write", given=str(path))
    out.note(f"export {target}: compared on {where}")
    from bitwright.export import onnx as write

    report = write(net, x, path, packed=not standard, qdq=qdq)
    out.result(str(report))
    out.data["export"] = report.to_dict()
    if not (standard or qdq):
        out.next(f"python -c \"import bitwright as bw; s = bw.ort.session('{path}')\"", "runs it with our kernels")


def _net_and_inputs(out: Output, target: str, images: int) -> tuple[nn.Module, Tensor, str, Path]:
    """The packed net, inputs to compare on, what these are, and where the file goes by default."""
    import bitwright as bw
    from bitwright.cli.model_argument import example
    from bitwright.engine.packed import PackedModel

    if target.startswith("zoo:"):
        name = target.removeprefix("zoo:")
        net, path = bw.zoo.load(name), Path(f"{name}.onnx")
    elif looks_like_run(target):
        run = open_run(out, target, "export")
        if not run.has("packed.safetensors"):
            raise InputError(
                f"export {target}: no packed net yet. Run: bitwright convert {quoted(target)}", code="run-unpacked"
            )
        net, path = _load(run.file("packed.safetensors"), target), run.file("packed.onnx")
        try:
            return net, _test_images(run, images), "its test images", path
        except InputError as error:
            out.warn(f"export: no test images ({error}); random inputs instead")
    else:
        if not Path(target).is_file():
            raise InputError(f"export: no file {target}", code="file-missing", given=target)
        net, path = (
            _load(Path(target), target),
            Path(Path(target).name.removesuffix(".safetensors").removesuffix(".packed") + ".onnx"),
        )
        path = Path(target).parent / path
    if not isinstance(net, PackedModel):
        raise InputError(f"export {target}: not a packed net; pack it first: bitwright convert", code="export-form")
    if len(net.inputs) > 1:
        raise InputError(
            f"export {target}: takes {len(net.inputs)} inputs; possible from Python: bw.export.onnx(net, (a, b), path)",
            code="export-form",
        )
    return net, example(tuple(net.inputs[0].shape), RANDOM), f"{RANDOM} random inputs", path


def _load(path: Path, target: str) -> nn.Module:
    """The net of a packed file. Errors: what to type for a file of another kind."""
    import bitwright as bw
    from bitwright.tensors import read_tensors

    try:
        return bw.load(path)
    except InputError as error:
        if error.code != "load-model":
            raise
        command = f"bitwright convert {quoted(target) if looks_like_run(target) else 'FILE --model MODEL'}"
        if read_tensors(path)[1].get("bitwright") != "layers":
            text = f"trained, not packed. Pack it: bitwright convert {quoted(target)} --model MODEL"
        else:
            text = f"packed in layer form, which runs with your code; ONNX takes a graph. Pack it anew: {command} --form graph"
        raise error.reworded(f"export {target}: {text}") from None


def _test_images(run: object, count: int) -> Tensor:
    from bitwright.runs import Run, dataset, example_of

    assert isinstance(run, Run)
    return example_of(run.experiment, dataset(run.experiment, "test"), count)
