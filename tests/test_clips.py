"""A hardtanh that only signs read steps aside, and comes back when one of them does not take the sign any more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw

X = torch.randn(2, 3, 8, 8)
SIGNS = [
    {"match": "*", "w": "bwn", "x": "sign"},
    *({"match": m, "w": "float", "x": "float"} for m in ("first", "last")),
]


def clips(model: nn.Module) -> list[bool]:
    return [bool(getattr(m, "idle", False)) for m in model.modules() if isinstance(m, nn.Hardtanh)]


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Hardtanh(),
        nn.Conv2d(4, 4, 3),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def test_only_the_clip_in_front_of_a_sign_is_idle() -> None:
    model = bw.apply(net(), SIGNS, X)
    assert clips(model) == [True, False]
    assert not any(clips(bw.apply(net(), SIGNS[0:1] + [{"match": "3", "x": "float"}] + SIGNS[1:], X)))


def test_value_and_gradient_are_those_with_the_clip() -> None:
    idle = bw.apply(net(), SIGNS, X)
    full = copy.deepcopy(idle)
    full[2].idle = False
    for model in (idle, full):
        model.train()(X).square().sum().backward()
    assert torch.equal(idle.eval()(X), full.eval()(X))
    for one, two in zip(idle.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize(
    "x",
    ["float", ["norm", "sign"], {"part": "sign", "surrogate": "identity"}, {"part": "sign", "surrogate": "swish"}],
    ids=str,
)
def test_the_clip_works_where_it_matters(x: Any) -> None:
    model = bw.apply(net(), SIGNS, X)
    bw.apply(model, [{"match": "3", "x": x}])  # no example: the readers are known by name
    assert clips(model) == [False, False]
    bw.apply(model, [{"match": "3", "x": "sign"}])
    assert clips(model) == [True, False]


def test_a_clip_that_somebody_else_reads_works() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.clip, self.conv = nn.Conv2d(3, 4, 3), nn.Hardtanh(), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.clip(self.stem(x))
            return self.conv(y) + y

    assert clips(bw.apply(Around(), [{"match": "conv", "x": "sign"}], X)) == [False]


@pytest.mark.slow
def test_bireal_nets_have_nothing_but_idle_clips_and_convert() -> None:
    model = bw.models.create("bireal_resnet20", width=0.5)
    bw.apply(model, "bireal", X)
    assert clips(model) and all(clips(model))
    model.train()(torch.randn(8, 3, 8, 8))
    assert bw.convert(model.eval(), X).report.status in ("PASS", "WARN")


@pytest.mark.parametrize(
    "x", [{"part": "lsq", "bits": 2}, {"part": "pact", "bits": 2}, {"part": "dorefa_a", "bits": 2}], ids=str
)
def test_a_relu_in_front_of_a_grid_that_begins_at_zero(x: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    bw.apply(model, [{"match": "3", "w": {"part": "lsq", "bits": 2}, "x": x}], X)
    assert [m.idle for m in model.modules() if isinstance(m, nn.ReLU) and hasattr(m, "idle")] == [True]
    full = copy.deepcopy(model)
    full[2].idle = False
    for one in (model, full):
        bw.calibrate(one, [X])  # an observer sees what comes out of the ReLU
        one.train()(X).square().sum().backward()
    assert torch.equal(model.eval()(X), full.eval()(X))
    for one, two in zip(model.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    with pytest.raises(bw.InputError, match="never negative"):  # still known to be a ReLU
        bw.apply(model, [{"match": "3", "x": "sign"}], X)
    bw.apply(model, [{"match": "3", "x": "float"}])
    assert not model[2].idle


def test_an_error_puts_the_clip_back() -> None:
    model = bw.apply(net(), SIGNS, X)
    with pytest.raises(bw.InputError):
        bw.apply(model, [{"match": "3", "x": "float", "gate": "fbs"}], X)
    assert clips(model) == [True, False]
