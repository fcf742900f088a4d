"""Gated convolutions on the kernels, every instruction set of this machine, against the formula in float64."""

from __future__ import annotations

import copy
import ctypes
import json
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.fold import fold
from bitwright.engine.fuse_floats import here
from bitwright.engine.fuse_gates import gated_kernels
from bitwright.engine.native_gates import GatedPlan
from bitwright.engine.native_library import GatedStruct, library
from bitwright.engine.packed import PackedModel
from bitwright.engine.planner import plan_file
from bitwright.engine.trace import trace
from bitwright.engine.verify_gates import decisions_of
from bitwright.errors import InputError

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
ISAS = native.isas() if native.available() else []


class Layer:
    """Random numbers of one layer, and its formula in float64."""

    def __init__(
        self, c: int, o: int, kernel: tuple[int, int], count: int, block: int, seed: int, **place: Any
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.w, self.add = torch.randn(o, c, *kernel, generator=g), torch.randn(o, generator=g)
        self.predictor, self.bias = torch.randn(o, c, generator=g), torch.randn(o, generator=g)
        self.count, self.block, self.place = count, block, place

    def plan(self, relu: bool = False) -> GatedPlan:
        return GatedPlan(self.w, self.add, self.predictor, self.bias, self.count, self.block, **self.place, relu=relu)

    def formula(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> tuple[Tensor, Tensor]:
        x = x.double()
        size = F.linear(x.abs().mean((2, 3)), self.predictor.double(), self.bias.double()).relu()
        blocks = size.unflatten(1, (-1, self.block)).mean(2)
        on = torch.zeros_like(blocks)
        for row, best in zip(on, blocks.argsort(dim=1, descending=True, stable=True), strict=True):
            row[best[: self.count]] = 1
        on = on.repeat_interleave(self.block, 1) * (size > 0)
        y = F.conv2d(x, self.w.double(), self.add.double(), **self.place) * (size * on)[:, :, None, None]
        y = y if residual is None else y + residual
        return (y.relu() if relu else y), on


def same(layer: Layer, x: Tensor, threads: int = 1, relu: bool = False, residual: bool = False) -> None:
    want, on = layer.formula(x)
    extra = torch.randn(want.shape) if residual else None
    want, _ = layer.formula(x, extra, relu)
    y, decided = layer.plan(relu).run(x, extra, threads)
    assert torch.equal(decided.double(), on)
    torch.testing.assert_close(
        y.double(), want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.abs().max() if want.numel() else 0))
    )
    off = on[:, :, None, None].expand_as(want) == 0
    assert bool((y[off] == (0 if extra is None else extra[off].relu() if relu else extra[off])).all())


