"""twn: threshold, mean of the survivors, nothing left over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.errors import InputError
from oracles import steps
from oracles.compare import check_weights, special


def test_threshold_and_size_by_hand_per_filter_and_per_layer() -> None:
    w = torch.tensor([[1.0, -3.0, 0.5, 0.0], [10.0, -10.0, 10.0, 10.0]])
    # filter 0: mean 1.125, d 0.7875, survivors 1 and 3; filter 1: all survive
    assert bw.make_part("twn")(w).tolist() == [[2.0, -2.0, 0.0, 0.0], [10.0, -10.0, 10.0, 10.0]]
    # layer: mean 5.5625, d 3.89, only the second filter survives
    assert bw.make_part("twn", granularity="layer")(w).tolist() == [[0.0] * 4, [10.0, -10.0, 10.0, 10.0]]


def test_the_comparison_is_strict() -> None:
    w = torch.tensor([[1.0, 3.0]])  # mean 2, delta 0.5: d = 1
    assert bw.make_part("twn", delta=0.5)(w).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize(("granularity", "delta"), [("filter", 0.7), ("layer", 0.7), ("filter", 0.0), ("layer", 1.2)])
def test_equals_the_oracle(granularity: str, delta: float) -> None:
    part = bw.make_part("twn", granularity=granularity, delta=delta)
    check_weights(part, lambda w, g: steps.twn(w, g, granularity == "layer", delta), special(3, 4, 2, 2))


def test_pruned_weights_move_neither_threshold_nor_size() -> None:
    w, keep = torch.tensor([[1.0, 1.0, 0.1, 50.0]]), torch.tensor([[1, 1, 1, 0]])
    # kept: mean 0.7, d 0.49, survivors 1 and 1
    assert bw.make_part("twn")(w, keep=keep).tolist()[0][:3] == [1.0, 1.0, 0.0]


def test_code_and_whole_numbers() -> None:
    part, w = bw.make_part("twn"), torch.tensor([[1.0, -3.0, 0.5, 0.0]])
    code = part.encode(w)  # type: ignore[operator]
    assert code.bit.tolist() == [[[1, 0, 0, 0]], [[0, 1, 0, 0]]]
    assert code.coef.flatten().tolist() == [2.0, -2.0]
    number, unit = part.whole(w)  # type: ignore[operator]
    assert number.tolist() == [[1, -1, 0, 0]] and unit.tolist() == [[2.0]]


@pytest.mark.parametrize("options", [{"granularity": "tensor"}, {"delta": -0.1}, {"delta": float("nan")}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part twn: "):
        bw.make_part("twn", **options)
