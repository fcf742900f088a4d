"""convert: what runs packed is the trained net, for every pair of parts, geometry and topology; or a reason why not."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.fold import fold
from bitwright.engine.packed import PackedModel
from bitwright.engine.trace import trace
from bitwright.engine.verify import verify
from bitwright.errors import InputError

B = bw.nn
needs_native = pytest.mark.skipif(not native.available(), reason=native.notice())
BACKEND = "native" if native.available() else "reference"


def part(name: str, **options: Any) -> dict[str, Any]:
    return {"part": name, **options}


WEIGHTS: list[Any] = [
    "bwn",
    part("bwn", granularity="layer"),
    "xnor",
    part("xnor", center="graph"),
    "bireal",
    "ttq",
    *[part("dorefa_w", bits=b) for b in (1, 2, 3, 4, 8)],
    *[part("uniform", bits=b) for b in (2, 4, 8)],
    part("uniform", bits=3, granularity="channel"),
    part("uniform", bits=4, symmetric=False),
    part("uniform", bits=2, signed=False),
    "twn",
    "binaryconnect",
    *[part("lsq", bits=b) for b in (2, 4, 8)],
    part("lsq", bits=3, per_channel=True),
    part("kbit", bits=2),
    part("kbit", bits=3, weight_scale="lsq"),
    part("sign_magnitude", bits=3),
    ["bwn", "mask"],
    ["mask", "ttq"],
    ["mask", "twn"],
    [part("dorefa_w", bits=2), "mask"],
    [part("uniform", bits=8), "mask"],
]
INPUTS: list[Any] = [
    "sign",
    *[part("dorefa_a", bits=b) for b in (1, 2, 3, 4, 8)],
    *[part("uniform", bits=b) for b in (1, 2, 4, 8)],
    part("uniform", bits=3, signed=True),
    part("uniform", bits=4, symmetric=False),
    part("uniform", bits=8, symmetric=False, signed=True),
    *[part("lsq", bits=b) for b in (2, 4, 8)],
    part("lsq", bits=2, signed=True),
    *[part("pact", bits=b, alpha=1.3) for b in (1, 2, 4, 8)],
    *[part("kbit", bits=b) for b in (1, 2, 4)],
    *[part("sign_magnitude", bits=b) for b in (1, 3, 6)],
    "rsign",
    "input8",
    part("input8", mean=[0.1, 0.5, 0.4, 0.2, 0.3, 0.7], std=[0.2, 0.3, 0.4, 0.2, 0.2, 0.2]),
    ["norm", "sign"],
    ["norm", part("dorefa_a", bits=2)],
    ["dropout", "sign"],
    ["sign", "dropout"],
]
ONE_BIT = {"w": "bwn", "x": "sign"}
TWO_BIT = {"w": part("dorefa_w", bits=2), "x": part("dorefa_a", bits=2)}
TERNARY = {"w": "ttq", "x": part("dorefa_a", bits=3)}
STEPS = {"w": part("lsq", bits=3), "x": part("pact", bits=2, alpha=1.5)}
STYLES = {"w1a1": ONE_BIT, "w2a2": TWO_BIT, "ternary": TERNARY, "steps": STEPS}


def modules_of(model: nn.Module) -> list[Any]:
    return list(model.modules())


def settle(model: nn.Module, x: Tensor | None = None) -> Any:
    """Masks, norms (negative and zero gains too) and ranges as after a training."""
    for m in modules_of(model):
        name = getattr(m, "part_name", "")
        if name == "mask":
            m.mask.copy_(torch.rand(m.mask.shape) > 0.4)
        elif name in ("uniform", "lsq", "sign_magnitude") and m.slot == "x" and x is not None:
            m.observe(x)
        elif name == "rsign":
            m.shift.data.normal_(0, 0.5)
        elif isinstance(getattr(m, "running_mean", None), Tensor):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.normal_()
            m.bias.data.normal_()
            m.weight.data[0] = -1.3
            m.weight.data[1:2] = 0.0
    return model.eval()


def pack(model: nn.Module, x: Tensor, backend: str = BACKEND) -> PackedModel:
    """What convert does, without its clock."""
    return PackedModel(fold(trace(model, x).graph), backend)


def pack_both(model: nn.Module, x: Tensor) -> tuple[PackedModel, PackedModel]:
    """One graph on the best backend and on the reference: tracing costs more than all else here."""
    graph = fold(trace(model, x).graph)
    return PackedModel(graph, BACKEND), PackedModel(graph, "reference")


def taps(x: np.ndarray, w: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int) -> np.ndarray:
    """A convolution in float64, one tap at a time: [N, C, H, W] with [O, C/g, kh, kw]."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    o, per, kh, kw = w.shape
    oh, ow = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((x.shape[0], o, oh, ow))
    for out in range(o):
        first = out * groups // o * per
        for i in range(kh):
            for j in range(kw):
                seen = x[:, first : first + per, i * dh : i * dh + sh * oh : sh, j * dw : j * dw + sw * ow : sw]
                y[:, out] += np.einsum("nchw,c->nhw", seen[:, :, :oh, :ow], w[out, :, i, j])
    return y


