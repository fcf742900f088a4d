"""What runs packed is the trained net, for every pair of parts, geometry and topology."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.fold import fold
from bitwright.engine.packed import PackedModel
from bitwright.engine.trace import trace
from bitwright.engine.verify import verify
from packing import (
    BACKEND,
    INPUTS,
    ONE_BIT,
    STYLES,
    WEIGHTS,
    B,
    Net,
    needs_native,
    pack,
    pack_both,
    part,
    settle,
    value_of,
)


class Branches(nn.Module):
    """Every layer reads the input; outputs side by side. One trace for many layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x).flatten(1) for layer in self.layers], 1)


GEOMETRY = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 2), "bias": False},
    {"kernel_size": 3, "dilation": 2, "padding": 2, "groups": 2},
    {"kernel_size": 1, "groups": 6},
    {"kernel_size": (3, 1), "stride": 2},
]


@pytest.mark.parametrize("x", [pytest.param(x, marks=() if x == "sign" else pytest.mark.slow) for x in INPUTS], ids=str)
def test_every_pair_of_parts(x: Any) -> None:
    layers: list[nn.Module] = [
        B.Conv2d(6, (5, 33, 4, 12, 8)[i % 5] if i % 5 not in (2, 3) else 12, w=w, x=x, **GEOMETRY[i % 5])
        for i, w in enumerate(WEIGHTS)
    ]
    sample = torch.randn(2, 6, 5, 6)
    net = settle(Branches(layers), sample)
    packed, oracle = pack_both(net, sample)
    want = np.concatenate([value_of(layer, sample).reshape(2, -1) for layer in net.layers], 1)
    got = packed(sample)
    assert np.abs(got.numpy() - want).max() <= 2e-6 * np.abs(want).max()
    assert torch.equal(got, oracle(sample))
    proof = verify(net, packed, [sample])
    assert proof.inexact == [] and len(proof.layers) == len(WEIGHTS)
    assert (got - net(sample)).abs().max() <= 4e-6 * got.abs().max()


@pytest.mark.few()
@pytest.mark.parametrize("x", ["sign", part("dorefa_a", bits=2), part("uniform", bits=8), ["norm", "sign"]], ids=str)
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7)], ids=str)
def test_linear_layers_on_any_rank(x: Any, shape: tuple[int, ...]) -> None:
    layers: list[nn.Module] = [B.Linear(7, 5 + i, w=w, x=x) for i, w in enumerate(WEIGHTS[::3])]
    sample = torch.randn(2, *shape)
    net = settle(Branches(layers), sample)
    packed, oracle = pack_both(net, sample)
    want = np.concatenate([value_of(layer, sample).reshape(2, -1) for layer in net.layers], 1)
    got = packed(sample)
    assert np.abs(got.numpy() - want).max() <= 2e-6 * np.abs(want).max()
    assert torch.equal(got, oracle(sample))
    assert verify(net, packed, [sample]).inexact == []


# -- topologies ---------------------------------------------------------------------------------------
def _bireal(s: Any, x: Tensor) -> Tensor:
    y = s.bn(s.a(x))
    y = s.bn2(s.b(y)) + y
    y = s.bn3(s.c(y)) + y
    return s.d(y).mean((2, 3))


