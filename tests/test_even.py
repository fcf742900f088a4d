"""Even ladders: found where a quantizer rounds, and then the same code as counting thresholds for every float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright as bw
from bitwright.engine import reference
from bitwright.engine.packing import grid_of
from bitwright.engine.thresholds import EvenGrid, even_grid

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def part(name: str, seed: float, **options: Any) -> Any:
    made: Any = bw.make_part(name, slot="x", **options)
    if name == "uniform":
        made.observe(torch.linspace(-seed, 3 * seed, 64).reshape(1, 1, 8, 8))
    if name == "lsq":
        torch.nn.init.constant_(made.step, 0.01 + seed / 7)
    return made.eval()


@pytest.mark.parametrize("seed", [0.1, 0.37, 1.0, 3.3])
@pytest.mark.parametrize(
    "name, options",
    [
        ("uniform", {"bits": 8}), ("uniform", {"bits": 8, "signed": True}), ("uniform", {"bits": 4}), ("input8", {}),
        ("lsq", {"bits": 8, "signed": False}), ("lsq", {"bits": 4, "signed": False}), ("lsq", {"bits": 3, "signed": True}),
        ("dorefa_a", {"bits": 4}), ("dorefa_a", {"bits": 8}),
    ],
)  # fmt: skip
def test_what_rounds_is_found(name: str, options: dict[str, Any], seed: float) -> None:
    ladder = grid_of(part(name, seed, **options), 3, 4).thresholds
    grid = even_grid(ladder)
    assert grid is not None
    x = torch.cat([torch.randn(2000) * seed * 3, ladder, torch.nextafter(ladder, torch.tensor(-9e9))])
    assert torch.equal(grid.codes(x), reference.quantize(x, ladder, None, True))


@given(st.lists(FLOATS.filter(lambda v: v == v), min_size=1, max_size=12), st.lists(FLOATS, min_size=1, max_size=20))
def test_whatever_is_found_is_exact(ladder: list[float], values: list[float]) -> None:
    table = torch.tensor(ladder).sort().values
    grid = even_grid(table)
    if grid is not None:
        x = torch.tensor([*values, *ladder, torch.nan])
        assert torch.equal(grid.codes(x), reference.quantize(x, table, None, True))


@given(st.floats(2.0**-12, 2.0**12, width=32), st.integers(-20, 20), st.integers(2, 255), st.lists(FLOATS, min_size=1))
def test_a_rounding_with_a_shift_is_found(step: float, first: int, levels: int, values: list[float]) -> None:
    from bitwright.engine.thresholds import float_thresholds

    made = EvenGrid(step, "divide", -first, 0, levels)
    found, _ = float_thresholds(lambda x: made.codes(x), levels, 1)
    grid = even_grid(found[0])
    assert grid is not None
    x = torch.tensor(values)
    assert torch.equal(grid.codes(x), made.codes(x))


def test_an_uneven_ladder_is_none() -> None:
    assert even_grid(torch.tensor([0.0, 1.0, 3.0])) is None
    assert even_grid(torch.zeros(2, 3)) is None
    assert even_grid(torch.tensor([torch.inf, torch.inf])) is None


def test_leading_thresholds_of_a_clip_are_counted() -> None:
    """A quantizer behind a ReLU: codes below that of 0 never occur."""
    half = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))  # a half itself goes to the even number
    table = torch.stack([torch.tensor(-torch.inf), torch.tensor(-torch.inf), half, torch.tensor(1.5)])
    assert even_grid(table) == EvenGrid(1.0, "divide", 2, 2, 4)