def value_of(layer: Any, x: Tensor) -> np.ndarray:
    """What the layer's formulas say: parts as trained, the sum of products in float64."""
    a = layer.x(x).detach().double().numpy()
    w = layer.quantized_weight().detach().double().numpy()
    bias = 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
    if isinstance(layer, nn.Linear):
        return a @ w.T + bias
    y = taps(a, w, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y + np.reshape(bias, (1, -1, 1, 1))


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
class Net(nn.Module):
    """A forward written as a function of (modules, x)."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        self.f = f
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


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


# -- bit for bit, by hand -----------------------------------------------------------------------------
def test_the_arithmetic_of_the_contract_bit_for_bit() -> None:
    """I, then fl(fl(I s) + a), then the residual: numpy float32, whole numbers, nothing of the engine."""
    a, b, c = (
        B.Conv2d(5, 6, 3, padding=1, **ONE_BIT),
        B.Conv2d(6, 6, 3, padding=1, bias=False, **ONE_BIT),
        B.Linear(6, 4, **ONE_BIT),
    )
    net = settle(
        Net(
            lambda s, x: s.c((s.bn2(s.b(s.bn1(s.a(x)))) + s.bn1(s.a(x))).mean((2, 3))),
            a=a,
            bn1=nn.BatchNorm2d(6),
            b=b,
            bn2=nn.BatchNorm2d(6),
            c=c,
        )
    )
    x = torch.randn(3, 5, 7, 6)

    def folded(layer: Any, bn: Any) -> tuple[np.ndarray, np.ndarray]:
        size = layer.weight.detach().abs().flatten(1).double()
        alpha = (size.sum(1) / size.shape[1]).float().double().numpy()  # summed in double, rounded once
        bias = np.zeros(len(alpha)) if layer.bias is None else layer.bias.detach().double().numpy()
        if bn is None:
            return alpha.astype(np.float32), bias.astype(np.float32)
        rate = bn.weight.detach().double().numpy() / np.sqrt(bn.running_var.double().numpy() + bn.eps)
        shift = bn.bias.detach().double().numpy() - bn.running_mean.double().numpy() * rate
        return (alpha * rate).astype(np.float32), (bias * rate + shift).astype(np.float32)

    def run(value: np.ndarray, layer: Any, bn: Any) -> np.ndarray:
        codes = np.where(value >= 0, 1.0, -1.0)
        w = np.where(layer.weight.detach().numpy() >= 0, 1.0, -1.0)
        scale, add = folded(layer, bn)
        if w.ndim == 2:
            return (codes @ w.T).astype(np.float32) * scale + add
        whole = taps(codes, w, (1, 1), (1, 1), (1, 1), 1).astype(np.float32)
        return whole * scale[:, None, None] + add[:, None, None]

    first = run(x.numpy(), a, net.bn1)
    second = run(first, b, net.bn2) + first
    pooled = torch.from_numpy(second).contiguous(memory_format=torch.channels_last).mean((2, 3)).numpy()
    assert np.array_equal(pack(net, x)(x).numpy(), run(pooled, c, None))
    assert np.array_equal(pack(net, x, "reference")(x).numpy(), run(pooled, c, None))


@st.composite
def nets(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    channels, height, width = draw(st.integers(1, 70)), draw(st.integers(3, 9)), draw(st.integers(3, 9))
    start, size, layers = channels, (height, width), []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 1, 1, channels]))
        out = draw(st.integers(1, 70)) if groups == 1 else channels * draw(st.integers(1, 2))
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        pad = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]))
        w, x = draw(st.sampled_from(WEIGHTS)), draw(st.sampled_from(INPUTS[:13] + [["norm", "sign"]]))
        layers += [B.Conv2d(channels, out, kernel, stride, pad, groups=groups, bias=draw(st.booleans()), w=w, x=x)]
        extra = draw(st.sampled_from(["none", "bn", "bn relu", "pool", "prelu"]))
        layers += [nn.BatchNorm2d(out)] if "bn" in extra else []
        layers += [nn.ReLU()] if "relu" in extra and "p" not in extra else []
        layers += [nn.PReLU(out)] if extra == "prelu" else []
        height, width = (
            (s + 2 * p - k) // t + 1 for s, p, k, t in zip((height, width), pad, kernel, stride, strict=True)
        )
        if extra == "pool" and min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2, ceil_mode=draw(st.booleans())))
            break
        channels = out
        if min(height, width) < 3:
            break
    return settle(nn.Sequential(*layers)), (start, *size)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(nets())
def test_any_small_net(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    any_net(made)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(nets())
def test_many_small_nets(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    any_net(made)


def any_net(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = made
    sample = torch.randn(2, *shape)
    packed, oracle = pack_both(net, sample)
    proof = verify(net, packed, [sample])
    assert proof.inexact == []
    got = packed(sample)
    assert torch.equal(got, oracle(sample))
    assert torch.equal(got[:1], packed(sample[:1]))


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


# -- convert itself ----------------------------------------------------------------------------------
def small(p: dict[str, Any] = ONE_BIT) -> Any:
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.BatchNorm2d(32),
            B.Conv2d(32, 32, 3, **p),
            nn.BatchNorm2d(32),
            nn.Flatten(),
            nn.Linear(512, 4),
        )
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_report_and_result() -> None:
    net = small()
    done = bw.convert(net, X)
    assert done.report.layers_exact and done.report.images == 4 and done.report.codes_checked == 1
    assert [(r.layer, r.runs_as) for r in done.report.rows] == [("0", "float"), ("2", "bits"), ("5", "float")]
    row = done.report.rows[1]
    assert (row.bits, row.bytes_before, row.bytes_after) == ("1/1", 4 * (32 * 32 * 9 + 32), 32 * 32 * 9 // 8 + 8 * 32)
    assert done.report.status in ("PASS", "WARN") and done.model is not None
    assert (done.model(X) - net(X)).abs().max() < 1e-4
    assert "codes of 1 layers equal bit for bit" in str(done.report)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(training: bool) -> None:
    net = small({"w": ["bwn", "mask"], "x": ["norm", "dropout", "sign"]}).train(training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modules = [(n, type(m), m.training) for n, m in net.named_modules()]
    threads = torch.get_num_threads()
    bw.convert(net, X)
    assert [(n, type(m), m.training) for n, m in net.named_modules()] == modules
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.get_num_threads() == threads
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_int8_layers_and_uint8_pixels() -> None:
    net = settle(
        nn.Sequential(
            B.Conv2d(3, 16, 3, w=part("uniform", bits=8), x=part("input8", mean=0.4, std=0.25)),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            B.Conv2d(16, 4, 3, **ONE_BIT),
            nn.Flatten(),
        )
    )
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    done = bw.convert(net, pixels, verify=[pixels, pixels.float() / 255])
    assert done.report.layers_exact and done.report.rows[0].runs_as == "int8"
    assert done.report.images == 6 and done.model is not None
    assert torch.equal(done.model(pixels), done.model(pixels.float() / 255))
    assert torch.allclose(done.model(pixels), net(pixels), rtol=1e-4, atol=1e-4)


def test_weight_only_nets_are_smaller_not_faster() -> None:
    net = settle(
        nn.Sequential(
            B.Conv2d(3, 32, 3, w="ttq"), nn.BatchNorm2d(32), nn.ReLU(), B.Conv2d(32, 8, 3, w="bwn"), nn.Flatten()
        )
    )
    done = bw.convert(net, X)
    assert done.report.status == "WARN" and done.report.verdict.startswith("smaller, not faster:")
    assert [r.runs_as for r in done.report.rows] == ["bits on disk, float run"] * 2
    assert all(r.why == "its input is float" for r in done.report.rows)
    assert done.model is not None and (done.model(X) - net(X)).abs().max() < 1e-5
    from bitwright.engine.reference import stored_weight

    graph: Any = done.model.graph
    last = next(n for n in graph.nodes if n.name == "3")
    assert torch.equal(stored_weight(graph, last), net[3].w(net[3].weight).detach())


def test_nothing_to_pack_is_a_refusal(tmp_path: Any) -> None:
    done = bw.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), X)
    assert done.report.status == "REFUSE" and done.model is None
    assert done.report.verdict == (
        "nothing to pack: 1 of 1 layers stay float. First: 0 (Conv2d 3>4 3x3): its slots are empty."
        ' Try: bw.apply(model, "w1a1", example), train, convert'
    )
    with pytest.raises(InputError, match="nothing was converted: nothing to pack"):
        done.save(tmp_path / "no.safetensors")
    assert not list(tmp_path.iterdir())


class Gate(nn.Module):
    def forward(self, op: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return op(x, w, b) * 0.5


class Odd(nn.Module):
    """A part without codes."""

    def forward(self, t: Tensor, keep: Any = None) -> Tensor:
        return torch.tanh(t)


PER_CHANNEL = part("uniform", bits=3, granularity="channel")
REFUSALS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding mode": (
        lambda: B.Conv2d(32, 8, 3, padding=1, padding_mode="circular", **ONE_BIT),
        "Conv2d 32>8 3x3|padding_mode='circular'; bit kernels take zeros",
    ),
    "weight part without codes": (
        lambda: B.Conv2d(32, 8, 3, w=Odd(), x="sign"),
        "Conv2d 32>8 3x3|slot w holds Odd, which has no integer codes",
    ),
    "input part without codes": (
        lambda: B.Conv2d(32, 8, 3, w="bwn", x=Odd()),
        "Conv2d 32>8 3x3|slot x holds Odd, which has no integer codes",
    ),
    "a step per channel": (
        lambda: B.Conv2d(32, 8, 3, w="bwn", x=PER_CHANNEL),
        "Conv2d 32>8 3x3|slot x holds uniform(bits=3, granularity='channel'): one step per input channel: "
        "the sum over channels is no integer product",
    ),
    "transposed": (
        lambda: B.ConvTranspose2d(32, 8, 3, **ONE_BIT),
        "ConvTranspose2d 32>8 3x3|ConvTranspose2d has no bit kernel; Linear, Conv1d, Conv2d have",
    ),
    "gate": (
        lambda: B.Conv2d(32, 8, 3, gate=Gate(), **ONE_BIT),
        "Conv2d 32>8 3x3|slot gate holds Gate; gated layers are not packed yet",
    ),
    "float weight": (
        lambda: B.Conv2d(32, 8, 3, x="sign"),
        "Conv2d 32>8 3x3|slot w is empty; codes of the input alone gain nothing",
    ),
    "bias part": (
        lambda: B.Conv2d(32, 8, 3, b=Odd(), **ONE_BIT),
        "Conv2d 32>8 3x3|slot b holds Odd; biases stay float",
    ),
    "nine planes": (
        lambda: B.Conv2d(32, 8, 3, w=[part("dorefa_w", bits=8), "mask"], x="sign"),
        "Conv2d 32>8 3x3|slot w holds dorefa_w+mask: 9 planes; bit kernels take 1 to 8",
    ),
}


def line_of(text: str) -> int:
    return next(i for i, s in enumerate(Path(__file__).read_text().splitlines(), 1) if text in s)


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = B.Conv2d(3, 32, 3, **ONE_BIT), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x)).flatten(1)  # the line that reports quote


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_layer_runs_in_float_and_says_why(name: str) -> None:
    build, text = REFUSALS[name]
    kind, why = text.split("|")
    net = settle(Holder(build()))
    done = bw.convert(net, X)
    row = done.report.rows[1]
    assert (row.layer, row.kind, row.runs_as) == ("body", kind, "float")
    line = line_of("return op(x, w, b) * 0.5" if name == "gate" else "# the line that reports")
    assert row.why == f"{why} (test_convert.py line {line})"
    assert done.model is not None and (done.model(X) - net(X)).abs().max() < 1e-4
    assert done.report.rows[0].runs_as == "bits" and done.report.layers_exact
    assert done.report.refused == [row]


def test_empty_slots_beside_packed_ones() -> None:
    net = settle(nn.Sequential(B.Conv2d(3, 8, 3, **ONE_BIT), B.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2)))
    assert [r.why for r in bw.convert(net, X).report.rows] == ["", "", "its slots are empty"]


def test_data_dependent_control_flow_is_one_line_with_the_users_line() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = B.Conv2d(3, 4, 3, **ONE_BIT)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if y.sum() > 0:  # the branch that cannot be traced
                y = -y
            return y

    line = line_of("# the branch that cannot")
    with pytest.raises(InputError) as error:
        bw.convert(Branch(), X, form="graph")
    text = str(error.value)
    assert (
        "\n" not in text
        and f"test_convert.py line {line}" in text
        and text.startswith("convert Branch: cannot trace forward")
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of the trained net
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 1), (2, 3), ((2, 3), 1)])
def test_same_padding_of_an_even_kernel_packs(kernel: Any, dilation: int) -> None:
    """One more zero right and below: the codes there add nothing."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), B.Conv2d(32, 8, kernel, padding="same", dilation=dilation, **ONE_BIT)
    ).eval()
    done = bw.convert(net, X)
    assert done.report.layers_exact and done.report.rows[1].runs_as == "bits" and done.model is not None
    torch.testing.assert_close(done.model(X), net(X), rtol=1e-5, atol=1e-5)


