"""Operators of ours in one node of onnxruntime: the same numbers as one by one, and as their functions; no program can do harm."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.errors import InputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from bitwright.export.functions import protos  # noqa: E402
from bitwright.export.one_call import NAMES, in_one_call  # noqa: E402

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
WINDOW = {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0}
KINDS = {"f": TensorProto.FLOAT, "u": TensorProto.UINT8}


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    domain = "" if op in ("Relu", "Cast") else "bitwright"
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attrs)


def file(nodes: list[Any], outputs: str) -> Any:
    """Values whose names begin with f are floats, with u codes; x is fed."""
    made = {value for n in nodes for value in n.output}
    constants = {"thresholds": np.array([0.1, 0.4], np.float32), "flip": np.zeros(3, np.uint8)}
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "h", "w", "c"])],
        [helper.make_tensor_value_info(o, KINDS[o[0]], [None] * 4) for o in outputs.split()],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
        value_info=[helper.make_tensor_value_info(v, KINDS[v[0]], [None] * 4) for v in made],
    )  # fmt: skip
    used = {n.op_type for n in nodes if n.domain}
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bitwright", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=protos(used))
    model.ir_version = 9
    return model


def forked() -> Any:
    """A value that several read and the caller gets, codes that leave, a value that nobody reads."""
    last = {"perm": [0, 1, 2, 3], "channels_last": 1}
    return file(
        [
            node("MaxPoolFloats", "x", "f1", **WINDOW),
            node("PackBytes", "f1 thresholds flip", "u1", **last),
            node("MeanFloats", "f1", "f2"),
            node("MaxPool", "u1", "u2", planes=0, **WINDOW),
            node("AveragePoolFloats", "f1", "f3", **WINDOW),
            node("Relu", "f3", "f4"),
            node("SubsampleFloats", "f4", "f5", strides=[2, 1], channel_pads=[1, 2]),
            node("MeanFloats", "f5", "f6"),
            node("MeanFloats", "f5", "f7"),
        ],
        "f1 u2 f6 f2",
    )


def answers(model: Any, x: np.ndarray, kernels: bool = True, threads: int = 1) -> list[np.ndarray]:
    data = model.SerializeToString()
    plain: Any = onnxruntime.InferenceSession
    session: Any = bw.ort.session(data, threads) if kernels else plain(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def alike(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(
        p.dtype == q.dtype and np.allclose(p, q, rtol=1e-6) for p, q in zip(a, b, strict=True)
    )


def image(seed: int = 0, n: int = 2, side: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, side, side, 3)).astype(np.float32)


def test_one_node_gives_what_its_steps_give() -> None:
    apart, together = forked(), forked()
    in_one_call(together)
    assert [n.op_type for n in together.graph.node] == ["Run", "Relu", "Run2"]
    onnx.checker.check_model(together, full_check=True)
    for x in (image(), image(1, 1, 30), image(2, 5, 4), image(3, 0)):  # sizes grow and shrink, an empty batch
        want = answers(apart, x)
        got = answers(together, x)
        assert all(p.tobytes() == q.tobytes() and p.shape == q.shape for p, q in zip(got, want, strict=True))
    x = image()
    assert alike(answers(together, x, kernels=False), answers(apart, x))
    names = {value.name for value in together.graph.value_info}
    assert names == {"f1", "u2", "f3", "f6", "f2"}  # the types that Run cannot tell, and no others


def test_a_session_in_several_threads() -> None:
    model = forked()
    in_one_call(model)
    session: Any = bw.ort.session(model.SerializeToString(), threads=2)
    images = [image(i, 1 + i % 3, 5 + i % 4) for i in range(12)]
    wanted = [answers(forked(), x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda x: session.run(None, {"x": x}), images))
            assert all(alike(got, want) for got, want in zip(found, wanted, strict=True))


def test_more_lists_than_names() -> None:
    nodes, value = [], "x"
    for i in range(11):  # the third has three operators, the others two
        for k in range(3 if i == 2 else 2):
            nodes.append(node("MeanFloats", value, f"f{i}_{k}"))
            value = f"f{i}_{k}"
        nodes.append(node("Relu", value, f"f{i}"))
        value = f"f{i}"
    model = file(nodes, value)
    want = answers(model, image())
    in_one_call(model)
    kinds = [n.op_type for n in model.graph.node]
    assert sorted(k for k in kinds if k.startswith("Run")) == sorted(NAMES)
    assert kinds.count("MeanFloats") == 6 and kinds[4] == "Run3"  # all but three of the short lists
    assert alike(answers(model, image()), want) and alike(answers(model, image(), kernels=False), want)


def test_single_operators_stay() -> None:
    model = file([node("MeanFloats", "x", "f1"), node("Relu", "f1", "f2"), node("MeanFloats", "f2", "f3")], "f3")
    in_one_call(model)
    assert [n.op_type for n in model.graph.node] == ["MeanFloats", "Relu", "MeanFloats"]
    assert not model.graph.value_info


def _programmed(model: Any, text: str) -> Any:
    """The same file with another program of its first list."""
    other = type(model).FromString(model.SerializeToString())
    (program,) = (t for t in other.graph.initializer if t.name == "run_program")
    program.CopyFrom(numpy_helper.from_array(np.frombuffer(text.encode(), np.uint8), program.name))
    return other


def _program(model: Any) -> list[str]:
    (program,) = (t for t in model.graph.initializer if t.name == "run_program")
    return numpy_helper.to_array(program).tobytes().decode().split()


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "hello", "4 3 1 0 1 MeanFloats 1 2 0", "2 3 1 2 1 MeanFloats 0 2 0", "2 3 1 2 1 Nothing 1 2 0",
        "4 9999999999999999999 1 4 1 MeanFloats 1 4 0", "4 5 1 4 1 MeanFloats 4 4 0", "4 5 2 4 4 1 MeanFloats 1 4 0",
        "4 5 1 4 1 MeanFloats 1 4 1 perm 5 1 2 3 4 5", "4 5 1 4 1 Run 1 4 0", "4 6 1 5 1 MeanFloats 1 4 0",
    ],
)  # fmt: skip
def test_what_is_no_program(text: str) -> None:
    model = forked()
    in_one_call(model)
    with pytest.raises(InputError, match=r"Run: the first input is no program of steps"):
        answers(_programmed(model, text), image())


def test_programs_at_random() -> None:
    """A word changed, left out or added: an error in one line, or an answer, never a read of memory that is none of its own."""
    model, pick = forked(), random.Random(0)
    in_one_call(model)
    words, refused = _program(model), 0
    for _ in range(300):
        changed = list(words)
        for _ in range(pick.randint(1, 2)):
            at = pick.randrange(len(changed))
            new = pick.choice(
                ["0", "1", "2", "3", "5", "7", "9", "-1", "MeanFloats", "MaxPool", "PackBytes", pick.choice(words)]
            )
            changed[at : at + pick.randint(0, 1)] = [new] * pick.randint(0, 1)
        try:
            answers(_programmed(model, " ".join(changed)), image())
        except (InputError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument) as error:
            assert "\n" not in str(error).strip()
            refused += 1
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            refused += 1
    assert refused > 100


def test_constants_of_another_type_are_refused() -> None:
    model = forked()
    in_one_call(model)
    (thresholds,) = (t for t in model.graph.initializer if t.name == "thresholds")
    thresholds.CopyFrom(numpy_helper.from_array(np.zeros(2, np.uint8), "thresholds"))
    with pytest.raises(InputError, match="PackBytes: a tensor has elements of type 2, it needs type 1"):
        answers(model, image())


class Block(nn.Module):
    """A net for CIFAR in small: a stem whose ReLU the quantizer does not need, a shortcut of strides and zeros, rows at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        x = {"part": "dorefa_a", "bits": 2}
        self.one = bw.nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False, w="bwn", x=x)
        self.two = bw.nn.Conv2d(32, 32, 3, padding=1, bias=False, w="bwn", x=x)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        x = (self.two(self.one(x).relu()) + short).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_net_in_one_call(tmp_path: Path) -> None:
    net, x = Block().eval(), torch.rand(3, 3, 9, 8)
    converted = bw.convert(net, x, verify=[x])
    report = bw.export.onnx(converted, x, tmp_path / "net.onnx")
    onnx.checker.check_model(model := onnx.load(tmp_path / "net.onnx"), full_check=True)
    kinds = [n.op_type for n in model.graph.node]
    assert report.differ == 0 and "Run" in kinds
    if native.isa() in ("avx2", "avx512", "amx"):  # float layers are ours, too, and what they write can be stepped over
        assert kinds == ["Run", "Reshape", "Reshape", "Add"]
        assert report.operators["bitwright::SubsampleFloats"] == 1


