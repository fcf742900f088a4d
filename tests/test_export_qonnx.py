"""QONNX files: the numbers of the trained net where the qonnx package runs them, and types as FINN and hls4ml read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.thresholds import float_thresholds
from bitwright.errors import InputError
from bitwright.export import to_qonnx
from bitwright.export.qonnx_graph import DOMAIN, whole_type
from bitwright.export.qonnx_quant import _steps

B = bw.nn
SIGNED = {"part": "lsq", "bits": 4, "signed": True}


def needs_qonnx() -> None:
    pytest.importorskip("qonnx", reason="pip install qonnx: the package that runs the files")


def settled(net: nn.Module, x: Tensor) -> nn.Module:
    """Steps and norms as after a first look at the data."""
    with torch.no_grad():
        net.train()(x)
        net(x)
    return net.eval()


def pixels(count: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0)).float() / 255


def run(path: Path, x: Tensor) -> Tensor:
    """The file as it lies on disk, cleaned and run by the qonnx package, image by image."""
    from bitwright.quiet import quiet

    with quiet():
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.util.cleanup import cleanup_model

        clean = cleanup_model(ModelWrapper(str(path)))
        name, out = clean.graph.input[0].name, clean.graph.output[0].name
        return torch.cat([torch.from_numpy(np.array(execute_onnx(clean, {name: i[None].numpy()})[out])) for i in x])


def types(path: Path) -> dict[str, tuple[Any, ...]]:
    """Of each quantizer: bits, signed, narrow; of BipolarQuant its name."""
    proto = onnx.load(path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    found: dict[str, tuple[Any, ...]] = {}
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            continue
        if node.op_type == "BipolarQuant":
            found[node.name] = ("bipolar",)
            continue
        assert float(constants[node.input[2]]) == 0  # the zero point: FINN and hls4ml take no other
        attrs = {a.name: a.i for a in node.attribute if a.name != "rounding_mode"}
        found[node.name] = (int(constants[node.input[3]]), bool(attrs["signed"]), bool(attrs["narrow"]))
    return found


WEIGHTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bwn": ("bwn", ("bipolar",)),
    "xnor": ("xnor", ("bipolar",)),
    "bireal": ("bireal", ("bipolar",)),
    "binaryconnect": ("binaryconnect", ("bipolar",)),
    "zero_one": ("zero_one", (1, False, False)),
    "twn": ("twn", (2, True, True)),
    "lsq 2": ({"part": "lsq", "bits": 2}, (2, True, False)),
    "lsq 8": ({"part": "lsq", "bits": 8}, (8, True, False)),
    "lsq per channel": ({"part": "lsq", "bits": 3, "per_channel": True}, (3, True, False)),
    "lsq masked": ([{"part": "lsq", "bits": 4}, "mask"], (3, True, True)),  # of the weights that are left
    "uniform 4": ({"part": "uniform", "bits": 4}, (4, True, True)),
    "uniform 8 per channel": ({"part": "uniform", "bits": 8, "granularity": "channel"}, (8, True, True)),
    "dorefa 2": ({"part": "dorefa_w", "bits": 2}, (3, True, True)),  # odd whole numbers -3..3
    "sign_magnitude": ({"part": "sign_magnitude", "bits": 3}, (4, True, True)),
    "kbit 2": ({"part": "kbit", "bits": 2}, (3, True, True)),
    "codebook pow2": ({"part": "codebook", "levels": "pow2:7"}, (4, True, True)),
    "codebook ternary": ({"part": "codebook", "levels": "ternary"}, (2, True, True)),
}
INPUTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "sign": ("sign", ("bipolar",)),
    "sign open": ({"part": "sign", "boundary": "open"}, ("bipolar",)),
    "rsign": ("rsign", ("bipolar",)),
    "norm sign": (["norm", "sign"], ("bipolar",)),
    "heaviside": ("heaviside", ("bipolar",)),
    "dorefa 1": ({"part": "dorefa_a", "bits": 1}, (1, False, False)),
    "dorefa 2": ({"part": "dorefa_a", "bits": 2}, (2, False, False)),
    "dorefa 8": ({"part": "dorefa_a", "bits": 8}, (8, False, False)),
    "lsq 2": ({"part": "lsq", "bits": 2}, (2, False, False)),
    "lsq signed": ({"part": "lsq", "bits": 3, "signed": True}, (3, True, False)),
    "pact 4": ({"part": "pact", "bits": 4}, (4, False, False)),
    "uniform 8": ({"part": "uniform", "bits": 8}, (8, False, False)),
    "uniform signed": ({"part": "uniform", "bits": 8, "signed": True}, (8, True, True)),
    "sign_magnitude": ({"part": "sign_magnitude", "bits": 3}, (4, True, True)),
    "kbit 2": ({"part": "kbit", "bits": 2}, (2, False, False)),
    "kbit 4": ({"part": "kbit", "bits": 4}, (4, False, False)),
    "norm lsq": (["norm", SIGNED], (4, True, False)),
}


def net_of(w: Any, x: Any) -> nn.Module:
    """A float stem, a layer with these parts at stride 2, a norm, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8),
        B.Conv2d(8, 6, 3, stride=2, padding=1, w=w, x=x), nn.BatchNorm2d(6), nn.Flatten(), B.Linear(96, 5, w="bwn", x=SIGNED),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"w {n}" for n in WEIGHTS), *(f"x {n}" for n in INPUTS)])
