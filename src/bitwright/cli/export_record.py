"""What `bitwright export RUN` leaves in the run: a row of exports.csv, which the report reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bitwright.runs import Run


class Written(Protocol):
    """A report of an export."""

    @property
    def path(self) -> str: ...

    @property
    def bytes(self) -> int: ...


def record(run: Run | None, form: str, source: str, report: Written) -> None:
    """One row for each file; a file that is written again has the row of the last time."""
    if run is None:
        return
    from bitwright.reporting.sections.exports import digest
    from bitwright.runs.result_tables import Export

    path = Path(os.path.relpath(report.path, run.path)).as_posix()
    new = {
        "form": form,
        "path": path,
        "bytes": report.bytes,
        "source": source,
        "digest": digest(run.file(source)),
        "check": str(report).removeprefix(report.path).partition("; ")[2],
    }
    kept = [row.model_dump() for row in run.read(Export) if row.path != path]
    run.write(Export, [*kept, new])