SHAPES = [  # (n, c, h, w), o, kernel, kept, block, stride, padding, dilation
    ((2, 32, 9, 12), 32, (3, 3), 16, 1, 1, 1, 1),
    ((1, 20, 7, 7), 48, (3, 3), 1, 16, 1, 1, 1),
    ((1, 70, 15, 14), 150, (3, 3), 70, 1, 1, 1, 1),  # rows of more than 64 outputs
    ((1, 70, 15, 14), 160, (3, 3), 4, 16, 1, 1, 1),
    ((2, 40, 5, 6), 80, (3, 3), 30, 1, 1, 0, 1),
    ((2, 5, 9, 8), 7, (3, 3), 3, 1, 2, 1, 1),
    ((1, 16, 14, 13), 33, (1, 1), 11, 1, 1, 0, 1),
    ((1, 16, 14, 13), 32, (1, 1), 2, 8, 2, 0, 1),
    ((1, 8, 11, 30), 16, (5, 4), 5, 1, 2, 2, 2),
    ((1, 130, 6, 17), 33, (3, 3), 11, 3, 3, 1, 1),
    ((3, 4, 5, 1), 4, (3, 1), 4, 1, 1, 1, 1),
    ((1, 3, 1, 40), 64, (1, 7), 30, 1, 3, 3, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula(isa: str, shape: Any) -> None:
    size, o, kernel, kept, block, stride, padding, dilation = shape
    pad = (padding if kernel[0] > 1 else 0, padding if kernel[1] > 1 else 0)
    kept = min(kept, o // block)
    layer = Layer(size[1], o, kernel, kept, block, 0, stride=stride, padding=pad, dilation=dilation)
    x = torch.randn(size)
    x[:, ::2] *= (torch.arange(len(x)) % 2).reshape(-1, 1, 1, 1)  # in every other image half of the inputs are 0
    for threads in (1, 3):
        same(layer, x, threads)
        same(layer, x, threads, relu=True, residual=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_is_the_formula_everywhere(data: st.DataObject) -> None:
    draw = data.draw
    native.force_isa(draw(st.sampled_from(ISAS)))
    try:
        block, blocks = draw(st.sampled_from([1, 2, 16])), draw(st.integers(1, 9))
        kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        place = {k: draw(st.integers(low, 2)) for k, low in (("stride", 1), ("padding", 0), ("dilation", 1))}
        layer = Layer(draw(st.integers(1, 20)), block * blocks, kernel, draw(st.integers(1, blocks)), block, 1, **place)
        least = [max(1, place["dilation"] * (k - 1) + 1 - 2 * place["padding"]) for k in kernel]
        size = [draw(st.integers(s, s + 20)) for s in least]
        same(layer, torch.randn(draw(st.integers(0, 3)), layer.w.shape[1], *size), draw(st.integers(1, 3)))
    finally:
        native.force_isa("")


def test_nothing_wins_and_nothing_comes_in(isa: str) -> None:
    layer = Layer(16, 32, (3, 3), 16, 1, 0, padding=1)
    layer.bias -= 1e3
    y, on = layer.plan().run(torch.randn(2, 16, 5, 5))
    assert not bool(y.any()) and not bool(on.any())
    layer.bias += 2e3
    same(layer, torch.zeros(2, 16, 5, 5))  # the shift alone


def test_of_equal_channels_the_first_win(isa: str) -> None:
    layer = Layer(4, 40, (1, 1), 7, 1, 0)
    layer.predictor.zero_()
    layer.bias.fill_(2.0)
    assert layer.plan().run(torch.randn(1, 4, 3, 3))[1].tolist() == [[1.0] * 7 + [0.0] * 33]


def test_what_is_not_finite_is_never_a_number(isa: str) -> None:
    """NaN in one image makes its answers NaN, a sum that overflows too, although its channel is off."""
    layer = Layer(4, 32, (1, 1), 1, 1, 0)
    x = torch.randn(3, 4, 3, 3)
    x[0, 1, 2, 2] = torch.nan
    x[1] = 1e38
    layer.w = layer.w.abs() * 100
    y, _ = layer.plan().run(x)
    size = F.linear(x.abs().mean((2, 3)), layer.predictor, layer.bias).relu()
    assert bool(y[0, :, 2, 2].isnan().all()) and bool(y[1, size[1].isfinite()].isnan().any())
    same(layer, x[2:])


def test_wrong_descriptors_are_errors() -> None:
    layer = Layer(4, 8, (3, 3), 4, 1, 0)
    plan = layer.plan()
    with pytest.raises(InputError, match=r"\[N, 4, H, W\]"):
        plan.run(torch.randn(1, 5, 6, 6))
    with pytest.raises(InputError, match="do not follow from the geometry"):
        plan.run(torch.randn(1, 4, 2, 6))
    for bad in ({"count": 9}, {"count": 0}, {"block": 3}, {"o": 0}, {"c": 1 << 40}):
        struct = GatedStruct(**{**plan.fields, **bad})
        assert library().bw_gated_size(ctypes.addressof(struct)) == -1
    with pytest.raises(TypeError):
        copy.copy(plan).__reduce__()
    assert copy.deepcopy(plan) is plan


# -- in a packed net ----------------------------------------------------------------------------------------------
class Block(nn.Module):
    """conv, gate, ReLU, conv, gate, shortcut, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.an, self.bn = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.b(torch.relu(self.an(self.a(x))))) + x)


def block(backend: str = "native") -> tuple[nn.Module, PackedModel, Tensor]:
    torch.manual_seed(0)
    x, net = torch.randn(3, 32, 6, 6).relu(), Block(32)
    bw.apply(net, [{"match": "*", "gate": "fbs"}], x)
    net.train()(x)
    return net.eval(), PackedModel(fold(trace(net, x).graph), backend), x


def test_a_block_is_two_operations() -> None:
    net, packed, x = block()
    assert [n.op for n, _, _ in packed.steps] == ["gated_conv", "gated_conv"]
    first, second = (n for n, _, _ in packed.steps)
    assert first.attrs["relu"] and second.attrs["relu"] and len(second.inputs) == 2
    with torch.no_grad():
        torch.testing.assert_close(packed(x), net(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed(x.contiguous(memory_format=torch.channels_last)), packed(x))


def test_what_others_read_stays_as_it_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 6, 6)

    class Both(Block):
        def forward(self, x: Tensor) -> Any:
            y = self.an(self.a(x))
            return torch.relu(y), y

    net: Any = Both(16)
    del net.b, net.bn
    bw.apply(net, [{"match": "*", "gate": "fbs"}], x)
    packed = PackedModel(fold(trace(net.eval(), x).graph), "native")
    assert [n.op for n, _, _ in packed.steps] == ["gated_conv", "relu"]
    for got, want in zip(packed(x), net(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_measured_times_choose_the_way(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BITWRIGHT_PLAN", raising=False)
    _, packed, x = block()
    before, found = packed.explain(), packed.explain(measure=True)
    assert [r.layer for r in before.rows] == ["a", "b"] and all(
        r.predicted or native.isa() == "portable" for r in before.rows
    )
    assert all(set(r.measured) == {"gated", "float"} for r in found.rows)
    assert "gated, measured" in str(found)
    want = packed(x)
    for time, (fast, op) in enumerate((("float", "float_conv" if here() else "conv"), ("gated", "gated_conv"))):
        plan = {key: {"gated": 1.0, "float": 1.0, fast: 0.5} for key in json.loads(plan_file().read_text())}
        plan_file().write_text(json.dumps(plan))
        os.utime(plan_file(), (1 + time, 1 + time))
        packed.forget_steps()
        assert op in {n.op for n, _, _ in packed.steps}
        assert {r.runs_as for r in packed.explain().rows} == {fast}
        torch.testing.assert_close(packed(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"output_bn": "dual"}, {"shuffle": True, "group": False}], ids=str)
def test_a_channel_gate_is_one_operation(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16, 6, 6)
    net: Any = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    with torch.no_grad():
        net[1].weight.normal_()
        net[1].bias.normal_()
    bw.apply(net, [{"match": "0", "gate": {"part": "channel_gate", "init": 0.3, **options}}], x)
    with torch.no_grad():
        net.train()(x)
        want = net.eval()(x)
    packed = PackedModel(fold(trace(net, x).graph), "native")
    (node,) = [n for n, _, _ in packed.steps]
    assert (
        node.op == "skipped_gate" and node.attrs["relu"] and bool(node.key("y_scale")) == ("output_bn" not in options)
    )
    torch.testing.assert_close(packed(x), want, rtol=1e-5, atol=1e-5)
    seen: list[Tensor] = []
    net[0].gate.watchers = (lambda part, on: seen.append(on),)
    with torch.no_grad():
        net(x)
    found = decisions_of(packed.graph, packed.values(packed.environment(x)), [node])
    assert torch.equal(found["0"][0], seen[0]) and 0.1 < float(seen[0].mean()) < 0.9
    report = bw.convert(net, x, verify=[x, 3 * x], backend="native").report
    assert not report.beyond and not report.inexact


def test_a_graph_without_gates_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    graph = fold(trace(net, torch.zeros(1, 3, 5, 5)).graph)
    assert gated_kernels(graph) is graph
