"""How much does the time depend on the image? The test images, sorted by the time that each took."""

from __future__ import annotations

from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Section
from bitwright.reporting.svg.charts import BOTTOM, LEFT, RIGHT, TOP, ChartTable, axes
from bitwright.reporting.svg.curves import Curves, Line
from bitwright.reporting.svg.scales import Scale
from bitwright.runs.result_tables import ImageTime
from bitwright.timing import percentiles

NAMES = {"mean": "mean", "p50": "p50", "p95": "p95", "most": "slowest"}
STOPS = 20  # marks on the line, for the keyboard


class LatencySection(Section):
    name, title, place = "latency", "Latency", 22
    tables = (ImageTime,)

    def shown(self, run: RunData) -> bool:
        return bool(run.rows(ImageTime))

    def view(self, run: RunData) -> dict[str, Any]:
        times = sorted(row.us / 1e3 for row in run.rows(ImageTime))
        return {"latency_chart": by_time(times), "latency_images": len(times)}

    def json(self, run: RunData) -> dict[str, Any]:
        times = [row.us / 1e3 for row in run.rows(ImageTime)]
        return {"latency": {"images": len(times), **{f"{k}_ms": v for k, v in percentiles(times).items()}}}


def by_time(times: list[float]) -> Curves:
    """ms of the images from the fastest to the slowest; the axis begins at 0, so that a small spread looks small."""
    last = len(times) - 1
    x, y = Scale(0, 100, LEFT, RIGHT), Scale(0, times[-1] * 1.1, BOTTOM, TOP)

    def at(i: int) -> float:
        return x(100 * i / last) if last else x(50)

    path = "M" + "L".join(f"{at(i)} {y(ms)}" for i, ms in enumerate(times))
    stops = sorted({round(last * k / STOPS) for k in range(STOPS + 1)})
    marks = tuple(
        (at(i), y(times[i]), f"{100 * i / max(last, 1):.0f} % are faster than {filters.ms_unit(times[i])}")
        for i in stops
    )
    rows = tuple((NAMES[name], numbers.ms(ms)) for name, ms in percentiles(times).items())
    return Curves(
        "Test images by time", axes(x, y, "test images, fastest first (%)", "ms, one image"),
        (Line("packed net", "ours", "", path, marks),), (), ChartTable("Time of one image", ("", "ms"), rows),
    )  # fmt: skip