def test_an_operator_outside_the_table_is_named() -> None:
    net = Net(lambda s, x: torch.linalg.qr(s.a(x))[0], a=B.Conv2d(3, 4, 3, **ONE_BIT))
    with pytest.raises(
        InputError, match=r"uses aten\.linalg_qr \(test_convert.py line \d+\), which a packed graph cannot hold"
    ):
        bw.convert(net, X, form="graph")


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (torch.zeros(3), r"one batch of inputs \[N, ...\], got \[3\]"),
        (torch.zeros(0, 3, 8, 8), r"got \[0, 3, 8, 8\]"),
        ([1, 2], "got list"),
        (torch.zeros(1, 4, 8, 8), r"does not run on this example of shape \[1, 4, 8, 8\]"),
    ],
    ids=["rank", "empty", "list", "channels"],
)
def test_wrong_examples(example: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        bw.convert(small(), example)
    assert "\n" not in str(error.value)


def test_an_input_of_another_size_is_one_line() -> None:
    packed = pack(small(), X)
    with pytest.raises(InputError, match="input is 1x3x9x9, the model was converted for 3x8x8"):
        packed(torch.zeros(1, 3, 9, 9))


def test_backends_and_their_errors() -> None:
    with pytest.raises(InputError, match="backend 'cuda' is none of auto, native, reference"):
        bw.convert(small(), X, backend="cuda")
    assert bw.convert(small(), X, backend="reference").report.isa == "torch"


# -- the packed module ---------------------------------------------------------------------------------
def test_copies_pickles_and_state_dicts() -> None:
    net = small(TWO_BIT)
    packed = pack(net, X)
    want = packed(X)
    assert torch.equal(copy.deepcopy(packed)(X), want)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(X), want)
    other = pack(small(TWO_BIT), X)
    other(X)
    assert not torch.equal(other(X), want)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(X), want), "kernel layouts of the old tensors were kept"
    assert not packed.train().training and not list(packed.parameters())


