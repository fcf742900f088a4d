"""Packed nets in QDQ form: the numbers of the net, 8-bit integers in the file, and other programs' int8 kernels in the run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError

B = bw.nn
EIGHT = {"part": "uniform", "bits": 8}


def packed(net: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        net.train()(x)
    made = bw.convert(net.eval(), x, verify=False, force=True).model
    assert made is not None
    return made


def answers(path: Path, x: Tensor, **options: Any) -> Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"], **options)
    return torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]))


def chain() -> nn.Module:
    return nn.Sequential(
        B.Conv2d(3, 16, 3, padding=1, w=EIGHT, x=EIGHT), nn.BatchNorm2d(16), nn.ReLU(),
        B.Conv2d(16, 16, 3, padding=1, w=EIGHT, x=EIGHT), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        B.Linear(16, 5, w=EIGHT, x=EIGHT),
    )  # fmt: skip


@pytest.mark.slow
def test_eight_bits_run_on_int8_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(32, 3, 12, 12)
    net = packed(chain(), x)
    path = tmp_path / "net.onnx"
    report = bw.export.onnx(net, x, path, qdq=True)
    assert not any(op.startswith("bitwright") for op in report.operators)
    assert report.operators["DequantizeLinear"] == 6  # input and weight of three layers
    weights = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert sorted(tuple(t.dims) for t in weights) == [(5, 16), (16, 3, 3, 3), (16, 16, 3, 3)]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    got, want = answers(path, x, sess_options=options), net(x)
    assert Counter(n.op_type for n in onnx.load(tmp_path / "run.onnx").graph.node)["QLinearConv"] >= 1
    assert float((got - want).abs().max()) <= 0.02 * float(want.abs().max())  # a code more or less


@pytest.mark.slow
@pytest.mark.parametrize(
    ("w", "x"),
    [("bwn", ["norm", "sign"]), ("ttq", {"part": "uniform", "bits": 4}), ("bwn", {"part": "dorefa_a", "bits": 2})],
    ids=["signs", "two terms", "two bits"],
)
def test_fewer_bits_mean_the_same_numbers(w: Any, x: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    images = torch.rand(16, 4, 8, 8)
    net = packed(nn.Sequential(B.Conv2d(4, 6, 3, bias=False, w=w, x=x), nn.BatchNorm2d(6), nn.Flatten()), images)
    bw.export.onnx(net, images, tmp_path / "net.onnx", qdq=True)
    torch.testing.assert_close(answers(tmp_path / "net.onnx", images), net(images), rtol=1e-5, atol=1e-5)


@pytest.mark.few("ORT_ENABLE_ALL")
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_outputs_without_weights_keep_their_constant(level: str, tmp_path: Path) -> None:
    """Their scale is 0, by which onnxruntime divides the constant where it optimizes."""
    torch.manual_seed(0)
    x = torch.rand(16, 3, 9, 9)
    net: Any = nn.Sequential(
        B.Conv2d(3, 9, 3, padding=1, w="twn", x=EIGHT), nn.BatchNorm2d(9), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        B.Linear(9, 6, w="twn", x=EIGHT),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (net[0], net[5]):
            layer.weight[::3] = 0
            layer.bias.copy_(torch.linspace(-1, 1, len(layer.bias)))
        net[1].bias.fill_(0.5)
    made = packed(net, x)
    bw.export.onnx(made, x, tmp_path / "net.onnx", qdq=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    got, want = answers(tmp_path / "net.onnx", x, sess_options=options), made(x)
    assert torch.equal(want[:, ::3], want[:1, ::3].expand(16, 2)) and float(want[:, ::3].abs().max()) > 0.1
    torch.testing.assert_close(got[:, ::3], want[:, ::3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, want, rtol=0, atol=0.01 * float(want.abs().max()))


def test_a_net_without_this_form_says_so(tmp_path: Path) -> None:
    path, x = tmp_path / "net.onnx", torch.rand(2, 4)
    only = packed(nn.Sequential(B.Linear(4, 3, w="bwn")), x)
    with pytest.raises(InputError, match="no QDQ form: no layer of this net computes with codes"):
        bw.export.onnx(only, x, path, qdq=True)
    wide = packed(nn.Sequential(B.Linear(4, 3, w="bwn", x={"part": "kbit", "bits": 8})), x)
    with pytest.raises(InputError, match="no QDQ form: 0: its 256 codes stand for -255 to 255, beyond 8 bits"):
        bw.export.onnx(wide, x, path, qdq=True)
    with pytest.raises(InputError, match="not packed"):
        bw.export.onnx(nn.Linear(4, 3), x, path, packed=False, qdq=True)
    assert not path.exists()
