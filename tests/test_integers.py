"""Codes as whole numbers: for every shipped weight part the integers times their units are the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.packing import NotInteger, grid_of, storable, weight_terms
from bitwright.engine.reference import whole_numbers
from bitwright.parts import moment
from bitwright.types import Coded

OFFSET = "the offset is not the same multiple of a step"
WEIGHTS: list[Any] = [
    "bwn",
    {"part": "bwn", "granularity": "layer"},
    "xnor",
    {"part": "xnor", "center": "graph"},
    "bireal",
    "ttq",
    *[{"part": "dorefa_w", "bits": b} for b in range(1, 9)],
    *[{"part": "uniform", "bits": b} for b in range(2, 9)],
    *[{"part": "uniform", "bits": b, "signed": False} for b in (1, 4, 8)],
    {"part": "uniform", "bits": 3, "granularity": "channel"},
    {"part": "uniform", "bits": 8, "granularity": "channel", "symmetric": False},
    {"part": "uniform", "bits": 4, "symmetric": False},
]


def layer(w: Any, masked: bool = False) -> Any:
    made: Any = bw.nn.Conv2d(5, 4, 3, w=[w, "mask"] if masked else w)
    if masked:
        made.w.mask.mask.copy_(torch.rand(made.weight.shape) > 0.4)
        made.w.mask.mask[1] = 0  # one filter is pruned whole
    return made.eval()


def encoded(one: Any) -> Coded:
    encode = moment(one.w, "encode")
    assert encode is not None
    return encode(one.weight.detach())


def rebuilt(bit: Tensor, terms: list[Any]) -> Tensor:
    """One weight at a time: unit * (zero + sum of mult * bit)."""
    out = torch.zeros(bit.shape[1:], dtype=torch.float64)
    for t in terms:
        for at in torch.cartesian_prod(*[torch.arange(s) for s in bit.shape[1:]]).tolist():
            where = tuple(at)
            whole = t.zero + sum(m * int(bit[(p, *where)]) for p, m in zip(t.planes, t.mult, strict=True))
            out[where] += float(t.unit[where[0]]) * whole
    return out


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("w", WEIGHTS, ids=str)
def test_integers_times_units_are_the_weight(w: Any, masked: bool) -> None:
    one = layer(w, masked)
    code = encoded(one)
    affine = isinstance(w, dict) and w.get("granularity") == "channel" and not w.get("symmetric", True)
    try:
        bit, terms = storable(code)
    except NotInteger as reason:
        text = str(reason)
        if affine:
            assert text == ("9 planes; bit kernels take 1 to 8" if masked else f"{OFFSET} in every filter")
            return
        assert masked and w == {"part": "dorefa_w", "bits": 8}, text  # 255 odd levels and 0: 9 planes
        assert text == "9 planes; bit kernels take 1 to 8"
        return
    assert bit.shape[0] <= 8 and bit.dtype == torch.uint8
    want = one.w(one.weight).detach().double()
    assert torch.allclose(rebuilt(bit, terms), want, rtol=3e-7, atol=1.2e-7 * float(want.abs().max()))
    if masked:
        assert not rebuilt(bit, terms)[one.w.mask.mask == 0].any()  # exactly 0
    for t in terms:
        assert torch.equal(whole_numbers(bit, *t.code).abs().max() <= 512, torch.tensor(True))


def test_a_zero_filter_stays_zero() -> None:
    for w in (
        "bwn",
        "bireal",
        {"part": "uniform", "bits": 4},
        {"part": "uniform", "bits": 4, "granularity": "channel"},
    ):
        with torch.no_grad():
            one = layer(w)
            one.weight[2] = 0
        bit, terms = storable(encoded(one))
        assert not rebuilt(bit, terms)[2].any(), w


def test_a_layer_of_zeros() -> None:
    for w in ({"part": "dorefa_w", "bits": 2}, "ttq", "bwn"):
        one = layer(w)
        one.weight.data.zero_()
        bit, terms = storable(encoded(one))
        assert not rebuilt(bit, terms).any(), w


@pytest.mark.parametrize(
    ("p", "n"), [(0.7, 0.3), (-0.7, 0.3), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-6, 1.0)]
)
def test_ttq_with_any_p_and_n(p: float, n: float) -> None:
    one = layer("ttq")
    one.w.p.data.fill_(p)
    one.w.n.data.fill_(n)
    bit, terms = storable(encoded(one))
    assert torch.allclose(rebuilt(bit, terms), one.w(one.weight).detach().double(), rtol=1e-6, atol=1e-12)
    assert all(abs(m) <= 1024 for t in terms for m in t.mult)  # a wild ratio becomes two terms, not a huge integer


def test_a_step_inside_a_filter_is_refused() -> None:
    code = Coded(torch.ones(1, 2, 3, dtype=torch.uint8), torch.rand(1, 2, 3), torch.zeros(()))
    with pytest.raises(NotInteger, match="the step varies inside a filter"):
        weight_terms(code)


def test_an_offset_that_is_no_multiple_is_refused() -> None:
    code = Coded(torch.ones(1, 2, 3, dtype=torch.uint8), torch.ones(1, 1, 1), torch.tensor(0.137))
    with pytest.raises(NotInteger, match=OFFSET):
        weight_terms(code)


def test_inputs_with_a_step_per_channel_are_refused() -> None:
    part: Any = bw.make_part("uniform", slot="x", layer=nn.Conv2d(3, 2, 1), granularity="channel", bits=4)
    with pytest.raises(NotInteger, match="one step per input channel"):
        grid_of(part, 3, 4)
    part.high.copy_(torch.tensor([1.0, 2.0, 3.0]))
    grid = grid_of(part, 3, 4, spread=True)
    assert grid.units == pytest.approx([1 / 15, 2 / 15, 3 / 15]) and grid.thresholds.shape == (3, 15)


def test_uneven_levels_are_refused() -> None:
    class Uneven(nn.Module):
        def encode(self, x: Tensor) -> Coded:
            bit = torch.stack([x >= 0, x >= 1]).to(torch.uint8)
            return Coded(bit, torch.tensor([1.0, 0.37]).reshape(2, *[1] * x.dim()), torch.zeros(()))

    with pytest.raises(NotInteger, match="not multiples of one step"):
        grid_of(Uneven(), 3, 4)


def test_codes_that_fall_are_refused() -> None:
    class Falling(nn.Module):
        def encode(self, x: Tensor) -> Coded:
            return Coded((x < 0).to(torch.uint8)[None], torch.ones(1, *[1] * x.dim()), torch.zeros(()))

    with pytest.raises(NotInteger, match="fall as the input rises"):
        grid_of(Falling(), 3, 4)
