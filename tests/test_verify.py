"""verify: batches in every form, and above all that it fails when something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.convert import _verdict
from bitwright.engine.fold import fold
from bitwright.engine.ir import Graph
from bitwright.engine.packed import PackedModel
from bitwright.engine.report import ConvertReport, ReportRow
from bitwright.engine.trace import trace
from bitwright.engine.verify import batches_of, verify
from bitwright.errors import InputError

B = bw.nn
S: dict[str, Any] = {"w": "bwn", "x": "sign"}
D: dict[str, Any] = {"w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "dorefa_a", "bits": 2}}
BACKENDS = ["reference", *(["native"] if native.available() else [])]


def net(p: dict[str, Any] = S) -> nn.Module:
    made = nn.Sequential(
        B.Conv2d(3, 33, 3, padding=1, **p),
        nn.BatchNorm2d(33),
        B.Conv2d(33, 16, 3, **p),
        nn.BatchNorm2d(16),
        nn.Hardtanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        B.Linear(144, 10, **p),
    )
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)  # type: ignore[arg-type]
            m.weight.data.uniform_(0.5, 1.5)
    return made.eval()


X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def folded(model: nn.Module) -> Graph:
    return fold(trace(model, X).graph)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [S, D], ids=["1 bit", "2 bits"])
def test_a_right_net_passes(backend: str, p: dict[str, Any]) -> None:
    model = net(p).train()
    proof = verify(model, PackedModel(folded(model), backend), [X, (X[:3], torch.zeros(3)), [X[:1], None]])
    assert proof.inexact == [] and proof.images == 12 and proof.same == 12 and proof.layers == {"0", "2", "7"}
    assert proof.largest < 1e-4 and model.training


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer", ["0", "2", "7"])
@pytest.mark.parametrize("p", [S, D], ids=["1 bit", "2 bits"])
def test_one_flipped_weight_bit_is_found(layer: str, backend: str, p: dict[str, Any]) -> None:
    model = net(p)
    graph = folded(model)
    bits = graph.tensors[f"{layer}.bits"].clone()
    bits[7] ^= 1 << 3
    graph.tensors[f"{layer}.bits"] = bits
    assert verify(model, PackedModel(graph, backend), [X]).inexact == [layer]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_moved_threshold_is_found(backend: str) -> None:
    model = net(D)
    graph = folded(model)
    table = graph.tensors["2.x.thresholds"].clone()
    table[1] += 0.05
    graph.tensors["2.x.thresholds"] = table
    assert verify(model, PackedModel(graph, backend), [X]).inexact == ["2"]


def test_a_wrong_multiplier_or_zero_is_found() -> None:
    model = net(S)
    for key, value in (("zero", [0]), ("mult", 3)):
        nodes = json.loads(folded(model).to_json())
        next(n for n in nodes if n["name"] == "2.x")["attrs"][key] = value
        graph = Graph.from_json(json.dumps(nodes), folded(model).tensors)
        assert verify(model, PackedModel(graph, "reference"), [X]).inexact == ["2"]


@pytest.mark.skipif(not native.available(), reason=native.notice())
@pytest.mark.parametrize("what", ["int_thresholds", "thresholds"])
def test_a_kernel_that_compares_wrongly_is_found(what: str) -> None:
    """The folded graph is right; the fused one, made at load, is not."""
    model = net(S)
    packed = PackedModel(folded(model), "native")
    runtime = packed.runtime
    keys = [k for k in runtime.tensors if k.endswith(what)]
    assert keys
    moved = runtime.tensors[keys[0]].clone()
    moved += 3
    runtime.tensors[keys[0]] = moved

    class Broken(PackedModel):
        @property
        def runtime(self) -> Graph:
            return runtime

    assert verify(model, Broken(folded(model), "native"), [X]).inexact


def test_convert_refuses_an_inexact_net_and_one_that_disagrees() -> None:
    row = ReportRow("a", "Conv2d", "bits", "1/1", 100, 10)
    report = ConvertReport([row], layers_exact=False, inexact=["a"], images=10, same=10)
    _verdict(report, verified=True)
    assert report.status == "REFUSE" and report.verdict.startswith("a: packed codes differ from the trained layer's")
    for same, status in ((1000, "PASS"), (999, "PASS"), (998, "WARN"), (990, "WARN"), (989, "REFUSE"), (0, "REFUSE")):
        report = ConvertReport([row], images=1000, same=same, ms_before=2.0, ms_after=1.0)
        _verdict(report, verified=True)
        assert report.status == status, same
    report = ConvertReport([row], images=10, same=10, ms_before=1.0, ms_after=2.0)
    _verdict(report, verified=True)
    assert report.status == "WARN" and report.verdict.startswith("not faster: 10.0x smaller, 0.50x")


def test_verify_forms_of_convert() -> None:
    model = net()
    assert bw.convert(model, X).report.images == 8
    assert bw.convert(model, X, verify=[(X, torch.zeros(8)), (X[:2], None)]).report.images == 10
    assert bw.convert(model, X, verify=(b for b in [X, X])).report.images == 16
    off = bw.convert(model, X, verify=False)
    assert off.report.images == 0 and off.report.codes_checked == 0
    assert off.report.status == "WARN" or off.report.verdict.endswith("(not verified)")


def test_a_batch_that_is_no_tensor() -> None:
    with pytest.raises(InputError, match="a batch is a tensor or a pair, got str"):
        list(batches_of(["x"], X))
    with pytest.raises(InputError, match="a batch is a tensor or a pair, got dict"):
        bw.convert(net(), X, verify=[{"x": X}])


def test_disagreements_are_listed_with_margin_and_layer() -> None:
    model = net()
    graph = folded(model)
    graph.tensors["7.add"] = graph.tensors["7.add"] + torch.tensor([50.0, *[0.0] * 9])  # class 0 wins always
    proof = verify(model, PackedModel(graph, "reference"), [X])
    assert proof.inexact == []  # the integers are right; the answers are not
    wrong = [int(i) for i in range(8) if int(model(X).argmax(1)[i]) != 0]
    assert [d.index for d in proof.disagreements] == wrong and proof.same == 8 - len(wrong)
    for d in proof.disagreements:
        top = model(X[d.index : d.index + 1]).topk(2).values[0].detach()
        assert d.packed == 0 and d.margin == pytest.approx(float(top[0] - top[1]), abs=1e-5) and d.first_layer == ""


def test_the_first_differing_layer_is_named() -> None:
    model: Any = net()
    model[7].bias.data.zero_()
    graph = folded(model)
    graph.tensors["2.scale"], graph.tensors["2.add"] = -graph.tensors["2.scale"], -graph.tensors["2.add"]
    proof = verify(model, PackedModel(graph, "reference"), [X])
    assert {d.first_layer for d in proof.disagreements} == {"7"}


def test_nets_that_give_no_classes() -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = B.Conv2d(3, 4, 3, **S)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    proof = verify(Mask(), PackedModel(fold(trace(Mask(), X).graph), "reference"), [X])
    assert proof.images == 8 and proof.inexact == ["a"]  # two different random nets
    model = Mask().eval()
    proof = verify(model, PackedModel(fold(trace(model, X).graph), "reference"), [X, X[:0]])
    assert (proof.images, proof.same, proof.inexact) == (8, 8, [])
