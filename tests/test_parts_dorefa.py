"""dorefa_w, dorefa_a: all codes by hand, all k against the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bitwright as bw
from bitwright.errors import InputError
from oracles import inputs, weights
from oracles.compare import check_inputs, check_weights, close, special

BITS = range(1, 9)


def test_one_bit_weights_are_the_mean_magnitude_of_the_layer() -> None:
    # (1 + 3 + 0 + 2) / 4 = 1.5, layer-wise; not +-1, not per filter
    assert bw.make_part("dorefa_w", bits=1)(torch.tensor([[1.0, -3.0], [0.0, -2.0]])).tolist() == [
        [1.5, -1.5],
        [1.5, -1.5],
    ]


def test_two_bit_weights_by_hand() -> None:
    # tanh of +-1.5 is the largest: ends of the grid.
    # 0 -> 1/2 * 3 = 1.5, ties to even 2 -> 2 * 2/3 - 1 = 1/3: no zero level
    w = torch.tensor([1.5, -1.5, 0.0], dtype=torch.float64)
    close("value", bw.make_part("dorefa_w", bits=2)(w), [1.0, -1.0, 1 / 3])


def test_weight_gradient_by_hand() -> None:
    # (1 - tanh(1)^2) / tanh(2) at w = 1, where 2 is the largest
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    bw.make_part("dorefa_w", bits=4)(w)[0].backward()
    assert w.grad is not None
    close("gradient", w.grad, [(1 - math.tanh(1) ** 2) / math.tanh(2), 0.0])


@pytest.mark.parametrize("bits", BITS)
def test_weights_equal_the_oracle(bits: int) -> None:
    check_weights(bw.make_part("dorefa_w", bits=bits), lambda w, g: weights.dorefa(w, g, bits), special(3, 4, 2, 2))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_of_two_bits_and_more_take_odd_multiples_of_one_step(bits: int) -> None:
    n = 2**bits - 1
    w = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    code = bw.make_part("dorefa_w", bits=bits)(w) * n
    assert torch.allclose(code, code.round(), atol=1e-9)
    assert code.round().unique().tolist() == [float(2 * k - n) for k in range(n + 1)]


@pytest.mark.parametrize("bits", BITS)
def test_a_layer_of_zeros_gives_zero(bits: int) -> None:
    w = torch.zeros(2, 3, requires_grad=True)
    value = bw.make_part("dorefa_w", bits=bits)(w)
    value.sum().backward()
    assert (value == 0).all() and w.grad is not None and torch.isfinite(w.grad).all()


def test_pruned_weights_do_not_set_the_range() -> None:
    w, keep = torch.tensor([0.5, -0.5, 9.0], dtype=torch.float64), torch.tensor([1, 1, 0])
    close("kept", bw.make_part("dorefa_w", bits=2)(w, keep=keep)[:2], [1.0, -1.0])
    close("one bit", bw.make_part("dorefa_w", bits=1)(w, keep=keep)[:2], [0.5, -0.5])


def test_inputs_by_hand() -> None:
    # 2 bits: levels 0, 1/3, 2/3, 1; 0.5 * 3 = 1.5 ties to 2
    x = torch.tensor([-1.0, 0.0, 0.1, 0.2, 0.5, 1.0, 7.0], dtype=torch.float64)
    close("value", bw.make_part("dorefa_a", bits=2)(x), [0, 0, 0, 1 / 3, 2 / 3, 1, 1])


def test_one_bit_inputs_have_their_threshold_at_one_half() -> None:
    # a public code returns 1 for every x > 0; 0.5 itself ties to even 0
    x = torch.tensor([0.01, 0.49, 0.5, 0.51])
    assert bw.make_part("dorefa_a", bits=1)(x).tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("bits", BITS)
def test_inputs_equal_the_oracle(bits: int) -> None:
    check_inputs(bw.make_part("dorefa_a", bits=bits), lambda v: inputs.dorefa(v, bits), special(3, 4, 2, 2))


@pytest.mark.parametrize("bits", BITS)
def test_every_input_code_is_a_fixed_point(bits: int) -> None:
    part, n = bw.make_part("dorefa_a", bits=bits), 2**bits - 1
    x = torch.arange(n + 1) / n
    code = part.encode(x)  # type: ignore[operator]
    assert torch.equal((code.bit * (1 << torch.arange(bits))[:, None]).sum(0), torch.arange(n + 1))
    assert torch.allclose(part(x), x, rtol=0, atol=1.2e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=8))
def test_inputs_equal_the_oracle_anywhere(bits: int, x: list[float]) -> None:
    got = bw.make_part("dorefa_a", bits=bits)(torch.tensor(x, dtype=torch.float64))
    close("value", got, [inputs.dorefa(v, bits)[0] for v in x])


def test_the_gradient_of_inputs_is_closed_at_both_ends() -> None:
    x = torch.tensor([-0.001, -0.0, 0.0, 1.0, 1.001], requires_grad=True)
    bw.make_part("dorefa_a", bits=3)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["dorefa_w", "dorefa_a", "uniform"])
@pytest.mark.parametrize("bits", [0, 9, 31, -1, 2.5, True, "4"])
def test_bits_outside_1_to_8_are_refused_with_the_range(name: str, bits: object) -> None:
    with pytest.raises(InputError, match=f"part {name}: bits=.*takes 1..8, or 32 for float") as caught:
        bw.make_part(name, bits=bits)
    assert caught.value.code == "bits"
