"""Thresholds: the float just below one does not reach it; integers by trying them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.reference import quantize
from bitwright.engine.thresholds import NotMonotone, float_thresholds, integer_thresholds
from bitwright.parts import moment

Op = Callable[[Tensor], Tensor]
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 0.5, 3.4028235e38, -3.4028235e38, math.inf, -math.inf]
CHANNELS = 4


def norm(gain: list[float], bias: list[float]) -> Any:
    n: Any = nn.BatchNorm1d(CHANNELS).eval()
    n.weight.data, n.bias.data = torch.tensor(gain), torch.tensor(bias)
    n.running_mean.copy_(torch.tensor([0.3, -2.0, 0.0, 1e-3]))
    n.running_var.copy_(torch.tensor([0.7, 1e-4, 9.0, 1.0]))
    return n


def affine(gain: list[float], bias: list[float]) -> Op:
    return lambda x: x * torch.tensor(gain) + torch.tensor(bias)


def sign(x: Tensor) -> Tensor:
    return (x >= 0).long()


def dorefa(x: Tensor, bits: int = 3) -> Tensor:
    top = 2**bits - 1
    return torch.nan_to_num((x.clamp(0, 1) * top).round()).long()


G, B = [1.7, -0.3, 0.013, -41.0], [0.11, 0.2, -0.7, 3.0]
OPS: dict[str, tuple[Op, int]] = {
    "sign": (sign, 1),
    "affine sign": (lambda x: sign(affine(G, B)(x)), 1),
    "relu dorefa": (lambda x: dorefa(torch.relu(affine(G, B)(x))), 7),
    "prelu dorefa": (lambda x: dorefa(torch.prelu(affine(G, B)(x), torch.tensor([0.1, 0.25, 0.0, 2.0]))), 7),
    "leaky sign": (lambda x: sign(torch.nn.functional.leaky_relu(x, 0.3) - 0.25), 1),
    "hardtanh": (lambda x: dorefa(torch.nn.functional.hardtanh(affine(G, B)(x)) * 0.5 + 0.5, 4), 15),
    "relu6 dorefa8": (lambda x: dorefa(torch.nn.functional.relu6(x) / 6, 8), 255),
    "all negative gains": (lambda x: dorefa(affine([-1.0, -2.0, -0.5, -1e-6], B)(x), 2), 3),
    "tiny and huge gains": (lambda x: sign(affine([1e-38, 1e30, 1e-45, 3e38], [1e-3, -1e20, 0.0, 1.0])(x)), 1),
    "batch norm sign": (lambda x: sign(norm(G, B)(x).detach()), 1),
}


@pytest.mark.parametrize("name", OPS)
def test_the_float_just_below_a_threshold_does_not_reach_it(name: str) -> None:
    op, levels = OPS[name]
    found, flip = float_thresholds(op, levels, CHANNELS)
    assert found.shape == (CHANNELS, levels) and found.dtype == torch.float32
    for c in range(CHANNELS):
        for level in range(levels):
            t = np.float32(found[c, level])
            if not np.isfinite(t):
                continue
            # going up (down, where flipped) the code passes level+1 exactly between `below` and t
            below = np.nextafter(t, np.float32(-np.inf))
            row = torch.zeros(2, CHANNELS)
            row[0, c], row[1, c] = float(below), float(t)
            before, after = op(row)[:, c].tolist()
            if flip[c]:
                before, after = levels - before, levels - after
            assert before < level + 1 <= after, (c, level, t)


@pytest.mark.parametrize("name", OPS)
def test_counting_thresholds_is_the_operation(name: str) -> None:
    op, levels = OPS[name]
    found, flip = float_thresholds(op, levels, CHANNELS)
    values = torch.cat([torch.tensor(SPECIAL), torch.randn(300), torch.randn(100) * 1e3, torch.randn(100) * 1e-3])
    near = torch.nextafter(found.flatten(), torch.tensor(-math.inf))
    x = torch.cat([values, found.flatten(), near])[:, None].expand(-1, CHANNELS).contiguous()
    want = op(x)
    for i in range(0, len(x), 97):  # one number at a time, no torch
        for c in range(CHANNELS):
            count = sum(1 for t in found[c].tolist() if float(x[i, c]) >= t)
            assert (levels - count if flip[c] else count) == int(want[i, c]), (float(x[i, c]), c)
    assert torch.equal(quantize(x, found, flip, True), want)


def test_zero_gain_is_constant_on_every_finite_number() -> None:
    op: Op = lambda x: sign(affine([0.0, 0.0, 0.0, -0.0], [0.5, -0.5, 0.0, -0.0])(x))  # noqa: E731
    found, flip = float_thresholds(op, 1, CHANNELS)
    x = torch.tensor([[v] * CHANNELS for v in [0.0, -3.0, 1e30, -3.4e38, 3.4028235e38, -3.4028235e38]])
    assert quantize(x, found, flip, True).tolist() == [[1, 0, 1, 1]] * len(x)


def test_negative_zero_counts_as_zero_and_nan_reaches_nothing() -> None:
    found, _ = float_thresholds(sign, 1, 1)
    assert found.tolist() == [[0.0]] and math.copysign(1, found.item()) == 1
    x = torch.tensor([[-0.0], [0.0], [math.nan], [-1e-45], [math.inf], [-math.inf]])
    assert quantize(x, found, None, True).flatten().tolist() == [1, 1, 0, 0, 1, 0]


def test_levels_that_never_or_always_hold() -> None:
    always, _ = float_thresholds(lambda x: torch.ones_like(x).long(), 1, 1)
    never, _ = float_thresholds(lambda x: torch.zeros_like(x).long(), 1, 1)
    assert always.item() == -math.inf and never.item() == math.inf


@pytest.mark.parametrize(
    "spec",
    [{"part": "sign"}, {"part": "dorefa_a", "bits": 4}, {"part": "uniform", "bits": 4}, {"part": "input8", "mean": 0.4},
     {"part": "uniform", "bits": 3, "signed": True}, {"part": "uniform", "bits": 8, "symmetric": False}],
    ids=str,
)  # fmt: skip
def test_the_grid_of_a_shipped_part(spec: dict[str, object]) -> None:
    from bitwright.engine.packing import grid_of

    options: dict[str, Any] = {k: v for k, v in spec.items() if k != "part"}
    part = bw.make_part(str(spec["part"]), slot="x", **options).eval()
    encode = moment(part, "encode")
    assert encode is not None
    grid = grid_of(part, 3, 4)
    x = torch.cat([torch.randn(200), grid.thresholds, torch.nextafter(grid.thresholds, torch.tensor(-math.inf))])
    x = x.reshape(1, 1, 1, -1).expand(1, 3, 1, -1).contiguous()
    code = encode(x)
    want = (code.offset.double() + (code.coef.double() * code.bit).sum(0)).expand(x.shape)
    flat = x.flatten().tolist()
    got = [grid.unit * (grid.mult * sum(v >= t for t in grid.thresholds.tolist()) + grid.zero[0]) for v in flat]
    assert np.allclose(got, want.flatten().numpy(), rtol=1e-6, atol=1e-7)


# -- integers ----------------------------------------------------------------------------------------
def brute(code: Op, levels: int, low: list[int], high: list[int]) -> tuple[list[list[int]], list[bool]]:
    table, flips = [], []
    for c in range(len(low)):
        runs = []
        for i in range(low[c], high[c] + 1):
            row = torch.tensor(low)
            row[c] = i
            runs.append(int(code(row[None])[0, c]))
        flips.append(runs[0] > runs[-1])
        up = [levels - r for r in runs] if flips[-1] else runs
        firsts = [
            next((low[c] + k for k, r in enumerate(up) if r >= level), 2**31 - 1) for level in range(1, levels + 1)
        ]
        table.append(firsts)
    return [list(t) for t in zip(*table, strict=True)], flips


SCALE, ADD = torch.tensor([0.013, -0.02, 0.0, 1.0, 0.37]), torch.tensor([0.1, 0.4, 0.4, -900.0, -0.05])
LOW, HIGH = [-40, -7, -3, -5, 0], [40, 90, 3, 5, 0]


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_integer_thresholds_equal_brute_force(bits: int) -> None:
    levels = 2**bits - 1
    code: Op = lambda i: dorefa(i.float() * SCALE + ADD, bits)  # noqa: E731
    found, flip = integer_thresholds(code, levels, torch.tensor(LOW), torch.tensor(HIGH))
    want, flips = brute(code, levels, LOW, HIGH)
    assert found.tolist() == want and flip.tolist() == flips
    assert found[:, 3].tolist() == [2**31 - 1] * levels  # never reached
    assert found.dtype == torch.int32


def test_large_ranges_by_bisection_give_the_same() -> None:
    code: Op = lambda i: dorefa(i.float() * torch.tensor([1e-5, -3e-6]) + 0.2, 3)  # noqa: E731
    low, high = [-70_000, -70_000], [70_000, 70_000]
    found, flip = integer_thresholds(code, 7, torch.tensor(low), torch.tensor(high))
    for c in range(2):
        for level in range(7):
            t = int(found[level, c])
            if t == 2**31 - 1:
                continue
            pair = torch.tensor([[t - 1] * 2, [t] * 2]).clamp(-70_000, 70_000)
            before, after = code(pair)[:, c].tolist()
            before, after = (7 - before, 7 - after) if flip[c] else (before, after)
            assert after >= level + 1 and (before < level + 1 or t == -70_000)


def test_a_code_that_goes_up_and_down_is_refused() -> None:
    with pytest.raises(NotMonotone, match="channel 1 goes up and down between -4 and 4"):
        integer_thresholds(
            lambda i: torch.stack([i[:, 0] >= 0, i[:, 1].abs() < 2], 1).long(),
            1,
            torch.tensor([-4, -4]),
            torch.tensor([4, 4]),
        )