def test_layouts_and_dtypes_of_the_input_do_not_matter() -> None:
    packed = pack(small(), X)
    want = packed(X)
    for x in (X.contiguous(memory_format=torch.channels_last), X.double(), torch.stack([X, X], -1)[..., 0]):
        assert torch.equal(packed(x), want)
    assert torch.allclose(packed(X[:1]), want[:1], rtol=1e-5)  # the float head sums in another order


@pytest.mark.parametrize("times", [1, 2])
def test_without_the_native_core_it_says_so_once_and_runs_on_torch(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.engine import packed

    monkeypatch.setattr(packed.native, "available", lambda: False)
    monkeypatch.setattr(packed.native, "notice", lambda: "no core here")
    monkeypatch.setattr(packed, "_said", set())
    net = nn.Sequential(bw.nn.Linear(8, 4, w="bwn", x="sign")).eval()
    x = torch.randn(3, 8)
    with pytest.warns(bw.BitwrightWarning, match="no core here; packed nets run on plain torch") as said:
        done = [bw.convert(net, x) for _ in range(times)]
    assert len(said) == 1
    assert all(d.report.backend == "reference" and d.report.same == 3 for d in done)


def test_a_packed_net_is_not_packed_again() -> None:
    x = torch.randn(2, 8)
    done = bw.convert(nn.Sequential(bw.nn.Linear(8, 4, w="bwn", x="sign")).eval(), x)
    assert done.model is not None
    with pytest.raises(InputError, match="packed already"):
        bw.convert(done.model, x)


# -- memory of a long life


def test_float_convolutions_meet_few_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answers are those of the samples one by one."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.ReLU(), B.Conv2d(2, 3, 1, w="bwn")
    )
    packed = bw.convert(net.eval(), torch.rand(2, 3, 5, 5), force=True).model
    assert packed is not None
    seen: set[int] = set()
    for name in ("conv2d", "conv_transpose2d"):
        plain = getattr(F, name)
        monkeypatch.setattr(F, name, lambda x, *a, plain=plain: (seen.add(len(x)), plain(x, *a))[1])
    x = torch.rand(300, 3, 5, 5)
    want = torch.cat([packed(one[None]) for one in x])
    for n in range(301):
        torch.testing.assert_close(packed(x[:n]), want[:n])
    assert len(seen) <= 8 + 4 * 6 and max(seen) == 320


MANY_SIZES = """
import torch, bitwright as bw
from pathlib import Path
def resident():
    return next(int(l.split()[1]) / 1024 for l in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in l)
torch.set_num_threads(1)
block = lambda i, o: [torch.nn.Conv2d(i, o, 3, padding=1, bias=False), torch.nn.BatchNorm2d(o), torch.nn.Hardtanh()]
net = torch.nn.Sequential(*block(3, 32), *block(32, 32), torch.nn.Flatten(), torch.nn.Linear(32 * 36, 10))
bw.apply(net, "w1a1", torch.rand(1, 3, 6, 6))
packed = bw.convert(net.eval(), torch.rand(8, 3, 6, 6), force=True).model
images = torch.rand(700, 3, 6, 6)
packed(images)
before = resident()
for i in range(3000):
    packed(images[: 1 + i * 37 % 700])
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_many_batch_sizes_do_not_grow_a_process() -> None:
    """Where torch makes code for every size, one float convolution alone takes more than 200 MB."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MANY_SIZES], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) < 120
