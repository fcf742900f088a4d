"""uniform: every variant of the grid against the oracle, observers by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import ranges
from bitwright.parts.uniform import Uniform
from oracles import uniform
from oracles.compare import close, layouts, run, special

KINDS: dict[str, dict[str, Any]] = {
    "signed": {"signed": True},
    "unsigned": {"signed": False},
    "affine": {"symmetric": False},
}
VARIANTS = [
    (bits, kind, granularity)
    for bits, kind, granularity in itertools.product((1, 2, 3, 4, 8), KINDS, ("tensor", "channel"))
    if not (bits == 1 and kind == "signed")
]
RANGE = {"max": uniform.largest, "percentile": uniform.trimmed}


def grouped(t: Tensor, granularity: str, axis: int) -> list[list[float]]:
    """Values of each channel, or of the tensor."""
    moved = t.movedim(axis, 0)
    return moved.reshape(moved.shape[0], -1).tolist() if granularity == "channel" else [moved.flatten().tolist()]


def compare(
    label: str,
    part: nn.Module,
    form: Tensor,
    ranges: list[tuple[float, float]],
    axis: int,
    bits: int,
    kind: str,
) -> None:
    value, grad, sent = run(part, form)
    seen, slopes, back = form.movedim(axis, 0), grad.movedim(axis, 0), sent.movedim(axis, 0)
    got = value.movedim(axis, 0)
    for c in range(seen.shape[0]):
        low, high = ranges[c if len(ranges) > 1 else 0]
        pairs = [uniform.value(v, bits, low, high, kind) for v in seen[c].flatten().tolist()]
        close(f"{label} value", got[c].flatten(), [v for v, _ in pairs])
        close(
            f"{label} gradient",
            slopes[c].flatten(),
            [s * g for (_, s), g in zip(pairs, back[c].flatten().tolist(), strict=True)],
        )


@pytest.mark.parametrize("observer", ["max", "percentile", "mse"])
@pytest.mark.parametrize(("bits", "kind", "granularity"), VARIANTS)
def test_weights_equal_the_oracle(bits: int, kind: str, granularity: str, observer: str) -> None:
    part = bw.make_part("uniform", bits=bits, granularity=granularity, observer=observer, **KINDS[kind])
    # more than 500 values a channel, so that the percentile leaves something out
    t = special(3, 6, 10, 10) if observer == "percentile" else special(3, 4, 2, 2)
    for label, form in layouts(t):
        ranges = [
            uniform.least_error(v, bits, kind) if observer == "mse" else RANGE[observer](v)
            for v in grouped(form, granularity, 0)
        ]
        compare(label, part, form, ranges, 0, bits, kind)


@pytest.mark.parametrize(("bits", "kind", "granularity"), VARIANTS)
def test_calibrated_inputs_equal_the_oracle(bits: int, kind: str, granularity: str) -> None:
    part = bw.make_part(
        "uniform", slot="x", layer=nn.Conv2d(4, 2, 1), bits=bits, granularity=granularity, **KINDS[kind]
    ).double()
    seen = special(3, 4, 2, 2, seed=1)
    part.observe(seen)  # type: ignore[operator]
    ranges = [uniform.largest(v) for v in grouped(seen, granularity, 1)]
    part.eval()
    for label, form in layouts(special(3, 4, 2, 2) * 1.5):
        compare(label, part, form, ranges, 1, bits, kind)


def test_signed_grid_by_hand() -> None:
    # 3 bits: -3..3, step 1 for a largest magnitude 3; 1.5 and 2.5 tie to 2, -0.5 to 0
    w = torch.tensor([3.0, -2.4, 1.5, 2.5, -0.5])
    assert bw.make_part("uniform", bits=3)(w).tolist() == [3.0, -2.0, 2.0, 2.0, 0.0]


def test_unsigned_grid_by_hand() -> None:
    # 2 bits, largest 6: step 2, levels 0 2 4 6; below 0 clipped
    w = torch.tensor([6.0, 1.2, 3.0, -5.0])
    assert bw.make_part("uniform", bits=2, signed=False)(w).tolist() == [6.0, 2.0, 4.0, 0.0]


def test_affine_grid_by_hand() -> None:
    # 2 bits, -1..2: step 1, zero point 1, levels -1 0 1 2
    w = torch.tensor([-1.0, 2.0, 0.4, 0.6])
    assert bw.make_part("uniform", bits=2, symmetric=False)(w).tolist() == [-1.0, 2.0, 0.0, 1.0]


def test_affine_range_always_holds_zero() -> None:
    # values 2..3 only: the range is 0..3, so that zero padding stays exact
    w = torch.tensor([2.0, 3.0])
    code = bw.make_part("uniform", bits=2, symmetric=False).encode(w)  # type: ignore[operator]
    assert code.offset.item() == 0 and code.value().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_plus_and_minus_the_largest_are_exact_on_the_symmetric_grid(bits: int) -> None:
    w = torch.tensor([0.7, -0.7, 0.1], dtype=torch.float64)
    close("ends", bw.make_part("uniform", bits=bits)(w)[:2], [0.7, -0.7], 2e-16)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from(list(KINDS)),
    st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=6),
)
def test_weights_equal_the_oracle_anywhere(bits: int, kind: str, w: list[float]) -> None:
    got = bw.make_part("uniform", bits=bits, **KINDS[kind])(torch.tensor(w, dtype=torch.float64))
    low, high = uniform.largest(w)
    close("value", got, [uniform.value(v, bits, low, high, kind)[0] for v in w])


# -- observers


def inputs(observer: str = "max", **options: Any) -> nn.Module:
    return bw.make_part("uniform", slot="x", observer=observer, **options)


def top(part: nn.Module) -> float:
    return part.high.item()  # type: ignore[operator]


def test_max_keeps_the_largest_seen() -> None:
    part = inputs()
    for high in (2.0, 5.0, 3.0):
        part.observe(torch.tensor([0.0, high]))  # type: ignore[operator]
    assert top(part) == 5.0


def test_ema_averages_with_momentum_one_tenth_in_training_too() -> None:
    part = inputs("ema").train()
    part(torch.tensor([0.0, 2.0]))
    assert top(part) == 2.0  # the first batch replaces the guess
    part(torch.tensor([0.0, 12.0]))
    assert top(part) == pytest.approx(3.0)
    part.eval()(torch.tensor([0.0, 99.0]))
    assert top(part) == pytest.approx(3.0)


@pytest.mark.parametrize("observer", ["max", "percentile", "mse"])
def test_the_first_training_batch_sets_a_range_that_nobody_calibrated_and_only_that(observer: str) -> None:
    part = inputs(observer).train()
    part(torch.tensor([0.0, 4.0, 1.0]))
    first = top(part)
    assert first != 1.0
    part(torch.tensor([0.0, 40.0]))
    assert top(part) == first
    calibrated = inputs(observer)
    calibrated.observe(torch.tensor([0.0, 8.0]))  # type: ignore[operator]
    kept = top(calibrated)
    calibrated.train()(torch.tensor([0.0, 100.0]))
    assert top(calibrated) == kept


@pytest.mark.parametrize("observer", ["max", "percentile", "mse"])
def test_later_training_batches_are_not_measured(observer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    true_limits = ranges.limits
    monkeypatch.setattr("bitwright.parts.uniform.limits", lambda *a, **kw: measured.append(1) or true_limits(*a, **kw))
    part = Uniform(4, observer=observer, slot="x")
    for _ in range(3):
        part(torch.randn(4, 3))
    assert len(measured) == 1
    part.observe(torch.randn(4, 3))  # calibration does
    assert len(measured) == 2


def test_percentile_leaves_out_the_top_thousandth() -> None:
    part = inputs("percentile")
    part.observe(torch.arange(1, 2001).float())  # type: ignore[operator]
    assert top(part) == 1998.0


def test_percentile_counts_kept_weights_alone() -> None:
    part = bw.make_part("uniform", bits=4, signed=False, observer="percentile")
    kept = torch.arange(1, 1001).float()
    w, keep = torch.cat([kept, torch.full((1000,), 1e6)]), torch.cat([torch.ones(1000), torch.zeros(1000)])
    assert part(w, keep=keep)[:1000].max().item() == pytest.approx(999.0)


def test_mse_shrinks_a_range_that_an_outlier_stretches() -> None:
    w = torch.cat([torch.linspace(-1, 1, 400), torch.tensor([4.0])]).double()
    plain, best = (bw.make_part("uniform", bits=3, observer=o)(w) for o in ("max", "mse"))
    assert (best - w).square().mean() < (plain - w).square().mean()


def test_mse_of_the_affine_grid_measures_the_affine_grid() -> None:
    # nearly all values are negative: an unsigned yardstick would see only the one positive value
    w = torch.cat([torch.linspace(-1, 0, 400), torch.tensor([-6.0, 0.1])]).double()
    plain, best = (bw.make_part("uniform", bits=3, symmetric=False, observer=o)(w) for o in ("max", "mse"))
    assert (best - w).square().mean() < (plain - w).square().mean()


def test_an_empty_batch_teaches_nothing() -> None:
    part = inputs()
    part.observe(torch.zeros(0, 3))  # type: ignore[operator]
    assert part.seen.item() == 0 and top(part) == 1.0  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("observer", ["max", "ema", "percentile", "mse"])
def test_observers_work_in_a_net_of_another_dtype(observer: str, dtype: torch.dtype) -> None:
    part = inputs(observer).to(dtype).train()
    for _ in range(2):
        assert part(torch.rand(4, 3).to(dtype)).dtype == dtype
        part.observe(torch.rand(4, 3).to(dtype))  # type: ignore[operator]
    assert part.high.dtype == dtype


def test_channels_of_a_linear_layer_are_its_last_axis() -> None:
    part = bw.make_part("uniform", slot="x", layer=nn.Linear(3, 2), granularity="channel", bits=2)
    part.observe(torch.tensor([3.0, 6.0, 9.0]).expand(2, 5, 3))  # type: ignore[operator]
    assert part.high.tolist() == [3.0, 6.0, 9.0]  # type: ignore[operator]
    assert part.eval()(torch.full((2, 5, 3), 100.0))[0, 0].tolist() == [3.0, 6.0, 9.0]


def test_weights_need_no_observation() -> None:
    part = bw.make_part("uniform", bits=3)
    part.observe(torch.randn(4))  # type: ignore[operator]
    assert not part.state_dict()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"granularity": "filter"}, "granularity='filter' is neither tensor nor channel"),
        ({"observer": "median"}, "observer='median' is none of max, ema, percentile, mse"),
        ({"observer": "ema"}, "observer='ema' serves inputs"),
        ({"bits": 1}, "bits=1 signed has only the level 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        bw.make_part("uniform", **options)
