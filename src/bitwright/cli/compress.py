"""`bitwright compress`: a procedure on the trained net of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.output import Output
from bitwright.cli.target import at_root, open_run, quoted, trained_net
from bitwright.errors import InputError

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # the options of the procedure


def compress(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run directory (bitwright train).", autocompletion=complete_run)],
    method: Annotated[
        str, typer.Option(help="Procedure of bw.procedures, e.g. recalibrate_batchnorm; its options follow.")
    ],
    batches: Annotated[int, typer.Option(min=1, help="Training batches, not augmented, that it sees.")] = 8,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of the net. [default: RUN/compressed.safetensors]")
    ] = None,
    data_root: Annotated[str | None, typer.Option("--data-root", help="Where the run's data set lies here.")] = None,
) -> None:
    """Run a procedure of bw.procedures on a trained net, e.g. --method recalibrate_batchnorm --batches 20.

    A procedure changes the net without training it, or says by a recipe how to go on. Its options are those of the Python
    function: bw.procedures.pca_hybrid(..., delta=3) is --method pca_hybrid --delta 3. The run keeps its own weights; the
    changed net becomes a file of its own, which eval --weights reads.
    """
    out: Output = ctx.obj
    options = _options(ctx.args)
    from itertools import islice

    from bitwright import procedures

    found = procedures.get(method)
    found.check(options)
    opened = open_run(out, str(run), "compress")
    from bitwright.engine.files import save
    from bitwright.runs import dataset, example_of
    from bitwright.runs.build import normalized
    from bitwright.training.procedures import follow, record
    from bitwright.transforms import Recipe

    experiment = at_root(opened.experiment, data_root)
    net = trained_net(opened, dataset(experiment, "test"))
    train = dataset(experiment, "train")
    size = min(experiment.data.batch, len(train))
    out.detail(f"compress {run}: {found.name}, {batches} batches of {size} training images")
    pairs = train.batches(size, shuffle=True, seed=experiment.seed, normalize=normalized(experiment))
    result = found(net, islice(pairs, batches), **options)
    if isinstance(result, Recipe):
        follow(net, result, example_of(experiment, train))
        out.result(result.to_toml())
    else:
        head, *cells = result.cells()
        out.table(head, cells, right=range(1, len(head)))
    path = output or opened.file("compressed.safetensors")
    save(net, path)
    record(opened, found.name, result, net, None)
    table = {} if isinstance(result, Recipe) else result.to_dict()
    out.data["compress"] = {"run": str(run), "procedure": found.name, "file": str(path), **table}
    out.verdict(f"done  {path}")
    out.next(f"bitwright eval {quoted(run)} --weights {quoted(path)}", "its accuracy")


def _options(words: list[str]) -> dict[str, Any]:
    """`--keep .5 --rounds=2` as options.

    >>> _options(["--keep", ".5", "--act-order=true"])
    {'keep': 0.5, 'act_order': True}
    """
    from bitwright.experiment.override import value_of

    found: dict[str, Any] = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("--") or not (equals or left):
            raise InputError(
                f"compress: {name!r}; possible: options of the procedure as --name value",
                code="usage",
                given=name,
                possible="--name value",
            )
        found[name[2:].replace("-", "_")] = value_of(value if equals else left.pop(0))
    return found
