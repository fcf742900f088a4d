"""binaryconnect: one size, no scale; drawn by the hard sigmoid while training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import moment
from oracles.compare import check_weights, special
from oracles.weights import plus_minus


def test_values_and_gradient_by_hand() -> None:
    w = torch.tensor([[0.5, -3.0, 0.0, -0.0]], requires_grad=True)
    value = bw.make_part("binaryconnect", scale=0.25)(w)
    assert value.tolist() == [[0.25, -0.25, 0.25, 0.25]]
    value.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert w.grad is not None and w.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]  # outside [-H, H] too


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_equals_the_oracle(scale: float) -> None:
    part = bw.make_part("binaryconnect", scale=scale)
    check_weights(part, lambda w, g: ([[scale * plus_minus(v) for v in r] for r in w], g), special(3, 4, 2, 2))


def test_latents_are_clipped_to_the_size() -> None:
    w = torch.tensor([[0.2, -0.7]])
    bw.make_part("binaryconnect", scale=0.5).after_step(w)  # type: ignore[operator]
    assert torch.equal(w, torch.tensor([[0.2, -0.5]]))


def test_drawn_with_the_probability_of_the_hard_sigmoid() -> None:
    part = bw.make_part("binaryconnect", stochastic=True).train()
    w = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.2, 1.0]).expand(20000, 6)
    share = (part(w) > 0).float().mean(0)
    assert share[:2].tolist() == [0, 0] and share[5] == 1
    # 20,000 draws: the standard deviation is at most 0.0036
    assert share[2:5].tolist() == pytest.approx([0.25, 0.5, 0.6], abs=0.015)
    assert part(w).abs().unique().tolist() == [1.0]
    assert not torch.equal(part(w), part(w))


def test_stochastic_passes_the_gradient_and_nan() -> None:
    w = torch.tensor([[0.3, torch.nan]], requires_grad=True)
    value = bw.make_part("binaryconnect", stochastic=True).train()(w)
    value.backward(torch.tensor([[2.0, 3.0]]))
    assert w.grad is not None and w.grad.tolist() == [[2.0, 3.0]]
    assert value.isnan().tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({}, True),
        ({"stochastic": True}, False),
        ({"stochastic": True, "evaluate": "sign"}, True),
        ({"evaluate": "latent"}, False),
    ],
)
def test_evaluation_uses_signs_or_latents_and_only_signs_have_codes(options: dict[str, Any], codes: bool) -> None:
    part = bw.make_part("binaryconnect", **options).eval()
    w = torch.tensor([[0.3, -0.6]])
    assert torch.equal(part(w), torch.tensor([[1.0, -1.0]]) if codes else w)
    assert (moment(part, "encode") is not None) is codes


def test_a_stochastic_layer_converts_only_where_it_evaluates_signs() -> None:
    layer = bw.nn.Linear(4, 3, w={"part": "binaryconnect", "stochastic": True}, x="sign").eval()
    report = bw.convert(torch.nn.Sequential(layer), torch.randn(2, 4)).report
    assert report.status == "REFUSE" and "which has no integer codes" in str(report)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": float("nan")}, {"evaluate": "mean"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part binaryconnect: "):
        bw.make_part("binaryconnect", **options)
