"""Float convolutions on the kernels, every instruction set of this machine, against float64; and nets that run on them."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import fuse_floats, native
from bitwright.engine.native_floats import FloatPlan
from bitwright.engine.native_library import FloatsStruct, library
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
ISAS = native.isas() if native.available() else []


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float layers run on the kernels whatever the instruction set."""
    monkeypatch.setattr(fuse_floats, "ISAS", tuple(ISAS))


SHAPES = [  # (n, c, h, w), o, kernel, stride, padding, dilation
    ((1, 16, 8, 8), 16, (3, 3), 1, 1, 1),
    ((2, 17, 9, 7), 33, (3, 3), 1, 1, 1),
    ((1, 33, 5, 12), 65, (3, 3), 1, 0, 1),
    ((1, 64, 4, 4), 129, (3, 3), 1, 2, 1),
    ((2, 130, 2, 3), 48, (3, 3), 1, 1, 1),
    ((1, 20, 1, 1), 5, (3, 3), 1, 1, 1),
    ((2, 3, 13, 11), 64, (7, 7), 2, 3, 1),
    ((1, 3, 40, 37), 64, (7, 7), 2, 3, 1),
    ((2, 4, 31, 9), 70, (8, 5), 2, (4, 0), 1),
    ((1, 1, 5, 6), 3, (5, 6), 2, 0, 1),
    ((1, 2, 3, 2), 16, (6, 8), 2, (5, 7), 1),
    ((1, 15, 9, 8), 31, (3, 3), 2, 1, 1),
    ((1, 16, 9, 8), 7, (3, 3), 1, 2, 2),
    ((2, 40, 6, 7), 80, (1, 1), 1, 0, 1),
    ((1, 40, 7, 7), 17, (1, 1), 2, 0, 1),
    ((1, 5, 1, 40), 12, (1, 5), 1, 0, 1),
]


