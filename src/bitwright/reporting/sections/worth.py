"""Is it worth it? Accuracy against size and against time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section
from bitwright.reporting.svg.charts import Mark, Point, ScatterPlot, scatter
from bitwright.runs.result_tables import NetResult


class Worth(Section):
    name, title, place = "worth", "Worth it?", 10
    tables = (NetResult,)

    def view(self, run: RunData) -> dict[str, Any]:
        return {"size_chart": size_scatter(run), "time_chart": time_scatter(run)}

    def json(self, run: RunData) -> dict[str, Any]:
        return {"nets": [net.model_dump() for net in run.rows(NetResult)]}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if run.file_bytes is None or (run.accuracy is None and run.trained_accuracy is None):
            yield "worth", Gap("Accuracy and size of the packed net are not both known.", "bitwright convert {run}")


def size_scatter(run: RunData) -> ScatterPlot | None:
    """Accuracy against bytes: the float net and the packed one."""
    points = _nets(run, run.file_bytes, run.float_bytes, numbers.kb_unit, 1e3)
    return scatter("Accuracy against size", "size (kB, log; left is better)", points, "size") if points else None


def time_scatter(run: RunData) -> ScatterPlot | None:
    """Accuracy against ms: nets with a known accuracy as points, the best peer of a precision as a vertical mark."""
    points = _nets(run, run.ms, run.float_ms, filters.ms_unit, 1.0)
    best = [run.speed.best(precision) for precision in ("int8", "bf16")] if run.speed else []
    marks = [Mark(b.name, b.ms, filters.ms_unit(b.ms), b.precision) for b in best if b is not None and b.ms]
    title, x_title = "Accuracy against latency", "latency (ms, log; left is better)"
    return scatter(title, x_title, points, "latency", marks=marks) if points else None


def _nets(
    run: RunData, ours: float | None, floats: float | None, write: Callable[[float | None], str], unit: float
) -> list[Point] | None:
    """Our net and the float one; None without ours: the float net alone does not answer the question."""
    if run.accuracy is None or not ours:
        return None
    return [
        Point(run.origin.name, ours / unit, run.accuracy, write(ours), "diamond", "ours", main=True),
        Point("float", (floats or 0.0) / unit, run.float_accuracy, write(floats), "circle", "fp32"),
    ]