def test_every_part_with_codes_has_its_type_and_its_values(name: str, tmp_path: Path) -> None:
    needs_qonnx()
    torch.manual_seed(0)
    slot, part = name[0], name[2:]
    spec, want = (WEIGHTS if slot == "w" else INPUTS)[part]
    images, path = pixels(8, 3, 8, 8), tmp_path / "net.onnx"
    net = settled(net_of(spec, SIGNED) if slot == "w" else net_of("bwn", spec), images)
    report = bw.export.qonnx(net, images, path)
    assert types(path)["2.weight" if slot == "w" else "2.x"] == want
    assert report.images == report.same == 8 and report.differ == 0 and report.largest < 1e-6
    torch.testing.assert_close(run(path, images[:3]), net(images[:3]).detach(), rtol=1e-4, atol=1e-5)
    assert report.floats == ["0"] and report.ran and report.bytes == path.stat().st_size


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "pixels": (lambda: nn.Sequential(B.Conv2d(3, 6, 3, padding=1, w={"part": "lsq", "bits": 8}, x={"part": "input8", "mean": "cifar10"}), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 6, 6)),
    "depthwise": (lambda: nn.Sequential(B.Conv2d(4, 4, 3, groups=4, dilation=2, padding=2, w="twn", x={"part": "uniform", "bits": 4}), nn.PReLU(), nn.AvgPool2d(2), nn.Flatten()), (4, 6, 6)),
    "one axis": (lambda: nn.Sequential(B.Conv1d(4, 6, 3, w="bwn", x=SIGNED), nn.ReLU6(), nn.MaxPool1d(2, 2), nn.Flatten()), (4, 10)),
    "tokens": (lambda: nn.Sequential(B.Linear(6, 5, w={"part": "lsq", "bits": 3}, x=SIGNED), nn.ReLU()), (4, 6)),
    "weights alone": (lambda: nn.Sequential(B.Conv2d(3, 6, 3, padding=1, w="bwn"), nn.BatchNorm2d(6), nn.Flatten(), B.Linear(216, 4, w={"part": "uniform", "bits": 4})), (3, 6, 6)),
    "inputs alone": (lambda: nn.Sequential(B.Conv2d(3, 6, 3, x={"part": "dorefa_a", "bits": 2}), B.Conv2d(6, 4, 3, w="bwn", x="sign"), nn.Flatten()), (3, 6, 6)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_layers_of_every_kind(name: str, tmp_path: Path) -> None:
    needs_qonnx()
    torch.manual_seed(1)
    make, shape = NETS[name]
    images, path = pixels(5, *shape), tmp_path / "net.onnx"
    net = settled(make(), images)
    report = bw.export.qonnx(net, images, path)
    assert report.images == 5 and report.differ == 0
    torch.testing.assert_close(run(path, images), net(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "recipe", "quantizers", "floats"),
    [("bireal_resnet20", "w1a1-8", 44, 0), ("resnet20", "lsq-w2a2", 40, 0), ("resnet20", "dorefa-w1a2", 36, 2), ("resnet20", "w8a8", 40, 0)],
)  # fmt: skip
def test_residual_nets(model: str, recipe: str, quantizers: int, floats: int, tmp_path: Path) -> None:
    needs_qonnx()
    torch.manual_seed(0)
    images = pixels(16, 3, 16, 16)
    net = bw.models.create(model, size=16, width=0.5)
    bw.apply(net, recipe, images[:2])
    report = bw.export.qonnx(settled(net, images), images, tmp_path / "net.onnx")
    assert report.quantizers == quantizers and len(report.floats) == floats
    assert report.same == report.images == 16 and report.differ == 0
    assert report.largest == 0 or floats  # whole numbers: the same bits
    assert all(not kind[1:] or kind[0] <= 8 for kind in types(tmp_path / "net.onnx").values())


@pytest.mark.slow
def test_a_net_of_the_zoo_is_written_checked_and_read_by_hand(tmp_path: Path, call: Any) -> None:
    needs_qonnx()
    path = tmp_path / "net.onnx"
    code, out, err = call("export", "qonnx", "zoo:digits-mlp-zero_one", "-o", str(path), "--json")
    assert code == 0, err
    report = json.loads(out)["export"]
    assert report["largest"] == 0 and report["images"] == 16 and report["floats"] == []
    assert {kind for name, kind in types(path).items() if name.endswith("weight")} == {(1, False, False)}
    images = pixels(3, 1, 8, 8)
    assert torch.equal(run(path, images), bw.zoo.load("digits-mlp-zero_one")(images))


@pytest.mark.parametrize(
    ("code", "levels", "base", "rounding"),
    [
        (lambda x: (x / 0.3).round().clamp(0, 3), 3, 0, "ROUND"),
        (lambda x: (x * 10).round().clamp(-4, 3) + 4, 7, -4, "ROUND"),
        (lambda x: (x.clamp(0, 1) * 255).round(), 255, 0, "ROUND"),
        (lambda x: (x * 2.5 + 2).floor().clamp(0, 5), 5, 0, "FLOOR"),
        (lambda x: ((x.clamp(-1, 1) + 1) / 2 * 15 + 0.5).floor(), 15, 0, "FLOOR"),
        (lambda x: (x >= 0.3).float(), 1, 0, "ROUND"),
    ],
    ids=["divided", "signed", "8 bits", "floor", "between", "one step"],
)
def test_steps_begin_where_the_quantizer_does(code: Any, levels: int, base: int, rounding: str) -> None:
    rows, _ = float_thresholds(code, levels, 1)
    found = _steps(rows, base)
    assert found is not None and found.rounding == rounding
    x = torch.cat([rows[0], torch.nextafter(rows[0], torch.tensor(-torch.inf)), torch.linspace(-3, 3, 999)])
    y = ((x + found.lift) * found.rate / found.step + found.shift).clamp(base, base + levels)
    y = y.round() if rounding == "ROUND" else y.floor()
    assert torch.equal(y - base, code(x))


def test_uneven_steps_have_none() -> None:
    assert _steps(torch.tensor([[0.1, 0.2, 0.9]]), 0) is None and _steps(torch.tensor([[-0.5]]), 0) is None


def test_the_smallest_type_of_a_range() -> None:
    assert whole_type(0, 1) == (1, False, False, True) and whole_type(0, 2) == (2, False, False, False)
    assert whole_type(-1, 0) == (2, True, True, False) and whole_type(-128, 127) == (8, True, False, True)
    assert whole_type(-127, 127) == (8, True, True, True) and whole_type(1, 3) == (2, False, False, False)


def refused(net: nn.Module, x: Tensor, path: Path) -> str:
    with pytest.raises(InputError) as error:
        bw.export.qonnx(net, x, path)
    assert not path.exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_what_the_format_cannot_say_is_refused_with_the_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, x = tmp_path / "net.onnx", pixels(4, 3, 6, 6)
    ttq = settled(nn.Sequential(B.Conv2d(3, 4, 3, w="ttq", x="sign"), nn.Flatten()), x)
    assert "export qonnx: 0: its weights have levels of several units" in refused(ttq, x, path)
    grouped = B.Linear(108, 4, w={"part": "codebook", "levels": "uniform:6", "group": 12}, x="sign")
    text = refused(settled(nn.Sequential(nn.Flatten(), grouped), x), x, path)
    assert "export qonnx: 1: slot w holds codebook(" in text and "the step varies inside a filter, which Quant" in text
    gated = settled(nn.Sequential(B.Conv2d(3, 8, 3, w="bwn", x="sign", gate="xnor_k"), nn.Flatten()), x)
    assert "export qonnx: 0: slot gate holds xnor_k" in refused(gated, x, path)
    assert "nothing was converted" in refused(nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).eval(), x, path)
    loose = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), B.Conv2d(8, 4, 3, w="bwn", x=SIGNED)), x)
    assert "1: softmax.int has no form in this file. Possible: adaptive_avg_pool" in refused(loose, x, path)


def test_without_the_package_the_file_is_written_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_qonnx, "_version", lambda: None)
    report = bw.export.qonnx(bw.zoo.load("digits-mlp-zero_one"), pixels(2, 1, 8, 8), tmp_path / "net.onnx")
    assert report.ran is None and report.images == 0 and (tmp_path / "net.onnx").is_file()
    assert str(report).endswith("not compared: the package is missing. Install it with: pip install qonnx")


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_qonnx, "_version", lambda: "1")
    monkeypatch.setattr(to_qonnx, "_answers", lambda graph, inputs: [np.ones((len(inputs[0]), 10), np.float32)])
    assert "4 of 4 samples differ" in refused(
        bw.zoo.load("digits-mlp-zero_one"), pixels(4, 1, 8, 8), tmp_path / "net.onnx"
    )
