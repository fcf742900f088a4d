"""Which files of other programs were written from this net? Each with its size and how it was checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section
from bitwright.runs.result_tables import Export


class Exports(Section):
    name, title, place = "exports", "Exported files", 25
    tables = (Export,)

    def shown(self, run: RunData) -> bool:
        return run.conversion is not None or bool(run.rows(Export))

    def view(self, run: RunData) -> dict[str, Any]:
        return {"exports": files(run)}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"exports": [row.model_dump() for row in run.rows(Export)]}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if run.conversion is not None and not run.rows(Export):
            yield "exports", Gap("Not exported to another program.", "bitwright export onnx {run}")


@dataclass(frozen=True)
class Exported:
    """`size` of the file as it lies there now, None where it is gone; `old` where the net has changed since."""

    row: Export
    link: str
    size: int | None
    old: bool


def files(run: RunData) -> list[Exported]:
    """The files of the table, as they are now."""
    folder = run.run.path if run.run else Path()
    found = []
    for row in run.rows(Export):
        place, source = folder / row.path, folder / row.source
        size = place.stat().st_size if place.is_file() else None
        old = source.is_file() and digest(source) != row.digest
        found.append(Exported(row, quote(row.path), size, old))
    return found


def digest(path: Path) -> str:
    """The beginning of its sha256, enough to tell two nets apart."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
