"""GPTQ: against rounding, on every kind of layer, groups and orders, and what lands in the codebook."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.fn.levels import fit_scale, fit_scale_zero, level_grid, nearest_level
from bitwright.procedures import gptq, l_obs, magnitude
from bitwright.procedures.layerwise.linalg import damped
from bitwright.procedures.layerwise.select import mask_of

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly

LAYERS = {
    "linear": (lambda: nn.Linear(20, 7), (90, 20)),
    "conv": (lambda: nn.Conv2d(5, 6, 3, stride=2, padding=1), (12, 5, 9, 9)),
    "groups": (lambda: nn.Conv2d(8, 6, 3, groups=2), (12, 8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(12, 12, 3, groups=12, padding=1), (4, 12, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3, dilation=2), (12, 6, 20)),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"act_order": False},
    "order": {},
    "groups": {"group": 7},
    "groups, no order": {"group": 7, "act_order": False},
    "3 bits": {"bits": 3},
    "blocks": {"max_dim": 9},
}


def need_mask(layer: nn.Module) -> Tensor:
    """The mask of a layer that has one."""
    found = mask_of(layer)
    assert found is not None
    return found


def quantized(net: nn.Sequential) -> Tensor:
    layer: Any = net[0]
    return layer.quantized_weight().detach()


@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("way", list(WAYS))
def test_weights_are_levels_times_scales_and_beat_rounding(kind: str, way: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape).cumsum(-1) / 3
    net: Any = nn.Sequential(copy.deepcopy(layer))
    report = gptq(net, [x], **WAYS[way])
    bits, group = WAYS[way].get("bits", 4), WAYS[way].get("group", layer.weight[0].numel())
    found, part = quantized(net), net[0].w
    assert part.part_name == "codebook" and part.levels.tolist() == list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    numbers = part.levels[part.index.long()].flatten(1)
    scale = part.scale.detach().reshape(len(found), -1).repeat_interleave(group, 1)[:, : numbers.shape[1]]
    torch.testing.assert_close(found.flatten(1), numbers * scale)
    torch.testing.assert_close(
        found, net[0].weight.detach()
    )  # the latent is the value, so that training goes on from it
    y = layer(x).detach()
    rounded = copy.deepcopy(layer)
    pieces = torch.nn.functional.pad(layer.weight.detach().flatten(1), (0, -layer.weight[0].numel() % group)).reshape(
        -1, group
    )
    grid = torch.tensor(level_grid(f"uniform:{2**bits}"), dtype=torch.float32)
    size = fit_scale(pieces, grid).unsqueeze(1)
    flat = (grid[nearest_level(pieces / size, grid)] * size).reshape(len(found), -1)[:, : layer.weight[0].numel()]
    with torch.no_grad():
        rounded.weight.copy_(flat.reshape(layer.weight.shape))
        axis = -1 if kind == "linear" else 1
        errors = [float((m(x) - y).square().sum(axis).mean()) for m in (net, rounded)]
    assert errors[0] < errors[1] * (1.0 if way != "blocks" else 1.5)
    if way != "blocks":
        assert report.rows[0].error == pytest.approx(errors[0], rel=1e-3)
    assert report.rows[0].method == f"{bits} bits" and report.rows[0].kept == layer.weight.numel()


def test_the_sweep_is_the_loop_over_columns() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    net: Any = nn.Sequential(nn.Linear(12, 5, bias=False)).double()
    w = net[0].weight.detach().clone()
    dense = w.clone()
    gptq(net, [x], bits=3)
    grid = torch.tensor(level_grid("uniform:8"), dtype=torch.float64)
    scale = fit_scale(w, grid)
    h = damped(x.T @ x / 200, 0.01)
    order = h.diagonal().argsort(descending=True)
    for step, i in enumerate(order.tolist()):
        left = order[step:]
        rest = torch.linalg.inv(h[left][:, left])
        value = grid[nearest_level(w[:, i] / scale, grid)] * scale
        w[:, left] -= ((w[:, i] - value) / rest[0, 0]).unsqueeze(1) * rest[0]
        w[:, i] = value
    q = w / scale.unsqueeze(1)
    h = x.T @ x / 200
    w = q * ((q @ h * dense).sum(1) / (q @ h * q).sum(1)).unsqueeze(1)  # the scale of least E
    torch.testing.assert_close(quantized(net), w, rtol=0, atol=1e-9)


def test_the_order_of_the_inputs_does_not_matter_with_act_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 10, dtype=torch.float64) * torch.linspace(0.5, 3, 10)
    net: Any = nn.Sequential(nn.Linear(10, 4)).double()
    turned, places = copy.deepcopy(net), torch.randperm(10)
    turned[0].weight.data = turned[0].weight.data[:, places]
    gptq(net, [x])
    gptq(turned, [x[:, places]])
    torch.testing.assert_close(quantized(net)[:, places], quantized(turned))


def test_prune_then_quantize_keeps_the_zeros_and_trains_on() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    x = torch.randn(300, 3, 8, 8)
    l_obs(net, [x], keep=0.5)
    masks = [need_mask(net[0]).clone(), need_mask(net[3]).clone()]
    report = gptq(net, [x], bits=4)
    assert [r.kept for r in report.rows] == [81, 432]
    for layer, mask in zip((net[0], net[3]), masks, strict=True):
        assert layer.w.part_name == "codebook+mask" and torch.equal(need_mask(layer), mask)
        assert bool((layer.quantized_weight()[mask == 0] == 0).all())
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    with bw.attach(net, optimizer):
        net(x).square().mean().backward()
        optimizer.step()
    assert bool((net[0].quantized_weight()[masks[0] == 0] == 0).all())
    with pytest.raises(InputError, match=r"l_obs: 0: its weight goes through codebook"):
        l_obs(net, [x], keep=0.25)


def test_a_result_packs_and_loads(tmp_path: Any) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(60, 16)
    gptq(net, [x], bits={"*": 4, "2": 8})
    converted = bw.convert(net, x[:4], verify=[x])
    assert converted.report.status != "REFUSE"
    bw.save(net, tmp_path / "net.safetensors")
    again = bw.load(tmp_path / "net.safetensors", nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)))
    assert torch.equal(again.eval()(x), net(x))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 1}, "gptq: bits=1 for 0; possible: 2 to 8"),
        ({"bits": {"*": 4, "fc": 8}}, "gptq: bits of 'fc' matches no layer"),
        ({"group": 4, "max_dim": 5}, "0 has 16 inputs, more than max_dim"),
        ({"damping": 2}, "gptq: damping=2"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], text: str) -> None:
    net: Any = nn.Sequential(nn.Linear(16, 8))
    before = net[0].weight.clone()
    with pytest.raises(InputError, match=text):
        gptq(net, [torch.randn(60, 16)], **options)
    assert torch.equal(net[0].weight, before)


def test_apply_says_when_a_mask_would_be_lost() -> None:
    net: Any = nn.Sequential(nn.Linear(8, 4))
    magnitude(net, keep=0.5)
    mask = need_mask(net[0]).clone()
    bw.apply(net, [{"match": "*", "w": ["bwn", "mask"]}])
    assert torch.equal(need_mask(net[0]), mask)
    with pytest.warns(
        bw.errors.BitwrightWarning, match=r"0 loses its mask, 50 % of its weights were pruned; write w = "
    ):
        bw.apply(net, [{"match": "*", "w": "bwn"}])


# -- a zero beside each scale ------------------------------------------------------------------------------------
def skewed(seed: int, rows: int = 6, columns: int = 12) -> Tensor:
    """Weights that lie to one side of 0 in most rows."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g, dtype=torch.float64) + 2.0 * torch.randn(rows, 1, generator=g)


