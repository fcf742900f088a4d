"""OpenVINO as a peer: its answers against the float net in torch, its threads, and the row where it is not installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.measure import peers, peers_openvino, peers_ort
from bitwright.measure.bench import AGAINST, bench
from bitwright.quiet import quiet
from bitwright.transforms import twin

pytest.importorskip("onnxruntime")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra `openvino`")
PEERS = ("openvino-fp32", "openvino-bf16", "openvino-int8")
# of the largest output: float32 sums in another order; 8 bits of mantissa per product; 255 steps for each tensor
TOLERANCE = {"openvino-fp32": 1e-5, "openvino-bf16": 0.02, "openvino-int8": 0.05}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


def answer(name: str, net: twin.FloatNet, threads: int = 1) -> dict[str, np.ndarray]:
    """The result of each variant of a peer, by its label."""
    peer = peers.build_peer(name, net, threads)
    if name == "openvino-bf16" and "has no bf16" in peer.note:
        pytest.skip(peer.note)
    assert peer.variants, peer.note
    results: dict[str, np.ndarray] = {}
    for label, call in peer.variants.items():
        found: list[Any] = [call() for _ in range(3)]  # a buffer that died would show in a later call
        results[label] = np.array(found[-1][0])
    return results


def close(found: np.ndarray, y: Tensor, share: float) -> None:
    np.testing.assert_allclose(found, y.numpy(), rtol=0, atol=share * float(y.abs().max()))


@needs_openvino
@pytest.mark.parametrize("name", PEERS)
def test_a_net_gives_what_torch_gives(name: str):
    torch.manual_seed(0)
    net = twin.float_net(Residual().eval(), (torch.randn(2, 3, 8, 8),))
    with torch.inference_mode():
        y = net.module(*net.inputs)
        (found,) = answer(name, net).values()
    close(found, y, TOLERANCE[name])


@needs_openvino
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_a_single_layer_gives_what_torch_gives_in_each_layout(name: str, layer: str):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1, stride=2)
    one, x = (conv, torch.randn(1, 8, 6, 7)) if layer == "conv" else (nn.Linear(8, 4), torch.randn(3, 8))
    net = twin.float_net(one, (x,))
    with torch.inference_mode():
        y = one(x)
        results = answer(name, net)
    assert set(results) == ({"plain", "channels_last"} if layer == "conv" else {"plain"})
    for label, found in results.items():
        if name == "openvino-int8":
            assert found.dtype == np.uint8  # a quantized layer alone gives its integers, like the other int8 peers
            found = dequantized(found, net)
        close(found.transpose(0, 3, 1, 2) if label == "channels_last" else found, y, TOLERANCE[name])


def dequantized(codes: np.ndarray, net: twin.FloatNet) -> np.ndarray:
    """Codes as values, by the dequantize step that the model had at its end."""
    from onnx import numpy_helper

    with quiet():
        model, _ = peers_ort.quantized(net)
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    scale, zero = (constants[key].astype(np.float32) for key in last.input[1:3])
    return (codes.astype(np.float32) - zero) * scale


@needs_openvino
def test_the_int8_peer_reads_uint8_and_computes_in_integers(monkeypatch: pytest.MonkeyPatch):
    ov = peers_openvino.runtime()

    compiled: list[Any] = []
    real = ov.Core.compile_model
    monkeypatch.setattr(ov.Core, "compile_model", lambda *a: compiled.append(real(*a)) or compiled[-1])
    for net in (Residual().eval(), nn.Conv2d(3, 8, 3)):
        assert peers.build_peer("openvino-int8", twin.float_net(net, (torch.randn(1, 3, 8, 8),)), 1).variants
    assert len(compiled) == 3  # the convolution in two layouts
    for model in compiled:
        assert model.input(0).get_element_type() == ov.Type.u8
        facts = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
        layers = [f["runtimePrecision"].astype(str) for f in facts if f["layerType"].astype(str) == "Convolution"]
        assert layers and set(layers) <= {"u8", "i8"}, layers


@needs_openvino
def test_the_thread_count_is_honored_or_the_row_says_why_not():
    net = twin.float_net(nn.Linear(64, 64), (torch.randn(4, 64),))
    cpus = len(os.sched_getaffinity(0))
    assert peers.build_peer("openvino-fp32", net, cpus).variants
    more = peers.build_peer("openvino-fp32", net, cpus + 1)
    assert not more.variants and f"OpenVINO runs {cpus} of {cpus + 1} threads" in more.note


@needs_openvino
def test_settings_are_those_of_one_latency_bound_call(monkeypatch: pytest.MonkeyPatch):
    ov = peers_openvino.runtime()

    found: list[Any] = []
    real = ov.Core.compile_model
    monkeypatch.setattr(ov.Core, "compile_model", lambda *a: found.append(real(*a)) or found[-1])
    net = twin.float_net(nn.Linear(8, 8), (torch.randn(1, 8),))
    assert peers.build_peer("openvino-fp32", net, 1).variants
    asked = (
        "INFERENCE_NUM_THREADS",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "INFERENCE_PRECISION_HINT",
        "ENABLE_CPU_PINNING",
    )
    got = [found[0].get_property(key) for key in asked]
    assert [*got[:2], str(got[2]), *got[3:]] == [1, 1, "LATENCY", ov.Type.f32, False]


@needs_openvino
def test_measuring_reports_nothing_home():
    code = "import sys, bitwright.measure.peers_openvino as p; p.runtime().Core(); "
    code += "print([m for m in sys.modules if m.startswith('openvino_telemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done


@needs_openvino
def test_what_the_compiler_refuses_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    from onnx import TensorProto, helper

    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Nobody", ["x"], ["y"], domain="own")], "g", shape[:1], shape[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)])
    monkeypatch.setattr(peers_ort, "exported", lambda net: (model, {"x": np.zeros(1, np.float32)}))
    t = bench(nn.Linear(4, 4), torch.randn(1, 4), rounds=1, against=("openvino-fp32",))
    assert t.rows[1].note.startswith("unavailable: RuntimeError: OpenVINO: ") and "own.Nobody" in t.rows[1].note


def test_without_openvino_each_row_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    t = bench(nn.Linear(4, 4), torch.randn(1, 4), rounds=1, against=PEERS)
    assert [r.note for r in t.rows[1:]] == ["unavailable: pip install openvino"] * 3
    assert set(PEERS) <= set(AGAINST)
