"""`bitwright demo --quick`, end to end: trains, converts, verifies, measures, writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bitwright as bw
from bitwright.cli.demo_table import print_tables
from bitwright.cli.demo_train import BINARY, TWO_BIT
from bitwright.cli.output import Output
from bitwright.cli.run import run
from bitwright.measure.table import BenchRow, BenchTable
from bitwright.runs import Run


@pytest.mark.slow  # 20-40 s, most of it three epochs of training
def test_demo_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert run(["demo", "--quick", "--out", str(tmp_path / "d")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line[:5] for line in lines[1:6]] == [f"[{i}/5]" for i in range(1, 6)]
    assert "360 of 360 test images: same answer as the trained net" in lines[4]
    assert [line.split()[0] for line in lines if line.startswith("  W1A")] == ["W1A1", "W1A2"]
    assert captured.err.splitlines()[-1].startswith("next:   bitwright plan resnet20 xnor")
    assert "\x1b" not in captured.out + captured.err and all(len(line) <= 110 for line in lines[1:])
    for name in ("w1a1", "w1a2"):  # the table, the files, and the page of a run say one ratio
        found = Run(tmp_path / "d" / name).read_json("convert.json")
        ratio = f"{found['float_bytes'] / found['file_bytes']:.1f}x"
        assert (tmp_path / "d" / name / "packed.safetensors").stat().st_size == found["file_bytes"]
        assert (tmp_path / "d" / "w1a1" / "stages" / "0.safetensors").stat().st_size == found["float_bytes"]
        assert ratio in next(line for line in lines if line.startswith(f"  {name.upper()}")).split()
        if name == "w1a1":
            assert f"{ratio} smaller" in (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
    run_one = Run(tmp_path / "d" / "w1a1")
    rows = run_one.read_csv("results.csv")
    assert {"float", "trained", "bitwright", "torch-fp32"} <= {row["net"] for row in rows}
    assert {row["batch"] for row in rows if row["net"] == "torch-fp32"} == {"1", "256"}
    page = (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page and len(page) < 500_000 and "w1a1" in page
    assert (tmp_path / "d" / "conv.csv").read_text(encoding="utf-8").startswith("name,")
    packed = bw.load(run_one.file("packed.safetensors"))
    test = bw.data.load("digits", split="test")
    x, y = next(iter(test.batches(360, normalize=False)))
    share = float((packed(x).argmax(1) == y).float().mean())
    said = next(row["accuracy"] for row in rows if row["net"] == "bitwright")
    assert share == pytest.approx(float(said), abs=1 / 360)
    assert torch.get_num_threads() == threads and torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_demo_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["demo", "--quick", "--json", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    answer = json.loads(out)
    assert out.count("\n") == 1 and [n["net"] for n in answer["nets"]] == ["float", "W1A1", "W1A2"]


@pytest.mark.parametrize("rules", [BINARY, TWO_BIT], ids=["W1A1", "W1A2"])
def test_the_demo_net_packs_all_but_its_classifier(rules: list[dict[str, object]]):
    x = torch.rand(2, 1, 8, 8)
    net = bw.apply(bw.models.create("demo", width=0.5).eval(), rules, x)
    report = bw.convert(net, x, threads=1).report
    kinds = {"bits": "codes", "int8": "codes"}  # which of the two depends on the machine
    assert [kinds.get(row.runs_as, row.runs_as) for row in report.rows] == ["codes"] * 4 + ["float"]
    assert report.layers_exact


def test_a_loss_that_becomes_nan_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x.flatten(1))) * torch.tensor(float("nan"))

    monkeypatch.setattr("bitwright.models.create", lambda *args, **options: Broken())
    assert run(["demo", "--quick", "--out", str(tmp_path)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "loss became nan at stage 0, epoch 0" in said[0]


@pytest.mark.parametrize("float_top1, beside", [(0.9, "-10.0"), (0.12, "-")], ids=["a float net", "one that guesses"])
def test_the_table_compares_files_and_no_accuracy_with_a_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], float_top1: float, beside: str
):
    made = Run(tmp_path / "w1a1")
    made.write_json("state.json", {"float_top1": float_top1, "test_top1": 0.8})
    found = {"images": 360, "same": 360, "status": "PASS", "float_bytes": 461_136, "file_bytes": 31_472}
    made.write_json("convert.json", {**found, "bytes_before": 443_000, "bytes_after": 26_700})  # of the layers: 16.6x
    conv = BenchTable((BenchRow("bitwright", "1 bit", note="not timed"),), {"cpu": "a CPU"})
    print_tables(Output(plain=True), [made], {}, conv)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  W1A1"))
    assert row.split()[1:5] == ["80.0", beside, "31.5", "14.7x"]