@pytest.mark.parametrize("seed", range(6))
def test_scale_and_zero_are_close_to_the_best_of_all(seed: int) -> None:
    """Brute force: every zero, a thousand scales."""
    grid, rows = torch.tensor(level_grid("uniform:4"), dtype=torch.float64), skewed(seed)
    scale, zero = fit_scale_zero(rows, grid)
    assert bool((zero.round() == zero).all()) and float(zero.min()) >= -2 and float(zero.max()) <= 1

    def error(s: Tensor, z: Tensor) -> Tensor:
        values = s[:, None, None] * (grid - z[:, None, None])
        return (rows[:, :, None] - values).square().amin(-1).sum(1)

    every = torch.linspace(0.01, 4.0, 1000, dtype=torch.float64)
    best = torch.stack([error(s.expand(len(rows)), z.expand(len(rows))) for z in grid for s in every]).amin(0)
    assert bool((error(scale, zero) <= 1.1 * best + 1e-9).all())
    symmetric = error(fit_scale(rows, grid), torch.zeros_like(scale))
    assert bool((error(scale, zero) <= symmetric + 1e-12).all()) and float(symmetric.sum()) > 1.3 * float(best.sum())


@pytest.mark.parametrize("seed", range(6))
def test_asymmetric_codes_against_all_codes(seed: int) -> None:
    """Three weights of 2 bits: all 64 codes of every zero, each with its best scale, judged by H."""
    torch.manual_seed(seed)
    net: Any = nn.Sequential(nn.Linear(3, 4, bias=False)).double()
    old = net[0].weight.data.copy_(skewed(seed, 4, 3)).clone()
    x = torch.randn(400, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    (row,) = gptq(net, [x], bits=2, asymmetric=True, damping=1e-6).rows
    h = x.T @ x / len(x)
    codes = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 3)
    q = torch.cat([codes - z for z in range(4)])
    qq, qw = ((q @ h) * q).sum(1), q @ h @ old.T  # [256], [256, 4]
    scale = (qw / qq.clamp_min(1e-12)[:, None]).clamp_min(0)
    change = scale[..., None] * q[:, None] - old
    best = ((change @ h) * change).sum(-1).amin(0).sum()
    moved = net[0].quantized_weight().detach() - old
    mine = ((moved @ h) * moved).sum()
    assert row.error == pytest.approx(float(mine), rel=1e-6)
    assert float(best) - 1e-12 <= float(mine) <= 4 * float(best) + 0.02 * float(((old @ h) * old).sum())


