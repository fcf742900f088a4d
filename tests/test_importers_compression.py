"""Checkpoints of the network-compression codes: the imported net equals an independent evaluation of the old one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bitwright as bw
from bitwright.cli.run import run
from bitwright.importers import Imported, import_checkpoint
from oracles import network_compression as oracle

SOURCE = "network-compression"
PREDICTOR: dict[str, torch.Tensor | None] = {"conv1.saliency_predictor.weight": torch.zeros(2, 3)}
METHODS = ("bwn", "bwn-f", "dorefa-1", "dorefa-2", "dorefa-4", "ttq", "float")


def read(tmp_path: Path, state: oracle.State, model: str | None) -> Imported:
    torch.save(state, tmp_path / "a.pth")
    return import_checkpoint(tmp_path / "a.pth", SOURCE, model)


def check_same(imported: Imported, wanted: torch.Tensor, x: torch.Tensor) -> None:
    torch.testing.assert_close(imported.model(x).double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_those_of_the_old_net(method: str, tmp_path: Path) -> None:
    state = oracle.make_state(method, stem=4)
    imported = read(tmp_path, state, method)
    x = torch.randn(2, 3, 32, 32)
    check_same(imported, oracle.evaluate(method, state, x), x)
    assert imported.name == f"resnet20-{method}" and imported.options["width"] == 0.25
    assert {row.old for row in imported.rows} == set(state)
    layers = [m for m in imported.model.modules() if isinstance(m, bw.nn.SlotLayer)]
    assert len(layers) == (0 if method == "float" else 22)  # stem, shortcuts and classifier too
    for name, layer in imported.model.named_modules():
        if isinstance(layer, bw.nn.SlotLayer):
            torch.testing.assert_close(
                layer.quantized_weight().double(), oracle.quantized(method, name, state), rtol=1e-6, atol=1e-7
            )


CONVS = {"conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2))}


@pytest.mark.parametrize("gated", [CONVS, None, CONVS - {"conv1"}], ids=["as shipped", "every layer", "not the stem"])
@pytest.mark.parametrize("method", ["fbs-0.5", "fbs-0.7", "fbs-1"])
def test_feature_boosting(method: str, gated: set[str] | None, tmp_path: Path) -> None:
    """FBS_CNN and FBS_Linear: gates sit where the keys say; in float64, so that no rank is a rounding."""
    state = oracle.make_state(method, stem=8, gated=gated)
    imported = read(tmp_path, state, method)
    x = torch.randn(2, 3, 32, 32)
    wanted = oracle.evaluate(method, state, x)
    got = imported.model.double()(x.double())
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert {row.old for row in imported.rows} == set(state) and imported.weights == "float"
    names = {n for n, m in imported.model.named_modules() if getattr(m, "gate", None) is not None}
    assert names == (
        gated or {n.removesuffix(".weight") for n, t in state.items() if n.endswith((".0.weight", "fc.weight"))} | CONVS
    )


def test_the_net_for_stl10_has_a_stem_of_stride_3(tmp_path: Path) -> None:
    state = oracle.make_state("ttq", stem=4)
    imported = read(tmp_path, state, "ttq-stl")
    x = torch.randn(1, 3, 96, 96)
    check_same(imported, oracle.evaluate("ttq", state, x, stem_stride=3), x)
    assert imported.spec.endswith(":resnet20_stl") and imported.shape == (3, 96, 96)


def test_depth_and_classes_are_told_from_the_keys(tmp_path: Path) -> None:
    state = oracle.make_state("bwn", blocks=5, classes=100, stem=2)
    imported = read(tmp_path, {f"module.{key}": value for key, value in state.items()}, "bwn")
    assert imported.name == "resnet32-bwn" and imported.options["num_classes"] == 100
    x = torch.randn(1, 3, 32, 32)
    check_same(imported, oracle.evaluate("bwn", state, x), x)


def test_weights_above_1_are_not_clipped_and_scales_may_have_crossed_zero(tmp_path: Path) -> None:
    state = oracle.make_state("bwn", stem=2)
    state["layer1.0.conv1.weight"] *= 10
    x = torch.randn(1, 3, 32, 32)
    check_same(read(tmp_path, state, "bwn"), oracle.evaluate("bwn", state, x), x)
    state = oracle.make_state("ttq", stem=2)
    state["layer2.1.conv2.neg"].neg_()
    check_same(read(tmp_path, state, None), oracle.evaluate("ttq", state, x), x)


@pytest.mark.slow
def test_saved_loaded_converted(tmp_path: Path) -> None:
    """Saved, loaded into the net that `--model` would build, packed: bits on disk for every layer."""
    imported = read(tmp_path, oracle.make_state("ttq", stem=4), None)
    bw.save(imported.model, tmp_path / "n.safetensors")
    again = bw.load(tmp_path / "n.safetensors", bw.models.create("resnet20", width=0.25, shortcut="conv")).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), imported.model(x))
    report = bw.convert(again, x[:1], verify=[x]).report
    assert report.status in ("PASS", "WARN") and report.same == 2


@pytest.mark.parametrize(
    ("change", "model", "code", "said"),
    [
        ({}, None, "import-method", "do not say how the weights are quantized. Give --model: bwn, bwn-f,"),
        ({}, "bwm", "model-unknown", "Nearest: bwn. Its models: bwn, bwn-f, dorefa-1 to dorefa-8, ttq, fbs-0.5"),
        ({}, "dorefa-9", "model-unknown", "dorefa-1 to dorefa-8"),
        ({}, "ttq", "import-keys", "none of the scales of ttq (conv1.pos)"),
        ({"conv1.pos": torch.ones(())}, "bwn", "import-keys", "its keys have the scales of ttq"),
        ({}, "fbs-2", "model-unknown", "fbs-0.5 (any share)"),
        ({}, "fbs-0.5", "import-keys", "it has none of the predictors of fbs"),
        (PREDICTOR, None, "import-method", "which share of the channels is kept (their -CR). Give --model fbs-0.5"),
        (PREDICTOR, "bwn", "import-keys", "its keys have the predictors of fbs"),
        (PREDICTOR, "fbs-0.5", "import-keys", "1 key missing: conv1.saliency_predictor.bias"),
        ({"fc.bias": None}, "bwn", "import-keys", "1 key missing: fc.bias"),
        ({"alpha": torch.ones(2)}, "bwn", "import-keys", "1 key not of this net: alpha"),
        ({"layer1.2.conv1.weight": None}, "bwn", "import-keys", "of no net of network-compression (resnet20,"),
        ({"bn1.bias": torch.ones(3)}, "bwn", "import-shape", "bn1.bias has shape 3; in resnet20 with bwn it is 2"),
        ({"conv1.weight": torch.zeros(2, 3, 3, 3)}, "bwn-f", "import-zeros", "conv1.weight holds 54 zeros"),
    ],
)
def test_errors_are_one_line_and_name_the_key(
    change: dict[str, torch.Tensor | None], model: str | None, code: str, said: str, tmp_path: Path
) -> None:
    state = oracle.make_state("bwn", stem=2) | change
    with pytest.raises(bw.InputError) as caught:
        read(tmp_path, {key: value for key, value in state.items() if value is not None}, model)
    assert caught.value.code == code and said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_share_says_what_can_be_given(tmp_path: Path) -> None:
    """What `possible` names is what the reader takes."""
    state = oracle.make_state("fbs-0.5", stem=8)
    with pytest.raises(bw.InputError) as caught:
        read(tmp_path, state, None)
    assert (
        caught.value.possible == "fbs-SHARE, a share above 0 and up to 1" and caught.value.remedy == "--model fbs-0.5"
    )
    assert read(tmp_path, state, "fbs-1").name == "resnet20-fbs-1" and read(tmp_path, state, "fbs-.25").options
    with pytest.raises(bw.InputError, match=r"no model 'fbs-0\.0'"):
        read(tmp_path, state, "fbs-0.0")


def test_stl_is_resnet20(tmp_path: Path) -> None:
    with pytest.raises(bw.InputError, match="these are the keys of ResNet-32"):
        read(tmp_path, oracle.make_state("bwn", blocks=5, stem=2), "bwn-stl")


def test_the_command_and_the_one_that_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(oracle.make_state("dorefa-1"), "d.pth")
    assert run(["import", "d.pth", "--from", SOURCE, "--model", "dorefa-1"]) == 0
    shown = capsys.readouterr()
    assert "resnet20-dorefa-1: 128 keys, all used; low-bit layers held latents" in shown.out
    assert shown.err.splitlines()[-1].startswith(
        "next:   bitwright convert d.safetensors --model bitwright.importers.network_compression:resnet20 --input 3,32,32"
    )
    net = bw.load("d.safetensors", bw.models.create("resnet20", shortcut="conv"))
    assert str(getattr(net.get_submodule("fc"), "w", None)).startswith("DorefaW")
