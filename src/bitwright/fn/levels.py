"""Small symmetric sets of levels for weights: whole numbers, in units of a scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitwright.errors import InputError

FORMS = "ternary, pow2:N (N odd, 3 to 15), uniform:N (N 3 to 256)"
FINENESS = 8  # scales that a fit begins at, for each doubling
ROUNDS = 10
SEARCHED = 1 << 18  # weights at most that choose where to begin; all of them then refine
TOGETHER = 1 << 14  # weights at most that are tried from several beginnings in one call: they stay in the cache


def level_grid(levels: str) -> tuple[int, ...]:
    """The levels of a name, sorted; the number in it counts them.

    ternary     -1, 0, 1
    pow2:N      0 and the powers of two of both signs: -4, -2, -1, 0, 1, 2, 4 of pow2:7
    uniform:N   N whole numbers around 0; an even N has one more below: -4 ... 3 of uniform:8
    Errors: `InputError` for another name

    >>> level_grid("pow2:5"), level_grid("uniform:4")
    ((-2, -1, 0, 1, 2), (-2, -1, 0, 1))
    """
    kind, _, number = str(levels).partition(":")
    count = 3 if levels == "ternary" else int(number) if number.isascii() and number.isdecimal() else 0
    if levels == "ternary" or (kind == "pow2" and count % 2 and 3 <= count <= 15):
        powers = [2**i for i in range(count // 2)]
        return (*(-p for p in reversed(powers)), 0, *powers)
    if kind == "uniform" and 3 <= count <= 256:
        return tuple(range(-(count // 2), (count + 1) // 2))
    raise InputError(f"levels={levels!r}; possible: {FORMS}", code="levels", given=str(levels), possible=FORMS)


def thresholds(grid: Tensor) -> Tensor:
    """Halfway between neighbors of the sorted `grid`, so that `x >= threshold` means the upper one is taken."""
    middle = (grid[1:] + grid[:-1]) / 2
    return torch.where(middle < 0, torch.nextafter(middle, torch.zeros_like(middle)), middle)


def nearest_level(place: Tensor, grid: Tensor) -> Tensor:
    """Positions in the sorted `grid` of the levels nearest to `place`, int64; halfway between two: the one away from 0.

    >>> grid = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    >>> grid[nearest_level(torch.tensor([-1.5, -0.5, 0.49, 0.5, 9.0]), grid)].tolist()
    [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    if int(grid[-1] - grid[0]) == len(grid) - 1:  # whole numbers without a gap: no search
        whole = place.trunc()
        number = torch.where((place - whole).abs() >= 0.5, whole + place.sign(), whole)
        return (number - grid[0].to(place.dtype)).nan_to_num_(0.0).clamp_(0, len(grid) - 1).long()
    return torch.bucketize(place.contiguous(), thresholds(grid.to(place.dtype)), right=True)


def fit_scale(rows: Tensor, grid: Tensor) -> Tensor:
    """Scale of each row for which rounding to the nearest level leaves the least squared error, [R, n] -> [R], never 0.

    Best of scales from a 32nd to twice the one that reaches the largest value, each refined by turns: nearest levels q,
    then scale = <row, q> / <q, q>. A row of zeros gets 1.

    >>> fit_scale(torch.tensor([[0.9, -1.1, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([-1.0, 0.0, 1.0])).tolist()
    [1.0, 1.0]
    """
    if not rows.numel():
        return rows.new_ones(rows.shape[0])
    reach = rows.abs().amax(1) / float(grid[-1])
    some_weight = reach > 0
    reach = torch.where(some_weight, reach, torch.ones_like(reach))
    # every scale fits a row of zeros, so none is better than the 1 it begins with
    best, least = reach.clone(), torch.zeros_like(reach).masked_fill(some_weight, torch.inf)
    some = rows[:, :: -(-rows.numel() // SEARCHED)]
    starts = reach * torch.tensor([2.0 ** (1 - i / FINENESS) for i in range(6 * FINENESS + 1)]).to(reach)[:, None]
    for scale, error, _ in _tried(some, grid, starts):
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best if some.shape == rows.shape else _refined(rows, grid, best)[0]


# shares of the range of a row, each side by itself, where a fit with zero begins
ENDS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def fit_scale_zero(rows: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Scale s and zero z of each row, [R, n] -> [R], [R], for which s (level - z) leaves little squared error.

    z is one of the levels, so that 0 is always among the values. Best of `fit_scale`, with z = 0, and of grids that reach from
    a share of the smallest value to a share of the largest, each refined as there. A row of zeros gets 1 and 0.

    >>> scale, zero = fit_scale_zero(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([-2.0, -1.0, 0.0, 1.0]))
    >>> scale.tolist(), zero.tolist()
    ([1.0], [-2.0])
    """
    best, zero = fit_scale(rows, grid), rows.new_zeros(rows.shape[0])
    if not rows.numel():
        return best, zero
    low, high, count = float(grid[0]), float(grid[-1]), len(grid) - 1
    some = rows[:, :: -(-rows.numel() // SEARCHED)]
    least = _refined(some, grid, best)[1]
    bottom, top = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    starts = torch.stack([(b * top - a * bottom) / count for a in ENDS for b in ENDS])
    starts = torch.where(starts > 0, starts, torch.ones_like(starts))
    bottoms = torch.stack([a * bottom for a in ENDS for _ in ENDS])
    for scale, error, at in _tried(some, grid, starts, (low - bottoms / starts).round().clamp(low, high)):
        better = error < least
        best, zero = torch.where(better, scale, best), torch.where(better, at, zero)
        least = torch.where(better, error, least)
    return (best if some.shape == rows.shape else _refined(rows, grid, best, zero)[0]), zero


def _tried(rows: Tensor, grid: Tensor, starts: Tensor, zeros: Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
    """(scale, error, zero), [R] each, from every row of `starts` [S, R]; several at once while they are few weights."""
    zeros = torch.zeros_like(starts) if zeros is None else zeros
    together = max(1, TOGETHER // rows.numel())
    for some, at in zip(starts.split(together), zeros.split(together), strict=True):
        found, error = _refined(rows.repeat(len(some), 1), grid, some.flatten(), at.flatten())
        yield from zip(found.view_as(some), error.view_as(some), at, strict=True)


def _refined(rows: Tensor, grid: Tensor, scale: Tensor, zero: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(scale, squared error that it leaves), [R] each: nearest levels and the best scale for them, by turns."""
    shift = rows.new_zeros(1, 1) if zero is None else zero[:, None]
    for _ in range(ROUNDS):
        q = grid[nearest_level(rows / scale[:, None] + shift, grid)].to(rows.dtype) - shift
        found = (rows * q).sum(1) / q.square().sum(1).clamp_min(1)
        found = torch.where(found > 0, found, scale)
        if torch.equal(found, scale):
            break
        scale = found
    q = grid[nearest_level(rows / scale[:, None] + shift, grid)].to(rows.dtype) - shift
    return scale, (rows - q * scale[:, None]).square().sum(1)