@pytest.mark.parametrize("way", [{}, {"act_order": False}, {"group": 4}, {"group": 4, "act_order": False}], ids=str)
def test_asymmetric_weights_are_levels_and_beat_symmetric_ones(way: dict[str, Any], tmp_path: Any) -> None:
    errors = {}
    for asymmetric in (False, True):
        torch.manual_seed(0)
        net: Any = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))
        net[0].weight.data.copy_(skewed(3))
        old, x = copy.deepcopy(net), torch.randn(300, 12)
        magnitude(net, keep={"0": 0.8})
        report = gptq(net, [x], bits={"0": 2}, asymmetric=asymmetric, **way)
        layer: Any = net[0]
        part = layer.w.quantizer
        assert part.asymmetric == asymmetric and ("0.w.links.0.zero" in net.state_dict()) == asymmetric
        value, mask = layer.quantized_weight(), layer.w.mask.mask
        assert not bool(value[mask == 0].any())
        assert torch.allclose(value, layer.weight, atol=1e-5)
        wide = [t.repeat_interleave(way.get("group", 12), 1)[:, :12] for t in (part.scale.reshape(6, -1),)]
        steps = (value / wide[0]).detach()
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        if asymmetric:
            assert bool(part.zero.any())
        bw.save(net, tmp_path / "a.safetensors")
        back = bw.load(tmp_path / "a.safetensors", old)
        assert torch.equal(back(x), net(x))
        errors[asymmetric] = report.rows[0].error
    assert errors[True] < errors[False]


def test_asymmetric_weights_pack_and_train() -> None:
    net: Any = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))
    net[0].weight.data.copy_(skewed(1))
    x = torch.randn(300, 12)
    gptq(net, [x], bits={"0": 3}, asymmetric=True)
    done = bw.convert(net.eval(), x[:8])
    assert done.model is not None and done.report.rows[0].bits == "4/32"
    assert torch.allclose(done.model(x), net(x), atol=1e-5)
    layer: Any = net[0]
    net(x).square().sum().backward()
    assert bool(layer.w.scale.grad.isfinite().all()) and bool(layer.weight.grad.any())
    with pytest.raises(InputError, match="asymmetric with levels='ternary'; possible: uniform:N"):
        bw.make_part("codebook", levels="ternary", asymmetric=True)
