"""verify: batches in every form, and above all that it fails when something is wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.convert import _verdict
from bitwright.engine.fold import fold
from bitwright.engine.graph import Graph
from bitwright.engine.packed import PackedModel
from bitwright.engine.report import ConvertReport, ReportRow
from bitwright.engine.store import from_json
from bitwright.engine.trace import trace
from bitwright.engine.verify import batches_of, verify
from bitwright.errors import InputError

B = bw.nn
engine_convert: Any = importlib.import_module("bitwright.engine.convert")
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


@pytest.mark.few()
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


@pytest.mark.slow
def test_a_wrong_multiplier_or_zero_is_found() -> None:
    model = net(S)
    for key, value in (("zero", [0]), ("mult", 3)):
        nodes = [vars(n) for n in folded(model).copy().nodes]
        next(n for n in nodes if n["name"] == "2.x")["attrs"][key] = value
        graph = from_json(json.dumps(nodes), folded(model).tensors)
        assert verify(model, PackedModel(graph, "reference"), [X]).inexact == ["2"]


@pytest.mark.skipif(not native.available(), reason=native.notice())
@pytest.mark.parametrize("what", ["int_thresholds", "thresholds"])
def test_a_kernel_that_compares_wrongly_is_found(what: str) -> None:
    """The folded graph is right; the fused one, made at load, is not. Where a kernel writes bytes, it reads an even grid in
    place of the thresholds, so both are moved: which layer does so depends on the instruction set."""
    model = net(S)
    keys = [k for k in PackedModel(folded(model), "native").runtime.tensors if k.endswith(what)]
    assert keys
    for key in keys:
        packed = PackedModel(folded(model), "native")
        packed.runtime.tensors[key] = packed.runtime.tensors[key] + 3
        for node in packed.runtime.nodes:
            if key in node.attrs.get("tensors", {}).values() and "grid" in node.attrs:
                node.attrs["grid"] = replace(node.attrs["grid"], value=node.attrs["grid"].value + 3)
        assert verify(model, packed, [X]).inexact, key


def test_convert_refuses_an_inexact_net_and_one_that_disagrees() -> None:
    row = ReportRow("a", "Conv2d", "bits", "1/1", 100, 10)
    report = ConvertReport([row], layers_exact=False, inexact=["a"], images=10, same=10)
    report.status, report.verdict = _verdict(report, verified=True)
    assert report.status == "REFUSE" and report.verdict.startswith("a: packed codes differ from the trained layer's")
    for same, status in ((1000, "PASS"), (999, "PASS"), (998, "WARN"), (990, "WARN"), (989, "REFUSE"), (0, "REFUSE")):
        report = ConvertReport(
            [row], float_bytes=1000, file_bytes=100, images=1000, same=same, ms_before=2.0, ms_after=1.0
        )
        report.status, report.verdict = _verdict(report, verified=True)
        assert report.status == status, same
    report = ConvertReport([row], float_bytes=1000, file_bytes=100, images=10, same=10, ms_before=1.0, ms_after=2.0)
    report.status, report.verdict = _verdict(report, verified=True)
    assert report.status == "WARN" and report.verdict.startswith("not faster: 10.0x smaller, 0.50x")


@pytest.mark.slow
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


# -- values, not only classes ---------------------------------------------------------------------------
W8: dict[str, Any] = {"w": {"part": "uniform", "bits": 8}, "x": {"part": "uniform", "bits": 8}}
IMAGES = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def eight_bits() -> Any:
    torch.manual_seed(2)
    made = nn.Sequential(
        B.Conv2d(3, 33, 3, padding=1, **W8), nn.BatchNorm2d(33), nn.ReLU(), B.Conv2d(33, 16, 3, **W8), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Flatten(), B.Linear(576, 10, **W8),
    )  # fmt: skip
    bw.calibrate(made, [IMAGES])
    return made.eval()


def scaled(key: str, rate: float, add: float = 0.0, one: bool = False) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        t = graph.tensors[key].clone()
        place = t.view(-1)[:1] if one else t
        place.mul_(rate).add_(add)
        graph.tensors[key] = t

    return change


def both(graph: Graph) -> None:
    for key in ("7.scale", "7.add"):
        scaled(key, 2.0)(graph)


FAULTS: dict[str, tuple[Callable[[Graph], None], str]] = {
    "logits doubled": (both, "output"),
    "logits + 5": (scaled("7.add", 1.0, 5.0), "output"),
    "logits 2 % larger": (scaled("7.scale", 1.02), "output"),
    "one logit + 0.01": (scaled("7.add", 1.0, 0.01, one=True), "output"),
    "first scale 2 % off": (scaled("0.scale", 1.02), "input of 3"),
    "one channel 5 % off": (scaled("3.scale", 1.05, one=True), "input of 7"),
}


@pytest.mark.few("logits doubled", "one logit + 0.01", "first scale 2 % off")
@pytest.mark.parametrize("what", FAULTS)
def test_a_wrong_number_is_refused_although_every_code_and_class_agrees(what: str, monkeypatch: Any) -> None:
    change, where = FAULTS[what]

    def planted(graph: Graph) -> Graph:
        graph = fold(graph)
        change(graph)
        return graph

    model = eight_bits()
    right = bw.convert(model, IMAGES[:2], verify=[IMAGES]).report
    assert right.status != "REFUSE" and not right.beyond and right.layers_exact
    monkeypatch.setattr(engine_convert, "fold", planted)
    report = bw.convert(model, IMAGES[:2], verify=[IMAGES], form="graph").report
    assert report.status == "REFUSE" and report.layers_exact and report.beyond[0].where == where
    assert report.beyond[0].difference > 10 * report.beyond[0].bound
    assert f"{where} is off by" in report.verdict and "rounding explains" in report.verdict


@pytest.mark.parametrize("p", [S, D, W8], ids=["1 bit", "2 bits", "8 bits"])
def test_the_bound_holds_for_other_orders_of_the_same_sums(p: dict[str, Any]) -> None:
    """A float stem of 600 terms, summed by another program, in front of signs: many flip, nothing is beyond rounding."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(24, 32, 5), nn.BatchNorm2d(32), B.Conv2d(32, 32, 3, **p), nn.BatchNorm2d(32), B.Conv2d(32, 32, 3, **p),
        nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 30)  # the norm subtracts two large numbers: bad for float32
            m.running_var.uniform_(1e-3, 1)
    x = torch.randn(32, 24, 12, 12)
    made.eval()
    proof = verify(made, PackedModel(fold(trace(made, x).graph)), [x, x * 100])
    assert proof.beyond == [] and proof.inexact == []


