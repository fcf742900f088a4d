"""`bitwright bench`: measured here, beside the best other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_model, complete_recipe, complete_run
from bitwright.cli.output import Output
from bitwright.cli.target import looks_like_run, only_for_files, quoted
from bitwright.errors import InputError
from bitwright.numbers import kb, smaller

if TYPE_CHECKING:
    from bitwright.measure.table import BenchTable


def bench(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="A run directory, a packed .safetensors file, a model (name, file.py:fn), or conv:256x14[x3].",
            autocompletion=complete_run,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Apply it to the model and convert, with random weights.", autocompletion=complete_recipe),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model of a packed file: its float net feeds the peers.", autocompletion=complete_model),
    ] = None,
    input: Annotated[str | None, typer.Option(help="Shape of one input, e.g. 3,32,32. [default: the model's]")] = None,
    size: Annotated[
        str | None, typer.Option(help="Another height and width, 64 or 64x48, of a net that takes every size.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Outputs of a model by name. [default: 10]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Inputs per call.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of every candidate.")] = 1,
    against: Annotated[str | None, typer.Option(help="Peers, e.g. ort-int8,torch-bf16. [default: all]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Slices of about 6 ms per candidate.")] = 15,
    images: Annotated[
        int | None, typer.Option(min=1, help="Of a run: also time so many test images, one by one.")
    ] = None,
) -> None:
    """Measure speed against the best fp32, bf16 and int8 programs of this machine, interleaved in one process.

    In a run directory: its packed net against its float net in the peers; bench.json and the rows of results.csv
    for this batch size are written anew. With --images, latency.csv has the time of each image and the report shows
    them. Narrow terminals leave out the quartiles, then img/s, then p95.
    """
    out: Output = ctx.obj
    run = looks_like_run(target)
    if run:
        only_for_files("bench", target, {"--recipe": recipe, "--model": model, "--input": input, "--classes": classes})
    else:
        out.begin(f"bench {target}: loading")
    from bitwright.measure.peers import PEERS

    peers = tuple(PEERS) if against is None else tuple(p.strip() for p in against.split(",") if p.strip())
    if run:
        from bitwright.cli.bench_run import bench_run

        bench_run(out, target, batch, threads, peers, rounds, images, sides(size))
        return
    if images is not None:
        raise InputError(f"bench {target}: --images times the test images of a run; give a run directory", code="usage")
    sizes: list[int | None] = []
    if target.startswith("conv:"):
        if size is not None:
            raise InputError(
                f"bench {target}: --size is for a net; the size of a convolution is in its name", code="usage"
            )
        from bitwright.measure.conv import conv_bench

        channels, side, kernel = _conv_shape(target)
        table = conv_bench(channels, side, None, kernel, batch, threads, against=peers, rounds=rounds)
    else:
        table, *sizes = _net(
            out, target, recipe, model, input, sides(size), classes or 10, batch, threads, peers, rounds
        )
    show(out, table, *sizes)


def show(out: Output, table: BenchTable, file_bytes: int | None = None, float_bytes: int | None = None) -> None:
    """The table as text and as data; noise is a warning; `--quiet` leaves the sentence to quote.

    file_bytes, float_bytes   of the packed file and of a file with its float net, where both are known
    """
    out.data["bench"] = table.to_dict()
    out.data["summary"] = table.summary()
    out.lines(table.text(out.width).splitlines())
    if file_bytes and float_bytes:
        out.data["size"] = {"file_bytes": file_bytes, "float_bytes": float_bytes}
        out.result(
            f"size: {smaller(float_bytes, file_bytes)}, {kb(file_bytes)} kB; the float net {kb(float_bytes)} kB, file against file"
        )
    if out.quiet:
        out.verdict(table.summary())
    if table.noisy:
        out.warn(f"bench: {table.quality}")


def _net(
    out: Output,
    target: str,
    recipe: str | None,
    model: str | None,
    input: str | None,
    size: tuple[int, int] | None,
    classes: int,
    batch: int,
    threads: int,
    peers: tuple[str, ...],
    rounds: int,
) -> tuple[BenchTable, int | None, int | None]:
    """The table, and the bytes of the packed file and of a file with its float net, where they are known."""
    import bitwright as bw
    from bitwright.cli.model_argument import example, make_model, parse_shape, try_input
    from bitwright.engine.files import file_bytes
    from bitwright.engine.packed import PackedModel
    from bitwright.measure.bench import bench as measure
    from bitwright.transforms.twin import float_twin

    shape = parse_shape(input, "bench")
    if target.endswith(".safetensors"):
        if recipe is not None:
            raise InputError("bench: --recipe is for a model; a packed file has its recipe inside", code="usage")
        from bitwright.tensors import read_tensors

        net = None
        if model is not None and read_tensors(target)[1].get("bitwright") == "layers":
            net, shape = make_model(model, "bench", shape, classes)
        try:
            packed = bw.load(target, net)
        except InputError as error:
            if error.code != "load-model" or net is not None:
                raise
            raise error.reworded(
                f"bench {target}: not a packed file: {str(error).partition(': ')[2].partition(';')[0]}. "
                f"Pack it: bitwright convert {quoted(target)} --model MODEL"
            ) from None
        if isinstance(packed, PackedModel):
            shape = at(shape or tuple(packed.graph.nodes[0].shape), size)
        elif size is not None:
            text = f"bench {target}: --size is for a net packed as one graph; this file has the layer form. Possible: --input 3,64,64"
            raise InputError(text, code="usage")
        assert shape is not None  # a file that needs a model and has none is an error of load
        x = example(shape, batch)
        try:
            packed(x)  # a wrong --input ends here, in one line
        except InputError as error:
            raise error.reworded(str(error).replace("packed model", target, 1)) from None
        baseline = None
        if model is not None:
            baseline, _ = make_model(model, "bench", shape, classes)
            try_input(baseline, x, "bench", model)
        else:
            out.next(f"bitwright bench {quoted(target)} --model MODEL", "its name or file.py:fn, for the peers")
        table = measure(packed, x, threads=threads, against=peers, rounds=rounds, baseline=baseline)
        return (
            table,
            Path(target).stat().st_size,
            None if baseline is None else file_bytes(float_twin(baseline), dense=True),
        )
    if model is not None:
        raise InputError("bench: --model goes with a packed file; name the model itself instead", code="usage")
    net, shape = make_model(target, "bench", shape, classes)
    x = example(at(shape, size), batch)
    try_input(net, x, "bench", target)
    if recipe is None:
        return measure(net, x, threads=threads, against=peers, rounds=rounds), None, None
    bw.apply(net, recipe, x)
    out.head(f"{target} with random weights and recipe {recipe}: speed only, nothing is trained")
    converted = bw.convert(net, x, threads=threads, verify=False)
    if converted.model is None:
        out.status, out.exit_code = "REFUSE", 1
        out.verdict(f"REFUSE  {converted.report.verdict}")
    table = measure(converted, x, threads=threads, against=peers, rounds=rounds)
    return table, converted.report.file_bytes, converted.report.float_bytes


def sides(text: str | None) -> tuple[int, int] | None:
    """`64` or `64x48`: height and width.

    >>> sides("64"), sides("64x48")
    ((64, 64), (64, 48))
    """
    if text is None:
        return None
    pieces = text.split("x")
    if len(pieces) > 2 or not all(p.isdecimal() and 0 < int(p) <= 1 << 16 for p in pieces):
        raise InputError(f"bench: --size {text!r} is no size; possible: 64 or 64x48", code="input-shape", given=text)
    return int(pieces[0]), int(pieces[-1])


def at(shape: tuple[int, ...], size: tuple[int, int] | None) -> tuple[int, ...]:
    """The shape of an input with another height and width."""
    if size is not None and len(shape) != 3:
        text = f"bench: --size is for images; an input of this net is {'x'.join(map(str, shape))}"
        raise InputError(text, code="input-shape")
    return shape if size is None else (shape[0], *size)


def _conv_shape(text: str) -> tuple[int, int, int]:
    """`conv:256x14` or `conv:256x14x3`: channels, image side, kernel side."""
    pieces = text.removeprefix("conv:").split("x")
    if len(pieces) not in (2, 3) or not all(p.isdecimal() and 0 < int(p) <= 8192 for p in pieces):
        raise InputError(
            f"bench: {text!r} is not a convolution. Give conv:CHANNELSxSIDE or conv:CHANNELSxSIDExKERNEL",
            code="conv-shape",
            given=text,
            possible="conv:256x14x3",
        )
    channels, size, kernel = (int(p) for p in (*pieces, "3")[:3])
    if kernel % 2 == 0:
        raise InputError(f"bench: {text!r}: kernel {kernel}; possible: an odd number", code="conv-shape", given=text)
    return channels, size, kernel
