"""Weights on levels under a matrix of what a layer reads: against slow loops, brute force, and what must not matter."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.fn.levels import level_grid, nearest_level
from bitwright.procedures.layerwise import on_levels
from bitwright.procedures.layerwise.on_levels import OnLevels, Quadratic, admm, best_levels, descend

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly

SETS = ("ternary", "pow2:7", "uniform:8")
SEEDS = range(4)


def inputs(seed: int, columns: int = 12, rows: int = 60) -> Tensor:
    """Correlated, never negative, as behind a ReLU."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, columns, generator=rng, dtype=torch.float64)
    x = torch.randn(rows, 4, generator=rng, dtype=torch.float64) @ mix
    return (x + 0.4 * torch.randn(rows, columns, generator=rng, dtype=torch.float64)).clamp_min(0)


def weights(seed: int, rows: int = 5, columns: int = 12) -> Tensor:
    rng = torch.Generator().manual_seed(1000 + seed)
    return 0.3 * torch.randn(1, rows, columns, generator=rng, dtype=torch.float64)


def grid_of(levels: str) -> Tensor:
    return torch.tensor(level_grid(levels), dtype=torch.float64)


def problem(seed: int, levels: str = "ternary", shared: bool = True, **sizes: Any) -> Quadratic:
    x = inputs(seed, **sizes)
    return Quadratic([(x.mT @ x / len(x))[None]], weights(seed, columns=x.shape[1]), grid_of(levels), shared)


def error(p: Quadratic, found: OnLevels) -> float:
    """E by its definition, over all rows."""
    change = p.value(found) - p.w
    return float(torch.einsum("grd,gde,gre->", change, torch.block_diag(*[h[0] for h in p.h])[None], change))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("levels", SETS)