def _inplace(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    z = F.relu_(y)
    return s.b(z) + y[:, :4]


def topologies(p: dict[str, Any]) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    def conv(*args: Any, **kw: Any) -> nn.Module:
        return B.Conv2d(*args, **{**p, **kw})

    def line(*args: Any, **kw: Any) -> nn.Module:
        return B.Linear(*args, **{**p, **kw})

    def conv1(*args: Any, **kw: Any) -> nn.Module:
        return B.Conv1d(*args, **{**p, **kw})

    seq, bn, image = nn.Sequential, nn.BatchNorm2d, (5, 8, 8)
    chain = ["norm", p["x"]]
    yield (
        "stack",
        seq(conv(5, 33, 3, padding=1), bn(33), conv(33, 40, 3, stride=2), bn(40), nn.ReLU(), conv(40, 7, 1)),
        (5, 9, 8),
    )
    yield (
        "groups",
        seq(
            conv(6, 66, (1, 3), padding=(0, 2), groups=3),
            bn(66),
            conv(66, 66, 3, groups=66, padding=1, dilation=2),
            bn(66),
            conv(66, 12, (3, 1), groups=6, stride=(2, 1), bias=False),
        ),
        (6, 9, 8),
    )
    yield "pool before the norm", seq(conv(5, 33, 3, padding=1), nn.MaxPool2d(2), bn(33), conv(33, 8, 3)), image
    yield (
        "pool after the norm",
        seq(
            conv(5, 33, 3, padding=1),
            bn(33),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            conv(33, 8, 3),
            nn.Flatten(),
            line(72, 5),
        ),
        image,
    )
    yield (
        "flatten",
        seq(
            conv(5, 33, 3, padding=1),
            bn(33),
            nn.MaxPool2d(2),
            nn.Flatten(),
            line(528, 10),
            nn.BatchNorm1d(10),
            line(10, 5),
            nn.BatchNorm1d(5),
            nn.Softmax(1),
        ),
        image,
    )
    yield (
        "flatten read twice",
        Net(
            lambda s, x: s.b(s.bn(s.a(x)).flatten(1)) + s.c(s.bn(s.a(x)).flatten(1)),
            a=conv(5, 6, 3),
            bn=bn(6),
            b=line(216, 4),
            c=line(216, 4),
        ),
        image,
    )
    yield (
        "bireal",
        Net(
            _bireal,
            a=conv(5, 6, 3, padding=1),
            bn=bn(6),
            b=conv(6, 6, 3, padding=1),
            bn2=bn(6),
            c=conv(6, 6, 3, padding=1),
            bn3=bn(6),
            d=conv(6, 6, 3, padding=1),
        ),
        image,
    )
    yield (
        "concatenation",
        Net(
            lambda s, x: s.d(torch.cat([s.a(x), s.b(x), x], 1)),
            a=conv(5, 6, 3, padding=1),
            b=conv(5, 33, 3, padding=1),
            d=conv(44, 6, 1),
        ),
        image,
    )
    yield "a layer called twice", Net(lambda s, x: s.a(s.bn(s.a(x))), a=conv(5, 5, 3, padding=1), bn=bn(5)), image
    yield "rows", seq(line(7, 33), nn.LayerNorm(33), nn.GELU(), line(33, 9)), (4, 7)
    yield "rows, norm over T", seq(line(7, 33), nn.BatchNorm1d(4), line(33, 9)), (4, 7)
    yield "rows of images", seq(line(7, 33), nn.ReLU(), line(33, 9)), (4, 3, 7)
    yield "rows of images read by a convolution", seq(line(7, 4), conv(4, 9, 1)), (4, 3, 7)
    yield "a convolution read along the last axis", seq(conv(5, 8, 3, padding=1), line(8, 4)), image
    yield (
        "1-d",
        seq(
            conv1(5, 33, 3, padding=1),
            nn.BatchNorm1d(33),
            conv1(33, 8, 3, stride=2, dilation=2),
            nn.BatchNorm1d(8),
            nn.Flatten(),
            line(24, 5),
        ),
        (5, 10),
    )
    yield "1-d, read along the last axis", seq(conv1(5, 8, 3, padding=1), line(8, 4)), (5, 8)
    yield (
        "1-d residual and pool",
        Net(
            lambda s, x: s.c(F.max_pool1d(s.bn(s.b(s.a(x))) + s.a(x), 2)),
            a=conv1(5, 6, 3, padding=1),
            b=conv1(6, 6, 3, padding=1),
            bn=nn.BatchNorm1d(6),
            c=conv1(6, 6, 3),
        ),
        (5, 10),
    )
    yield (
        "norm chains",
        seq(
            conv(5, 33, 3, padding=1, x=chain),
            bn(33),
            nn.ReLU(),
            conv(33, 8, 3, x=chain),
            nn.Flatten(),
            line(288, 5, x=chain),
        ),
        image,
    )
    yield "prelu", seq(conv(5, 6, 3, padding=1), bn(6), nn.PReLU(6), conv(6, 8, 3)), image
    yield (
        "activations",
        seq(
            conv(5, 6, 3),
            nn.Hardtanh(),
            conv(6, 8, 1),
            nn.ReLU6(),
            conv(8, 8, 1),
            nn.LeakyReLU(0.2),
            conv(8, 8, 1),
            nn.Sigmoid(),
            conv(8, 8, 1),
            nn.SiLU(),
            conv(8, 8, 1),
        ),
        image,
    )
    yield "in place", Net(_inplace, a=conv(5, 4, 3, padding=1), b=conv(4, 4, 3, padding=1)), image
    yield "the model is the layer", conv(5, 6, 3, padding=1), image
    yield (
        "mlp",
        seq(nn.Flatten(), line(12, 70), nn.BatchNorm1d(70), line(70, 65), nn.BatchNorm1d(65), nn.ReLU(), line(65, 3)),
        (3, 4),
    )
    yield (
        "learned scale and shift",
        Net(
            lambda s, x: s.b(s.a(x) * s.k + s.m),
            a=conv(5, 6, 3),
            b=conv(6, 6, 3),
            k=nn.Parameter(torch.randn(1, 6, 1, 1)),
            m=nn.Parameter(torch.randn(6, 1, 1)),
        ),
        image,
    )
    yield "negated", Net(lambda s, x: s.b(-s.a(x) * 2 + 1), a=conv(5, 6, 3), b=conv(6, 6, 3)), image
    yield (
        "shortcut A",
        Net(
            lambda s, x: s.b(F.pad(s.a(x)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))),
            a=conv(5, 6, 3, padding=1),
            b=conv(9, 6, 3),
        ),
        image,
    )
    yield (
        "average pools",
        Net(
            lambda s, x: s.b(F.adaptive_avg_pool2d(F.avg_pool2d(s.a(x), 2), 1).flatten(1)),
            a=conv(5, 6, 3),
            b=line(6, 6),
        ),
        image,
    )
    yield "same and valid", seq(conv(5, 6, 3, padding="same"), conv(6, 4, (3, 5), padding="valid")), image
    yield (
        "tokens",
        Net(lambda s, x: s.b(s.a(x).flatten(2).transpose(1, 2)).mean(1), a=conv(5, 6, 3), b=line(6, 4)),
        image,
    )
    yield (
        "one pool, two readers",
        Net(
            lambda s, x: s.b(F.max_pool2d(s.bn(s.a(x)), 2)) + s.c(F.max_pool2d(s.bn(s.a(x)), 2)),
            a=conv(5, 6, 3),
            bn=bn(6),
            b=conv(6, 4, 1),
            c=conv(6, 4, 1, groups=2),
        ),
        image,
    )
    yield (
        "transposed in float",
        seq(conv(5, 6, 3), B.ConvTranspose2d(6, 4, 3, groups=2, w=p["w"], x=chain), bn(4)),
        image,
    )
    yield "3-d in float", seq(B.Conv3d(2, 3, (1, 3, 3), **p), nn.ReLU(), B.Conv3d(3, 2, 2, **p)), (2, 3, 5, 5)


