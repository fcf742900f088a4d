"""The Gates section: its numbers are those of the files, it fits, and runs without gates have none."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.reporting import compare
from bitwright.runs.folder import Run
from reporting_example import CLASSES, HOSTILE, example_run, gate_files
from test_reporting import page_of


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = example_run(tmp_path_factory.mktemp("gates") / "gated", 8)
    gate_files(run, 5)
    return run


def test_a_run_without_gates_has_no_section(tmp_path: Path) -> None:
    found = page_of(example_run(tmp_path / "a", 8))
    assert "gates" not in found.by_id and 'href="#gates"' not in found.text
    assert json.loads(found.by_id["data"])["gates"] is None


@pytest.mark.slow
def test_rates_reduction_and_costs_are_those_of_the_files(gated: Run) -> None:
    found = page_of(gated)
    text = found.by_id["gates"]
    last = [r for r in gated.read_csv("gates.csv") if r["epoch"] == "13"]
    for row in last:
        assert row["layer"] in text and f"{float(row['rate']) * 100:.1f}" in text
    share = 1 - 0.03 * 13
    assert f"{share:.2f} of the dense net's MACs and BOPs ({1 / share:.2f}x fewer)" in text
    work = sorted(int(r["macs"]) for r in gated.read_csv("compute.csv"))
    for value in (work[0], work[round(0.5 * (len(work) - 1))], work[-1]):
        assert f"{value:,}" in text
    data = json.loads(found.by_id["data"])["gates"]
    assert data["macs"]["p95"] == work[round(0.95 * (len(work) - 1))] and data["macs"]["min"] == work[0]
    at = data["columns"].index("rate")
    assert [row[at] for row in data["rows"]][-5:] == pytest.approx([float(r["rate"]) for r in last], rel=1e-5)


def test_what_the_count_is_made_of_is_named_as_what_it_is(gated: Run, tmp_path: Path) -> None:
    found = page_of(gated)
    text = found.by_id["gates"]
    for value in ("0.12 M", "7,890", "20.00 M, 2.00x fewer", "84.1 %", "2.41", "5.44", "3.14"):
        assert value in text, value
    assert "as papers count fbs: an upper bound" in text and "as the public codes print it" in text
    data = json.loads(found.by_id["data"])["gates"]
    assert data["counted"]["unweighted_sparsity"] == 0.8414 and "mean_bits" in data["columns"]
    older = example_run(tmp_path / "a", 8)
    gate_files(older, 3)
    older.write_json("work.json", {"overhead_macs": 5.0, "comparisons": None})
    text = page_of(older).by_id["gates"]
    assert "predictors and scaling, MACs" in text and "unweighted" not in text and "all-quadratic" not in text
    older.file("work.json").unlink()
    page = page_of(older)
    assert "predictors and scaling, MACs" not in page.by_id["gates"]
    assert json.loads(page.by_id["data"])["gates"]["counted"] is None


def test_cheapest_and_costliest_images_stand_in_order(gated: Run) -> None:
    text = page_of(gated).text
    section = text[text.index('<section id="gates"') :]
    shown = [float(m) for m in re.findall(r"<b>([\d.]+) M</b> MACs<br>true", section)]
    work = sorted(int(r["macs"]) for r in gated.read_csv("compute.csv"))
    assert shown == [round(w / 1e6, 2) for w in (*work[:6], *work[:-7:-1])]
    assert text.count("data:image/png") <= 24


def test_classes_of_a_layer_are_shaded_in_its_own_range(gated: Run) -> None:
    from bitwright.reporting.load import load_run
    from bitwright.reporting.sections.gate_charts import class_map

    gates = load_run(gated.path)["gates"]
    assert gates is not None
    found = class_map(gates)
    assert found is not None and len(found.rows) == 5
    rates = {(r["layer"], r["class"]): float(r["rate"]) for r in gated.read_csv("gate_classes.csv")}
    for row in found.rows:
        mine = [rates[row.layer, str(k)] for k in range(len(CLASSES))]
        strengths = [cell[2] for cell in row.cells]
        assert strengths[mine.index(max(mine))] == 1 and strengths[mine.index(min(mine))] == 0
        assert strengths == pytest.approx([(v - min(mine)) / (max(mine) - min(mine)) for v in mine], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("gates", "classes"), [(1, 10), (60, 10), (20, 100)])
def test_any_number_of_gates_fits(tmp_path: Path, gates: int, classes: int) -> None:
    names = [f"class {i}" for i in range(classes)]
    run = example_run(tmp_path / "a", max(4, gates + 2), classes=names)
    gate_files(run, gates, names)
    found = page_of(run)
    assert len(found.text.encode()) < 500_000
    table = found.by_id["gates"]
    assert all(r["layer"] in table for r in run.read_csv("gates.csv")), "every gate is in the table"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = example_run(tmp_path / "a", 8)
    gate_files(run, 5)
    found = page_of(run)
    assert HOSTILE in found.by_id["gates"] and HOSTILE not in found.text


def test_images_that_all_cost_the_same_are_not_ranked(tmp_path: Path) -> None:
    run = example_run(tmp_path / "a", 8)
    gate_files(run, 2)
    run.write_csv("compute.csv", [{**r, "macs": 5, "bops": 7} for r in run.read_csv("compute.csv")])
    text = page_of(run).by_id["gates"]
    assert "Every image costs the same" in text and "The cheapest" not in text


def test_missing_files_leave_one_command(tmp_path: Path) -> None:
    run = example_run(tmp_path / "a", 8)
    gate_files(run, 2)
    for name in ("compute.csv", "compute.safetensors", "gate_classes.csv"):
        run.file(name).unlink()
    text = page_of(run).by_id["gates"]
    assert "What each test image costs is not recorded." in text and "bitwright eval" in text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gates.csv", "stage,epoch,layer,rate\n0,0,a,many\n", "gates.csv row 1: rate is 'many'"),
        ("work.json", '{"comparisons": "few"}', "work.json: comparisons is 'few'"),
        ("compute.csv", "index,true,said,macs,bops\n0,1,1,-4,5\n", "compute.csv row 1: macs is missing or negative"),
        ("gate_classes.csv", "layer,class,rate\na,,0.5\n", "gate_classes.csv row 1: class is missing or negative"),
    ],
)
def test_damage_is_one_line_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    run = example_run(tmp_path / "a", 8)
    gate_files(run, 2)
    run.file("compute.safetensors").unlink()
    run.write_text(name, text)
    with pytest.raises(InputError, match=said):
        page_of(run)


def test_a_comparison_has_work_and_accuracy(tmp_path: Path, gated: Run) -> None:
    plain = example_run(tmp_path / "plain", 8)
    plain.write_text("experiment.toml", 'seed = 3\n[data]\nname = "digits"\n[[stage]]\nepochs = 7\n')
    page = compare([plain.path, gated.path], tmp_path / "c.html").read_text(encoding="utf-8").replace("\xa0", " ")
    macs = sum(int(r["macs"]) for r in plain.read_csv("layers.csv"))
    share = 4e7 * (1 - 0.03 * 13)
    assert "How much is computed?" in page and f"{macs / 1e6:.2f} M" in page
    word = f"{macs / share:.2f}x fewer" if macs > share else f"{share / macs:.2f}x more"
    assert f"{share / 1e6:.2f} M" in page and word in page
    text = compare([plain.path, gated.path], tmp_path / "c.csv", "csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(r["macs"]) for r in rows] == pytest.approx([macs, share]) and rows[0]["bops"] == ""
    only = compare([plain.path], tmp_path / "d.html").read_text(encoding="utf-8")
    assert "How much is computed?" not in only and "MACs per image" not in only
