"""Packed nets for images of every size: the trained net's answers at each, in one line where a layer fixes the size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.packed import PackedModel
from bitwright.engine.store import from_json, stored
from bitwright.errors import InputError

B = bw.nn
TWO = {"part": "lsq", "bits": 2}
SIGNED = {"part": "lsq", "bits": 4, "signed": True}
SIZES = [(16, 16), (17, 23), (9, 40), (3, 5), (64, 31)]


def packed(net: nn.Module, x: Tensor, **options: Any) -> PackedModel:
    with torch.no_grad():
        net.train()(x)
        net(x)
    made = bw.convert(net.eval(), x, verify=False, force=True, dynamic_size=True, **options).model
    assert isinstance(made, PackedModel)
    return made


class Residual(nn.Module):
    """Signs at a padded border, two terms, a shortcut that takes every second pixel, a grouped layer, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = B.Conv2d(3, 8, 3, padding=1, w={"part": "lsq", "bits": 8}, x="input8"), nn.BatchNorm2d(8)
        self.a = B.Conv2d(8, 8, 3, padding=1, bias=False, w="bwn", x=["norm", "sign"])
        self.b = B.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, w="ttq", x=TWO)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.head = B.Linear(8, 5, w={"part": "lsq", "bits": 4}, x=SIGNED)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = torch.relu(self.a(x) + x)
        x = self.b(x) + x[:, :, ::2, ::2]
        return self.head(self.pool(x).mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, PackedModel]:
    torch.manual_seed(0)
    net, x = Residual(), torch.randint(0, 256, (8, 3, 16, 16)) / 255
    return net, packed(net, x)


