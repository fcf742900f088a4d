"""Gates over whole numbers on the kernels: both ways give what plain torch gives, bit for bit, with whatever joins the layer; and the
choice between them follows the share of outputs that is on, and the times of this CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native, plan_gates, plan_splits, planner
from bitwright.engine.fold import fold
from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel
from bitwright.engine.trace import trace

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing"),
    pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning"),
]
CG, PG = {"part": "channel_gate", "splits": 2}, {"part": "precision_gate", "bits": 4, "top": 2}
W8, W2, P4 = {"part": "sign_magnitude", "bits": 8}, {"part": "sign_magnitude", "bits": 2}, {"part": "pact", "bits": 4}
P8, LSQ = {"part": "pact", "bits": 8}, ["norm", {"part": "lsq", "bits": 4, "signed": True}]
GATES: dict[str, dict[str, Any]] = {
    "channels": {"w": W8, "x": P4, "gate": CG},
    "first channels": {"w": W8, "x": P4, "gate": {**CG, "group": False, "splits": 3}},
    "two norms": {"w": W8, "x": P4, "gate": {**CG, "output_bn": "dual"}},
    "8 bits": {"w": W8, "x": P8, "gate": {**PG, "bits": 8, "top": 4}},
    "small weights": {"w": W2, "x": P4, "gate": PG},
    "binary weights": {"w": "bwn", "x": P4, "gate": {**PG, "unit": "normalized"}},
    "signed codes": {"w": "bwn", "x": LSQ, "gate": PG},
}


class Block(nn.Module):
    """What stands behind the gated layer: "floats" a norm, a residual and a ReLU read twice; "codes" a norm and the code of a next
    layer; "alone" nothing."""

    def __init__(self, behind: str, layer: nn.Module, outputs: int, reader: dict[str, Any]) -> None:
        super().__init__()
        self.behind, self.gated = behind, layer
        self.norm = nn.BatchNorm2d(outputs)
        self.reader: Any = nn.Conv2d(outputs, 5, 3, padding=1)
        if reader:
            self.reader = bw.nn.Conv2d(outputs, 5, 3, padding=1, bias=False, **reader)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gated(x)
        if self.behind == "alone":
            return y
        y = self.norm(y)
        if self.behind == "codes":
            return self.reader(y.relu())
        y = (y + x).relu()
        return self.reader(y) + y.mean((2, 3), keepdim=True)[:, :5]


def block(
    slots: dict[str, Any], behind: str = "floats", reader: dict[str, Any] | None = None, **conv: Any
) -> tuple[Any, Tensor]:
    """A block in evaluation with gates, norms and ranges away from where they start, and its input."""
    g = torch.Generator().manual_seed(3)
    layer = nn.Conv2d(36, 36, **{"kernel_size": 3, "padding": 1, **conv})
    made: Any = Block(behind, layer, 36, reader or {})
    x = torch.randn(3, 36, 6, 7, generator=g) * 2
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.dim() > 1 else 1))
        bw.apply(made, [{"match": "gated", **slots}], x)
        made.gated.gate.threshold.copy_(torch.randn(36, generator=g) * 0.5)
        made.train()(x)
        made.train()(x)
    return made.eval(), x


def folded(model: nn.Module, x: Tensor) -> Graph:
    return fold(trace(model, x).graph)


def native_twin(graph: Graph, way: str, monkeypatch: pytest.MonkeyPatch) -> PackedModel:
    monkeypatch.setattr(plan_splits, "way_of", lambda graph, node: way)
    model = PackedModel(graph, "native")
    assert model.steps
    return model


def gate_of(model: PackedModel) -> Node:
    return next(n for n, _, _ in model.steps if "way" in n.attrs)


def check(graph: Graph, x: Tensor, monkeypatch: pytest.MonkeyPatch, exact: bool = True) -> None:
    want = PackedModel(graph, "reference")
    env = want.values(want.environment(x), plain=True)
    y = env[want.outputs[0]]
    for way in ("gated", "bytes"):
        if way == "gated" and not plan_splits.layers(want.runtime):
            continue
        model = native_twin(graph, way, monkeypatch)
        assert gate_of(model).attrs["way"] == way
        assert model(x[:0]).shape == y[:0].shape
        got = model.values(model.environment(x))
        name = gate_of(model).name
        if got[name].is_floating_point():  # the gated layer with what has joined it
            assert torch.equal(got[name], env[name]), (way, name)
        if exact:
            assert torch.equal(model(x), y), way
        else:  # a float layer behind
            torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.few()
@pytest.mark.parametrize("name", GATES)
def test_floats_norm_residual_and_relu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(GATES[name])
    graph = folded(model, x)
    check(graph, x, monkeypatch, exact=False)
    gate = gate_of(native_twin(graph, "bytes", monkeypatch))
    assert gate.attrs["relu"] and len(gate.inputs) == 2 and gate.key("norm_scale")


@pytest.mark.few()
@pytest.mark.parametrize(
    "reader", [{"w": "bwn", "x": "sign"}, {"w": "bwn", "x": P4}, {"w": "bwn", "x": P8}], ids=["sign", "4", "8"]
)
@pytest.mark.parametrize("name", ["channels", "8 bits", "signed codes", "two norms"])
def test_codes_of_a_next_layer(name: str, reader: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(GATES[name], "codes", reader)
    graph = folded(model, x)
    check(graph, x, monkeypatch)
    twin = native_twin(graph, "gated", monkeypatch)
    gate, words = gate_of(twin), any(n.attrs.get("x_form") == "bits" for n, _, _ in twin.steps)
    assert "emit" in gate.attrs or (name == "two norms" and words)
    assert name == "two norms" or (reader["x"] == P8) == bool(gate.key("norm_scale"))


@pytest.mark.few()
@pytest.mark.parametrize(
    "conv",
    [{"stride": 2}, {"kernel_size": 1, "padding": 0}, {"groups": 2}, {"dilation": 2, "padding": 2}, {"bias": False}],
    ids=str,
)
@pytest.mark.parametrize("name", ["channels", "first channels", "8 bits", "small weights", "signed codes"])
def test_alone_and_geometry(name: str, conv: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(GATES[name], "alone", **conv)
    check(folded(model, x), x, monkeypatch)


def test_a_channel_without_a_scale_and_gates_that_never_or_always_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for slots in (GATES["channels"], GATES["8 bits"]):
        model, x = block(slots, "alone")
        with torch.no_grad():
            model.gated.gate.threshold[:2] = torch.tensor([torch.inf, -torch.inf])
        graph = folded(model, x)
        node = next(n for n in graph.nodes if n.key("threshold"))
        graph.need(node, "scale")[:, 2] = 0
        check(graph, x, monkeypatch)


def test_a_negative_scale_is_left_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(GATES["channels"], "alone")
    graph = folded(model, x)
    node = next(n for n in graph.nodes if n.key("threshold"))
    graph.need(node, "scale")[:, 4] *= -1
    want = PackedModel(graph, "reference")(x)
    packed = PackedModel(graph, "native")
    assert not any("way" in n.attrs for n, _, _ in packed.steps)
    assert torch.equal(packed(x), want)


@pytest.mark.parametrize("name", ["channels", "8 bits"])
def test_the_trained_layer_scales_one_whole_sum(name: str) -> None:
    """y = fl(fl(I s) + b), I the whole sum where on and the base's where off, computed here in whole numbers."""
    model, x = block(GATES[name], "alone")
    layer = model.gated
    seen: list[Tensor] = []
    layer.gate.watchers = (lambda part, on: seen.append(on.detach()),)
    with torch.no_grad():
        y = layer(x)
        codes, unit = layer.x.whole(x)
        weight, step = layer.w.whole(layer.slot_weight())
    codes, weight, on = codes.long(), weight.long(), seen[0]

    def product(c: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(c.double(), w.double(), None, 1, 1).long()

    if name == "channels":
        mask = layer.gate.base[:, :, None, None].long()
        base = product(codes, weight * mask)
    else:
        base = product(codes // 16 * 16, weight)
    whole = torch.where(on > 0, product(codes, weight), base)
    scale = (step.double().reshape(-1) * unit.double()).float().expand(36)[:, None, None]
    assert torch.equal(y, whole.float() * scale + layer.bias[:, None, None])
    assert 0.1 < float(on.mean()) < 0.9
    layer.gate.watchers = ()
    wanted = layer(x)  # with a gradient: the same value
    assert wanted.requires_grad and torch.equal(wanted, y)


# -- the choice ---------------------------------------------------------------------------------------------------
def test_convert_notes_the_share_and_a_file_keeps_it(tmp_path: Any) -> None:
    model, x = block(GATES["8 bits"], "alone")
    seen: list[Tensor] = []
    model.gated.gate.watchers = (lambda part, on: seen.append(on.detach()),)
    model(x)
    model.gated.gate.watchers = ()
    packed: Any = bw.convert(model, x).model
    node = next(n for n in packed.graph.nodes if n.key("threshold"))
    assert node.attrs["share"] == round(float(seen[0].mean()), 3)
    bw.save(packed, tmp_path / "net.safetensors")
    again: Any = bw.load(tmp_path / "net.safetensors")
    assert next(n for n in again.graph.nodes if n.key("threshold")).attrs["share"] == node.attrs["share"]


def test_the_plan_decides_and_explain_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BITWRIGHT_PLAN", raising=False)
    model, x = block(GATES["8 bits"], "alone")
    packed = PackedModel(folded(model, x), "native")
    node = plan_splits.layers(packed.runtime)[0]
    path = planner.plan_file()
    path.parent.mkdir(parents=True)
    for gated, runs in ((1e-6, "gated"), (3e-6, "bytes")):
        path.write_text(json.dumps({plan_splits.key(node, packed.runtime): {"gated": gated, "bytes": 2e-6}}))
        planner._read.clear()
        packed.forget_steps()
        assert gate_of(packed).attrs["way"] == runs
        row = packed.explain().rows[0]
        assert (
            row.runs_as == runs
            and row.measured == {"gated": gated, "bytes": 2e-6}
            and "gated, measured" in str(packed.explain())
        )
    planner._read.clear()


def test_measuring_times_both_ways_of_every_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BITWRIGHT_PLAN", raising=False)
    monkeypatch.setattr(planner, "SLICE", 1e-5)
    monkeypatch.setattr(planner, "ROUNDS", 1)
    cases: list[tuple[dict[str, Any], str]] = [
        (GATES["channels"], "bytes"),
        (GATES["8 bits"], "bytes"),
        ({"gate": CG}, "float"),
    ]
    for slots, dense in cases:
        model, x = block(slots, "alone")
        packed = PackedModel(folded(model, x), "native")
        row = packed.explain(measure=True).rows[0]
        assert row.measured.keys() == {"gated", dense, "float"}
        assert row.runs_as == min(("gated", dense), key=lambda w: row.measured[w])
        torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)
    planner._read.clear()


def test_without_a_plan_measured_rates_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little is on skipping pays; where nearly all is, and vectors stay empty, it does not; so for whole channels."""
    monkeypatch.setenv("BITWRIGHT_PLAN", "0")
    if native.isa() not in plan_splits.SKIP_RATES:
        pytest.skip(f"no rates of {native.isa()}")
    four: dict[str, Any] = {**GATES["channels"], "gate": {**CG, "splits": 4}}
    all_on = "bytes" if native.isa() == "avx2" else "gated"  # there the rest is dear: dot products of 16 lanes
    wanted = (GATES["8 bits"], 128, ["gated", "bytes"]), (four, 128, ["gated", all_on]), (four, 16, ["bytes", "bytes"])
    for slots, width, ways in wanted:  # shares of four outputs fill a quarter of a vector
        layer: Any = nn.Sequential(bw.nn.Conv2d(width, width, 3, padding=1, **slots)).eval()
        packed = PackedModel(folded(layer, torch.rand(2, width, 28, 28)), "native")
        node = plan_splits.layers(packed.runtime)[0]
        found = []
        for share in (0.05, 1.0):
            node.attrs["share"] = share
            found.append(plan_splits.way_of(packed.runtime, node))
        assert found == ways
    for keep in (0.5, 1.0):  # the kernel that skips is the one of float layers
        net: Any = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))
        bw.apply(net, [{"match": "0", "gate": {"part": "fbs", "keep": keep}}], torch.randn(2, 64, 8, 8))
        packed = PackedModel(folded(net.eval(), torch.randn(2, 64, 8, 8)), "native")
        switch, conv = plan_gates.layers(packed.runtime)[0]
        assert plan_gates.way_of(packed.runtime, switch, conv) == "gated"
