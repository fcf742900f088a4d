"""`bitwright export c`: a packed net as one C file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.export_record import record
from bitwright.cli.export_target import RANDOM, ExportTarget, export_target
from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Numbers = Sequence[float] | None


def c(
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
        typer.Option("--output", "-o", help="The .c file; the header lies beside it. [default: TARGET's name]"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of a call.")] = 1,
    progmem: Annotated[
        bool, typer.Option("--progmem", help="Constants in a section of their own, for the linker script.")
    ] = False,
    bare: Annotated[
        bool, typer.Option("--bare", help="No main() beside the self-check: for machines without an operating system.")
    ] = False,
    mean: Annotated[
        str | None,
        typer.Option(help="Of the training pixels, 255 is 1, per channel: 0.49,0.48,0.45. [default: the run's]"),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Deviation of the training pixels, likewise.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images to compare on.")] = 256,
) -> None:
    """One C99 file and its header: no library, no heap, static memory.

    The program is compiled here and compared with the net, if there is a compiler. `cc -DNET_SELF_CHECK FILE.c && ./a.out`
    checks it on any machine.
    """
    out: Output = ctx.obj
    found = export_target(out, target)
    path = found.place(output, ".c")
    x, pixels, where = _images(out, target, found, images)
    if mean is not None or std is not None:
        pixels = _numbers("--mean", mean), _numbers("--std", std)
    out.note(f"export {target}: compared on {where}")
    from bitwright.export import c as write

    report = write(found.net, x, path, mean=pixels[0], std=pixels[1], batch=batch, progmem=progmem, bare=bare)
    out.result(str(report))
    for line in report.floats:
        out.note(f"float  {line}")
    out.data["export"] = report.to_dict()
    record(found.run, "c", "packed.safetensors", report)
    if not bare:
        out.next(
            f"cc -std=c99 -O2 -DNET_SELF_CHECK {path} && ./a.out && echo equal", "checks it on the machine it is for"
        )


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(piece) for piece in text.split(",")]
    except ValueError:
        raise InputError(
            f"export c: {option} {text!r} is no list of numbers; possible: 0.49,0.48,0.45",
            code="export-pixels",
            given=text,
        ) from None


def _images(out: Output, target: str, found: ExportTarget, count: int) -> tuple[Tensor, tuple[Numbers, Numbers], str]:
    """Pixels to compare on, mean and deviation that the net expects of them, and what the pixels are."""
    import torch

    import bitwright as bw

    if found.run is not None:
        from bitwright.runs import dataset
        from bitwright.runs.build import normalized

        data, normalize = dataset(found.run.experiment, "test").limit(count), normalized(found.run.experiment)
    elif found.card is not None:
        normalize = found.card.normalize
        try:
            data = bw.zoo.data(found.card).limit(count)
        except InputError as error:
            from bitwright.fn.pixels import PIXELS

            out.warn(f"export: no test images ({error}); random pixels instead")
            return _random(found), PIXELS[found.card.data] if normalize else (None, None), "random pixels"
    else:
        return _random(found), (None, None), f"{RANDOM} inputs of random pixels"
    x = data.pictures(torch.arange(len(data)))
    if data.put(x[:1], None)[1] is not None:
        raise InputError(
            f"export {target}: {data.name} subtracts a mean image, which the C file does not. Possible: from Python with floats, "
            "bw.export.c(net, next(iter(data.batches(16)))[0], 'net.c')",
            code="export-pixels",
        )
    return x, (data.mean, data.std) if normalize else (None, None), f"{len(x)} test images"


def _random(found: ExportTarget) -> Tensor:
    import torch

    shape = tuple(found.net.inputs[0].shape)
    return torch.randint(0, 256, (RANDOM, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
