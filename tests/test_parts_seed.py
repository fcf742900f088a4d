"""compat="seed": the public codes' quirks of bwn, xnor, sign, dorefa_w and ttq, by hand; and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import moment
from oracles import weights
from oracles.compare import close, rows, run, special


def grad_of(part: nn.Module, w: torch.Tensor, sent: list[float]) -> list[float]:
    w = w.clone().requires_grad_()
    part(w).backward(torch.tensor(sent, dtype=w.dtype).reshape(w.shape))
    assert w.grad is not None
    return w.grad.flatten().tolist()


@pytest.mark.parametrize("name", ["bwn", "xnor"])
def test_a_zero_weight_is_a_third_value_with_codes_of_two_planes(name: str) -> None:
    part, w = bw.make_part(name, compat="seed"), torch.tensor([[3.0, 0.0, -3.0]])
    assert part(w).tolist() == [[2.0, 0.0, -2.0]]
    code = part.encode(w)  # type: ignore[operator]
    assert code.bit.tolist() == [[[1, 0, 0]], [[0, 0, 1]]] and code.value().tolist() == [[2.0, 0.0, -2.0]]


def test_bwn_stops_what_is_larger_than_the_mean() -> None:
    w = torch.tensor([[1.0, -2.0, 3.0]])
    assert grad_of(bw.make_part("bwn", compat="seed"), w, [5.0, 6.0, 7.0]) == [5.0, 6.0, 0.0]
    assert moment(bw.make_part("bwn", compat="seed"), "after_step") is None


def test_bwn_has_one_scale_in_a_linear_layer_and_one_per_filter_in_a_convolution() -> None:
    part, w = bw.make_part("bwn", compat="seed"), torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    assert part(w).tolist() == [[2.0, -2.0], [2.0, -2.0]]
    assert part(w.reshape(2, 2, 1, 1)).flatten().tolist() == [1.0, -1.0, 3.0, -3.0]


def test_xnor_multiplies_the_gradient() -> None:
    t = special(3, 4, 2, 2)
    t[t == 0] = 0.1
    value, grad, sent = run(bw.make_part("xnor", compat="seed"), t)
    expected, plain = weights.binary(rows(t), rows(sent))
    close("value", value, expected)
    close("gradient", grad, [[d * (1 - 1 / 4) * 16 for d in row] for row in plain], 1e-11)


def test_sign_keeps_zero_and_has_an_open_end() -> None:
    part = bw.make_part("sign", compat="seed")
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0, 2.0])
    assert part(x).tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]
    assert grad_of(part, x, [1.0] * 5) == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert torch.equal(part.encode(x).value(), part(x))  # type: ignore[operator]


def test_dorefa_of_one_bit_has_no_scale_and_sends_zero_down() -> None:
    w = torch.tensor([[0.5, 0.0, -0.1]])
    assert bw.make_part("dorefa_w", bits=1, compat="seed")(w).tolist() == [[1.0, -1.0, -1.0]]
    t = special(3, 4, 2, 2)
    _, grad, sent = run(bw.make_part("dorefa_w", bits=1, compat="seed"), t)
    close("gradient", grad, weights.dorefa(rows(t), rows(sent), 2)[1])  # the slope of k > 1 knows no k


def test_ttq_walks_uphill_below_and_averages_its_scales() -> None:
    part: Any = bw.make_part("ttq", compat="seed")
    assert 0 <= part.p.item() < 1 and 0 <= part.n.item() < 1
    with torch.no_grad():
        part.p.fill_(0.5)
        part.n.fill_(0.25)
    w = torch.tensor([[1.0, 0.0, -1.0, -2.0]])
    assert part(w).tolist() == [[0.5, 0.0, -0.25, -0.25]]
    assert grad_of(part, w, [8.0, 4.0, 2.0, 16.0]) == [4.0, 4.0, -0.5, -4.0]
    assert part.p.grad.item() == 8 / 4 and part.n.grad.item() == -(2 + 16) / 4


def test_a_net_of_third_values_packs() -> None:
    net = nn.Sequential(
        bw.nn.Conv2d(3, 8, 3, w={"part": "xnor", "compat": "seed"}, x={"part": "sign", "compat": "seed"})
    ).eval()
    with torch.no_grad():
        net[0].weight[torch.rand(8, 3, 3, 3) < 0.2] = 0  # type: ignore[index, operator]
    x = torch.randn(2, 3, 8, 8).masked_fill(torch.rand(2, 3, 8, 8) < 0.2, 0.0)
    converted = bw.convert(net, x)
    assert converted.model is not None
    torch.testing.assert_close(converted.model(x), net(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["bwn", "xnor", "sign", "dorefa_w", "ttq"])
def test_another_code_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"part {name}: compat='paper' is none of seed"):
        bw.make_part(name, compat="paper")
