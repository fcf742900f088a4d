"""Checkpoints of the pca-hybrid code: the imported net equals an independent evaluation of the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.cli.run import run
from bitwright.errors import InputError
from bitwright.importers import Imported, import_checkpoint
from oracles import pca_hybrid as oracle

NETS: dict[str, tuple[str, int, str | None, set[int]]] = {
    "resnet31": ("resnet", 31, "hybrid", set(range(22, 32))),
    "resnet31 own": ("resnet", 31, "hybrid:12,13,22-24", {12, 13, 22, 23, 24}),
    "resnet19": ("resnet", 19, "binary", set()),
    "plain31": ("plain", 31, None, set()),
    "vgg": ("vgg", 13, "hybrid", {3, 5, 8, 11, 12}),
}


def read(tmp_path: Path, state: oracle.State, model: str | None) -> Imported:
    torch.save({"best_acc": torch.tensor([53.1])[0], "state_dict": state}, tmp_path / "a.pth.tar")
    return import_checkpoint(tmp_path / "a.pth.tar", "pca-hybrid", model)


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_those_of_the_old_net(name: str, tmp_path: Path) -> None:
    net, convs, model, deep = NETS[name]
    state = oracle.make_state(net, convs)
    done = read(tmp_path, state, model)
    x = torch.randn(3, 3, 32, 32)
    wanted = oracle.evaluate(net, state, x, deep)
    # a value beside a threshold may fall on its other side in float32: compare in float64
    found = done.model.double()(x.double())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert {row.old for row in done.rows} == set(state) and done.facts["best_acc"] == pytest.approx(53.1)
    layers = {n: m for n, m in done.model.named_modules() if isinstance(m, bw.nn.SlotLayer)}
    assert {n for n, m in layers.items() if getattr(m.w, "bits", 0) == 2 and n.startswith("conv")} == {
        f"conv{i}" for i in deep
    }
    sides = {n for n, m in layers.items() if getattr(m.w, "bits", 0) == 2 and n.startswith("resconv")}
    assert sides == {f"resconv{k}.0" for i, k in ((12, 1), (22, 2)) if net == "resnet" and i in deep}
    assert layers.keys().isdisjoint({"conv1", "fc", "fc3"})


def test_counters_of_newer_torch_are_dropped(tmp_path: Path) -> None:
    state = oracle.make_state("plain", 19)
    more = {f"{key.removesuffix('running_mean')}num_batches_tracked": torch.tensor(7) for key in state if "mean" in key}
    done = read(tmp_path, {f"module.{k}": v for k, v in {**state, **more}.items()}, "binary")
    assert done.name == "plain19-binary" and len(done.rows) == len(state) + len(more)


@pytest.mark.slow
@pytest.mark.few("False")
@pytest.mark.parametrize("deep", [True, False])
def test_saved_loaded_converted(deep: bool, tmp_path: Path) -> None:
    """Binary nets pack; 2-bit inputs without ends are refused in one line that says why."""
    done = read(tmp_path, oracle.make_state("resnet", 19), "hybrid:8" if deep else "binary")
    bw.save(done.model, tmp_path / "a.safetensors")
    from bitwright.importers import pca_nets

    again = bw.load(tmp_path / "a.safetensors", pca_nets.resnet19(width=0.25))
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), done.model(x))
    if deep:
        with pytest.raises(InputError, match="convert: conv8: kbit in slot x has clip = false") as caught:
            bw.convert(done.model, x[:1])
        assert caught.value.code == "convert-unbounded"
        return
    report: Any = bw.convert(done.model, x[:1], verify=[x]).report
    rows = {row.layer: row for row in report.rows}
    assert rows["conv2"].runs_as == rows["resconv1.0"].runs_as == "bits"
    assert report.same == report.images == 8


@pytest.mark.parametrize(
    ("net", "model", "said", "code"),
    [
        ("resnet", None, "the keys do not say which layers have 2 bits", "import-method"),
        ("resnet", "hybrid", "the keys do not say which layers have 2 bits", "import-method"),
        ("resnet", "hybrid:1", "numbers are convs from 2 to 19", "model-unknown"),
        ("resnet", "hybrid:a", "numbers are convs from 2 to 19", "model-unknown"),
        ("resnet", "hybird", "has no model 'hybird'. Nearest: hybrid", "model-unknown"),
        ("plain", "hybrid", "a plain net of pca-hybrid has no model 'hybrid'", "model-unknown"),
    ],
)
def test_errors_are_one_line(net: str, model: str | None, said: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, oracle.make_state(net, 19), model)
    assert said in str(caught.value) and caught.value.code == code and "\n" not in str(caught.value)


def test_foreign_keys_and_zeros(tmp_path: Path) -> None:
    state = oracle.make_state("plain", 19)
    with pytest.raises(InputError, match="the keys are of no net of pca-hybrid"):
        read(tmp_path, {k: v for k, v in state.items() if k.startswith("fc")}, "binary")
    with pytest.raises(InputError, match=r"1 key missing: conv5\.conv\.bias"):
        read(tmp_path, {k: v for k, v in state.items() if k != "conv5.conv.bias"}, "binary")
    state["conv5.conv.weight"][0] = 0.25
    with pytest.raises(InputError, match=r"conv5 holds \d+ zeros after centering"):
        read(tmp_path, state, "binary")


@pytest.mark.slow
def test_the_command_and_the_one_that_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": oracle.make_state("plain", 19, base=16)}, "plain.pth.tar")
    assert run(["import", "plain.pth.tar", "--from", "pca-hybrid"]) == 0
    said = capsys.readouterr()
    assert "conv7.x.links.0.running_var" in said.out and "centered, clipped" in said.out
    following = next(line for line in said.err.splitlines() if line.startswith("next:"))
    command = following.removeprefix("next:   bitwright ").split("        ")[0].split()
    assert command[:2] == ["convert", "plain.safetensors"] and run(command) in (0, 1)
    assert "bits" in capsys.readouterr().out
