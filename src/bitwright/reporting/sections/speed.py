"""How fast, against whom? A bar for each program that was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import REPORT, Gap, Section
from bitwright.runs.result_tables import Bench, Candidate


class Speed(Section):
    name, title, place = "speed", "Speed", 20
    tables = (Bench,)

    def view(self, run: RunData) -> dict[str, Any]:
        return {"bars": bars(run), "missing_peers": run.speed.missing if run.speed else {}}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"speed": run.speed.model_dump() if run.speed else None}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if run.speed is None:
            yield "speed", Gap("Not measured against other programs.", "bitwright bench {run}", REPORT)


@dataclass(frozen=True)
class TimeBar:
    """`width`, whisker `left` and `whisker` in per cent of the longest whisker's end."""

    row: Candidate
    ours: bool
    color: str
    width: float
    left: float
    whisker: float
    tip: str
    rule: bool  # a line above: another precision begins


def bars(run: RunData) -> list[TimeBar]:
    """Measured candidates in the table's order; the axis starts at 0."""
    rows = [r for r in run.speed.rows if r.ms is not None] if run.speed else []
    top = max((r.q3 or r.ms or 0.0 for r in rows), default=0.0) or 1.0
    found: list[TimeBar] = []
    for row in rows:
        ours = run.speed is not None and row is run.speed.rows[0]
        q1, q3 = (row.ms if q is None else q for q in (row.q1, row.q3))
        low, high = (100 * (q or 0.0) / top for q in (q1, q3))
        tip = f"{row.name} ({row.precision}): {filters.ms_unit(row.ms)}\nquartiles {numbers.ms(q1)} to {numbers.ms(q3)}"
        if row.runs:
            tip += f", {row.runs:,} runs"
        color = "ours" if ours else row.precision if row.precision in ("int8", "bf16", "fp32") else "fp32"
        rule = bool(found) and found[-1].color != color
        found.append(TimeBar(row, ours, color, 100 * (row.ms or 0.0) / top, low, high - low, tip, rule))
    return found