@pytest.mark.few("both", "twice")
@pytest.mark.parametrize("taken", ["rows", "columns", "both", "twice"])
def test_images_that_are_stepped_over(taken: str, tmp_path: Path) -> None:
    """Slices in any number; one that another operator reads, or that does not begin at the first row, stays."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = bw.nn.Conv2d(3, 8, 3, padding=1, w="bwn", x={"part": "uniform", "bits": 8})
            self.two = bw.nn.Conv2d(8 + (taken == "both"), 4, 1, w="bwn", x={"part": "uniform", "bits": 8})

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.one(x)
            if taken == "rows":
                return self.two(y[:, :, ::3]), y
            if taken == "columns":
                return (self.two(y[:, :, :, ::2]),)
            if taken == "both":
                return (self.two(F.pad(y[:, :, ::2, ::3], (0, 0, 0, 0, 1, 0))),)
            rows = y[:, :, ::2]
            return self.two(rows[:, :, :, ::2]), rows.amax(1), self.two(y[:, :, 1::2])

    x = torch.rand(2, 3, 7, 8)
    converted = bw.convert(Net().eval(), x, verify=[x])
    report = bw.export.onnx(converted, x, tmp_path / "net.onnx")
    assert report.differ == 0
    assert report.operators.get("bitwright::SubsampleFloats", 0) == {"twice": 2}.get(taken, 1)


@pytest.mark.parametrize("wrong", [{"strides": [0, 1]}, {"channel_pads": [-1, 0]}])
def test_steps_that_cannot_be(wrong: dict[str, list[int]]) -> None:
    attrs = {"strides": [1, 1], "channel_pads": [0, 0], **wrong}
    with pytest.raises(InputError, match="SubsampleFloats: strides must be positive, channel_pads not negative"):
        answers(file([node("SubsampleFloats", "x", "f1", **attrs)], "f1"), image())
