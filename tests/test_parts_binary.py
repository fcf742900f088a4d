"""bwn, xnor, bireal: values from the papers by hand, gradients against formula (1)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from oracles import weights
from oracles.compare import check_weights, close, layouts, rows, run, special

SHAPE = (3, 4, 2, 2)


def test_bwn_scale_is_the_mean_magnitude_of_each_filter_and_zero_counts_as_plus() -> None:
    w = torch.tensor([[1.0, -2.0, 3.0], [0.0, -1.0, 0.5]])
    assert bw.make_part("bwn")(w).tolist() == [[2.0, -2.0, 2.0], [0.5, -0.5, 0.5]]


def test_bwn_of_a_layer_has_one_scale() -> None:
    w = torch.tensor([[1.0, -2.0], [0.0, -1.0]])
    assert bw.make_part("bwn", granularity="layer")(w).tolist() == [[1.0, -1.0], [1.0, -1.0]]


def test_bwn_gradient_by_hand() -> None:
    # w = (0.5, -2, 0), scale 2.5/3; g = (1, 10, 100), signs + - +: sum g sign = 91, over n: 91/3
    # dw = (scale * 1 + 91/3, 0 (|w| > 1) - 91/3, scale * 100 + 91/3)
    w = torch.tensor([[0.5, -2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    bw.make_part("bwn")(w).backward(torch.tensor([[1.0, 10.0, 100.0]], dtype=torch.float64))
    assert w.grad is not None
    close("by hand", w.grad, [[2.5 / 3 + 91 / 3, -91 / 3, 250 / 3 + 91 / 3]])


@pytest.mark.parametrize("shared", [False, True])
def test_bwn_equals_formula_1(shared: bool) -> None:
    part = bw.make_part("bwn", granularity="layer" if shared else "filter")
    check_weights(part, lambda w, g: weights.binary(w, g, shared), special(*SHAPE))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.25, 1.5, -3.0, 1e-20]), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_bwn_equals_formula_1_on_ties(w: list[list[float]]) -> None:
    value, grad, sent = run(bw.make_part("bwn"), torch.tensor(w, dtype=torch.float64))
    expected, slope = weights.binary(w, rows(sent))
    close("value", value, expected)
    close("gradient", grad, slope)


def test_bwn_after_step_clips_and_twice_is_once() -> None:
    w = torch.tensor([[1.5, -3.0, 0.25]])
    step = bw.make_part("bwn").after_step
    step(w)  # type: ignore[operator]
    assert w.tolist() == [[1.0, -1.0, 0.25]]
    step(w)  # type: ignore[operator]
    assert w.tolist() == [[1.0, -1.0, 0.25]]


@pytest.mark.parametrize("center", ["project", "off"])
def test_xnor_forward_and_gradient_are_formula_1(center: str) -> None:
    check_weights(bw.make_part("xnor", center=center), weights.binary, special(*SHAPE))


def test_xnor_graph_centers_and_clips_in_forward() -> None:
    check_weights(bw.make_part("xnor", center="graph"), lambda w, g: weights.centered_binary(w, g, 4), special(*SHAPE))


def test_xnor_graph_by_hand_and_leaves_the_latents_alone() -> None:
    # mean 2: centered (-2, 1, 1) -> clipped (-1, 1, 1), scale 1
    part = bw.make_part("xnor", center="graph")
    w = torch.tensor([[0.0, 3.0, 3.0]])
    assert part(w).tolist() == [[-1.0, 1.0, 1.0]]
    part.after_step(w)  # type: ignore[operator]
    assert w.tolist() == [[0.0, 3.0, 3.0]]


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 1, 2, 2), (5, 6)])
def test_xnor_projection_centers_each_position_over_the_inputs_then_clips(shape: tuple[int, ...]) -> None:
    for label, form in layouts(special(*shape)) if len(shape) == 4 else [("linear", special(*shape))]:
        w = form.clone()
        bw.make_part("xnor").after_step(w)  # type: ignore[operator]
        close(label, w, weights.project(rows(form), shape[1]))


def test_xnor_projection_twice_differs_only_where_something_was_clipped() -> None:
    step = bw.make_part("xnor").after_step
    small, large = special(*SHAPE) * 0.1, special(*SHAPE) * 3
    for w, same in ((small, True), (large, False)):
        step(w)  # type: ignore[operator]
        once = w.clone()
        step(w)  # type: ignore[operator]
        assert torch.allclose(once, w, atol=1e-12) is same


def test_xnor_off_only_clips() -> None:
    w = torch.tensor([[2.0, 0.5]])
    bw.make_part("xnor", center="off").after_step(w)  # type: ignore[operator]
    assert w.tolist() == [[1.0, 0.5]]


def test_bireal_gradient_has_no_scale_and_is_closed_at_one() -> None:
    w = torch.tensor([[1.0, -2.0, 3.0, -1.0]], requires_grad=True)
    value = bw.make_part("bireal")(w)
    assert value.tolist() == [[1.75, -1.75, 1.75, -1.75]]
    value.backward(torch.tensor([[5.0, 6.0, 7.0, 8.0]]))
    assert w.grad is not None and w.grad.tolist() == [[5.0, 0.0, 0.0, 8.0]]


def test_bireal_equals_its_oracle() -> None:
    check_weights(bw.make_part("bireal"), weights.bireal, special(*SHAPE))


def test_bireal_clip_is_an_option() -> None:
    for clip, expected in ((True, [1.0, -1.0]), (False, [1.5, -3.0])):
        w = torch.tensor([1.5, -3.0])
        bw.make_part("bireal", clip=clip).after_step(w)  # type: ignore[operator]
        assert w.tolist() == expected


@pytest.mark.parametrize("name", ["bwn", "xnor"])
def test_masked_statistics_by_hand(name: str) -> None:
    w, keep = torch.tensor([[2.0, 4.0, -100.0]]), torch.tensor([[1, 1, 0]])
    part = bw.make_part(name)
    assert part(w, keep=keep)[0, :2].tolist() == [3.0, 3.0]
    part.after_step(w, keep=keep)  # type: ignore[operator]
    # bwn clips; xnor first takes the mean of the kept ones, 3, away from them alone
    assert w.tolist() == ([[1.0, 1.0, -1.0]] if name == "bwn" else [[-1.0, 1.0, -1.0]])


def test_masked_statistics_of_a_vector_stay_per_entry() -> None:
    w = torch.tensor([1.0, -2.0])
    assert bw.make_part("bwn")(w, keep=torch.ones(2)).tolist() == bw.make_part("bwn")(w).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(("name", "word"), [("bwn", "granularity"), ("xnor", "center")])
def test_a_wrong_word_is_refused_with_the_possible_ones(name: str, word: str) -> None:
    with pytest.raises(InputError, match=f"part {name}: {word}='tensor'"):
        bw.make_part(name, **{word: "tensor"})  # type: ignore[arg-type]


def test_a_warning_names_filters_that_centering_would_empty() -> None:
    conv = nn.Conv2d(4, 3, 3)
    with torch.no_grad():
        conv.weight[1] = 0.25  # equal over the inputs: centered to 0
    with pytest.warns(BitwrightWarning, match="xnor: 1 of 3 filters"):
        bw.make_part("xnor", layer=conv)
    bw.make_part("xnor", layer=conv, center="off")
    bw.make_part("bwn", layer=conv)  # not zero as it stands: no warning
