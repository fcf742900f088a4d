"""Gated nets in `convert`, `cost` and `plan`: what each says, and what it does not claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.cli.run import run as command
from bitwright.training import train
from gated import GATES, experiment

pytestmark = pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
X = torch.zeros(2, 3, 8, 8)
ALL: list[Any] = [
    {"part": "fbs", "keep": 0.5},
    {"part": "channel_gate"},
    {"part": "channel_gate", "output_bn": "dual", "shuffle": True},
    {"part": "channel_gate", "compat": "seed"},
    {"part": "precision_gate", "bits": 4, "top": 2},
    {"part": "precision_gate", "bits": 4, "top": 2, "compat": "seed"},
]


def net(gate: Any, more: list[dict[str, Any]] | None = None) -> nn.Sequential:
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    whole = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    bw.apply(whole, [{"match": "3", "gate": gate}, *(more or [])], X)
    return whole.eval()


def test_convert_refuses_a_gate_that_reads_the_batch_in_one_line() -> None:
    done = bw.convert(net(ALL[-1]), X, force=True)
    report = done.report
    assert done.model is None and report.status == "REFUSE"
    assert report.verdict.startswith("3 (Conv2d 32>32 3x3): gate precision_gate") and "\n" not in report.verdict
    assert 'scale="batch_max" reads the whole batch' in report.verdict and 'use scale="static"' in report.verdict
    why = {row.layer: row.why for row in report.rows}
    assert list(why) == ["0", "3", "6", "10"] and why["3"].startswith("gate precision_gate")
    assert why["0"] == "its slots are empty" and [row.layer for row in report.gated] == ["3"]


@pytest.mark.parametrize("gate", ALL[1:2] + ALL[4:5], ids=lambda g: g["part"])
def test_a_norm_of_negative_gain_is_not_folded_into_a_gate(gate: dict[str, Any]) -> None:
    """A gain in front of the comparison would turn decisions around: the packed net keeps it behind the gate."""
    whole: Any = net(gate)
    whole[4].weight.data.copy_(-torch.rand(32) - 0.5)
    x, seen = torch.randn(4, 3, 8, 8), list[torch.Tensor]()
    whole[3].gate.watchers = (lambda part, on: seen.append(on.detach()),)
    want, state = whole(x), {key: value.clone() for key, value in whole.state_dict().items()}
    done = bw.convert(whole, x)
    assert done.model is not None and next(r for r in done.report.rows if r.layer == "3").why.startswith("gated: ")
    torch.testing.assert_close(done.model(x), want, rtol=1e-5, atol=1e-5)
    assert type(whole[4]) is nn.BatchNorm2d
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())
    assert torch.equal(whole(x), want) and torch.equal(seen[0], seen[-1])
    whole[3].weight.data.mul_(whole[4].weight.data[:, None, None, None])  # what a fold would do
    whole(x)
    assert (seen[0] != seen[-1]).float().mean() > 0.2


def test_a_refused_gate_says_what_would_be_packed() -> None:
    binary = [{"match": "6", "w": "bwn", "x": ["norm", "sign"]}]
    report = bw.convert(net(ALL[-1], binary), X).report
    assert next(r.why for r in report.rows if r.layer == "6").startswith("would be packed")


@pytest.mark.slow
def test_a_gate_that_skips_nothing_does_not_stop_convert() -> None:
    done = bw.convert(net("xnor_k", [{"match": "6", "w": "bwn", "x": ["norm", "sign"]}]), X, verify=False)
    assert done.model is not None and not done.report.gated


def test_plan_and_cost_price_precision_gating_at_the_bits_of_its_code() -> None:
    gated = net({"part": "precision_gate", "bits": 4, "top": 2})
    row = next(r for r in bw.cost(gated, X[:1]).rows if r.name == "3")
    assert (row.w_bits, row.x_bits, row.bops) == (32, 4, row.macs * 32 * 4)
    with bw.count_macs(gated) as count:
        gated(X)
    assert count.dense_bops == 2 * bw.cost(gated, X[:1]).totals["bops"]
    table = str(bw.plan(net("channel_gate"), [{"match": "3", "gate": "precision_gate"}], X))
    assert "32/4" in table and "precision_gate" in table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    train(experiment(folder, stage=experiment(folder).model_dump(exclude_none=True)["stage"][1:]), folder / "a")
    return folder / "a"


def test_cost_of_a_run_says_what_was_measured(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["cost", str(made)]) == 0
    shown = capsys.readouterr()
    text = " ".join(shown.out.split())
    assert "channel_gate, precision_gate (2 layers): the table prices every gate as open" in text
    assert "fbs (" not in text and f"bitwright eval {made}" in shown.err
    assert command(["cost", str(made), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cost"]
    rows = {r["name"]: r for r in found["rows"]}
    assert rows["3"]["density"] == 0.5 and rows["6"]["density"] == rows["9"]["density"] == 1.0
    assert found["gates"]["open"] == ["6", "9"] and set(found["gates"]["rates"]) == set(GATES)


def test_cost_of_a_recipe_sends_to_the_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text('[[rule]]\nmatch = "layer1.0.conv1"\ngate = "channel_gate"\n')
    assert command(["cost", "resnet20", "r.toml"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "channel_gate (1 layer): the table prices every gate as open" in text and "bitwright eval RUN" in text


def test_convert_of_a_gated_run_writes_a_file_and_the_report_names_the_gates(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["convert", str(made)]) == 0
    assert "gated: fbs(keep=0.5)" in " ".join(capsys.readouterr().out.split())
    assert (made / "packed.safetensors").exists()
    assert command(["report", str(made)]) == 0
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "gated: fbs(keep=0.5)" in page and 'id="gates"' in page
