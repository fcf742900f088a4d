"""heaviside: 0 or 1, four surrogates, one bit behind a BatchNorm and for pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.engine.packing import grid_of
from bitwright.errors import InputError
from oracles import inputs
from oracles.compare import check_inputs, special


def slopes(x: list[float], **options: Any) -> list[float]:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    bw.make_part("heaviside", **options)(t).sum().backward()
    assert t.grad is not None
    return t.grad.tolist()


def test_one_at_the_threshold_itself() -> None:
    assert bw.make_part("heaviside")(torch.tensor([0.0, -0.0, 1e-45, -1e-45])).tolist() == [1, 1, 1, 0]
    pixels = torch.tensor([0.0, 0.4999, 0.5, 1.0])
    assert bw.make_part("heaviside", threshold=0.5)(pixels).tolist() == [0, 0, 1, 1]


def test_gradients_by_hand() -> None:
    x = [-1.5, -1.0, 0.0, 0.5, 1.0, 1.5]
    assert slopes(x) == [0, 0.5, 0.5, 0.5, 0.5, 0]
    assert slopes(x, boundary="open") == [0, 0, 0.5, 0.5, 0, 0]
    assert slopes(x, surrogate="approx") == [0, 0, 1, 0.5, 0, 0]
    assert slopes(x, surrogate="identity") == [1] * 6
    assert slopes([0.0], surrogate="swish") == [2.5]
    assert slopes([-0.5, 0.5, 1.5, 1.6], threshold=0.5) == [0.5, 0.5, 0.5, 0]


@pytest.mark.parametrize("surrogate", ["clip", "approx", "swish"])
@pytest.mark.parametrize("boundary", ["closed", "open"])
def test_twice_the_step_minus_one_is_that_sign(surrogate: str, boundary: str) -> None:
    def oracle(v: float) -> tuple[float, float]:
        value, slope = inputs.sign(v, surrogate, boundary)
        return (value + 1) / 2, slope / 2

    tolerance = 1e-7 if surrogate == "swish" else 1e-12  # the oracle differentiates numerically
    part = bw.make_part("heaviside", surrogate=surrogate, boundary=boundary)
    check_inputs(part, oracle, special(3, 4, 2, 2), tolerance)


@pytest.mark.parametrize(
    "options", [{"surrogate": "tanh"}, {"boundary": "half"}, {"threshold": float("nan")}, {"threshold": float("inf")}]
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part heaviside: "):
        bw.make_part("heaviside", **options)


@pytest.mark.parametrize("threshold", [0.0, 0.5, -2.25, 0.1])
def test_the_engine_reads_one_threshold_off_it(threshold: float) -> None:
    grid = grid_of(bw.make_part("heaviside", threshold=threshold), 3, 4)
    assert (grid.levels, grid.mult, grid.zero, grid.unit) == (1, 1, (0,), 1.0)
    edge = grid.thresholds[0]
    assert edge.item() == torch.tensor(threshold).item()


def test_behind_a_relu_a_step_at_zero_is_refused_and_one_above_is_not() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"takes the heaviside of the output of 1 .*it would see a constant"):
        bw.apply(net, [{"match": "2", "x": "heaviside"}], torch.randn(2, 4))
    bw.apply(net, [{"match": "2", "x": {"part": "heaviside", "threshold": 0.25}}], torch.randn(2, 4))


def test_a_step_behind_a_norm_runs_at_one_bit_and_equals_the_trained_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        bw.nn.Linear(70, 33, bias=False, w="zero_one", x={"part": "heaviside", "threshold": 0.5}),
        nn.BatchNorm1d(33),
        bw.nn.Linear(33, 5, bias=False, w="zero_one", x="heaviside"),
    )
    for _ in range(3):
        net(torch.rand(16, 70))
    net.eval()
    x = torch.rand(64, 70)
    converted = bw.convert(net, x)
    assert converted.report.status in ("PASS", "WARN") and converted.model is not None, str(converted.report)
    assert torch.equal(converted.model(x), net(x))
    assert "float run" not in str(converted.report)
