"""Checkpoints of dnn-gating: the imported net equals an independent evaluation of the old one. States are random: no file
that its authors published is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.cli.run import run
from bitwright.importers import Imported, import_checkpoint
from oracles import dnn_gating as oracle

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def read(tmp_path: Path, state: oracle.State, model: str | None = None) -> Imported:
    torch.save(state, tmp_path / "a.pt")
    return import_checkpoint(tmp_path / "a.pt", "dnn-gating", model)


def check_same(imported: Imported, wanted: torch.Tensor) -> None:
    """In float64, so that no decision lies within rounding."""
    got = imported.model.double()(X.double())
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


CG: list[dict[str, Any]] = [
    {}, {"group": False}, {"splits": 2}, {"splits": 2, "postact": True}, {"splits": 4, "group": False, "postact": True},
]  # fmt: skip


@pytest.mark.parametrize("options", CG, ids=str)
def test_channel_gating(options: dict[str, Any], tmp_path: Path) -> None:
    state = oracle.make_state("cg", stem=8, **options)
    imported = read(tmp_path, state)
    assert {row.old for row in imported.rows} == set(state) and len(imported.rows) == len(state)
    gates = [g for m in imported.model.modules() if (g := getattr(m, "gate", None)) is not None]
    assert len(gates) == (18 if options.get("postact") else 9)
    assert {(g.splits, g.group) for g in gates} == {(options.get("splits", 4), options.get("group", True))}
    check_same(imported, oracle.evaluate(state, X))


def test_shuffle_is_told_by_the_name(tmp_path: Path) -> None:
    state = oracle.make_state("cg", stem=8)
    wanted = oracle.evaluate(state, X, shuffle=True)
    check_same(read(tmp_path, state, "cg-shuffle"), wanted)
    assert not torch.allclose(wanted, oracle.evaluate(state, X))


@pytest.mark.parametrize("pact", [False, True])
@pytest.mark.parametrize(("w", "a", "top"), [(8, 3, 2), (8, 8, 4), (1, 4, 2), (0, 5, 1)])
def test_precision_gating(w: int, a: int, top: int, pact: bool, tmp_path: Path) -> None:
    state = oracle.make_state("pg", stem=8, pact=pact)
    imported = read(tmp_path, state, f"pg-w{w}a{a}p{top}")
    assert {row.old for row in imported.rows} == set(state) and len(imported.rows) == len(state)
    check_same(imported, oracle.evaluate(state, X, w=w, a=a, top=top))
    assert imported.name == f"resnet20-pg-w{w}a{a}p{top}" + "-pact" * pact


@pytest.mark.parametrize(
    ("name", "w", "a"), [("w3a3", 3, 3), ("w8a0", 8, 0), ("w0a4", 0, 4), ("w2a1", 2, 1), ("float", 0, 0)]
)
@pytest.mark.parametrize("pact", [False, True])
def test_without_a_gate(name: str, w: int, a: int, pact: bool, tmp_path: Path) -> None:
    state = oracle.make_state("plain", stem=8, pact=pact)
    check_same(read(tmp_path, state, name), oracle.evaluate(state, X, w=w, a=a))


def test_saved_and_loaded_into_the_net_that_spec_names(tmp_path: Path) -> None:
    """One level for both activations of a block, there and back; keys of DataParallel too."""
    from bitwright.importers.dnn_gating import resnet20_pact

    state = {f"module.{key}": value for key, value in oracle.make_state("pg", stem=4, pact=True).items()}
    imported = read(tmp_path, state, "pg-w8a3p2")
    bw.save(imported.model, tmp_path / "n.safetensors")
    assert imported.spec == "bitwright.importers.dnn_gating:resnet20_pact"
    again: Any = bw.load(tmp_path / "n.safetensors", resnet20_pact(width=0.25)).eval()
    assert torch.equal(again(X), imported.model(X))
    block = again.layer1[0]
    assert block.act1 is block.act2 and block.act1.alpha.item() == float(state["module.layer1.0.relu.upper_bound"])


def test_it_trains_on_and_is_counted(tmp_path: Path) -> None:
    imported = read(tmp_path, oracle.make_state("cg", stem=8))
    net = imported.model.train()
    optimizer = torch.optim.SGD(bw.param_groups(net, lr=0.01, weight_decay=1e-4))
    (net(X).square().mean() + bw.penalty(net)).backward()
    optimizer.step()
    with bw.count_macs(net.eval()) as macs:
        net(X)
    assert 0.5 * macs.dense < macs.total < macs.dense and len(macs.rates) == 9


@pytest.mark.parametrize(
    ("kind", "change", "model", "code", "said"),
    [
        ("pg", {}, None, "import-method", "precision gating, but not its bits. Give --model, the flags -w, -a, -pb"),
        ("plain", {}, None, "import-method", "no gates, and not their bits"),
        ("pg", {}, "cg", "import-keys", "cg does not fit the file: its keys are of precision gating"),
        ("cg", {}, "pg-w8a3p2", "import-keys", "its keys are of channel gating"),
        ("plain", {}, "pg-w8a3p2", "import-keys", "its keys are of a net without gates"),
        ("pg", {}, "pg-w8a3", "model-unknown", "dnn-gating has no model 'pg-w8a3'"),
        ("pg", {}, "pg-w8a2p3", "model-unknown", "3 of 2 bits decide"),
        ("cg", {}, "cg-shufle", "model-unknown", "Nearest: cg-shuffle"),
        ("cg", {"layer1.0.conv1.mask": torch.ones(4, 4, 3, 3)}, None, "import-shape", "gates nothing"),
        ("cg", {"layer2.0.conv1.mask": torch.ones(8, 4, 3, 3)}, None, "import-shape", "layer2.0.conv1.mask leaves"),
        ("cg", {"linear.bias": None}, None, "import-keys", "1 key missing: linear.bias"),
        ("cg", {"linear.weight": None}, None, "import-keys", "not of the ResNet-20 of dnn-gating"),
        ("cg", {"layer1.0.conv1.bn.running_var": torch.ones(3)}, None, "import-shape", "has shape 3"),
        ("cg", {"layer1.0.conv1.threshold": torch.ones(4)}, None, "import-shape", "it is 1x4x1x1"),
    ],
)
def test_errors_are_one_line_and_name_the_key(
    kind: str, change: dict[str, Any], model: str | None, code: str, said: str, tmp_path: Path
) -> None:
    state = oracle.make_state(kind, stem=4, splits=2) | change
    with pytest.raises(bw.InputError) as caught:
        read(tmp_path, {key: value for key, value in state.items() if value is not None}, model)
    assert caught.value.code == code and said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(oracle.make_state("cg"), "model_resnet-20.pt")
    assert run(["import", "model_resnet-20.pt", "--from", "dnn-gating", "-o", "cg.safetensors"]) == 0
    assert "resnet20-cg: " in capsys.readouterr().out
    net = bw.load("cg.safetensors", bw.models.create("resnet20"))
    assert str(getattr(net.get_submodule("layer1.0.conv1"), "gate", None)).startswith("ChannelGate")