NAMES = [name for name, _, _ in topologies(ONE_BIT)]


SLOW = pytest.mark.slow
STYLE = [pytest.param("w1a1"), pytest.param("w2a2", marks=SLOW), pytest.param("ternary", marks=SLOW)]


@pytest.mark.few(every=3)
@pytest.mark.parametrize("style", STYLE)
@pytest.mark.parametrize("name", NAMES)
def test_topologies_in_batches_of_1_2_7_and_0(name: str, style: str) -> None:
    model, shape = next((m, s) for n, m, s in topologies(STYLES[style]) if n == name)
    net = settle(model)
    sample = torch.randn(2, *shape)
    packed, oracle = pack_both(net, sample)
    proof = verify(net, packed, [sample])
    assert proof.inexact == [] and (proof.layers or "float" in name)
    for n in (1, 2, 7, 0):
        x = torch.randn(n, *shape)
        got, want = packed(x), net(x).detach()
        assert got.shape == want.shape
        assert torch.equal(got, oracle(x)), "native differs from plain torch"
        if n:
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_an_input_that_two_layers_quantize_alike_is_packed_once() -> None:
    net = Net(lambda s, x: s.a(x) + s.b(x), a=B.Conv2d(4, 6, 3, padding=1, **ONE_BIT), b=B.Conv2d(4, 6, 1, **ONE_BIT))
    packed = pack(net.eval(), torch.randn(2, 4, 5, 5))
    assert [n.op for n in packed.graph.nodes].count("quantize") == 2
    assert [n.op for n in packed.runtime.nodes].count("quantize") == 1


def test_tied_weights_lie_in_the_file_once(tmp_path: Any) -> None:
    a, b = B.Linear(40, 40, **ONE_BIT), B.Linear(40, 40, **ONE_BIT)
    b.weight = a.weight
    net = settle(nn.Sequential(a, nn.BatchNorm1d(40), b))
    packed = pack(net, torch.randn(2, 40))
    bw.save(packed, tmp_path / "tied.safetensors")
    from bitwright.tensors import read_tensors

    tensors, metadata = read_tensors(tmp_path / "tied.safetensors")
    assert '"2.bits":"0.bits"' in metadata["aliases"] and torch.equal(tensors["0.bits"], tensors["2.bits"])
    x = torch.randn(3, 40)
    assert torch.equal(bw.load(tmp_path / "tied.safetensors")(x), packed(x))


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("style", STYLE)
def test_instruction_sets_agree(style: str) -> None:
    for name in ("stack", "groups", "flatten", "bireal", "1-d"):
        model, shape = next((m, s) for n, m, s in topologies(STYLES[style]) if n == name)
        net, x = settle(model), torch.randn(3, *shape)
        graph, outputs = fold(trace(net, x).graph), {}
        try:
            for isa in native.isas():
                native.force_isa(isa)
                outputs[isa] = PackedModel(graph, BACKEND)(x)
        finally:
            native.force_isa("")
        first, *others = outputs.values()
        assert all(torch.equal(first, o) for o in others), (name, list(outputs))
