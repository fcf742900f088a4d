"""Packed nets as ONNX: the file means what the net means, on an onnxruntime that knows nothing of us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.errors import InputError
from bitwright.export import functions
from bitwright.export import onnx as write
from kernels import pack_codes


def packed(net: nn.Module, recipe: Any, x: Tensor) -> nn.Module:
    bw.apply(net, recipe, x)
    net.train()
    with torch.no_grad():
        net(x)
    done = bw.convert(net.eval(), x, verify=False, force=True)
    assert done.model is not None, done.report.verdict
    return done.model


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answers(path: Path, x: Tensor) -> Tensor:
    s = session(path)
    return torch.from_numpy(np.asarray(s.run(None, {s.get_inputs()[0].name: x.numpy()})[0]))


class Small(nn.Module):
    """Strides, groups, pooling, a shortcut, two linear layers: each in one net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.b = nn.Conv2d(16, 40, 3, stride=2, padding=1)
        self.c = nn.Linear(40 * 4 * 4, 33)
        self.d = nn.Linear(33, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.a(x))
        x = torch.max_pool2d(self.b(x), 2)
        return self.d(torch.relu(self.c(x.flatten(1))))


class Pooled(nn.Module):
    """A stem whose floats are pooled before a layer and a shortcut read them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16)
        self.a, self.d = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.stem(x))), 3, 2, 1)
        return self.d((x + self.a(x)).mean((2, 3)))


@pytest.mark.few(every=3)
@pytest.mark.parametrize(
    "name, operator", [("one bit", "ConvCutPool"), ("bytes", "ConvRoundPool"), ("none", "ConvPool")]
)
def test_a_stem_pools_its_floats_itself(name: str, operator: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 21, 18)
    recipe: list[Any] = [{"match": "stem", "w": {"part": "uniform", "bits": 8}, "x": "input8"}]
    if name == "bytes":
        recipe.append({"match": "a", **{key: {"part": "uniform", "bits": 8} for key in "wx"}})
    elif name != "none":
        recipe.append({"match": "a", **CODES[name]})
    net = packed(Pooled(), recipe, x)
    report = write(net, x, tmp_path / "net.onnx")
    assert f"bitwright::{operator}" in report.operators and report.differ == 0
    want = net(x)
    assert torch.allclose(answers(tmp_path / "net.onnx", x), want, rtol=1e-5, atol=1e-5)
    ours = bw.ort.session(tmp_path / "net.onnx")
    got = torch.from_numpy(np.asarray(ours.run(None, {ours.get_inputs()[0].name: x.numpy()})[0]))
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


CODES = {
    "one bit": {"w": "bwn", "x": ["norm", "sign"]},
    "two bits": {"w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "dorefa_a", "bits": 2}},
    "bytes": {"w": {"part": "uniform", "bits": 8}, "x": ["norm", {"part": "uniform", "bits": 8, "signed": True}]},
    "ternary": {"w": "ttq", "x": ["norm", {"part": "uniform", "bits": 4, "signed": True}]},
    "weights only": {"w": "ttq"},
}


@pytest.mark.parametrize(
    "name", ["one bit", *[pytest.param(n, marks=pytest.mark.slow) for n in CODES if n != "one bit"]]
)
def test_plain_onnxruntime_gives_the_numbers_of_the_packed_net(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    net = packed(Small(), [{"match": "*", **CODES[name]}], x)
    report = write(net, x, tmp_path / "net.onnx")
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert report.differ == 0 and any(op.startswith("bitwright::") for op in report.operators)
    for n in (1, 4):  # the batch is free
        assert torch.allclose(answers(tmp_path / "net.onnx", x[:n]), net(x[:n]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_coded_from_the_pixels_on_is_equal_to_the_bit(tmp_path: Path) -> None:
    x = torch.rand(4, 3, 32, 32)
    net = packed(bw.models.create("vgg_small"), "w1a1-8", x)
    assert write(net, x, tmp_path / "net.onnx").largest == 0
    file = onnx.load(tmp_path / "net.onnx")
    assert {f.name for f in file.functions} >= {"PackRound", "ConvCodes", "Weight"}
    ones = sum(i.raw_data.__len__() for i in file.graph.initializer if i.name.endswith("bits0"))
    assert ones < 700_000  # 4.6 million weights of one bit, and two layers of 8


@pytest.mark.slow
def test_one_dimension_and_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    signal = nn.Sequential(nn.Conv1d(4, 8, 5, padding=2, dilation=1), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten())
    x = torch.randn(3, 4, 20)
    net = packed(signal, [{"match": "*", **CODES["bytes"]}], x)
    assert write(net, x, tmp_path / "a.onnx").differ == 0
    rows = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 7))
    x = torch.randn(3, 5, 12)
    net = packed(rows, [{"match": "*", **CODES["two bits"]}], x)
    assert write(net, x, tmp_path / "b.onnx").differ == 0
    assert answers(tmp_path / "b.onnx", x).shape == (3, 5, 7)


@pytest.mark.slow
def test_what_is_not_a_number_and_what_is_too_large_answers_nan_in_its_own_sample(tmp_path: Path) -> None:
    x = torch.rand(4, 3, 16, 16)
    net = packed(Small(), [{"match": "*", **CODES["two bits"]}], x)
    write(net, x, tmp_path / "net.onnx")
    x[1, 0, 3, 3], x[2, 2, 0, 0] = torch.nan, 2e6
    y = answers(tmp_path / "net.onnx", x)
    assert y.isnan().all(1).tolist() == [False, True, True, False]


@pytest.mark.slow
def test_standard_operators_only(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    net = packed(Small(), [{"match": "*", **CODES["one bit"]}], x)
    report = write(net, x, tmp_path / "net.onnx", packed=False)
    file = onnx.load(tmp_path / "net.onnx")
    assert not file.functions and {o.domain for o in file.opset_import} == {""}
    assert not any("::" in op for op in report.operators) and report.differ == 0


@pytest.mark.slow
def test_a_trained_net_in_standard_operators(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    net = Small()
    bw.apply(net, [{"match": "*", **CODES["bytes"]}], x)
    net(x)
    assert write(net.eval(), x, tmp_path / "net.onnx", packed=False).differ == 0


@pytest.mark.slow
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(6, 8)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x) + self.b(y), self.b(y)

    pair = (torch.randn(3, 8), torch.randn(3, 6))
    net = Two()
    bw.apply(net, [{"match": "*", **CODES["bytes"]}], pair)
    with torch.no_grad():
        net(*pair)
    done = bw.convert(net.eval(), pair, verify=False, force=True)
    assert done.model is not None
    assert write(done.model, pair, tmp_path / "net.onnx").differ == 0
    s = session(tmp_path / "net.onnx")
    assert [i.name for i in s.get_inputs()] == ["input_0", "input_1"] and len(s.get_outputs()) == 2


def test_wrong_use_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not packed as one graph"):
        write(nn.Linear(3, 3), torch.randn(1, 3), tmp_path / "net.onnx")
    net = packed(Small(), [{"match": "*", **CODES["bytes"]}], torch.randn(2, 3, 16, 16))
    with pytest.raises(InputError, match="16x16"):
        write(net, torch.randn(2, 3, 8, 8), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_answers_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 16, 16)
    net = packed(Small(), [{"match": "*", **CODES["bytes"]}], x)
    from bitwright.export import to_onnx

    exported = to_onnx._exported

    def wrong(*args: Any) -> Any:  # one table of constants is off
        proto = exported(*args)
        for tensor in proto.graph.initializer:
            if tensor.name.endswith("scale"):
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.5).astype(np.float32).tobytes()
        return proto

    monkeypatch.setattr(to_onnx, "_exported", wrong)
    with pytest.raises(InputError, match="differ from the net"):
        write(net, x, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_our_kernels_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample, far off, in the session with our operators alone: refused."""
    x = torch.randn(4, 3, 16, 16)
    net = packed(Small(), [{"match": "*", **CODES["bytes"]}], x)
    from bitwright.export import to_onnx

    class Wrong:
        def __init__(self, data: bytes) -> None:
            self.right = bw.ort.session(data)
            self.get_inputs = self.right.get_inputs

        def run(self, *given: Any) -> list[np.ndarray]:
            return [-np.asarray(y) for y in self.right.run(*given)]

    monkeypatch.setattr(to_onnx, "session", Wrong)
    with pytest.raises(InputError, match="1 of 1 samples differ from the net"):
        write(net, x[:1], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


# the functions alone, against the definitions of the engine
def run_function(name: str, inputs: dict[str, np.ndarray], constants: dict[str, Any], attrs: dict[str, Any]) -> Any:
    kinds = {k: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in inputs.items()}
    node = onnx.helper.make_node(name, [*inputs, *constants], ["y"], domain="bitwright", **attrs)
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info(k, kinds[k], v.shape) for k, v in inputs.items()],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT if name == "Guard" else onnx.TensorProto.UINT8
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("bitwright", 1)]
    file = onnx.helper.make_model(graph, functions=functions.protos({name}), opset_imports=opsets, ir_version=9)
    s = ort.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    return s.run(None, inputs)[0]


@pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
def test_codes_of_floats_by_hand_and_by_the_core() -> None:
    x = torch.tensor([-9.0, -0.0, 0.0, 0.25, 0.5, 0.7, torch.nan, torch.inf]).reshape(1, 8, 1, 1)
    thresholds = torch.tensor([0.0, 0.5, 0.7])
    flip = torch.tensor([0, 0, 0, 1, 0, 1, 0, 0], dtype=torch.uint8)
    got = run_function(
        "PackBytes", {"x": x.numpy()}, {"t": thresholds.numpy(), "f": flip.numpy()},
        {"perm": [0, 2, 3, 1], "channels_last": 0},
    )  # fmt: skip
    assert got.reshape(-1).tolist() == [0, 1, 1, 2, 2, 0, 0, 3]  # counted down: 3 - 1, 3 - 3; NaN reaches nothing
    assert got.tolist() == pack_codes(x, thresholds, flip=flip, bytes=True).tolist()


def test_rounding_goes_to_the_even_number() -> None:
    x = np.array([[[[-5.0, 0.25, 0.75, 1.25, 9.0, np.nan]]]], np.float32)
    grid = np.array([2.0, 1.0, 1.0, 0.0, 4.0], np.float32)  # times 2, plus 1, 0 to 4
    got = run_function("PackRound", {"x": x}, {"g": grid}, {"perm": [0, 1, 2, 3], "channels_last": 1})
    assert got.reshape(-1).tolist() == [0, 1, 3, 3, 4, 0]


