"""Is it worth it? Accuracy against size and against time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bitwright.measure import numbers
from bitwright.reporting import words
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section
from bitwright.reporting.svg.charts import Mark, Point, Scatter, Table, scatter
from bitwright.runs.tables import Net


class Worth(Section):
    name, title, place = "worth", "Worth it?", 10
    tables = (Net,)

    def view(self, run: RunData) -> dict[str, Any]:
        return {"size_chart": size_scatter(run), "time_chart": time_scatter(run)}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"nets": [net.model_dump() for net in run.rows(Net)]}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if run.file_bytes is None or (run.accuracy is None and run.trained_accuracy is None):
            yield "worth", Gap("Accuracy and size of the packed net are not both known.", "bitwright convert {run}")


def size_scatter(run: RunData) -> Scatter | None:
    """Accuracy against bytes: the float net and the packed one."""
    points, table = _nets(run, "size", run.file_bytes, run.float_bytes, words.kb_unit, 1e3)
    return scatter("Accuracy against size", "size (kB, log; left is better)", points, (), table) if points else None


def time_scatter(run: RunData) -> Scatter | None:
    """Accuracy against ms: nets with a known accuracy as points, the best peer of a precision as a vertical mark."""
    points, table = _nets(run, "latency", run.ms, run.float_ms, words.ms_unit, 1.0)
    marks, rows = [], list(table.rows)
    for precision in ("int8", "bf16"):
        best = run.speed.best(precision) if run.speed else None
        if best is not None and best.ms:
            tip = f"{best.name}\n{words.ms_unit(best.ms)}\nits accuracy was not measured"
            marks.append(Mark(best.name, best.ms, precision, tip))
            rows.append((best.name, "not measured", words.ms_unit(best.ms)))
    table = Table(table.title, table.headers, tuple(rows))
    x_title = "latency (ms, log; left is better)"
    return scatter("Accuracy against latency", x_title, points, marks, table) if points else None


def _nets(
    run: RunData,
    cost: str,
    ours: float | None,
    floats: float | None,
    write: Callable[[float | None], str],
    unit: float,
) -> tuple[list[Point], Table]:
    """Our net and the float one; no points without ours: the float net alone answers nothing."""
    points, rows = [], []
    for name, accuracy, value, shape, color in (
        (run.origin.name, run.accuracy, ours, "diamond", "ours"),
        ("float", run.float_accuracy, floats, "circle", "fp32"),
    ):
        rows.append((name, words.percent_unit(accuracy), write(value)))
        if accuracy is not None and value:
            tip = f"{name}\naccuracy {numbers.percent(accuracy)} %\n{write(value)}"
            points.append(Point(name, value / unit, accuracy, shape, color, tip, color == "ours"))
    table = Table(f"Accuracy and {cost}", ("net", "test accuracy", cost), tuple(rows))
    return points if any(p.main for p in points) else [], table
