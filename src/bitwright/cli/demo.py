"""`bitwright demo`: train, convert, verify, measure and report on the embedded digits, in about a minute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.runs import Run


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder for the two runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of weights and order of images.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="One epoch each, few rounds: does it work here?")] = False,
) -> None:
    """Train a float, a 1-bit and a 2-bit net on embedded digits, convert, verify and measure them. Under 90 s."""
    screen: Output = ctx.obj
    if out.exists() and not out.is_dir():
        raise InputError(f"demo: {out} is a file. Give a folder: --out DIR", code="file-folder", given=str(out))
    from bitwright.measure.machine import cpu_name, kernels
    from bitwright.version import __version__

    # the first line starts before the slow imports do
    screen.result(f"bitwright {__version__} | {cpu_name()}, {os.cpu_count()} cores, ", end="")
    import torch

    import bitwright as bw
    from bitwright.cli.demo_train import BATCH, train_nets

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers: a second thread only waits, and on a busy machine waits long
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays
            images, test = bw.data.load("digits", split="train"), bw.data.load("digits", split="test")
            screen.result(f"kernels: {kernels()} | embedded digits, {len(images)} train / {len(test)} test")
            out.mkdir(parents=True, exist_ok=True)
            loader = bw.data.loader_rate(images, BATCH, augment=True, seconds=0.2)
            runs = train_nets(screen, out, seed, quick, len(images), loader)
            _convert(screen, runs)
            _measure(screen, runs, out, 3 if quick else 15)
    finally:
        torch.set_num_threads(before)


def _convert(out: Output, runs: list[Run]) -> None:
    """[4/5]: every test image through the trained and the packed net."""
    from bitwright.cli.convert_run import convert_run

    for run in runs:
        # --json prints nothing before its end: what it would say is in the run's files
        convert_run(Output(as_json=True), str(run.path), None, "auto", 1, False, None, False)
    first = min((run.read_json("convert.json") for run in runs), key=lambda found: found["same"])
    same = "same answer as the trained net" if first["same"] else "same"
    out.result(f"[4/5] convert + verify       {first['same']} of {first['images']} test images: {same}")


def _measure(out: Output, runs: list[Run], folder: Path, rounds: int) -> None:
    """[5/5], the table, the report."""
    from bitwright.cli.bench_run import measure_run
    from bitwright.cli.demo_table import print_tables
    from bitwright.measure.conv import conv_bench
    from bitwright.measure.peers import PEERS
    from bitwright.numbers import kb
    from bitwright.reporting import report

    packed = [run for run in runs if run.has("packed.safetensors")]
    # batch 1 last: it stays in bench.json, where the report looks
    tables = {
        (run.name, batch): measure_run(run, batch, 1, tuple(PEERS), rounds) for batch in (256, 1) for run in packed
    }
    conv = conv_bench(256, 14, rounds=rounds)
    (folder / "conv.csv").write_text(conv.to_csv(), encoding="utf-8")
    most = max((row.runs for table in tables.values() for row in table.rows), default=0)
    out.result(f"[5/5] bench                  1 thread, batch 1 and 256, interleaved, up to {most:,} runs each")
    out.data["conv"] = conv.to_dict()
    print_tables(out, runs, tables, conv)
    page = report(runs[0].path, folder / "report.html")
    out.data["report"] = page.as_posix()
    out.result(f"report: {page.as_posix()}  ({kb(page.stat().st_size)} kB)")
    out.next(f"bitwright report --compare {runs[0].path.as_posix()} {runs[1].path.as_posix()}", "both nets on one page")
    out.next("bitwright plan resnet20 xnor", "see what a recipe would do to a model, before it does")
    if len(packed) < len(runs):
        out.status, out.exit_code = "REFUSE", 1
