"""What did procedures change without training? A table for each that ran, with the columns of its own report."""

from __future__ import annotations

from typing import Any

from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Section
from bitwright.reporting.svg.charts import ChartTable
from bitwright.runs.result_tables import ProcedureDone, Procedures


class ProceduresSection(Section):
    name, title, place = "procedures", "Procedures", 65
    tables = (Procedures,)

    def shown(self, run: RunData) -> bool:
        return bool(_done(run))

    def view(self, run: RunData) -> dict[str, Any]:
        return {"procedures": [(done, layers(done)) for done in _done(run)]}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"procedures": [done.model_dump() for done in _done(run)]}


def _done(run: RunData) -> tuple[ProcedureDone, ...]:
    found = run.one(Procedures)
    return found.procedures if found else ()


def layers(done: ProcedureDone) -> ChartTable | None:
    """Its rows, whatever their columns are; None where it left a recipe alone."""
    heads = tuple(dict.fromkeys(key for row in done.rows for key in row))
    if not heads:
        return None
    rows = tuple(tuple(written(row.get(head)) for head in heads) for row in done.rows)
    return ChartTable(f"{done.procedure}, layer by layer", tuple(head.replace("_", " ") for head in heads), rows)


def written(value: Any) -> str:
    """A value of a report, whose meaning the page does not know.

    >>> written(1234), written(0.12345), written(True), written([3, 3]), written(None)
    ('1,234', '0.123', 'yes', '3, 3', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(written, value)) if isinstance(value, (list, tuple)) else str(value)
