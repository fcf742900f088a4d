"""fuse: each rewrite happens where it should, nowhere else, and keeps every value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import run_reference
from bitwright.engine.fold import fold
from bitwright.engine.forms import code_planes
from bitwright.engine.fuse import fuse, integer_range
from bitwright.engine.graph import Graph
from bitwright.engine.store import from_json
from bitwright.engine.trace import trace

B = bw.nn
S: dict[str, Any] = {"w": "bwn", "x": "sign"}
D: dict[str, Any] = {"w": "bwn", "x": {"part": "dorefa_a", "bits": 2}}
EIGHT: dict[str, Any] = {"w": {"part": "uniform", "bits": 8}, "x": {"part": "dorefa_a", "bits": 8}}


class Net(nn.Module):
    def __init__(self, f: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        self.f = f
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def run(graph: Graph, x: Tensor) -> Tensor:
    env = {"input": x}
    for _, step in run_reference.build(graph):
        step(env)
    return env[graph.nodes[-1].inputs[0]]


def both(net: nn.Module, *shape: int) -> tuple[Graph, Graph]:
    """(folded, fused), which give the same bits."""
    for m in net.modules():
        if isinstance(getattr(m, "running_mean", None), Tensor):
            bn: Any = m
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
            bn.weight.data.normal_()
            bn.bias.data.normal_()
    x = torch.randn(2, *shape)
    folded = fold(trace(net.eval(), x).graph)
    before = folded.copy().nodes
    fused = fuse(folded)
    assert folded.nodes == before, "fuse changed the graph it was given"
    for scale in (1.0, 0.1, 30.0):
        sample = torch.randn(3, *shape) * scale
        assert torch.equal(run(folded, sample), run(fused, sample))
    return folded, fused


def ops(graph: Graph) -> list[str]:
    """Operators by name, a generic call by its own."""
    names = [n.attrs["call"].split(".")[0] if n.op == "aten" else n.op for n in graph.nodes]
    return [name + (">" if "emit" in n.attrs else "") for name, n in zip(names, graph.nodes, strict=True)][1:-1]


def conv(p: dict[str, Any], *args: Any, **kw: Any) -> nn.Module:
    return B.Conv2d(*args, **{**p, **kw})


@pytest.mark.few(every=2)
@pytest.mark.parametrize("p", [S, D, EIGHT], ids=["sign", "dorefa2", "8 bits"])
def test_thresholds_take_norms_and_activations(p: dict[str, Any]) -> None:
    for act in (nn.ReLU(), nn.PReLU(8), nn.Hardtanh(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Identity()):
        net = nn.Sequential(conv(p, 3, 8, 3), nn.BatchNorm2d(8), act, conv(p, 8, 4, 3))
        assert ops(both(net, 3, 7, 7)[1]) == ["quantize", "coded_conv>", "coded_conv"], act


@pytest.mark.parametrize("act", [nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.Tanh()], ids=str)
def test_functions_that_are_not_correctly_rounded_stay(act: nn.Module) -> None:
    assert ops(both(nn.Sequential(conv(D, 3, 8, 3), act, conv(D, 8, 4, 3)), 3, 7, 7)[1])[1:3] == [
        "coded_conv", type(act).__name__.lower()
    ]  # fmt: skip


def test_a_falling_prelu_stays() -> None:
    act = nn.PReLU(8)
    act.weight.data[3] = -0.2
    assert "prelu" in ops(both(nn.Sequential(conv(S, 3, 8, 3), act, conv(S, 8, 4, 3)), 3, 7, 7)[1])


def test_float_layers_in_front_absorb_into_the_quantizer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), conv(D, 8, 4, 3))
    assert ops(both(net, 3, 7, 7)[1]) == ["conv", "quantize", "coded_conv"]


def test_pools_move_behind_the_quantizer() -> None:
    net = nn.Sequential(conv(D, 3, 8, 3), nn.MaxPool2d(2), conv(D, 8, 4, 2))
    assert ops(both(net, 3, 8, 8)[1]) == ["quantize", "coded_conv>", "max_pool_codes", "coded_conv"]
    net = nn.Sequential(conv(D, 3, 8, 3), nn.AvgPool2d(2), conv(D, 8, 4, 2))
    assert ops(both(net, 3, 8, 8)[1]) == ["quantize", "coded_conv", "avg_pool2d", "quantize", "coded_conv"]


def test_a_falling_quantizer_keeps_the_pool_in_front() -> None:
    net = nn.Sequential(conv(S, 3, 2, 3), nn.MaxPool2d(2), nn.BatchNorm2d(2), conv(S, 2, 4, 2))
    bn: Any = net[2]
    folded, fused = both(net, 3, 8, 8)
    falls = bool((bn.weight < 0).any())
    assert ("max_pool" in ops(fused)) == falls
    del folded


def test_flatten_becomes_a_window_over_the_whole_map() -> None:
    net = nn.Sequential(
        conv(S, 3, 5, 3), nn.Flatten(), B.Linear(5 * 36, 7, **S), nn.BatchNorm1d(7), B.Linear(7, 3, **S)
    )
    fused = both(net, 3, 8, 8)[1]
    assert ops(fused) == ["quantize", "coded_conv>", "coded_conv>", "coded_linear"]


def test_residual_adds_and_sign_bits() -> None:
    def f(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.c(s.bn(s.b(y)) + y).mean((2, 3))

    net = Net(f, a=conv(S, 3, 6, 3, padding=1), b=conv(S, 6, 6, 3, padding=1), bn=nn.BatchNorm2d(6), c=conv(S, 6, 4, 3))
    fused = both(net, 3, 6, 6)[1]
    assert ops(fused) == ["quantize", "coded_conv", "emitted", "coded_conv", "emitted", "coded_conv", "mean"]
    layers = [n for n in fused.nodes if n.op == "coded_conv"]
    assert [len(n.inputs) for n in layers] == [1, 2, 1] and ["extra" in n.attrs for n in layers] == [
        True,
        True,
        False,
    ]


def test_two_bits_beside_the_floats_of_a_residual() -> None:
    """Codes of three thresholds, as words or as bytes, are written by the layer whose floats the residual reads."""

    def f(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).relu()
        return s.c((s.bn(s.b(y)) + y).relu()).mean((2, 3))

    first, middle = conv(D, 3, 32, 3, padding=1), conv(D, 32, 32, 3, padding=1)
    net = Net(f, a=first, b=middle, bn=nn.BatchNorm2d(32), c=conv(D, 32, 4, 3))
    fused = both(net, 3, 6, 6)[1]
    assert ops(fused) == ["quantize", "coded_conv", "emitted", "coded_conv", "emitted", "coded_conv", "mean"]


U = {"w": {"part": "uniform", "bits": 8}, "x": {"part": "uniform", "bits": 8, "signed": True, "observer": "ema"}}


def test_a_residual_block_of_8_bits_is_its_convolutions() -> None:
    """The relu behind the add, and the codes that the next layer reads of it, are written by the layer."""

    def f(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).relu()
        y = (s.c(s.b(y).relu()) + y).relu()
        return s.d(y).mean((2, 3))

    net = Net(f, **{n: conv(U, 3 if n == "a" else 6, 6, 3, padding=1) for n in "abcd"})
    bw.calibrate(net, [torch.randn(4, 3, 6, 6)])
    fused = both(net, 3, 6, 6)[1]
    assert ops(fused) == [
        "quantize",
        "coded_conv",
        "emitted",
        "coded_conv>",
        "coded_conv",
        "emitted",
        "coded_conv",
        "mean",
    ]
    layers = [n for n in fused.nodes if n.op == "coded_conv"]
    assert [bool(n.attrs.get("relu")) for n in layers] == [True, False, False, False]


def test_a_relu_is_not_hidden_from_a_reader_that_sees_signs() -> None:
    net = Net(
        lambda s, x: (lambda y: s.b(y) + y.relu())(s.a(x)), a=conv(S, 3, 6, 3, padding=1), b=conv(S, 6, 6, 3, padding=1)
    )
    fused = both(net, 3, 6, 6)[1]
    assert "relu" in ops(fused) and not any(n.attrs.get("relu") for n in fused.nodes)


def test_norms_in_front_of_signs_are_cuts_of_the_layer_before() -> None:
    norm = {"w": "bwn", "x": ["norm", "sign"]}
    net = Net(
        lambda s, x: (lambda y: s.b(y) + y)(s.a(x)),
        a=conv(norm, 3, 40, 3, padding=1),
        b=conv(norm, 40, 40, 3, padding=1),
    )
    net.train()(torch.randn(8, 3, 6, 6))
    fused = both(net, 3, 6, 6)[1]
    assert ops(fused) == ["quantize", "coded_conv", "emitted", "coded_conv"]
    assert any(n.key("cuts") for n in fused.nodes)


def test_a_layer_with_two_readers_writes_for_both() -> None:
    net = Net(lambda s, x: s.b(s.a(x)) + s.a(x).mean(), a=conv(D, 3, 4, 3), b=conv(D, 4, 4, 1))
    net.f = lambda s, x: (lambda y: s.b(y) + y)(s.a(x))
    assert ops(both(net, 3, 6, 6)[1]) == ["quantize", "coded_conv", "emitted", "coded_conv"]


@pytest.mark.parametrize(
    "net",
    [
        lambda: nn.Sequential(B.Linear(7, 4, **S), conv(S, 4, 9, 1)),
        lambda: nn.Sequential(B.Linear(7, 4, **D), nn.ReLU(), conv(D, 4, 9, 1)),
        lambda: nn.Sequential(conv(S, 4, 7, 1), B.Linear(7, 4, **S)),
        lambda: nn.Sequential(conv(D, 4, 7, 1), nn.ReLU(), B.Linear(7, 4, **D)),
    ],
)
def test_axes_that_do_not_match_are_left_alone(net: Callable[[], nn.Module]) -> None:
    """A Linear layer's channels are last, a convolution's are axis 1: its codes cannot be emitted in place."""
    fused = both(net(), 4, 4, 7)[1]
    assert not any("emit" in n.attrs or "extra" in n.attrs for n in fused.nodes)


def test_names_with_a_caret_do_not_clash() -> None:
    net = Net(lambda s, x: s.b(F.max_pool2d(s.a(x), 2)), a=conv(S, 3, 4, 3), b=conv(S, 4, 2, 1))
    net.eval()
    graph = fold(trace(net, torch.randn(2, 3, 8, 8)).graph)
    text = json.dumps([vars(n) for n in graph.nodes]).replace('"a"', '"b.x^"')
    other = from_json(text, graph.tensors)
    x = torch.randn(2, 3, 8, 8)
    fused = fuse(other)
    assert len({n.name for n in fused.nodes}) == len(fused.nodes)
    assert torch.equal(run(fused, x), run(fuse(graph), x))


@pytest.mark.parametrize("p", [S, D, EIGHT, {"w": "ttq", "x": {"part": "uniform", "bits": 3, "signed": True}}], ids=str)
def test_the_integer_range_holds_and_is_reached(p: dict[str, Any]) -> None:
    net = nn.Sequential(conv(p, 2, 3, 2, groups=1)).eval()
    graph = fuse(fold(trace(net, torch.randn(2, 2, 3, 3)).graph))
    node = next(n for n in graph.nodes if n.op == "coded_conv")
    if len(node.attrs["weight"]["terms"]) > 1:
        return
    low, high = integer_range(graph, node)
    from bitwright.engine.reference import weight_integers

    w = weight_integers(graph, node)[0].reshape(3, -1).tolist()
    info = node.attrs["x"]
    ends = (info["zero"][0], info["zero"][0] + info["mult"] * info["levels"])
    for o in range(3):
        assert int(high[o]) == sum(max(v * ends[0], v * ends[1], 0) for v in w[o])
        assert int(low[o]) == sum(min(v * ends[0], v * ends[1], 0) for v in w[o])


def test_planes_of_levels() -> None:
    assert [code_planes(n) for n in (1, 2, 3, 4, 7, 8, 255)] == [1, 2, 2, 3, 3, 4, 8]
