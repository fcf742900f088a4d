"""Bounds of values where float layers run on the kernels: what reads them may still leave zeros out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.fold import fold
from bitwright.engine.fuse_floats import float_kernels, here
from bitwright.engine.operators import bounds
from bitwright.engine.packed import PackedModel
from bitwright.engine.trace import trace

pytestmark = pytest.mark.skipif(
    not native.available() or not here(), reason="float layers do not run on the kernels here"
)


def test_connections_behind_a_float_layer_of_the_kernels() -> None:
    torch.manual_seed(0)
    sparse = nn.Linear(6 * 36, 512)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), sparse, nn.Hardtanh(), bw.nn.Linear(512, 10, w="bwn", x="sign")
    ).eval()  # fmt: skip
    with torch.no_grad():
        sparse.weight *= torch.rand_like(sparse.weight) < 1 / 32
    x = torch.randn(4, 3, 8, 8)
    packed = bw.convert(model, x, verify=[x]).model
    assert packed is not None
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)
    graph = PackedModel(fold(trace(model, x).graph), "native").runtime
    limits = bounds(float_kernels(graph), 100.0)
    weight, bias = (t.detach() for t in model[0].parameters())
    most = 100 * float(weight.double().abs().flatten(1).sum(1).max()) + float(bias.abs().max())
    first = next(n for n in float_kernels(graph).nodes if n.op == "float_conv")
    assert limits[first.name] == pytest.approx(most) and limits[first.name] < math.inf