def numbers(size: tuple[int, ...], o: int, kernel: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(size), torch.randn(o, size[1], *kernel), torch.randn(o)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_convolution(isa: str, shape: Any) -> None:
    size, o, kernel, stride, padding, dilation = shape
    x, w, add = numbers(size, o, kernel)
    place = {"stride": stride, "padding": padding, "dilation": dilation}
    want = F.conv2d(x.double(), w.double(), add.double(), **place)
    residual = torch.randn(want.shape)
    bound = 4e-6 * float(want.abs().max())
    for threads in (1, 3):
        y = FloatPlan(w, add, **place).run(x, threads=threads)
        assert float((y - want).abs().max()) <= bound
        y = FloatPlan(w, None, **place, relu=True).run(x, residual, threads)
        assert float((y - (want - add[:, None, None] + residual).relu()).abs().max()) <= 1.5 * bound


def test_whole_numbers_are_exact(isa: str) -> None:
    x, w = torch.randint(-9, 9, (1, 24, 10, 9)).float(), torch.randint(-3, 4, (20, 24, 3, 3)).float() * 4
    assert torch.equal(FloatPlan(w, padding=1).run(x), F.conv2d(x, w, padding=1))


def test_an_answer_depends_on_neither_batch_nor_threads(isa: str) -> None:
    for size, o, kernel, stride in (
        ((5, 48, 13, 10), 130, (3, 3), 1),
        ((5, 3, 13, 10), 66, (3, 3), 2),
        ((5, 3, 33, 40), 66, (7, 7), 2),
    ):
        x, w, add = numbers(size, o, kernel)
        plan = FloatPlan(w, add, stride, 1)
        y = plan.run(x)
        assert torch.equal(plan.run(x, threads=4), y)
        assert torch.equal(torch.cat([plan.run(x[i : i + 1], threads=3) for i in range(5)]), y)


def test_nan_stays_in_its_image(isa: str) -> None:
    x, w, add = numbers((3, 16, 6, 6), 16, (3, 3))
    x[1, 3, 2, 2] = torch.nan
    y = FloatPlan(w, add, padding=1, relu=True).run(x)
    assert bool(y[1].isnan().any())
    assert not bool(y[[0, 2]].isnan().any())


@pytest.mark.parametrize("k", [3, 7])
def test_images_with_their_channels_first(isa: str, k: int) -> None:
    x, w, add = numbers((2, 3, 9, 8), 40, (k, k))
    want = F.conv2d(x, w, add, 2, 1)
    n, o, oh, ow = want.shape
    s = FloatsStruct(
        n=n, h=9, w=8, c=3, o=o, kh=k, kw=k, stride_h=2, stride_w=2, pad_h=1, pad_w=1, dil_h=1, dil_w=1, oh=oh, ow=ow, nchw=1
    )  # fmt: skip
    at, lib = ctypes.addressof(s), library()
    weights, y = torch.empty(lib.bw_floats_size(at), dtype=torch.uint8), torch.empty(n, oh, ow, o)
    assert lib.bw_floats_pack(at, w.data_ptr(), add.data_ptr(), weights.data_ptr()) == 0
    assert lib.bw_conv_floats(at, x.data_ptr(), weights.data_ptr(), y.data_ptr(), None, 1) == 0
    torch.testing.assert_close(y.permute(0, 3, 1, 2), want, rtol=1e-5, atol=4e-6 * float(want.abs().max()))


def test_what_does_not_fit_is_refused() -> None:
    plan = FloatPlan(torch.ones(2, 3, 3, 3))
    with pytest.raises(InputError, match=r"float32 \[N, 3, H, W\]"):
        plan.run(torch.ones(1, 4, 5, 5))
    with pytest.raises(InputError, match="residual must be float32"):
        plan.run(torch.ones(1, 3, 5, 5), torch.ones(1, 2, 5, 5))
    with pytest.raises(InputError, match="do not follow from the geometry"):
        plan.run(torch.ones(1, 3, 2, 2))
    with pytest.raises(InputError, match=r"must be \[O, C, kh, kw\]"):
        FloatPlan(torch.ones(2, 3))
    assert copy.deepcopy(plan) is plan


class Net(nn.Module):
    """A stem, a block with a shortcut, and a layer along a line."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.a, self.b = nn.Conv2d(20, 20, 3, padding=1, bias=False), nn.Conv2d(20, 20, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.line, self.head = nn.Conv1d(20, 6, 3, stride=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.norm(self.b(self.a(x).relu()))).relu()
        return self.head(self.line(x.flatten(2)).mean(2))


def trained() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, x = Net(), torch.rand(4, 3, 9, 8)
    bw.apply(net, "ttq", x)
    return net.eval(), x


def test_a_net_runs_on_them(isa: str, kernels: None) -> None:
    net, x = trained()
    packed = bw.convert(net, x, verify=[x]).model
    assert isinstance(packed, PackedModel)
    found = [n for n, _, _ in packed.steps if n.op == "float_conv"]
    assert [(len(n.inputs), bool(n.attrs.get("relu"))) for n in found] == [(1, True), (1, True), (2, True), (1, False)]
    torch.testing.assert_close(packed(x), net(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([packed(x[i : i + 1]) for i in range(4)]), packed(x))


def test_onnxruntime_runs_them(isa: str, kernels: None, tmp_path: Any) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, x = trained()
    report = bw.export.onnx(bw.convert(net, x, verify=False), x, tmp_path / "net.onnx")  # compared on plain onnxruntime
    assert report.operators["bitwright::ConvFloats"] == 4
    want = net(x).detach()
    session = bw.ort.session(tmp_path / "net.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), want, rtol=1e-5, atol=1e-5)
    options = runtime.SessionOptions()  # where nothing is computed beforehand the weight comes with each run
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    bw.ort.register(options)
    session = runtime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), want, rtol=1e-5, atol=1e-5)


def test_a_file_of_standard_operators_has_none(kernels: None, tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    net, x = trained()
    report = bw.export.onnx(bw.convert(net, x, verify=False), x, tmp_path / "net.onnx", packed=False)
    assert report.operators["Conv"] == 4
    assert not [op for op in report.operators if op.startswith("bitwright::")]


def test_codes_behind_a_float_layer_are_proven(kernels: None) -> None:
    torch.manual_seed(0)
    net, x = bw.models.create("bireal_resnet20", size=32), torch.rand(4, 3, 32, 32)
    bw.apply(net, "bireal", x)
    bw.calibrate(net, [x], norms="batch")
    report = bw.convert(net.eval(), x, verify=[x]).report
    assert report.status == "PASS", report.verdict
