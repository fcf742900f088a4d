"""Comparison of runs: seeds merged, spread respected, machines kept apart, in four forms."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from bitwright import reporting
from bitwright.cli.run import run as command
from bitwright.errors import InputError
from bitwright.reporting import comparison
from bitwright.reporting.groups import accuracy_of, grouped
from bitwright.reporting.load import load_run
from bitwright.reporting.matrix import matrix
from bitwright.runs.folder import Run
from reporting_example import bench_dict, example_run


def other(run: Run, lines: str) -> Run:
    """The same run of another experiment."""
    run.write_text("experiment.toml", run.read_text("experiment.toml") + lines)
    return run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two seeds of bwn, one of xnor (2 points lower), one of ttq within bwn's spread."""
    for seed, shift in ((0, 0.0), (1, 0.004)):
        example_run(tmp_path / f"base/bwn-{seed}", 4, seed=seed, shift=shift)
    other(example_run(tmp_path / "base/xnor-0", 4, seed=0, shift=-0.02), 'recipe = "xnor"\n')
    other(example_run(tmp_path / "base/ttq_1", 4, seed=0, shift=0.003), 'recipe = "ttq"\n')
    return tmp_path / "base"


def cells(folder: Path, order: list[str]) -> dict[str, dict[str, str]]:
    table = matrix(grouped([load_run(folder / name) for name in order]))
    return {row.name: {n: str(c) for n, c in zip(table.names, row.cells, strict=True)} for row in table.rows}


def test_accuracy_is_not_compared_with_a_run_that_guesses(tmp_path: Path) -> None:
    guesses, learned = example_run(tmp_path / "guesses"), example_run(tmp_path / "learned")
    for name in ("convert.json", "state.json"):
        key = "accuracy" if name == "convert.json" else "test_top1"
        guesses.write_json(name, guesses.read_json(name) | {key: 0.1})
    first, second = (load_run(run.path) for run in (guesses, learned))
    groups = [replace(grouped([run])[0], name=name) for name, run in (("a", first), ("b", second))]
    assert first.guesses(accuracy_of(first)) and not second.guesses(accuracy_of(second))
    assert [row.cells[1].note for row in matrix(groups).rows if row.name == "accuracy, %"] == [""]
    (row,) = (row for row in matrix(groups[::-1]).rows if row.name == "accuracy, %")
    assert row.cells[1].note.startswith("-")


def test_seeds_merge_and_spread_decides(sweep: Path) -> None:
    found = cells(sweep, ["bwn-0", "xnor-0", "ttq_1", "bwn-1"])
    accuracy = found["accuracy, %"]
    assert accuracy == {"bwn": "97.9 \u00b1 0.3 (n = 2)", "xnor-0": "95.7 (-2.2)", "ttq_1": "98.0 (\u2248)"}
    assert found["seeds"] == {"bwn": "0, 1", "xnor-0": "0", "ttq_1": "0"}
    table = matrix(grouped([load_run(sweep / n) for n in ("bwn-0", "xnor-0", "ttq_1")]))
    assert [c.best for c in table.rows[0].cells] == [False, False, True]
    assert not any("\u00b1" in str(c) for c in table.rows[0].cells)  # one seed has no spread


def test_no_ratio_goes_across_machines(sweep: Path) -> None:
    run = Run(sweep / "xnor-0")
    run.write_json("bench.json", bench_dict(0.444, cpu="Other CPU"))
    run = Run(sweep / "ttq_1")
    run.write_json("bench.json", bench_dict(0.444))
    found = cells(sweep, ["bwn-0", "xnor-0", "ttq_1"])
    times = {name: row for name, row in found.items() if name.startswith("ms on")}
    assert list(times) == [f"ms on {cpu} CPU, avx512, 1 thread, batch 1" for cpu in ("Example", "Other")]
    first, second = times.values()
    assert first == {"bwn-0": "0.888", "xnor-0": "-", "ttq_1": "0.444 (2.0x)"}
    assert second == {"bwn-0": "-", "xnor-0": "0.444", "ttq_1": "-"}


def test_csv_has_raw_values(sweep: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison.text([sweep], "csv"))))
    assert [row["run"] for row in rows] == ["bwn", "ttq_1", "xnor-0"]
    assert float(rows[0]["accuracy"]) == pytest.approx(0.9792) and float(rows[0]["accuracy_std"]) == pytest.approx(
        0.004 / 2**0.5
    )
    assert rows[1]["accuracy_std"] == "" and rows[0]["same"] == str(2 * 9996)


def test_markdown_and_latex_hold_names_as_text(sweep: Path) -> None:
    (sweep / "ttq_1").rename(sweep / "a|<b>_1")
    text = comparison.text([sweep], "markdown")
    assert "a\\|&lt;b>_1" in text and len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1
    text = comparison.text([sweep], "latex")
    assert r"a|\textless{}b\textgreater{}\_1" in text and r"$\pm$" in text and text.count(r"\\") == 4
    with pytest.raises(InputError, match="possible: html, markdown, csv, latex"):
        comparison.text([sweep], "pdf")


def test_the_page_shows_what_differs(sweep: Path, tmp_path: Path) -> None:
    from test_reporting import Page

    order = [sweep / "bwn-0", sweep / "xnor-0", sweep / "bwn-1"]
    found = Page(reporting.compare(order, tmp_path / "c.html").read_text(encoding="utf-8"))
    assert '+ recipe = "xnor"' in found.by_id["rules"] and "seed =" not in found.by_id["rules"]
    assert "bwn against 1 other" in found.text and "://" not in found.text
    assert len(found.data["runs"]) == 3 and found.text.count('<svg viewBox="0 0 400') == 3


def test_many_runs_stand_below_each_other(tmp_path: Path) -> None:
    for i in range(8):
        other(example_run(tmp_path / f"all/run{i}", 3, seed=i), f"clip = {i}\n")
    text = reporting.compare([tmp_path / "all"], tmp_path / "c.html").read_text(encoding="utf-8")
    assert '<th scope="row">run7</th>' in text and '<th scope="row">accuracy, %</th>' not in text
    assert "6 of 8 are drawn" in text


def test_empty_runs_compare_without_numbers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.toml").write_text(f'[model]\nname = "{name}"\n', encoding="utf-8")
    found = cells(tmp_path, ["a", "b"])
    assert found["accuracy, %"] == {"a": "-", "b": "-"} and found["latency, ms"] == {"a": "-", "b": "-"}
    assert "bitwright convert RUN" in comparison.text([tmp_path], "html")


def test_the_command_compares(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["report", "--compare", "base", "--out", "base.html"]) == 0
    assert "report: base.html" in capsys.readouterr().out and (tmp_path / "base.html").is_file()
    assert command(["report", "base/bwn-0", "--compare", "base/xnor-0", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("| run | accuracy, % |")
    assert command(["report", "--compare", "base", "--out", "base.html"]) == 2
    assert command(["report", "--compare", "base", "nowhere"]) == 2