@pytest.mark.parametrize("size", SIZES)
def test_answers_are_the_trained_nets_at_every_size(
    size: tuple[int, int], residual: tuple[nn.Module, PackedModel]
) -> None:
    net, fast = residual
    x = torch.randint(0, 256, (4, 3, *size), generator=torch.Generator().manual_seed(1)) / 255
    want = net(x).detach()
    torch.testing.assert_close(fast(x), want, rtol=1e-5, atol=1e-5)
    slow = PackedModel(fast.graph, "reference")
    assert torch.equal(fast(x), slow(x)) and torch.equal(
        fast(x * 255 // 1 / 255), fast((x * 255).round().to(torch.uint8))
    )
    assert torch.equal(fast.at_size(x)(x), fast(x))  # fused for this size alone
    assert torch.equal(fast(torch.cat([x, x]))[4:], fast(x))


def test_the_file_keeps_it_and_others_do_not_have_it(residual: tuple[nn.Module, PackedModel], tmp_path: Path) -> None:
    _, fast = residual
    bw.save(fast, tmp_path / "net.safetensors")
    again = bw.load(tmp_path / "net.safetensors")
    x = torch.rand(2, 3, 21, 12)
    assert isinstance(again, PackedModel) and again.any_size and torch.equal(again(x), fast(x))
    fixed = PackedModel(_changed(fast, any_size=None))
    with pytest.raises(InputError, match="input is 2x3x21x12, the model was converted for 3x16x16"):
        fixed(x)
    with pytest.raises(InputError, match="input is 2x4x16x16"):
        fast(torch.rand(2, 4, 16, 16))


def _changed(model: PackedModel, **attrs: Any) -> Any:
    text, tensors = stored(model.graph)
    nodes = json.loads(text)
    for key, value in attrs.items():
        nodes[0]["attrs"].pop(key, None)
        if value is not None:
            nodes[0]["attrs"][key] = value
    return from_json(json.dumps(nodes), tensors)


def test_a_size_that_does_not_go_through_or_is_too_large_is_one_line(residual: tuple[nn.Module, PackedModel]) -> None:
    _, fast = residual
    with pytest.raises(
        InputError, match=r"images of 3x65536x65536 do not go through: node 0 .*more than 268435456 values"
    ):
        fast(torch.zeros(1, 3, 1, 1).expand(1, 3, 1 << 16, 1 << 16))
    assert fast(torch.zeros(1, 3, 1, 1)).shape == (1, 5)
    with pytest.raises(InputError, match="do not go through"):
        fast(torch.zeros(1, 3, 0, 4))


def test_a_file_may_claim_it_only_for_one_image(residual: tuple[nn.Module, PackedModel]) -> None:
    _, fast = residual
    with pytest.raises(InputError, match="any_size"):
        _changed(fast, any_size="yes")
    flat = bw.zoo.load("digits-mlp-zero_one")
    assert isinstance(flat, PackedModel)
    claims = PackedModel(_changed(flat, any_size=True))  # its linear layers take 64 numbers
    assert torch.equal(claims(torch.zeros(1, 1, 8, 8)), flat(torch.zeros(1, 1, 8, 8)))
    for shape in ((1, 1, 9, 8), (1, 1, 4, 16)):  # 4 x 16 are 64 numbers, too, but lie in another way
        with pytest.raises(InputError, match="do not go through"):
            claims(torch.zeros(shape))


def test_an_addition_that_would_broadcast_is_refused() -> None:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = B.Conv2d(4, 4, 1, w="bwn", x="sign")

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + x.mean((2, 3), keepdim=True)

    torch.manual_seed(0)
    x = torch.randn(4, 4, 1, 1)  # one pixel: the mean has the shape of the image
    assert "'add' (add) works in another way there" in refused(Squeeze(), x)
    made = bw.convert(Squeeze().eval(), x, verify=False, force=True).model
    assert isinstance(made, PackedModel)
    with pytest.raises(InputError, match=r"\(add\) works in another way there"):
        PackedModel(_changed(made, any_size=True))(torch.randn(2, 4, 3, 3))
    wide = packed(Squeeze(), torch.randn(4, 4, 5, 5))
    assert wide(torch.randn(2, 4, 3, 7)).shape == (2, 4, 3, 7)


def refused(net: nn.Module, x: Tensor) -> str:
    with pytest.raises(InputError) as error:
        packed(net, x)
    assert "\n" not in str(error.value) and error.value.code == "convert-size"
    return str(error.value)


def test_the_layer_that_fixes_the_size_is_named() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    conv = B.Conv2d(3, 4, 3, padding=1, w="bwn", x="sign")
    flat = refused(nn.Sequential(conv, nn.Flatten(), B.Linear(256, 3, w="bwn", x="sign")), x)
    assert "2 (Linear 256>3) fixes the size of the image; at 40x72" in flat and "Possible: a mean over all" in flat

    class Fixed(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            self.conv, self.whole = conv, whole

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + torch.ones(8, 8) if self.whole else nn.functional.avg_pool2d(y, min(x.shape[2:]))

    text = refused(Fixed(False), x)
    assert "(avg_pool2d.default) fixes the size" in text and "it is another operation there" in text
    assert "what follows conv (Conv2d 3>4 3x3) fixes the size" in refused(Fixed(True), x)
    with pytest.raises(InputError, match=r"takes a net of one input, images .* this one reads 64"):
        packed(nn.Sequential(B.Linear(64, 3, w="bwn", x="sign")), torch.rand(2, 64))


def test_rows_of_every_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        B.Conv1d(3, 6, 5, padding=2, w="bwn", x=SIGNED),
        nn.ReLU(),
        B.Conv1d(6, 4, 3, w="twn", x=TWO),
        nn.AdaptiveAvgPool1d(1),
    )
    fast = packed(net, torch.randn(4, 3, 20))
    for length in (3, 21, 64):
        x = torch.randn(2, 3, length)
        torch.testing.assert_close(fast(x), net(x).detach(), rtol=1e-5, atol=1e-6)


class Rows(nn.Module):
    """Linear layers that read and write images with their channels last."""

    def __init__(self, more: bool = False) -> None:
        super().__init__()
        self.conv, self.more = B.Conv2d(3, 8, 3, padding=1, w="bwn", x="sign"), more
        self.a, self.b = B.Linear(8, 6, w="bwn", x=TWO), B.Linear(6, 4, w="ttq", x=SIGNED)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        x = x.unsqueeze(3) if self.more else x
        return self.b(torch.relu(self.a(x)))


def test_linear_layers_on_the_last_axis_of_an_image() -> None:
    torch.manual_seed(0)
    net = Rows()
    fast = packed(net, torch.randn(4, 3, 12, 12))
    slow = PackedModel(fast.graph, "reference")
    for size in ((12, 12), (7, 9), (9, 7), (1, 30)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(fast(x), slow(x)), size
        torch.testing.assert_close(fast(x), net(x).detach(), rtol=1e-5, atol=1e-5)
        env = fast.environment(x)
        assert torch.equal(fast.values(env)[fast.output_name], slow(x))  # step by step
    with pytest.raises(InputError, match=r"\(coded_linear\) works in another way there"):
        packed(Rows(more=True), torch.randn(4, 3, 12, 12))


@pytest.mark.slow
def test_onnx_of_linear_layers_on_the_last_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fast = packed(Rows(), torch.randn(4, 3, 12, 12))
    bw.export.onnx(fast, torch.randn(2, 3, 12, 12), tmp_path / "net.onnx")
    for session in (ort.InferenceSession(str(tmp_path / "net.onnx")), bw.ort.session(tmp_path / "net.onnx")):
        for size in ((7, 9), (30, 1)):
            x = torch.randn(2, 3, *size)
            got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(np.asarray(got)), fast(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ours", "standard", "qdq"])
def test_onnx(form: str, residual: tuple[nn.Module, PackedModel], tmp_path: Path) -> None:
    """The file has free height and width in each form, and the net's bits where it promises them."""
    _, fast = residual
    path, x = tmp_path / "net.onnx", torch.randint(0, 256, (4, 3, 18, 21)) / 255
    report = bw.export.onnx(fast, x, path, packed=form == "ours", qdq=form == "qdq")
    assert form == "qdq" or report.largest == 0
    sessions: list[Any] = [ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])]
    sessions += [bw.ort.session(path), bw.ort.session(path, threads=2)] if form == "ours" else []
    for session in sessions:
        (entry,) = session.get_inputs()
        assert entry.shape[1:] == [3, "height", "width"]
        for size in SIZES * 2:
            images = torch.randint(0, 256, (3, 3, *size)) / 255
            got = torch.from_numpy(np.asarray(session.run(None, {entry.name: images.numpy()})[0]))
            want = fast(images)
            assert torch.allclose(got, want, rtol=0, atol=1e-3 * float(want.abs().max()) if form == "qdq" else 0), size


@pytest.mark.slow
def test_compiled_it_takes_the_size_of_the_file(residual: tuple[nn.Module, PackedModel]) -> None:
    _, fast = residual
    x = torch.rand(2, 3, 16, 16)
    compiled = torch.compile(fast, backend="eager", fullgraph=False)
    assert torch.equal(compiled(x), fast(x))


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, call: Any) -> None:
    run = tmp_path / "run"
    quick = ("stage.0.epochs=1", "stage.1.epochs=1", "data.limit=64", "data.limit_test=32", "log.tensorboard=false")
    code, _, err = call("train", "digits-bireal_resnet20-bireal", "model.width=0.25", *quick, "--out", str(run))
    assert code == 0, err
    code, _, err = call("bench", str(run), "--size", "12", "--against", "torch-fp32", "--rounds", "1")
    assert code == 2 and "convert" in err
    code, out, err = call("convert", str(run), "--force")
    assert code == 0, out + err
    code, _, err = call("bench", str(run), "--size", "12", "--against", "torch-fp32", "--rounds", "1")
    assert code == 2 and "was converted for 1x8x8" in err
    code, out, err = call("convert", str(run), "--force", "--dynamic-size")
    assert code == 0, out + err
    code, out, err = call("bench", str(run), "--size", "12x16", "--against", "torch-fp32", "--rounds", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["bench"]["input"] == [1, 12, 16] and not (run / "bench.json").exists()
    code, _, err = call("bench", str(run / "packed.safetensors"), "--size", "x")
    assert code == 2 and "--size 'x' is no size; possible: 64 or 64x48" in err
