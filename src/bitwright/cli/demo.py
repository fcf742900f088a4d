"""`bitwright demo`: train, convert, verify and measure on the embedded digits, in about a minute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.output import Output

if TYPE_CHECKING:
    from bitwright.cli.demo_train import Trained


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder for the packed files and results.csv.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of weights and order of images.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="One epoch each, few rounds: does it work here?")] = False,
) -> None:
    """Train a float, a 1-bit and a 2-bit net on embedded digits, convert, verify and measure them. Under 90 s."""
    screen: Output = ctx.obj
    from bitwright.measure.machine import cpu_name, kernels
    from bitwright.version import __version__

    # the first line starts before the slow imports do
    screen.result(f"bitwright {__version__} | {cpu_name()}, {os.cpu_count()} cores, ", end="")
    import torch

    from bitwright.cli.demo_net import BINARY, TWO_BIT
    from bitwright.cli.demo_train import Run

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers: a second thread only waits, and on a busy machine waits long
    try:
        with torch.random.fork_rng(devices=[]):
            run = Run(screen, seed, quick)
            sizes = f"{len(run.train)} train / {len(run.test)} test"
            screen.result(f"kernels: {kernels()} | embedded digits, {sizes}")
            teacher = run.fit("float teacher", 1, 8)
            students = [
                run.fit("W1A1 student", 2, 10, BINARY, teacher),
                run.fit("W1A2 student", 3, 10, TWO_BIT, teacher),
            ]
            out.mkdir(parents=True, exist_ok=True)
            _convert(screen, run, students)
            _measure(screen, run, teacher, students, out, quick)
    finally:
        torch.set_num_threads(before)


def _convert(out: Output, run: Any, students: list[Trained]) -> None:
    """[4/5]: every test image through the trained and the packed net."""
    import bitwright as bw

    for net in students:
        net.converted = bw.convert(net.model, run.example, threads=1, verify=run.batches())
    first = min((net.converted.report for net in students), key=lambda r: r.same)
    same = "same answer as the trained net" if first.same else "same"
    out.result(f"[4/5] convert + verify       {first.same} of {first.images} test images: {same}")


def _measure(out: Output, run: Any, teacher: Trained, students: list[Trained], folder: Path, quick: bool) -> None:
    """[5/5], the table, the files."""
    from bitwright.cli.demo_table import print_tables, write_files
    from bitwright.measure.bench import bench
    from bitwright.measure.conv import conv_bench

    rounds = 3 if quick else 15
    tables = {}
    for net in students:
        if net.converted.model is not None:
            for batch in (1, 256):
                tables[net.name, batch] = bench(net.converted, run.batch(batch), rounds=rounds)
    conv = conv_bench(256, 14, rounds=rounds)
    runs = max((row.runs for table in tables.values() for row in table.rows), default=0)
    out.result(f"[5/5] bench                  1 thread, batch 1 and 256, interleaved, up to {runs:,} runs each")
    write_files(out, teacher, students, tables, conv, folder)
    print_tables(out, teacher, students, tables, conv)
    out.result(f"files:  {folder}/  (packed nets, results.csv)")
    out.next("bitwright plan resnet20 xnor", "see what a recipe would do to a model, before it does")
    if any(net.converted.report.status == "REFUSE" for net in students):
        out.status, out.exit_code = "REFUSE", 1
