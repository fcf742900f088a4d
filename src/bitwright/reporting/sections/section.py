"""What a section of the page is, and the form in which the page's JSON keeps long tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bitwright.reporting.run_data import RunData
from bitwright.runs.cells import PerEpoch, Table, last_epoch

TRAIN = "bitwright train digits-lenet5-bwn --out runs/mine"
REPORT = 'bw.report([bw.convert(model, example), bw.bench(model, example)], "report.html")'


@dataclass(frozen=True)
class Gap:
    """What stands in the place of missing data: one sentence why, and the command that fills it.

    command   {run} and {experiment} stand for the run's folder and the experiment in it
    python    the command where the page is about objects
    """

    why: str
    command: str
    python: str = TRAIN


class Section:
    """One part of the page; its template is `templates/NAME.html.j2`, which reads `run` and what `view` gives.

    name     of its element and its template;   title   in the navigation;   place   in the order of the page
    key      of what it read, in templates and in the page's JSON
    tables   files that it goes by
    """

    name: ClassVar[str]
    title: ClassVar[str]
    place: ClassVar[int]
    key: ClassVar[str] = ""
    tables: ClassVar[tuple[type[Table], ...]] = ()

    def read(self, run: RunData) -> Any:
        """What the files say, if that is more than their rows; None where they are not there."""
        return None

    def shown(self, run: RunData) -> bool:
        """Whether the page has the section."""
        return True

    def view(self, run: RunData) -> dict[str, Any]:
        """Charts and texts, by the names that the template uses."""
        return {}

    def json(self, run: RunData) -> dict[str, Any]:
        """Raw values for the page's JSON; asked for where it is shown."""
        return {}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        """What is missing, by a name that the template uses."""
        yield from ()


# -- JSON --------------------------------------------------------------------------------------------------------------
def columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Many equal rows without repeating their keys.

    >>> columns([{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    {'columns': ['a', 'b'], 'rows': [[1, 2], [3, 4]]}
    """
    return {"columns": list(rows[0]) if rows else [], "rows": [list(row.values()) for row in rows]}


def epochs_json(rows: Sequence[PerEpoch], table: type[Table], most: int = 375) -> dict[str, Any]:
    """Every epoch of a table where that is not too much, else the last one."""
    whole = len(rows) <= most
    note = "all" if whole else f"last; all are in {table.file}"
    return {**columns([rounded(row.model_dump()) for row in (rows if whole else last_epoch(rows))]), "epochs": note}


def rounded(value: Any) -> Any:
    """Six digits: nothing of many epochs is known better."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
