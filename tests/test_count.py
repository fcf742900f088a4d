"""count_macs against figures worked out by hand: dense sizes, ceilings of the gates, what sparse channels save."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw

CLOSED = 1e9  # a threshold that no sum reaches


def counted(net: nn.Module, samples: int = 2, size: int = 32) -> Any:
    with torch.no_grad(), bw.count_macs(net.eval()) as macs:
        net(torch.randn(samples, 3, size, size))
    return macs


def gated(model: str, match: str, gate: dict[str, Any]) -> nn.Module:
    net = bw.models.create(model)
    return bw.apply(net, [{"match": match, "gate": gate}], torch.zeros(1, 3, 32, 32))


def test_a_net_without_gates_counts_as_walk_does() -> None:
    macs = counted(bw.models.create("resnet20"), samples=3)
    assert (macs.total, macs.dense, macs.samples) == (3 * 40_551_040, 3 * 40_551_040, 3)
    assert macs.per_sample.tolist() == [40_551_040] * 3 and macs.reduction == 1.0
    assert macs.bops == macs.total * 32 * 32


@pytest.mark.parametrize(
    ("model", "match", "splits", "ceiling"),
    [
        ("resnet20", "layer*.conv1", 4, 1.54),  # 18.87 of 40.55 million behind gates
        ("resnet20_postact", "layer*.conv?", 2, 1.98),
        ("resnet20_postact", "layer*.conv?", 4, 3.87),
    ],
)
def test_ceilings_of_channel_gating(model: str, match: str, splits: int, ceiling: float) -> None:
    closed = counted(gated(model, match, {"part": "channel_gate", "splits": splits, "init": CLOSED}))
    assert round(closed.reduction, 2) == ceiling and set(closed.rates.values()) == {0.0}
    opened = counted(gated(model, match, {"part": "channel_gate", "splits": splits, "init": -CLOSED}))
    assert opened.total == opened.dense and set(opened.rates.values()) == {1.0}


@pytest.mark.parametrize(("bits", "top", "bound"), [(3, 2, 1.5), (8, 4, 2.0), (6, 4, 1.5)])
def test_bounds_of_precision_gating(bits: int, top: int, bound: float) -> None:
    gate = {"part": "precision_gate", "bits": bits, "top": top, "init": CLOSED}
    net = nn.Sequential(bw.nn.Conv2d(3, 8, 3, bias=False, w={"part": "uniform", "bits": 8}, gate=gate))
    macs = counted(net)
    assert macs.dense_bops == macs.dense * 8 * bits and macs.dense_bops / macs.bops == bound
    assert macs.total == macs.dense  # fewer bits, not fewer products


def test_m_cifarnet_with_half_of_the_channels() -> None:
    macs = counted(gated("m_cifarnet", "conv[1-8]", {"part": "fbs", "keep": 0.5}), samples=1)
    assert macs.dense == 174_301_824
    # k^2 P (I/2)(O/2) for conv2..8, k^2 P I (O/2) for conv1, 96 inputs of the classifier; 44.3 million with predictors
    pairs = [(64, 64, 900), (64, 128, 225), *[(128, 128, 225)] * 2, (128, 192, 64), *[(192, 192, 64)] * 2]
    work = 9 * 900 * 3 * 32 + sum(9 * p * i * o // 4 for i, o, p in pairs) + 96 * 10
    over = 3 * 64 + 64 * 900 + sum(i // 2 * o + o * p for i, o, p in pairs)
    assert (macs.total, macs.overhead) == (work + over, over)
    assert round(macs.total / 1e6, 1) == 44.3 and macs.quadratic == macs.total


def test_an_operator_that_moves_zeros_makes_all_channels_count() -> None:
    """The authors' tool loses the zeros behind dropout, and prints 57 million for the same net."""

    class Cosine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos()

    net: Any = bw.models.create("m_cifarnet")
    net.drop4, net.drop7 = Cosine(), Cosine()
    bw.apply(net, [{"match": "conv[1-8]", "gate": {"part": "fbs", "keep": 0.5}}], torch.zeros(1, 3, 32, 32))
    macs = counted(net, samples=1)
    assert round((macs.total - macs.overhead) / 1e6, 2) == 57.57


def test_a_sum_of_maps_is_the_union_and_papers_count_the_sparsest() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("a", "b"):
                setattr(self, name, bw.nn.Conv2d(3, 8, 1, bias=False))
                setattr(self, f"n{name}", nn.BatchNorm2d(8))
            self.c = bw.nn.Conv2d(8, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Any = self
            return self.c(y.na(y.a(x)).relu() + y.nb(y.b(x)).relu())

    net: Any = Two()
    bw.apply(net, [{"match": "[ab]", "gate": {"part": "fbs", "keep": 0.5}}], torch.zeros(1, 3, 4, 4))
    wins = {"a": [4, 3, 2, 1, 0, 0, 0, 0], "b": [0, 0, 0, 4, 3, 2, 1, 0]}  # channels 0-3 and 3-6: seven in all
    for name, bias in wins.items():
        predictor = getattr(net, name).gate.predictor
        nn.init.zeros_(predictor.weight)
        predictor.bias.data.copy_(torch.tensor(bias))
    macs = counted(net, samples=1, size=4)
    assert macs.per_layer["c"] == 16 * 7 * 4 and macs.fired["a"] == 4
    assert macs.quadratic == macs.total - 16 * 3 * 4
