"""The run directory: results.csv keeps one row per net and batch size."""

from __future__ import annotations

from pathlib import Path

from bitwright.runs import Run


def cells(run: Run, *names: str) -> list[tuple[str, ...]]:
    return [tuple(row.get(name, "") for name in names) for row in run.read_csv("results.csv")]


def test_the_same_net_and_batch_is_one_row(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.put_results([{"net": "bitwright", "batch": 1, "latency_ms": 2.0}])
    run.put_results([{"net": "bitwright", "batch": 1, "latency_ms": 1.5, "ratio": 3}])
    assert cells(run, "net", "batch", "latency_ms", "ratio") == [("bitwright", "1", "1.5", "3")]


def test_another_batch_is_another_row(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.put_results([{"net": "bitwright", "batch": batch, "latency_ms": batch} for batch in (256, 1)])
    assert cells(run, "batch", "latency_ms") == [("256", "256"), ("1", "1")]


def test_what_is_true_of_the_net_goes_into_all_its_rows(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.put_results([{"net": "bitwright", "batch": batch} for batch in (256, 1)] + [{"net": "float", "bytes": 9}])
    run.put_results([{"net": "bitwright", "accuracy": 0.5}])
    assert cells(run, "net", "batch", "accuracy") == [
        ("bitwright", "256", "0.5"),
        ("bitwright", "1", "0.5"),
        ("float", "", ""),
    ]


def test_a_measurement_completes_the_row_that_had_none(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.put_results([{"net": "bitwright", "accuracy": 0.5}])
    run.put_results([{"net": "bitwright", "batch": 1, "latency_ms": 2.0}])
    assert cells(run, "net", "accuracy", "batch", "latency_ms") == [("bitwright", "0.5", "1", "2.0")]
