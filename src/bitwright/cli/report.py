"""`bitwright report`: the HTML page of a run, or several runs side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli.complete import complete_run
from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.reporting.run_data import RunData

SUFFIXES = {"html": "html", "markdown": "md", "csv": "csv", "latex": "tex"}


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            help="A run directory; with --compare several, or folders of runs.", autocompletion=complete_run
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", "--out", help="[default: RUN/report.html, or compare.html]")
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Zoomable charts by plotly: about 5 MB.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Side by side; the first is the reference.")] = False,
    format: Annotated[
        str | None, typer.Option(help="html, markdown, csv or latex; of the comparison. [default: html]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing -o file.")] = False,
) -> None:
    """Write one self-contained HTML page about a run: is it worth it, and why; or compare runs.

    The page opens from disk, needs no network and may be mailed or printed. What was not measured is a sentence
    with the command that measures it. Runs of one experiment with other seeds are merged to mean and deviation.
    Markdown, CSV and LaTeX go to stdout without -o.
    """
    out: Output = ctx.obj
    if format is not None and format not in SUFFIXES:
        possible = ", ".join(SUFFIXES)
        raise InputError(f"report: --format {format!r}; possible: {possible}", code="report-format", given=format)
    if interactive and (compare or (format or "html") != "html"):
        raise InputError("report: --interactive is for the page of one run", code="usage")
    if compare or (format or "html") != "html":
        _compare(out, runs, output, format or "html", overwrite)
    elif len(runs) > 1:
        raise InputError(f"report: got {len(runs)} runs. To set them side by side add --compare", code="usage")
    else:
        _one(out, runs[0], output, interactive, overwrite)


def _one(out: Output, given: str, output: str | None, interactive: bool, overwrite: bool) -> None:
    from bitwright.reporting.page import html, load
    from bitwright.reporting.verdict import findings, verdict

    target = Path(output) if output else Path(given) / "report.html"
    _check(target, overwrite or output is None)
    run = load(given)
    _save(out, target, html(run, interactive=interactive))
    said = verdict(run)
    out.status = said.word
    out.data["verdict"] = {"word": said.word, "sentence": said.sentence}
    out.data["findings"] = [str(f) for f in findings(run)]
    for line in [str(f) for f in findings(run)] or ["nothing was measured yet"]:
        out.prose(line, 6)
    out.verdict(f"{said.word}  {said.sentence}")
    _next(out, run)


def _next(out: Output, run: RunData) -> None:
    """The first thing that the page lacks."""
    from bitwright.reporting.gaps import gaps

    found = gaps(run)
    for name, why in (("unfinished", "goes on"), ("convert", "packs and verifies"), ("speed", "measures the speed")):
        if name in found:
            out.next(found[name].command, why)
            return


def _compare(out: Output, runs: list[str], output: str | None, format: str, overwrite: bool) -> None:
    from bitwright.reporting.comparison import text

    if output is None and format != "html":
        written = text(runs, format)
        out.data["text"] = written
        out.result(written, end="")
        return
    target = Path(output or "compare.html")
    _check(target, overwrite)
    _save(out, target, text(runs, format))


def _check(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(
            f"report: {target} exists. Give another -o, or --overwrite",
            code="file-exists",
            given=str(target),
            remedy=f"-o {shlex.quote(str(target.with_stem(target.stem + '-2')))}",
        )


def _save(out: Output, target: Path, text: str) -> None:
    from bitwright.numbers import kb
    from bitwright.reporting.page import write

    if not target.parent.is_dir():
        raise InputError(f"report: no folder {target.parent}", code="file-folder", given=str(target.parent))
    size = write(target, text).stat().st_size
    out.data["file"] = {"path": str(target), "bytes": size}
    out.result(f"report: {target}  ({kb(size)} kB)")
