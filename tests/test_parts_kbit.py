"""kbit: the odd grid by hand, as an input and as a weight, with each of its scales."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import moment
from oracles import steps, weights
from oracles.compare import check_inputs, check_weights, close, rows, run, special


def test_levels_of_inputs_by_hand() -> None:
    x = torch.tensor([-9.0, -2 / 3 - 1e-9, -2 / 3 + 1e-9, -0.0, 0.0, 0.5, 0.7, 1.0, 9.0], dtype=torch.float64)
    thirds = bw.make_part("kbit", slot="x", bits=2)(x) * 3
    assert thirds.round(decimals=12).tolist() == [-3, -3, -1, 1, 1, 1, 3, 3, 3]
    assert bw.make_part("kbit", slot="x", bits=1)(x).tolist() == [-1, -1, -1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_inputs_equal_the_oracle(bits: int) -> None:
    part = bw.make_part("kbit", slot="x", bits=bits)
    check_inputs(part, lambda v: (steps.odd_level(v, bits), 1.0 if abs(v) <= 1 else 0.0), special(3, 4, 2, 2))


def test_without_the_clip_the_grid_has_no_end_no_mask_and_no_codes() -> None:
    part = bw.make_part("kbit", slot="x", bits=2, clip=False)
    x = torch.tensor([-2.0, 1.9], dtype=torch.float64, requires_grad=True)
    value = part(x)
    value.sum().backward()
    # -2 lies on the tie between -5/3 and -7/3: up
    assert (3 * value).round(decimals=9).tolist() == [-5.0, 5.0]
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0] and moment(part, "encode") is None


def test_a_small_weight_is_one_third_of_the_mean_whatever_its_size() -> None:
    w = torch.tensor([[0.1, -0.05, 0.3]])  # mean 0.15
    assert bw.make_part("kbit")(w).tolist()[0] == pytest.approx([0.05, -0.05, 0.05])
    # by the maximum 0.3: places 1/3, -1/6, 1
    assert bw.make_part("kbit", weight_scale="max")(w).tolist()[0] == pytest.approx([0.05, -0.05, 0.15])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("scale", ["none", "max", "std"])
def test_weights_equal_the_oracle(bits: int, scale: str) -> None:
    part = bw.make_part("kbit", bits=bits, weight_scale=scale)
    check_weights(part, lambda w, g: steps.kbit_weights(w, g, bits, scale), special(3, 4, 2, 2))


def test_a_learned_step_by_hand() -> None:
    part = bw.make_part("kbit", bits=2, weight_scale="lsq").double()
    part.step.data.fill_(0.5)  # type: ignore[operator, union-attr]
    w = torch.tensor([[-3.0, 0.25, 1.25, 0.75]], dtype=torch.float64, requires_grad=True)
    value = part(w)
    # odd multiples of 0.5 up to 1.5; w / s = -6, 0.5, 2.5, 1.5
    assert value.tolist() == [[-1.5, 0.5, 1.5, 0.5]]
    value.backward(torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=torch.float64))
    assert w.grad is not None and w.grad.tolist() == [[0.0, 2.0, 4.0, 8.0]]
    expected = (-3 + 2 * 0.5 + 4 * 0.5 - 8 * 0.5) / math.sqrt(4 * 3)
    assert part.step.grad.item() == pytest.approx(expected)  # type: ignore[union-attr, operator]


def test_a_learned_step_starts_from_the_layer() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.6]]))
    part = bw.make_part("kbit", layer=layer, bits=2, weight_scale="lsq")
    assert part.step.item() * 3 == pytest.approx(2 * 0.45)  # type: ignore[operator, union-attr]


def test_latents_are_centered_over_the_inputs_and_clipped() -> None:
    w = special(3, 4, 2, 2)
    expected = weights.project(w.transpose(1, 0).transpose(0, 1).reshape(3, -1).tolist(), 4)
    bw.make_part("kbit").after_step(w)  # type: ignore[operator]
    close("latents", w, expected)
    assert moment(bw.make_part("kbit", slot="x"), "after_step") is None


def test_seed_follows_the_binary_rule_with_its_factor() -> None:
    t = special(3, 4, 2, 2).clamp(-1, 1)
    part = bw.make_part("kbit", bits=2, compat="seed")
    value, grad, sent = run(part, t)
    _, binary = weights.binary(rows(t), rows(sent))
    close("value", value, steps.kbit_weights(rows(t), rows(sent), 2, "none")[0])
    close("gradient", grad, [[d * (1 - 1 / 4) * 16 for d in row] for row in binary], 1e-11)


def test_a_net_of_two_bits_packs_exactly() -> None:
    net = nn.Sequential(
        bw.nn.Conv2d(3, 8, 3, w="kbit", x="kbit"), nn.BatchNorm2d(8), bw.nn.Conv2d(8, 4, 3, w="kbit", x="kbit")
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    converted = bw.convert(net, x)
    assert converted.model is not None
    torch.testing.assert_close(converted.model(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"bits": 0}, {"weight_scale": "mean"}, {"compat": "1906.01493"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part kbit: "):
        bw.make_part("kbit", **options)
