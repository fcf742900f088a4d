"""Coded and its builders: every code of every width."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.fn.coded import masked_code, planes_of, sign_code, ternary_code, uint_code
from bitwright.fn.ste import sign, ste
from bitwright.types import Coded


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_are_the_binary_digits_lowest_first(bits: int) -> None:
    codes = torch.arange(2**bits)
    planes = planes_of(codes, bits)
    assert planes.dtype == torch.uint8 and planes.shape == (bits, 2**bits)
    for code in range(2**bits):
        assert planes[:, code].tolist() == [int(d) for d in reversed(f"{code:0{bits}b}")]


@pytest.mark.parametrize("bits", range(1, 9))
def test_unsigned_codes_of_one_step_are_exact(bits: int) -> None:
    code = uint_code(torch.arange(2**bits).float(), bits, torch.tensor(0.25), torch.tensor(-3.0))
    assert code.value().tolist() == [0.25 * k - 3 for k in range(2**bits)] and code.planes == bits


def test_a_step_per_channel_broadcasts() -> None:
    step = torch.tensor([1.0, 10.0]).reshape(2, 1, 1)
    code = uint_code(torch.tensor([[[0.0, 3.0]], [[1.0, 2.0]]]), 2, step, -step)
    assert code.value().tolist() == [[[-1.0, 2.0]], [[0.0, 10.0]]]
    assert code.bit.shape == (2, 2, 1, 2) and code.coef.shape == (2, 2, 1, 1)


def test_signs_have_one_plane_and_zero_is_plus() -> None:
    code = sign_code(torch.tensor([[-0.0, -2.0, 5.0]]), torch.tensor([[0.5]]))
    assert code.bit.tolist() == [[[1, 0, 1]]] and code.value().tolist() == [[0.5, -0.5, 0.5]]


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_ternary_codes_have_two_planes(shape: tuple[int, ...]) -> None:
    w = torch.tensor([[2.0, 0.0, -2.0], [0.0, 2.0, 2.0]])
    code = ternary_code(w > 1, w < -1, torch.full(shape, 3.0), torch.full(shape, 4.0))
    assert code.planes == 2 and code.value().tolist() == [[3.0, 0.0, -4.0], [0.0, 3.0, 3.0]]


def test_a_mask_is_anded_and_an_offset_becomes_the_plane_of_the_mask() -> None:
    keep = torch.tensor([[True, False], [False, True]])
    base = sign_code(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[0.5], [2.0]]))
    code = masked_code(base, keep)
    assert code.value().tolist() == [[0.5, 0.0], [0.0, -2.0]]
    assert code.planes == base.planes + 1 and not code.offset.any()
    assert torch.equal(code.bit[-1], keep.to(torch.uint8))
    free = masked_code(ternary_code(keep, ~keep, torch.tensor(3.0), torch.tensor(4.0)), keep)
    assert free.planes == 2 and free.value().tolist() == [[3.0, 0.0], [0.0, 3.0]]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=1, max_size=9),
    st.sampled_from([0.0, -4.0, 2.5]),
)
def test_masked_codes_are_the_value_where_kept_and_zero_elsewhere(
    bits: int, entries: list[tuple[int, bool]], offset: float
) -> None:
    codes = torch.tensor([c % 2**bits for c, _ in entries]).float()
    keep = torch.tensor([k for _, k in entries])
    base = uint_code(codes, bits, torch.tensor(0.5), torch.tensor(offset))
    expected = [0.5 * c + offset if k else 0.0 for c, k in zip(codes.tolist(), keep.tolist(), strict=True)]
    assert masked_code(base, keep).value().tolist() == expected


def test_coded_is_frozen() -> None:
    code = Coded(torch.zeros(1, 2, dtype=torch.uint8), torch.ones(1, 1), torch.zeros(()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        code.bit = torch.ones(1)  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ste_has_exactly_the_value_of_y_and_the_slope_of_x(dtype: torch.dtype) -> None:
    x = torch.randn(50, dtype=dtype, requires_grad=True)
    y = (torch.randn(50) * 1e-3).to(dtype)
    value = ste(x, y, torch.full((50,), 0.5))
    assert torch.equal(value, y) and value.dtype == dtype
    value.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and (x.grad == 0.5).all()


def test_ste_leaves_no_gradient_to_y_or_slope() -> None:
    x, y, slope = (torch.ones(2, requires_grad=True) for _ in range(3))
    ste(x, y, slope).sum().backward()
    assert x.grad is not None and y.grad is None and slope.grad is None


@pytest.mark.parametrize("needs_grad", [True, False])
def test_a_module_that_works_in_place_may_follow(needs_grad: bool) -> None:
    x = torch.tensor([0.5, -0.5, 2.0], requires_grad=needs_grad)
    y = torch.relu_(ste(x, sign(x), x.detach().abs() <= 1))
    assert y.tolist() == [1.0, 0.0, 1.0]
    if needs_grad:
        y.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [1.0, 0.0, 0.0]


def test_sign_has_no_zero_and_keeps_nan() -> None:
    assert sign(torch.tensor([0.0, -0.0, 2.0, -2.0, torch.inf, -torch.inf])).tolist() == [1, 1, 1, -1, 1, -1]
    assert sign(torch.tensor([torch.nan])).isnan().all()
