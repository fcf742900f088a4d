"""The plan of a CPU: which way a layer runs, and a file that cannot do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.engine import native, planner
from bitwright.engine.convert import _where
from bitwright.engine.packed import PackedModel
from bitwright.engine.report import ConvertReport, ReportRow

B = bw.nn
needs_core = pytest.mark.skipif(not native.available(), reason=native.notice())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BITWRIGHT_PLAN")
    return tmp_path


def net() -> tuple[PackedModel, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 5, 5)
    made = nn.Sequential(B.Conv2d(64, 64, 3, w="bwn", x="sign"), nn.Flatten(), B.Linear(576, 4, w="bwn", x="sign"))
    packed = bw.convert(made.eval(), x, verify=False).model
    assert isinstance(packed, PackedModel)
    return packed, x


def forms(packed: PackedModel) -> list[str]:
    return [n.attrs["x_form"] for n in packed.runtime.nodes if n.op.startswith("coded")]


@needs_core
def test_measured_times_decide_and_answers_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = net()
    want = packed(x)
    assert forms(packed) == ["bits", "bits"]
    layers = [n for n in packed.runtime.nodes if n.op.startswith("coded")]
    path = planner.plan_file()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({planner.key(layers[0]): {"bits": 2e-5, "bytes": 1e-5, "float": 5e-6}}))
    other = PackedModel(packed.graph)
    assert forms(other) == ["bytes", "bits"]
    assert torch.equal(other(x), want)
    first, second = other.explain().rows
    assert (first.layer, first.runs_as, first.measured["bytes"]) == ("0", "bytes", 1e-5)
    assert first.warning == "WARN slower than torch's float layer" and not second.warning
    monkeypatch.setenv("BITWRIGHT_PLAN", "0")
    assert forms(PackedModel(packed.graph)) == ["bits", "bits"]


@needs_core
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '{"a": {"bits": "fast"}}', "\x00", "[" * 5000])
def test_a_damaged_plan_is_no_plan(cache: Path, text: str) -> None:
    path = planner.plan_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert planner.plan() == {}
    packed, x = net()
    assert forms(packed) == ["bits", "bits"] and packed(x).shape == (2, 4)


@needs_core
def test_explain_measures_every_way_and_keeps_it(cache: Path) -> None:
    packed, x = net()
    want = packed(x)
    before = packed.explain()
    assert [r.measured for r in before.rows] == [{}, {}] and "packed.explain(measure=True)" in str(before)
    found = packed.explain(measure=True)
    assert [set(r.measured) for r in found.rows] == [{"bits", "bytes", "float"}] * 2
    assert all(t > 0 for r in found.rows for t in r.measured.values())
    assert str(found).splitlines()[-1].startswith("2 of 2 layers measured on this CPU")
    assert planner.plan_file().is_file() and torch.equal(packed(x), want)
    fastest = [min(("bits", "bytes"), key=r.measured.__getitem__) for r in found.rows]
    assert forms(PackedModel(packed.graph)) == fastest == [r.runs_as for r in found.rows]


def test_the_layer_that_loses_most_is_named() -> None:
    rows = [
        ReportRow("stem", "Conv2d", "float", "", 1, 1, ms_before=0.2, ms_after=0.2),
        ReportRow("two", "Conv2d", "int8", "", 1, 1, ms_before=0.1, ms_after=0.4),
        ReportRow("three", "Conv2d", "bits", "", 1, 1, ms_before=0.5, ms_after=0.1),
        ReportRow("four", "Conv2d", "your code", "", 1, 1),
    ]
    report = ConvertReport.__new__(ConvertReport)
    report.rows = rows
    assert _where(report) == ", most at two (int8): 0.400 ms against 0.100"
    report.rows = rows[2:]
    assert _where(report) == ""
