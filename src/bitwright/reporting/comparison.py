"""`compare`: several runs side by side, the first is the reference; as a page, Markdown, CSV or LaTeX."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bitwright.errors import InputError
from bitwright.reporting import data, filters
from bitwright.reporting.compare_text import csv_text, latex, markdown
from bitwright.reporting.compare_view import charts, work_chart
from bitwright.reporting.groups import Group, accuracy_of, grouped
from bitwright.reporting.load import load_run
from bitwright.reporting.matrix import Matrix, matrix
from bitwright.reporting.page import render, write
from bitwright.reporting.run_data import RunData
from bitwright.runs.folder import is_run

Form = Literal["html", "markdown", "csv", "latex"]
COLUMNS = 6  # groups beside each other; more stand below each other


def compare(
    runs: Sequence[str | os.PathLike[str] | RunData], path: str | os.PathLike[str], format: Form = "html"
) -> Path:
    """Writes the comparison and returns its path; an existing file is replaced.

    runs     run directories, or folders of them; runs of one experiment with other seeds become one column,
             mean and standard deviation. The first is the reference
    format   "html", "markdown", "csv" or "latex"
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"report: no folder {target.parent}", code="file-folder", given=str(target.parent))
    return write(target, text(runs, format))


def text(runs: Sequence[str | os.PathLike[str] | RunData], format: str = "html") -> str:
    """The comparison as text."""
    if format not in get_args(Form):
        possible = ", ".join(get_args(Form))
        raise InputError(f"report: format {format!r}; possible: {possible}", code="report-format", given=format)
    found = [run if isinstance(run, RunData) else load_run(run) for run in expand(runs)]
    groups = grouped(found)
    table = matrix(groups)
    if format == "csv":
        return csv_text(groups)
    if format == "markdown":
        return markdown(table)
    if format == "latex":
        return latex(table)
    return html(groups, table)


def expand(runs: Sequence[str | os.PathLike[str] | RunData]) -> list[Path | RunData]:
    """Folders of runs become their runs, by name; each run once."""
    found: dict[Any, Path | RunData] = {}
    for given in runs:
        if isinstance(given, RunData):
            found[id(given)] = given
            continue
        folder = Path(given)
        inside = [folder] if is_run(folder) else sorted(p for p in folder.glob("*") if is_run(p))
        if not inside:
            what = "holds no runs" if folder.is_dir() else "no such folder"
            raise InputError(
                f"report {given}: {what}. Runs are made by: bitwright train", code="run-missing", given=str(given)
            )
        found.update({p.resolve(): p for p in inside})
    if not found:
        raise InputError("report: no runs to compare. Give run directories or a folder of them", code="run-missing")
    return list(found.values())


@dataclass(frozen=True)
class Difference:
    """What differs from the reference: lines as (sign, text)."""

    name: str
    title: str
    lines: tuple[tuple[str, str], ...]


def differences(groups: list[Group]) -> list[Difference]:
    """Changed lines of the experiment, and of the recipe as applied, against the first group."""
    found = []
    for group in groups[1:]:
        for title, field in (("experiment", "experiment"), ("rules", "recipe")):
            before, after = (getattr(g.first.origin, field).splitlines() for g in (groups[0], group))
            lines = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
            lines = [line for line in lines if not line[2:].startswith("seed =") and line[2:].strip()]
            if lines:
                found.append(Difference(group.name, title, tuple((line[0], line[2:]) for line in lines)))
    return found


def html(groups: list[Group], table: Matrix) -> str:
    size, time, lines = charts(groups)
    raw = {"schema": "bitwright-comparison/1", "runs": [_raw(run) for group in groups for run in group.runs]}
    return render(
        "compare.html.j2",
        {
            "groups": groups,
            "table": table,
            "wide": len(groups) > COLUMNS,
            "size_chart": size,
            "time_chart": time,
            "work_chart": work_chart(groups),
            "curves": lines,
            "differences": differences(groups),
            "bits_class": filters.bits_class,
            "data": data.block(raw),
        },
    )


def _raw(run: RunData) -> dict[str, Any]:
    keep = ("head", "layer_totals", "origin", "nets")
    return {key: value for key, value in data.as_dict(run).items() if key in keep} | {"accuracy": accuracy_of(run)}