def test_no_image_is_an_error() -> None:
    used = iter([X])
    next(used)
    for batches in ([], used, [X[:0]]):
        with pytest.raises(InputError, match="no image to verify on"):
            bw.convert(net(), X, verify=batches)


class Two(nn.Module):
    """Classes, one number for each image, and one for the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = eight_bits()
        self.side = B.Linear(10, 3, **W8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"classes": y, "mean": y.mean(1), "box": self.side(y)[:, None], "all": y.sum()}


@pytest.mark.slow
def test_every_output_is_judged() -> None:
    model = Two().eval()
    done = bw.convert(model, X.abs(), form="layers", verify=[X.abs(), IMAGES])
    rows = {o.name: o for o in done.report.outputs}
    assert {n: o.kind for n, o in rows.items()} == {
        "['classes']": "classes", "['mean']": "values", "['box']": "values", "['all']": "values",
    }  # fmt: skip
    assert all(o.images == 72 and o.bound > 0 for o in rows.values()) and done.report.images == 72
    assert "output['mean']: " in str(done.report)
    wrong: Any = done.model
    wrong.side.packed.get_buffer("layer/add").add_(0.5)
    proof = verify(model, wrong, [IMAGES])
    assert [b.where for b in proof.beyond] == ["output['box']"] and proof.beyond[0].difference == pytest.approx(
        0.5, 1e-3
    )


@pytest.mark.parametrize("tail", ["mean", "column"])
def test_regression_heads_are_judged_by_value(tail: str) -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1) if tail == "mean" else x[:, :1]

    model = nn.Sequential(eight_bits(), Head()).eval()
    report = bw.convert(model, IMAGES[:2], verify=[IMAGES], form="layers").report
    assert report.status == "WARN" and report.share[1] == "values" and report.outputs[0].kind == "values"
    assert "same values as the trained net" in str(report) and report.classes == 0


@pytest.mark.slow
def test_one_class_and_guesses_are_said() -> None:
    model = eight_bits()
    model[7].bias.data[3] = 99.0
    report = bw.convert(model, IMAGES[:2], verify=[IMAGES]).report
    assert report.status == "WARN" and "one class for all 64 images" in report.verdict and report.classes == 1
    assert bw.convert(model, IMAGES[:2], verify=[IMAGES[:8]]).report.blind == ""  # too few images to say so
    labels = torch.arange(64) % 4
    model = nn.Sequential(eight_bits()).eval()
    report = bw.convert(model, IMAGES[:2], verify=[(IMAGES, labels)]).report
    right = int((model(IMAGES).argmax(1) == labels).sum())
    assert right < 30 and report.status == "WARN" and f"right on {right / 64:.1%} of the images" in report.blind
    good = bw.convert(model, IMAGES[:2], verify=[(IMAGES, model(IMAGES).argmax(1))]).report
    assert ("no better than" in good.blind) == (len(set(model(IMAGES).argmax(1).tolist())) == 1)


def test_times_within_noise_are_no_gain() -> None:
    row = ReportRow("a", "Conv2d", "bits", "1/1", 100, 10)
    report = ConvertReport(
        [row], float_bytes=1000, file_bytes=100, images=10, same=10, ms_before=1.2, ms_after=1.0, level=True
    )
    report.status, report.verdict = _verdict(report, verified=True)
    assert report.status == "WARN" and report.verdict.startswith(
        "not faster: 10.0x smaller, as fast as its float net in torch"
    )
    assert report.gain() == "10.0x smaller, as fast as float in torch within noise"


def test_a_noisy_clock_is_named_by_the_rule_of_bench() -> None:
    row = ReportRow("a", "Conv2d", "bits", "1/1", 100, 10)
    for spread, noise in ((0.20, ""), (0.21, "; its times are NOISY, repeat when idle (quartile spread 21 %)")):
        report = ConvertReport([row], float_bytes=1000, file_bytes=100, images=10, same=10, ms_before=4.0, ms_after=1.0)
        report.spread = spread
        report.status, report.verdict = _verdict(report, verified=True)
        assert (report.status, report.verdict) == (
            "PASS",
            f"10.0x smaller, 4.0x the speed of its float net in torch{noise}",
        )
        assert report.gain() == "10.0x smaller, 4.0x faster than float in torch" + (", noisy times" if noise else "")


def test_a_file_that_is_larger_is_called_so() -> None:
    row = ReportRow("a", "Conv2d", "bits", "1/1", 100, 10)
    report = ConvertReport([row], images=10, same=10, float_bytes=100, file_bytes=125)
    assert report.gain() == "0.8x (larger)"
    report.status, report.verdict = _verdict(report, verified=True)
    assert report.verdict == "0.8x (larger)"


def test_the_trained_net_is_left_alone() -> None:
    model: Any = net().train()
    model[0].kept = None
    before = {k: v.clone() for k, v in model.state_dict().items()}
    verify(model, PackedModel(folded(model)), [X])
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all("forward" not in vars(m) for m in model.modules())
