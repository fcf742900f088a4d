"""sign_magnitude: the grid, where its scale comes from, and the public code's quirks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import moment
from oracles import steps
from oracles.compare import check_inputs, check_weights, special


def test_levels_by_hand() -> None:
    w = torch.tensor([[3.0, -1.4, 0.5, -0.5, 1.5, 0.0]])  # largest 3, two bits: steps of 1, halves to even
    assert bw.make_part("sign_magnitude", bits=2)(w).tolist() == [[3.0, -1.0, 0.0, 0.0, 2.0, 0.0]]
    assert bw.make_part("sign_magnitude", bits=1)(w).tolist() == [[3.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


def test_b_bits_of_magnitude_are_b_and_one_true_bits() -> None:
    part = bw.make_part("sign_magnitude", bits=3)
    assert (part.bits, part.planes, part.storage_bits) == (3, 4, 4)
    assert part(torch.linspace(-1, 1, 1001)).unique().numel() == 15


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_weights_equal_the_oracle(bits: int) -> None:
    def oracle(w: Any, g: Any) -> Any:
        largest = max(abs(v) for row in w for v in row)
        seen = [[steps.sign_magnitude(v, largest, bits) for v in row] for row in w]
        return [[v for v, _ in r] for r in seen], [
            [s * d for (_, s), d in zip(r, gr, strict=True)] for r, gr in zip(seen, g, strict=True)
        ]

    check_weights(bw.make_part("sign_magnitude", bits=bits), oracle, special(3, 4, 2, 2))


def test_calibrated_inputs_equal_the_oracle_beyond_their_range_too() -> None:
    part = bw.make_part("sign_magnitude", slot="x", bits=3).double().eval()
    part.observe(torch.tensor([0.25, -1.5]))  # type: ignore[operator]
    check_inputs(part, lambda v: steps.sign_magnitude(v, 1.5, 3), special(3, 4, 2, 2))


def test_where_the_scale_of_inputs_comes_from() -> None:
    one, two = torch.tensor([[1.0]]), torch.tensor([[-2.0]])
    for scale, after_two, after_calibration in (("max", 1.1, 4.0), ("static", 1.0, 4.0)):
        part: Any = bw.make_part("sign_magnitude", slot="x", scale=scale).train()
        part(one)
        part(two)
        assert part.high.item() == pytest.approx(after_two)  # a tenth of the way from 1 to 2
        part.observe(2 * two)
        part.eval()(100 * two)
        part(torch.tensor([[torch.nan]]))
        assert part.high.item() == after_calibration
    dynamic = bw.make_part("sign_magnitude", slot="x", scale="batch_max", bits=1).eval()
    assert dynamic(torch.tensor([[0.1, 0.4]])).tolist() == [[0.0, pytest.approx(0.4)]]
    assert moment(dynamic, "encode") is None


def test_a_static_weight_scale_stays_when_the_weight_moves() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -1.0]]))
    part = bw.make_part("sign_magnitude", layer=layer, scale="static", bits=1)
    assert part(torch.tensor([[3.0, -0.2]])).tolist() == [[1.0, 0.0]]


def test_seed_quirks_by_hand() -> None:
    w = torch.tensor([[2.0, 0.0, -0.5]], dtype=torch.float64, requires_grad=True)
    value = bw.make_part("sign_magnitude", bits=2, compat="seed")(w)
    value.backward(torch.ones_like(w))
    s = 2 + 1e-7
    assert value.tolist()[0] == pytest.approx([s, 0.0, -s / 3], abs=1e-12)
    assert w.grad is not None and w.grad.tolist() == [[1.0, 0.0, 1.0]]
    # one bit: 0 gives -1, everything passes; weights and what passes shrink by sqrt(1 / 4), for the scale comes last
    w = torch.tensor([[2.0, 0.0, -0.5, 1.0]], requires_grad=True)
    value = bw.make_part("sign_magnitude", bits=1, compat="seed")(w)
    value.sum().backward()
    assert value.tolist() == [[0.5, -0.5, -0.5, 0.5]] and w.grad is not None and w.grad.tolist() == [[0.5] * 4]
    x = torch.tensor([[2.0, 0.0]], requires_grad=True)
    value = bw.make_part("sign_magnitude", slot="x", bits=1, compat="seed")(x)
    value.sum().backward()
    assert value.tolist() == [[1.0, -1.0]] and x.grad is not None and x.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("options", [{"bits": 9}, {"scale": "mean"}, {"compat": "pg"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part sign_magnitude: "):
        bw.make_part("sign_magnitude", **options)
