"""Packed arithmetic by hand, bit for bit; nets drawn at random; instruction sets agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bitwright.engine.verify import verify
from packing import INPUTS, ONE_BIT, WEIGHTS, B, Net, pack, pack_both, settle, taps


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
