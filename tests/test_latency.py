"""The time of each image: measured alone, kept in the run, drawn from the fastest to the slowest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.measure.latency import latencies
from bitwright.reporting.sections.latency import by_time
from bitwright.runs import Run
from bitwright.runs.result_tables import ImageTime
from bitwright.timing import percentiles
from reporting_example import example_run


class Clock:
    """Time passes only where the net works: as much as the image says, and ten times that in some calls."""

    def __init__(self, slow: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.now, self.calls, self.slow = 0.0, 0, slow

    def net(self, x: torch.Tensor) -> None:
        assert x.shape == (1, 1)
        self.now += x.item() * (10 if self.calls in self.slow else 1)
        self.calls += 1

    def __call__(self) -> float:
        return self.now


def test_each_image_has_its_own_time_whatever_disturbs_a_pass() -> None:
    images = torch.tensor([[2.0], [1.0], [4.0]])
    clock = Clock(slow={0, 1, 2, 4, 8, 9})  # the first pass, and single calls behind it
    assert latencies(clock.net, images, passes=5, clock=clock) == [2.0, 1.0, 4.0]
    assert clock.calls == 3 * 6
    clock = Clock(slow={0, 1, 2})
    assert latencies(clock.net, images, passes=1, clock=clock) == [2.0, 1.0, 4.0]
    with pytest.raises(bw.errors.InputError, match="no images"):
        latencies(clock.net, images[:0])


def test_percentiles_of_known_times() -> None:
    found = percentiles([float(i) for i in range(101)])
    assert found == {"mean": 50.0, "p50": 50.0, "p95": 95.0, "most": 100.0}
    assert percentiles([3.0]) == {"mean": 3.0, "p50": 3.0, "p95": 3.0, "most": 3.0}


def test_the_line_rises_from_zero_and_tells_its_stops() -> None:
    chart = by_time([1.0, 2.0, 4.0])
    (line,) = chart.lines
    assert line.path == "M44.0 180.5L215.0 135.1L386.0 44.2"  # 4.4 ms at the top, 26; 0 at the bottom, 226
    assert [tip for _, _, tip in line.marks] == [
        "0 % are faster than 1.00 ms", "50 % are faster than 2.00 ms", "100 % are faster than 4.00 ms"
    ]  # fmt: skip
    assert [row[1] for row in chart.table.rows] == ["2.33", "2.00", "3.80", "4.00"]
    assert by_time([1.0]).lines[0].path == "M215.0 44.2"


@pytest.mark.slow
def test_bench_of_a_run_times_images_and_the_report_shows_them(tmp_path: Path, call: Any) -> None:
    run = tmp_path / "run"
    assert call("train", "digits-mlp-bwn", "--out", str(run), "epochs=1", "log.tensorboard=false", "--quiet")[0] == 0
    assert call("convert", str(run), "--quiet")[0] == 0
    options = ("--rounds", "1", "--against", "torch-fp32", "--images", "40")
    code, out, err = call("bench", str(run), *options, "--json")
    assert code == 0, err
    said = json.loads(out)["data"]["latency"] if "data" in json.loads(out) else json.loads(out)["latency"]
    times = [float(row["us"]) for row in Run(run).read_csv("latency.csv")]
    assert said["images"] == len(times) == 40 and said["most_ms"] == pytest.approx(max(times) / 1e3, rel=1e-3)
    assert call("report", str(run), "--quiet")[0] == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="latency"' in page
    assert re.search(r"one image at a time, 40 test images: p50 [\d.]+ ms, p95", call("bench", str(run), *options)[1])
    assert call("bench", "conv:8x4", "--images", "3")[0] == 2


def test_the_page_shows_the_times_where_there_are_some(tmp_path: Path) -> None:
    run = example_run(tmp_path / "run", layers=2)
    bw.report(run.path, tmp_path / "page.html")
    assert 'id="latency"' not in (tmp_path / "page.html").read_text(encoding="utf-8")
    run.write(ImageTime, [{"index": i, "us": 900 + 10 * i} for i in range(50)])
    bw.report(run.path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "50 test images, one" in page and "100 % are faster than 1.39 ms" in page
