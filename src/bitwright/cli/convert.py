"""`bitwright convert`: trained weights -> packed file, verified, or the reason why not."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.cli.output import Output
from bitwright.errors import InputError


def convert(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="Trained weights with their recipe, written by bw.save.")],
    model: Annotated[str, typer.Option(help="The model these weights belong to: a name, file.py:fn or module:fn.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="[default: FILE's name, .packed.safetensors]")
    ] = None,
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of a model by name.")] = 10,
    data: Annotated[str | None, typer.Option(help="Verify on the test images of this data set, e.g. cifar10.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Where it lies. [default: BITWRIGHT_DATA]")] = None,
    backend: Annotated[str, typer.Option(help="auto, native or reference.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Pack a trained low-bit net, verify it against the trained one, and write it.

    PASS: same class on at least 99.9 % of the inputs; WARN: 99 %, or not faster; REFUSE (exit 1, nothing
    written): less, or nothing could be packed.
    """
    out: Output = ctx.obj
    import bitwright as bw
    from bitwright.cli.resolve import example, make_model, parse_shape, try_input

    target = Path(output) if output else Path(file).with_suffix(".packed.safetensors")
    if target.exists() and not overwrite:
        raise InputError(
            f"convert: {target} exists. Give another -o, or --overwrite", code="file-exists", given=str(target)
        )
    if not target.parent.is_dir():
        raise InputError(f"convert: no folder {target.parent}", code="file-folder", given=str(target.parent))
    if not Path(file).is_file():
        raise InputError(f"convert: no file {file}", code="file-missing", given=file)
    batches = None if data is None else list(bw.data.load(data, data_root, "test").batches(256))
    shape = parse_shape(input, "convert")
    if shape is None and batches:
        shape = tuple(batches[0][0].shape[1:])
    net, shape = make_model(model, "convert", shape, classes)
    x = example(shape)
    try_input(net, x, "convert", model)
    net = bw.load(file, net).eval()
    if batches:
        x = batches[0][0][:1]
    converted = bw.convert(net, x, backend=backend, verify=True if batches is None else batches)
    report(out, converted, target)
    if out.exit_code == 0:
        out.next(f"bitwright bench {shlex.quote(str(target))} --model {shlex.quote(model)}", "against the peers here")


def report(out: Output, converted: Any, target: Path) -> None:
    """Rows and verdict; writes the file unless the verdict is REFUSE, which is exit code 1."""
    result = converted.report
    out.status = result.status
    rows, verdict = split_verdict(str(result), result.status)
    out.result(rows)
    out.data["report"] = result.to_dict() if hasattr(result, "to_dict") else {"text": str(result)}
    if converted.model is None or result.status == "REFUSE":
        out.exit_code = 1
        out.verdict(verdict)
        return
    converted.save(target)
    size = target.stat().st_size
    out.data["file"] = {"path": str(target), "bytes": size}
    from bitwright.measure.numbers import kb

    out.verdict(f"{verdict}  {target}  {kb(size)} kB")


def split_verdict(text: str, status: str) -> tuple[str, str]:
    """The table, and the last line if it is the verdict.

    >>> split_verdict("rows\\nPASS", "PASS")
    ('rows', 'PASS')
    >>> split_verdict("rows", "WARN")
    ('rows', 'WARN')
    """
    rows, _, last = text.rpartition("\n")
    return (rows, last) if last.startswith(status) else (text, status)