def test_guard() -> None:
    x = np.array([[1.0, -(2.0**20)], [np.nan, 0.0], [2.0**21, 0.0], [-np.inf, 0.0]], np.float32)
    got = run_function("Guard", {"x": x}, {}, {})
    assert np.isnan(got).tolist() == [False, True, True, True] and got[0] == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bitwright.cli.run import run

    assert run(["export", "onnx", "zoo:digits-mlp-zero_one", "-o", str(tmp_path / "d.onnx"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["export"]["bytes"] == (tmp_path / "d.onnx").stat().st_size
    assert run(["export", "onnx", "nothing.safetensors"]) == 2
    assert "no file" in capsys.readouterr().err


@pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
def test_the_library_serves_a_python_without_torch_and_without_us(tmp_path: Path) -> None:
    net: Any = bw.zoo.load("digits-mlp-zero_one")
    x = torch.rand(3, *net.inputs[0].shape)
    write(net, x, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", net(x).numpy())
    shutil.copy(bw.ort.library(), tmp_path / "operators.so")
    script = """
import sys
sys.modules["torch"] = sys.modules["bitwright"] = None  # an import of either fails
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library("./operators.so")
session = onnxruntime.InferenceSession("net.onnx", options, providers=["CPUExecutionProvider"])
(y,) = session.run(None, {"input": numpy.load("x.npy")})
assert numpy.array_equal(y, numpy.load("y.npy"))
print("same numbers")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "same numbers\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
def test_our_kernels_and_the_functions_of_the_file_give_the_same_numbers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(5, 3, 16, 16)
    write(packed(Small(), [{"match": "*", **CODES["one bit"]}], x), x, tmp_path / "net.onnx")
    x[3, 0, 0, 0] = torch.nan
    plain, ours = (
        answers(tmp_path / "net.onnx", x),
        bw.ort.session(tmp_path / "net.onnx").run(None, {"input": x.numpy()}),
    )
    assert np.array_equal(plain.numpy(), np.asarray(ours[0]), equal_nan=True)
