"""codebook: levels, ties, what a procedure sets, and what training makes of it."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.fn.levels import fit_scale, level_grid, nearest_level
from bitwright.parts import moment
from bitwright.transforms import recipe_of

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly

SETS = ("ternary", "pow2:5", "pow2:7", "pow2:9", "pow2:11", "uniform:4", "uniform:7", "uniform:8", "uniform:16")


def part_of(layer: nn.Module, **options: Any) -> Any:
    return bw.make_part("codebook", layer=layer, **options)


def test_the_number_counts_the_levels() -> None:
    assert level_grid("ternary") == level_grid("pow2:3") == level_grid("uniform:3") == (-1, 0, 1)
    assert level_grid("pow2:11") == (-16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16)
    assert level_grid("uniform:8") == (-4, -3, -2, -1, 0, 1, 2, 3)
    for name in SETS[1:]:
        assert len(level_grid(name)) == int(name.split(":")[1])


@pytest.mark.parametrize(
    "levels", ["pow2:6", "pow2:17", "uniform:2", "uniform:257", "pow2:", "binary", "uniform:-8", "uniform:²"]
)
def test_other_names_are_refused(levels: str) -> None:
    with pytest.raises(InputError, match=r"possible: ternary, pow2:N"):
        level_grid(levels)


@pytest.mark.parametrize("levels", SETS)
def test_every_tie_goes_away_from_zero_and_everything_else_to_the_nearest(levels: str) -> None:
    """A public code leaves values on its thresholds 1.5, 3 and 6 in no class, so that they become 0."""
    grid = level_grid(levels)
    t = torch.tensor(grid, dtype=torch.float64)
    for low, high in pairwise(grid):
        middle = (low + high) / 2
        away = high if middle > 0 else low
        assert t[nearest_level(torch.tensor([middle], dtype=t.dtype), t)].item() == away
        for step, level in ((-1e-9, low), (1e-9, high)):
            assert t[nearest_level(torch.tensor([middle + step], dtype=t.dtype), t)].item() == level
    x = torch.linspace(grid[0] - 2, grid[-1] + 2, 997).double()
    brute = torch.tensor([min(grid, key=lambda g: (abs(g - v), -abs(g))) for v in x.tolist()], dtype=t.dtype)
    assert torch.equal(t[nearest_level(x, t)], brute)


@pytest.mark.few(every=4)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", SETS)
def test_the_fitted_scale_is_close_to_the_best_of_a_fine_search(levels: str, seed: int) -> None:
    torch.manual_seed(seed)
    rows, grid = torch.randn(3, 40, dtype=torch.float64), torch.tensor(level_grid(levels), dtype=torch.float64)

    def error(scale: Tensor) -> Tensor:
        return (rows - grid[nearest_level(rows / scale[..., None], grid)] * scale[..., None]).square().sum(-1)

    fine = error(torch.logspace(-3, 1, 3000).double()[:, None].expand(-1, 3))
    assert bool((error(fit_scale(rows, grid)) <= 1.02 * fine.amin(0)).all())
    assert torch.allclose(fit_scale(2.0**-40 * rows, grid), 2.0**-40 * fit_scale(rows, grid), rtol=1e-12)
    beside = fit_scale(torch.cat([rows, torch.zeros_like(rows[:2])]), grid)
    assert beside[-2:].tolist() == [1, 1] and torch.equal(beside[:-2], fit_scale(rows, grid))


def test_a_scale_for_a_filter_a_layer_and_a_group() -> None:
    layer = nn.Linear(5, 2, bias=False)
    w = torch.tensor([[1.0, -1.0, 0.0, 4.0, 4.0], [3.0, 0.0, 0.0, -3.0, 5.0]])
    layer.weight.data.copy_(w)
    assert part_of(layer)(w)[1].tolist() == pytest.approx([11 / 3, 0, 0, -11 / 3, 11 / 3])
    assert part_of(layer, granularity="layer").scale.shape == ()
    by_group = part_of(layer, group=3)  # the last group is shorter
    assert by_group.scale.tolist() == [[1.0, 4.0], [3.0, 4.0]]
    assert by_group(w).tolist() == [[1, -1, 0, 4, 4], [3, 0, 0, -4, 4]]
    assert moment(by_group, "whole") is None and by_group.encode(w).value().tolist() == by_group(w).tolist()


def test_gradients_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[2.0, -4.0], [1.0, 0.0]]))
    part, w, g = part_of(layer, levels="pow2:5"), layer.weight, torch.tensor([[1.0, 10.0], [3.0, 5.0]])
    part.hold(w, torch.tensor([[3, 0], [4, 2]]), torch.tensor([2.0, 0.5]))  # levels 1, -2 and 2, 0
    assert w.tolist() == [[2.0, -4.0], [1.0, 0.0]]
    part(w).backward(g)
    c = 1 / math.sqrt(2 * 2)  # two weights behind a scale, largest level 2
    assert w.grad is not None and torch.equal(w.grad, g)
    assert part.scale.grad.tolist() == pytest.approx([c * (1 - 20), c * 6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", SETS)
def test_a_result_is_kept_exactly_and_the_projection_finds_it_again(levels: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3).to(dtype)
    part, grid = part_of(layer, levels=levels), torch.tensor(level_grid(levels))
    index, scale = torch.randint(0, len(grid), layer.weight.shape), torch.rand(6) + 0.1
    part.hold(layer.weight, index, scale)
    want = (grid[index] * scale.to(part.scale.dtype).reshape(-1, 1, 1, 1)).to(dtype)
    assert torch.equal(part(layer.weight), want) and torch.equal(layer.weight, want)
    part.after_step(layer.weight)
    assert torch.equal(part.index, index.to(torch.uint8))


def test_training_moves_levels_and_scales() -> None:
    torch.manual_seed(0)
    net: Any = bw.apply(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), [{"match": "*", "w": "codebook"}])
    first = [(net[i].w.index.clone(), net[i].w.scale.clone()) for i in (0, 2)]
    optimizer = torch.optim.SGD(bw.param_groups(net, 0.5, 0.0))
    x = torch.randn(64, 8)
    target = (x[:, 0] > 0).long()
    with bw.attach(net, optimizer):
        losses = []
        for _ in range(30):
            loss = nn.functional.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for i, (index, scale) in zip((0, 2), first, strict=True):
        assert not torch.equal(net[i].w.index, index) and not torch.equal(net[i].w.scale, scale)
        assert torch.equal(net[i].w(net[i].weight), net[i].w.levels[net[i].w.index.long()] * net[i].w.scale[:, None])


def test_the_recipe_rebuilds_it_and_the_weights_bring_the_choice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets: list[Any] = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)]
    rules = [{"match": "*", "w": {"part": "codebook", "levels": "pow2:7", "granularity": "layer"}}]
    bw.apply(nets[0], rules)
    nets[0][0].w.hold(nets[0][0].weight, torch.full((4, 1, 3, 3), 6), torch.tensor(0.25))
    bw.apply(nets[1], recipe_of(nets[0]))
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(nets[0](x), nets[1](x)) and nets[1][0].w(nets[1][0].weight).unique().tolist() == [1.0]
    bw.save(nets[0], tmp_path / "net.safetensors")
    fresh = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert torch.equal(bw.load(tmp_path / "net.safetensors", fresh)(x), nets[0](x))


def test_alone_it_takes_the_shapes_of_the_file() -> None:
    part = part_of(nn.Linear(3, 2))
    alone: Any = bw.make_part("codebook")
    alone.load_state_dict(part.state_dict())
    assert torch.equal(alone.index, part.index) and torch.equal(alone.scale, part.scale)


@pytest.mark.parametrize("x", [None, "sign"])
@pytest.mark.parametrize("levels", ["ternary", "pow2:7", "pow2:11", "uniform:8", "uniform:255"])
def test_it_packs(levels: str, x: str | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 10))
    rules = [{"match": "0", "w": {"part": "codebook", "levels": levels}} | ({} if x is None else {"x": x})]
    example = torch.randn(16, 3, 8, 8)
    bw.apply(net, rules, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        packed: Any = bw.convert(net.eval(), example)
    assert packed.report.status != "REFUSE", packed.report
    row = packed.report.rows[0]
    assert row.bytes_after < row.bytes_before
    torch.testing.assert_close(packed.model(example), net(example), atol=1e-4, rtol=1e-4)


def test_a_mask_beside_it() -> None:
    layer: Any = bw.nn.Linear(4, 2, w=["codebook", "mask"])
    layer.w.mask.mask[0] = 0
    layer.on_latent("w", "after_step")
    assert (
        layer.quantized_weight()[0].tolist() == [0.0] * 4 and layer.w.encode(layer.weight).value()[0].abs().sum() == 0
    )


@pytest.mark.parametrize("options", [{"group": 0}, {"group": True}, {"granularity": "channel"}, {"levels": "pow2:4"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        bw.make_part("codebook", **options)


def test_a_result_of_another_shape_is_refused() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(InputError, match=r"part codebook: index \(2, 2\) and scale \(2,\) for weights \(2, 3\)"):
        part_of(layer).hold(layer.weight, torch.zeros(2, 2), torch.ones(2))


def test_with_a_layer_the_shapes_of_a_file_must_be_its_own() -> None:
    saved = part_of(nn.Linear(4, 3)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for scale"):
        part_of(nn.Linear(4, 3), granularity="layer").load_state_dict(saved)
    with pytest.raises(RuntimeError, match="size mismatch for index"):
        part_of(nn.Linear(4, 3)).load_state_dict(saved | {"index": saved["index"][:2]})