def test_no_step_raises_the_error_and_all_of_them_help(levels: str, shared: bool) -> None:
    means = torch.zeros(3)
    for seed in SEEDS:
        p = problem(seed, levels, shared)
        start = p.rounded()
        alternating = admm(p, start, 1.0)
        best = best_levels(p)
        now, moved = alternating, True
        while moved:
            before = error(p, now)
            now, moved = descend(p, now)
            assert error(p, now) <= before * (1 + 1e-12)
        assert error(p, best) <= error(p, alternating) * (1 + 1e-6) and error(p, alternating) <= error(p, start)
        means += torch.tensor([error(p, start), error(p, alternating), error(p, best)])
    assert means[2] < 0.7 * means[0] and means[1] < 0.95 * means[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_error_and_refit_are_those_of_the_outputs(seed: int) -> None:
    x, w = inputs(seed), weights(seed)
    p = Quadratic([(x.T @ x / len(x))[None]], w, grid_of("pow2:5"))
    found = p.rounded()
    y, new = x @ w[0].T, x @ p.value(found)[0].T
    assert float(p.error(p.value(found))[0, 0]) == pytest.approx(float((y - new).square().sum() / len(x)), rel=1e-10)
    q = p.grid[found.index]
    out = x @ q[0].T
    assert float(p.refit(q, found.scale)[0][0, 0]) == pytest.approx(
        float((out * y).sum() / out.square().sum()), rel=1e-10
    )
    each = Quadratic(p.h, w, p.grid, shared=False)
    per_row = ((out * y).sum(0) / out.square().sum(0)).reshape(-1, 1)
    torch.testing.assert_close(each.refit(q, found.scale)[0][0], per_row)


@pytest.mark.slow
def test_brute_force_is_never_beaten_and_nearly_reached() -> None:
    every = torch.tensor(list(itertools.product(range(3), repeat=5)))[:, None]  # as many problems as choices
    ratios = []
    for seed in range(20):
        x = inputs(seed, columns=5)
        p = Quadratic([(x.T @ x / len(x))[None]], weights(seed, rows=1, columns=5), grid_of("ternary"))
        all_of_them = Quadratic(p.h, p.w.expand(len(every), 1, 5), p.grid, shared=False)
        scale, _ = all_of_them.refit(p.grid[every], torch.ones(len(every), 1, 1, dtype=torch.float64))
        least = float(all_of_them.error(p.grid[every] * scale).min())
        ratios.append(error(p, best_levels(p)) / least)
    assert min(ratios) >= 1 - 1e-9 and sum(ratios) / len(ratios) < 1.3 and sorted(ratios)[10] < 1.001


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_sweep_is_a_loop_over_single_weights(seed: int, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_levels, "BLOCK", 5)  # so that changes cross blocks
    p = problem(seed, "pow2:7", shared)
    start = p.rounded()
    h, value, index = p.h[0][0], p.value(start)[0].clone(), start.index[0].clone()
    order = sorted(range(12), key=lambda j: -h[j, j].item())
    for r in range(5):
        for j in order:
            errors = []
            for level in p.grid:
                trial = value[r].clone()
                trial[j] = level * start.scale[0, r, 0]
                errors.append(float((trial - p.w[0, r]) @ h @ (trial - p.w[0, r])))
            index[r, j] = int(torch.tensor(errors).argmin())
            value[r, j] = p.grid[index[r, j]] * start.scale[0, r, 0]
    found, changed = descend(p, start)
    assert changed and torch.equal(found.index[0], index)


@pytest.mark.parametrize("seed", SEEDS)
def test_alternating_directions_against_plain_equations(seed: int) -> None:
    """With one scale: solved afresh in each round, the projection by loops."""
    p = problem(seed, "pow2:5")
    h, w, grid = p.h[0][0], p.w[0], p.grid
    r = float(h.diagonal().mean())
    start = p.rounded()
    scale, g, u = float(start.scale[0, 0]), p.value(start)[0], torch.zeros_like(w)
    best, least = start.index[0], float(((g - w) @ h * (g - w)).sum())
    for _ in range(7):
        v = torch.linalg.solve(h + r * torch.eye(12, dtype=h.dtype), h @ w.T + r * (g - u).T).T + u
        for _ in range(50):
            q = grid[nearest_level(v / scale, grid)]
            scale = float((v * q).sum() / (q * q).sum())
        q = grid[nearest_level(v / scale, grid)]
        g = scale * q
        u = v - g
        fit = float((q * (w @ h)).sum() / (q * (q @ h)).sum())
        now = float(((fit * q - w) @ h * (fit * q - w)).sum())
        if now < least * (1 - 1e-6):
            best, least = nearest_level(q, grid), now
    found = admm(p, start, 1.0, iterations=7)
    assert torch.equal(found.index[0], best) and error(p, found) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("levels", SETS)
def test_units_do_not_matter(levels: str, shared: bool) -> None:
    """A public code stops by absolute differences of 0.001, so that images of small numbers leave direct rounding."""
    for seed in SEEDS:
        p = problem(seed, levels, shared)
        found = best_levels(p)
        for factor in (2.0**-30, 37.0):
            images = best_levels(Quadratic([h * factor**2 for h in p.h], p.w, p.grid, shared))
            assert torch.equal(images.index, found.index)
            torch.testing.assert_close(images.scale, found.scale, rtol=1e-9, atol=0)
            scaled = best_levels(Quadratic(p.h, p.w * factor, p.grid, shared))
            assert torch.equal(scaled.index, found.index)
            torch.testing.assert_close(scaled.scale, found.scale * factor, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_inputs_and_of_outputs_does_not_matter(seed: int, shared: bool) -> None:
    p = problem(seed, "pow2:7", shared)
    found = best_levels(p)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    permuted = best_levels(Quadratic([p.h[0][:, order][:, :, order]], p.w[..., order], p.grid, shared))
    assert torch.equal(permuted.index, found.index[..., order])
    rows = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    turned = best_levels(Quadratic(p.h, p.w[:, rows], p.grid, shared))
    assert torch.equal(turned.index, found.index[:, rows])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("levels", SETS)
def test_weights_on_levels_stay(levels: str, shared: bool) -> None:
    for seed in SEEDS:
        p = problem(seed, levels, shared)
        once = p.value(best_levels(p))
        assert all(len(row.unique()) <= len(p.grid) for row in ([once] if shared else once[0]))
        again = Quadratic(p.h, once, p.grid, shared)
        torch.testing.assert_close(again.value(best_levels(again)), once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_first_input_changes_nothing_for_the_others(seed: int) -> None:
    """A public code takes its step size from the first entry of H: a dead first input leaves direct rounding there."""
    live = problem(seed)
    h = torch.nn.functional.pad(live.h[0], (1, 0, 1, 0))
    w = torch.nn.functional.pad(live.w, (1, 0), value=0.6)
    p = Quadratic([h], w, live.grid)
    found, rounded = best_levels(p), p.rounded()
    assert error(p, found) < 0.9 * error(p, rounded)
    # an input that is always 0 still gets the nearest level of its weight, and has no part in the scale
    assert torch.equal(found.index[..., :1], nearest_level(w[..., :1] / found.scale, live.grid))
    q = p.grid[found.index]
    torch.testing.assert_close(p.refit(q, found.scale)[0], live.refit(q[..., 1:], found.scale)[0], rtol=1e-12, atol=0)


def test_nothing_at_all() -> None:
    p = problem(0, "pow2:7")
    for h, w in ((p.h[0], torch.zeros_like(p.w)), (torch.zeros_like(p.h[0]), p.w), (p.h[0], p.w[:, :0])):
        for shared in (True, False):
            one = Quadratic([h], w, p.grid, shared)
            found = best_levels(one)
            assert bool(found.scale.isfinite().all() and (found.scale > 0).all())
            assert torch.equal(found.index, one.rounded().index)
    # one row of zeros among others; a public code divides 0 by 0 where no weight exceeds half a scale
    w = p.w.clone()
    w[0, 2] = 0
    for shared in (True, False):
        found = best_levels(Quadratic(p.h, w, p.grid, shared))
        assert bool(found.scale.isfinite().all()) and bool((p.grid[found.index[0, 2]] == 0).all())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_pruned_stays_pruned(seed: int, shared: bool) -> None:
    p = problem(seed, "pow2:7", shared)
    keep = torch.rand(p.w.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    w = torch.where(keep, p.w, 0.0)
    masked = Quadratic(p.h, w, p.grid, shared, keep)
    found = best_levels(masked)
    assert bool((masked.value(found)[~keep] == 0).all())
    assert error(masked, found) <= error(masked, masked.rounded())


def test_blocks_of_inputs_and_groups() -> None:
    p, other = problem(0, "uniform:8"), problem(1, "uniform:8")
    h = torch.block_diag(p.h[0][0], other.h[0][0])
    w = torch.cat([p.w, other.w], -1)
    found = best_levels(Quadratic([p.h[0], other.h[0]], w, p.grid))
    whole = best_levels(Quadratic([h[None]], w, p.grid))
    split = Quadratic([p.h[0], other.h[0]], w, p.grid)
    assert error(split, found) == pytest.approx(error(split, whole), rel=0.05)
    # with a scale for each row, the groups of a convolution are problems of their own
    groups = best_levels(Quadratic([torch.cat([p.h[0], other.h[0]])], torch.cat([p.w, other.w]), p.grid, shared=False))
    alone = [best_levels(Quadratic(one.h, one.w, one.grid, shared=False)) for one in (p, other)]
    apart = sum(error(one, a) for one, a in zip((p, other), alone, strict=True))
    both = sum(
        error(one, OnLevels(groups.index[i : i + 1], groups.scale[i : i + 1], 0.0, 0))
        for i, one in enumerate((p, other))
    )
    assert both == pytest.approx(apart, rel=0.1)
