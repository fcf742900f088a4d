"""`bitwright export c`: a packed net as one C file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.output import Output
from bitwright.cli.target import looks_like_run, open_run, quoted
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

RANDOM = 16  # random inputs, where no images are at hand
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
    net, x, pixels, where, path = _net_and_images(out, target, images)
    path = path if output is None else Path(output)
    if path.is_dir() or not path.parent.is_dir():
        text = f"{path} is a folder" if path.is_dir() else f"no folder {path.parent}"
        raise InputError(f"export: {text}; give -o FILE.c", code="file-missing", given=str(path))
    if mean is not None or std is not None:
        pixels = _numbers("--mean", mean), _numbers("--std", std)
    out.note(f"export {target}: compared on {where}")
    from bitwright.export import c as write

    report = write(net, x, path, mean=pixels[0], std=pixels[1], batch=batch, progmem=progmem, bare=bare)
    out.result(str(report))
    for line in report.floats:
        out.note(f"float  {line}")
    out.data["export"] = report.to_dict()
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


def _net_and_images(
    out: Output, target: str, count: int
) -> tuple[nn.Module, Tensor, tuple[Numbers, Numbers], str, Path]:
    """The packed net, pixels to compare on, mean and deviation that it expects, what the pixels are, the default file."""
    import torch

    import bitwright as bw

    if target.startswith("zoo:"):
        card = bw.zoo.card(target)
        net, path = bw.zoo.load(card.name), Path(f"{card.name}.c")
        try:
            found = bw.zoo.data(card).limit(count)
        except InputError as error:
            out.warn(f"export: no test images ({error}); random pixels instead")
            from bitwright.fn.pixels import PIXELS

            return (
                net,
                _random(net, target),
                PIXELS[card.data] if card.normalize else (None, None),
                "random pixels",
                path,
            )
        normalize = card.normalize
    elif looks_like_run(target):
        from bitwright.runs import dataset
        from bitwright.runs.build import normalized

        run = open_run(out, target, "export")
        if not run.has("packed.safetensors"):
            raise InputError(
                f"export {target}: no packed net yet. Run: bitwright convert {quoted(target)}", code="run-unpacked"
            )
        net, path = bw.load(run.file("packed.safetensors")), run.file("packed.c")
        found, normalize = dataset(run.experiment, "test").limit(count), normalized(run.experiment)
    else:
        if not Path(target).is_file():
            raise InputError(f"export: no file {target}", code="file-missing", given=target)
        name = Path(target).name.removesuffix(".safetensors").removesuffix(".packed")
        net, path = bw.load(target), Path(target).parent / f"{name}.c"
        return net, _random(net, target), (None, None), f"{RANDOM} inputs of random pixels", path
    x = found.pictures(torch.arange(len(found)))
    if found.put(x[:1], None)[1] is not None:
        raise InputError(
            f"export {target}: {found.name} subtracts a mean image, which the C file does not. Possible: from Python with floats, "
            "bw.export.c(net, next(iter(data.batches(16)))[0], 'net.c')",
            code="export-pixels",
        )
    return net, x, (found.mean, found.std) if normalize else (None, None), f"{len(x)} test images", path


def _random(net: nn.Module, target: str) -> Tensor:
    import torch

    from bitwright.engine.packed import PackedModel

    if not isinstance(net, PackedModel):
        raise InputError(f"export {target}: not a packed net; pack it first: bitwright convert", code="export-form")
    shape = tuple(net.inputs[0].shape)
    return torch.randint(0, 256, (RANDOM, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
