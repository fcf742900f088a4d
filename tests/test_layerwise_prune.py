"""Pruning layer by layer: against brute force, the orderings of the methods, exact counts, odd layers, bad input."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.procedures import (
    LayerReport,
    error_bound,
    fold_batchnorm,
    l_obs,
    magnitude,
    reconstruct,
    sparse_gpt,
    watching,
)
from bitwright.procedures.layerwise.linalg import damped, inverse_factor
from bitwright.procedures.layerwise.obs import compensate, one_after_another, trace
from bitwright.procedures.layerwise.prune import choose
from bitwright.procedures.layerwise.select import mask_of
from bitwright.transforms.apply import recipe_of

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly


def need_mask(layer: nn.Module) -> Tensor:
    """The mask of a layer that has one."""
    found = mask_of(layer)
    assert found is not None
    return found


def problem(seed: int = 0, outputs: int = 16, columns: int = 32, samples: int = 512) -> tuple[Any, Tensor]:
    """A linear layer that reads correlated, non-negative inputs."""
    torch.manual_seed(seed)
    mix = torch.randn(columns, columns)
    x = torch.relu(torch.randn(samples, columns) @ mix / 5 + 0.3).double()
    return nn.Sequential(nn.Linear(columns, outputs, bias=False)).double(), x


def lost(net: nn.Sequential, x: Tensor, dense: Tensor) -> float:
    """E by running the layer."""
    layer: Any = net[0]
    with torch.no_grad():
        used = layer.quantized_weight() if isinstance(layer, bw.nn.SlotLayer) else layer.weight
        return float((x @ (used - dense).T).square().sum(1).mean())


METHODS: dict[str, Callable[[nn.Sequential, Tensor, float], Any]] = {
    "magnitude": lambda n, x, k: magnitude(n, keep=k),
    "magnitude + exact": lambda n, x, k: (magnitude(n, keep=k), reconstruct(n, [x])),
    "lobs": lambda n, x, k: l_obs(n, [x], keep=k, compensation="lobs"),
    "exact": lambda n, x, k: l_obs(n, [x], keep=k),
    "8 rounds": lambda n, x, k: l_obs(n, [x], keep=k, rounds=8),
    "obc": lambda n, x, k: l_obs(n, [x], keep=k, rounds="obc"),
    "sweep": lambda n, x, k: sparse_gpt(n, [x], keep=k),
}


@pytest.mark.parametrize("seeds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_the_methods_come_in_their_order_over_seeds(seeds: int) -> None:
    for keep in (0.5, 0.25):
        mean = dict.fromkeys([*METHODS, "sweep + exact"], 0.0)
        for seed in range(seeds):
            for name, method in METHODS.items():
                net, x = problem(seed)
                before = copy.deepcopy(net)
                dense = before[0].weight.detach()
                method(net, x, keep)
                assert int(need_mask(net[0]).sum()) == round(512 * keep)
                error = lost(net, x, dense)
                mean[name] += error
                if name in ("lobs", "sweep"):  # exact weights on a mask are never worse than what the mask came with
                    reconstruct(net, [x], dense=before)
                    assert lost(net, x, dense) <= error * (1 + 1e-9)
                    mean["sweep + exact"] += lost(net, x, dense) if name == "sweep" else 0
        order = ["obc", "8 rounds", "exact", "lobs", "magnitude"]
        assert sorted(order, key=mean.__getitem__) == order
        assert (
            mean["magnitude + exact"] < mean["magnitude"] and mean["sweep + exact"] < mean["sweep"] < mean["magnitude"]
        )
        assert mean["obc"] < 0.75 * mean["exact"] < 0.75 * mean["lobs"]


def matrix(columns: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    x = torch.randn(4 * columns, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    return damped((x.T @ x / len(x))[None], 0.01)


def test_published_compensation_is_the_loop_over_weights() -> None:
    h = matrix(24)
    inverse = torch.linalg.inv(h)
    w = torch.randn(6, 24, dtype=torch.float64)
    keep = torch.rand(6, 24) < 0.4
    score = w.square() / inverse[0].diagonal()
    found = one_after_another(inverse, torch.zeros(6, dtype=torch.long), w, keep, score)
    for row in range(6):
        v = w[row].clone()
        for q in score[row].argsort(stable=True).tolist():
            if not keep[row, q]:
                v -= v[q] / inverse[0, q, q] * inverse[0, q]  # what was pruned before moves, and does not count
        v[~keep[row]] = 0
        torch.testing.assert_close(found[row], v, rtol=0, atol=1e-10)


def test_obc_removes_the_cheapest_weight_each_time_and_its_losses_add_up() -> None:
    h = matrix(70, seed=1)  # more columns than removals between two updates of the inverse
    w = torch.randn(2, 70, dtype=torch.float64)
    group = torch.zeros(2, dtype=torch.long)
    free, dead = torch.ones(2, 70, dtype=torch.bool), torch.zeros(2, 70, dtype=torch.bool)
    order, loss = trace(torch.linalg.inv(h), group, w, dead, free)
    for row in range(2):
        left, v, total = list(range(70)), w[row].clone(), 0.0
        for step in range(70):
            inverse = torch.linalg.inv(h[0][left][:, left])
            score = v[left].square() / inverse.diagonal()
            cheapest = int(score.argmin())
            q = left[cheapest]
            assert int(order[row, q]) == step
            assert float(loss[row, q]) == pytest.approx(float(score[cheapest]), rel=1e-6)
            total += float(score[cheapest])
            v[left] -= v[q] / inverse[cheapest, cheapest] * inverse[cheapest]
            left.remove(q)
            v[q] = 0
            if step == 40:  # the weights are those of least squares, and the sum of losses is E
                exact = compensate(
                    h,
                    None,
                    group[:1],
                    w[row : row + 1],
                    (torch.arange(70).unsqueeze(0)[..., None] == torch.tensor(left)).any(-1),
                )
                torch.testing.assert_close(v, exact[0], rtol=0, atol=1e-8)
                change = v - w[row]
                assert total == pytest.approx(float(change @ h[0] @ change), rel=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.8])  # the system of the removed ones, of the kept ones
def test_exact_compensation_is_least_squares(share: float) -> None:
    h = torch.cat([matrix(12, 0), matrix(12, 1)])
    group = torch.tensor([0, 0, 1, 1])
    w = torch.randn(4, 12, dtype=torch.float64)
    keep = torch.rand(4, 12) > share
    found = compensate(h, torch.linalg.inv(h), group, w, keep)
    for row in range(4):
        root = torch.linalg.cholesky(h[group[row]], upper=True)
        exact = torch.zeros(12, dtype=torch.float64)
        exact[keep[row]] = torch.linalg.lstsq(root[:, keep[row]], root @ w[row]).solution
        torch.testing.assert_close(found[row], exact, rtol=0, atol=1e-8)


def test_sweep_is_obs_from_left_to_right() -> None:
    """With a mask that removes one column, the columns after it take what OBS on them would give."""
    net, x = problem(3, outputs=4, columns=8)
    dense = net[0].weight.detach().clone()
    report = sparse_gpt(net, [x], keep=0.5, norms="keep")
    pruned = ~need_mask(net[0]).bool()
    h = damped(x.T @ x / len(x), 0.01)
    w = dense.clone()
    for i in range(8):
        rest = torch.linalg.inv(h[i:, i:])
        step = torch.where(pruned[:, i], w[:, i], torch.zeros(4).double()) / rest[0, 0]
        w[:, i:] -= step.unsqueeze(1) * rest[0]
    torch.testing.assert_close(net[0].weight.detach(), w.masked_fill(pruned, 0), rtol=0, atol=1e-9)
    assert report.rows[0].error == pytest.approx(lost(net, x, dense), rel=1e-9)


LAYERS = {
    "linear": (lambda: nn.Linear(11, 7), (40, 11)),
    "conv": (lambda: nn.Conv2d(5, 6, 3, stride=2, padding=1), (8, 5, 9, 9)),
    "groups": (lambda: nn.Conv2d(8, 6, 3, groups=2), (8, 8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(12, 12, 3, groups=12, padding=1), (4, 12, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3, dilation=2), (9, 6, 20)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (4, 2, 5, 5, 5)),
}
PRUNERS: dict[str, Callable[[Any, Any, float], Any]] = {
    "magnitude": lambda n, x, k: magnitude(n, keep=k),
    "exact": lambda n, x, k: l_obs(n, [x], keep=k),
    "rows": lambda n, x, k: l_obs(n, [x], keep=k, scope="row"),
    "rounds": lambda n, x, k: l_obs(n, [x], keep=k, rounds=3),
    "obc": lambda n, x, k: l_obs(n, [x], keep=k, rounds="obc"),
    "lobs": lambda n, x, k: l_obs(n, [x], keep=k, compensation="lobs", rounds=2),
    "sweep": lambda n, x, k: sparse_gpt(n, [x], keep=k),
    "blocks": lambda n, x, k: l_obs(n, [x], keep=k, max_dim=5),
    "no budget": lambda n, x, k: l_obs(n, [x], keep=k, flop_budget=1),
}


@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("how", list(PRUNERS))
def test_counts_are_exact_and_the_bias_is_no_weight(kind: str, how: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    for keep in (0.37, 0.9, 1e-6):
        net: Any = nn.Sequential(make())
        x = torch.randn(shape)
        y, size = net(x).detach(), net[0].weight.numel()
        found = PRUNERS[how](net, x, keep)
        left = max(1, round(size * keep))
        assert int(need_mask(net[0]).sum()) == left == found.rows[0].kept
        used = net[0].quantized_weight()
        assert int((used != 0).sum()) == left and torch.isfinite(used).all() and bool((net[0].bias != 0).any())
        if isinstance(found, LayerReport) and how != "blocks":  # which know nothing of what is between blocks
            change = (net(x) - y).detach()
            axis = -1 if kind == "linear" else 1
            assert found.rows[0].error == pytest.approx(float(change.square().sum(axis).mean()), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_compensation_beats_zeroing(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape).cumsum(-1)  # correlated
    x = x / x.std()
    ways: tuple[dict[str, Any], ...] = ({}, {"rounds": 4}, {"rounds": "obc"}, {"max_dim": 7})
    for way in ways:
        net: Any = nn.Sequential(copy.deepcopy(layer))
        found = l_obs(net, [x], keep=0.5, **way)
        zeroed = copy.deepcopy(layer)
        with torch.no_grad():
            zeroed.weight *= need_mask(net[0])
            plain = float((zeroed(x) - layer(x)).square().sum(-1 if kind == "linear" else 1).mean())
        if "max_dim" not in way:  # blocks of inputs know nothing of each other
            assert found.rows[0].error < plain
        assert found.rows[0].error < 1.2 * plain


def test_columns_go_with_their_patches() -> None:
    """The public code multiplies (kh, kw, C) patches by (C, kh, kw) kernels and pads a strided layer on one side only: it then
    loses to plain magnitude."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    x = torch.randn(64, 4, 10, 10)
    x = torch.relu(x + x.mean(1, keepdim=True) * 3 + torch.nn.functional.avg_pool2d(x, 3, 1, 1) * 4)
    for keep in (0.6, 0.3):
        nets = [nn.Sequential(copy.deepcopy(layer)) for _ in range(2)]
        magnitude(nets[0], keep=keep)
        l_obs(nets[1], [x], keep=keep)
        plain, good = ((net(x) - layer(x)).square().sum(1).mean().item() for net in nets)
        assert good < 0.6 * plain


def test_a_pattern_holds_along_the_input_channels() -> None:
    for layer, x in (
        (nn.Linear(14, 6), torch.randn(60, 14)),
        (nn.Conv2d(10, 6, 3), torch.randn(6, 10, 8, 8)),
        (nn.Conv2d(16, 4, 3, groups=2, bias=False), torch.randn(6, 16, 8, 8)),
    ):
        for pattern, kept, of in (("2:4", 2, 4), ("4:8", 4, 8)):
            for prune in (lambda n, p, x=x: sparse_gpt(n, [x], pattern=p), lambda n, p: magnitude(n, pattern=p)):
                net: Any = nn.Sequential(copy.deepcopy(layer))
                report = prune(net, pattern)
                mask = need_mask(net[0]).transpose(0, 1).flatten(1)  # [I, O * taps]
                whole = len(mask) // of * of
                assert (mask[:whole].reshape(-1, of, mask.shape[1]).sum(1) == kept).all()
                assert (mask[whole:].sum(0) == -(-(len(mask) - whole) // 2)).all()
                assert report.rows[0].kept == int(mask.sum())


def test_ties_go_by_index_and_zeros_count() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 2, bias=False))
    nn.init.zeros_(net[0].weight)
    magnitude(net, keep=0.5)
    assert need_mask(net[0]).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    for method in (METHODS["exact"], METHODS["obc"], METHODS["lobs"], METHODS["sweep"], METHODS["8 rounds"]):
        net, x = problem(outputs=3, columns=4)
        nn.init.zeros_(net[0].weight)  # no division by zero, and the mask is exact
        method(net, x, 0.5)
        assert int(need_mask(net[0]).sum()) == 6 and not bool(net[0].weight.any())


def test_a_dead_input_costs_nothing_and_touches_nothing() -> None:
    ways: tuple[dict[str, Any], ...] = ({}, {"rounds": 4}, {"rounds": "obc"}, {"compensation": "lobs"})
    for how in ways:
        net, x = problem(outputs=4, columns=6)
        x[:, 0] = 0  # the first one: the published settings are built on it
        net[0].weight.data[:, 0] = 100.0
        alone: Any = nn.Sequential(nn.Linear(5, 4, bias=False)).double()
        alone[0].weight.data.copy_(net[0].weight.data[:, 1:])
        l_obs(net, [x], keep=12 / 24, **how)
        l_obs(alone, [x[:, 1:]], keep=12 / 20, **how)
        assert not need_mask(net[0])[:, 0].any()  # free to prune, so first to go
        assert torch.equal(need_mask(net[0])[:, 1:], need_mask(alone[0]))
        torch.testing.assert_close(net[0].weight[:, 1:], alone[0].weight, rtol=0, atol=1e-9)
    net, x = problem(outputs=4, columns=6)
    x[:, 2] = 0
    sparse_gpt(net, [x], keep=0.5)
    assert torch.isfinite(net[0].weight).all()


def test_one_of_two_equal_inputs_goes_for_nothing() -> None:
    net, x = problem(outputs=4, columns=6)
    x = torch.cat([x, x[:, :1]], 1)
    net: Any = nn.Sequential(nn.Linear(7, 4, bias=False)).double()
    report = l_obs(net, [x], keep=24 / 28, rounds="obc", damping=1e-6)
    assert ((1 - need_mask(net[0]))[:, [0, 6]].sum(1) == 1).all()
    assert report.rows[0].relative < 1e-9


def test_few_rows_give_finite_weights() -> None:
    net: Any = nn.Sequential(nn.Linear(32, 8))
    with pytest.warns(BitwrightWarning, match="0 read 6 rows for 32 inputs"):
        l_obs(net, [torch.randn(6, 32)], keep=0.5)
    assert torch.isfinite(net[0].weight).all()


def test_keeping_all_changes_no_bit() -> None:
    net: Any = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(32, 6)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for call in (
        lambda: l_obs(net, [x], keep=1),
        lambda: magnitude(net, sparsity=0),
        lambda: sparse_gpt(net, [x], keep=1.0),
    ):
        assert call().rows == ()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    l_obs(net, [x], keep={"*": 0.5, "2": 1}, norms="keep")
    assert type(net[2]) is nn.Linear and torch.equal(net[2].weight, before["2.weight"])


def test_a_mask_is_never_taken_back() -> None:
    for how in PRUNERS:
        if how == "blocks":
            continue
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(12, 9)), torch.randn(60, 12)
        magnitude(net, keep=0.6)
        first = need_mask(net[0]).clone()
        PRUNERS[how](net, x, 0.3)
        second = need_mask(net[0])
        assert int(second.sum()) == round(108 * 0.3) and not bool((second > first).any()), how
        PRUNERS[how](net, x, 0.8)  # more than is left: stays as it is
        assert torch.equal(need_mask(net[0]), second), how


def test_scores_of_a_pruned_layer_are_those_of_what_is_left() -> None:
    """l_obs in two calls of one round each is l_obs in two rounds."""
    net, x = problem()
    twice = copy.deepcopy(net)
    l_obs(net, [x], keep=0.5, rounds=2)
    l_obs(twice, [x], keep=362 / 512)  # the square root of a half
    l_obs(twice, [x], keep=0.5)
    assert torch.equal(need_mask(net[0]), need_mask(twice[0]))


def test_global_scope_spreads_by_what_layers_lose() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    with torch.no_grad():
        net[0].weight[:12] *= 1e-3  # half of the first layer does next to nothing
    x = torch.randn(300, 16)
    report = l_obs(net, [x], keep=0.6, scope="global")
    kept = {row.layer: row.kept for row in report.rows}
    assert sum(kept.values()) == round(0.6 * (384 + 192)) and kept["0"] < 0.6 * 384 and kept["2"] > 0.6 * 192
    report = magnitude(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8)), keep=0.01, scope="global")
    assert sum(r.kept for r in report.rows) == 6 and all(r.kept >= 1 for r in report.rows)


def test_row_scope_gives_each_output_its_share() -> None:
    net, x = problem()
    l_obs(net, [x], keep=0.3, scope="row")
    assert sorted(need_mask(net[0]).sum(1).unique().tolist()) == [9, 10] and int(need_mask(net[0]).sum()) == 154


def test_masks_and_weights_live_on_like_any_part(tmp_path: Any) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(300, 3, 8, 8)
    l_obs(net, [x], keep=0.25)
    assert [(r.match, r.slots) for r in recipe_of(net).rules] == [("0", {"w": "mask"}), ("4", {"w": "mask"})]
    y = net.eval()(x)
    bw.save(net, tmp_path / "pruned.safetensors")
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    assert torch.equal(bw.load(tmp_path / "pruned.safetensors", plain).eval()(x), y)
    assert bw.cost(net, x[:1]).rows[0].density == pytest.approx(0.25, abs=0.01)
    text = str(bw.convert(net, x[:2], verify=[x]).report)  # says what is not faster
    assert (
        "75 % of its weights are pruned, but zeros among floats save time in linear layers alone; put the weights on few bits too"
        in text
    )
    optimizer = torch.optim.SGD(net.train().parameters(), 0.1)
    with bw.attach(net, optimizer):
        net(x).square().mean().backward()
        optimizer.step()
    assert int((net[0].quantized_weight() != 0).sum()) == int(need_mask(net[0]).sum()) == 54
    assert torch.equal(net[0].weight == 0, need_mask(net[0]) == 0)  # pruned weights did not move


def test_a_quantizer_stays_beside_the_mask() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(8, 4, w="bwn"))
    x = torch.randn(64, 8)
    with pytest.raises(InputError, match="0: its weight goes through bwn; compress the float net, or say latent=True"):
        l_obs(net, [x], keep=0.5)
    l_obs(net, [x], keep=0.5, latent=True)
    assert net[0].w.part_name == "bwn+mask" and int(need_mask(net[0]).sum()) == 16


def test_norms_are_estimated_again_where_asked() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    x = torch.randn(200, 8)
    before = net[1].running_mean.clone()
    kept = copy.deepcopy(net)
    l_obs(kept, [x], keep=0.5)
    l_obs(net, [x], keep=0.5, norms="recalibrate")
    assert torch.equal(kept[1].running_mean, before)
    torch.testing.assert_close(net[1].running_mean, net[0](x).mean(0).detach())


def test_half_precision_and_memory_format_stay() -> None:
    net: Any = nn.Sequential(nn.Conv2d(4, 4, 3))
    net.to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(8, 4, 8, 8).to(torch.bfloat16)
    report = l_obs(net, [x], keep=0.5)
    assert net[0].weight.dtype == torch.bfloat16 and net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert report.rows[0].kept == int((net[0].weight != 0).sum())


def test_two_runs_give_the_same_bits() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))
    x = torch.randn(20, 2, 12, 12)
    found = []
    for _ in range(2):
        one: Any = copy.deepcopy(net)
        l_obs(one, x.split(6), keep=0.5, rounds=2, max_rows=400)
        found.append(one.state_dict())
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_tied_layers_are_pruned_as_one() -> None:
    net: Any = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    report = l_obs(net, [torch.randn(50, 6)], keep=0.5)
    assert [r.layer for r in report.rows] == ["0"] and net[2].weight is net[0].weight
    assert torch.equal(need_mask(net[0]), need_mask(net[2])) and int(need_mask(net[2]).sum()) == 18


class Stop(Exception):
    pass


def stopping(at: int, seen: list[str]) -> Callable[[Any], None]:
    def watch(step: Any) -> None:
        seen.append(step.layer)
        if step.done == at:
            raise Stop

    return watch


@pytest.mark.parametrize("how", [l_obs, sparse_gpt])
def test_a_killed_run_goes_on_behind_the_finished_layers(how: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(8, 8), nn.ReLU())))
    x = torch.randn(100, 8)
    whole = copy.deepcopy(net)
    how(whole, x.split(30), keep=0.5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    seen: list[str] = []
    with watching(stopping(2, seen)), pytest.raises(Stop):
        how(net, x.split(30), keep=0.5, journal=tmp_path / "journal")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # all of it or nothing
    assert len(list((tmp_path / "journal").iterdir())) == 2
    with pytest.raises(InputError, match=r"the journal .* belongs to other weights or options"):
        how(net, x.split(30), keep=0.4, journal=tmp_path / "journal")
    seen.clear()
    with watching(lambda step: seen.append(step.layer)):
        report = how(net, x.split(30), keep=0.5, journal=tmp_path / "journal")
    assert seen == ["4", "6", ""] and [r.layer for r in report.rows] == ["0", "2", "4", "6"]
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in net.state_dict().items())
    assert not (tmp_path / "journal").exists()


def test_fewer_operations_are_a_cheaper_way_and_the_report_says_so() -> None:
    net, x = problem()
    words = []
    for budget in (1e12, 6e5, 2e5, 1.2e5, 10):
        one: Any = copy.deepcopy(net)
        words.append(l_obs(one, [x], keep=0.5, rounds="auto", flop_budget=budget).rows[0].method)
    assert words == ["obc", "exact, 8 rounds", "exact", "sweep", "no compensation"]
    assert choose(1, "exact", [], 0, 1.0) == "1"


@pytest.mark.slow
def test_the_bound_holds_and_ranks() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (
                nn.Conv2d(3, 6, 3, padding=1),
                nn.Conv2d(6, 6, 3, padding=1),
                nn.Conv2d(6, 6, 3, 2, 1),
            )
            self.norm, self.short, self.fc = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1, 2), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            y = self.b(torch.relu(self.norm(self.a(x)))) + self.short(x)
            return self.fc(torch.relu(y).mean((2, 3)))

    net, x = Block(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        net.train()(x)
    y = net.eval()(x).detach()
    bounds = []
    for keep in (0.9, 0.5, 0.1):
        for inputs in ("compressed", "original"):
            one: Any = copy.deepcopy(net)
            report = l_obs(one, [x], keep=keep, norms="keep", inputs=inputs)
            moved = float((one(x).detach() - y).square().sum(1).mean().sqrt())
            bound = error_bound(report)
            assert moved <= bound * (1 + 1e-6)
            bounds.append(bound)
    assert bounds[0] < bounds[2] < bounds[4]
    chain: Any = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    nn.init.eye_(chain[0].weight)
    with torch.no_grad():
        chain[1].weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    found = l_obs(chain, [torch.randn(90, 3).double()], keep={"0": 0.2})
    assert error_bound(found) == pytest.approx(2 * found.rows[0].error ** 0.5)
    lone: Any = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.raises(InputError, match="a norm that is not right behind a layer"):
        error_bound(l_obs(lone, [torch.randn(90, 3)], keep=0.5))
    report = l_obs(nn.Sequential(nn.Linear(3, 2)), [torch.randn(90, 3)], keep=0.5)
    gc.collect()
    with pytest.raises(InputError, match="its net is gone"):
        error_bound(report)


def test_reconstruct_needs_something_to_come_close_to() -> None:
    net, x = problem()
    dense = copy.deepcopy(net)
    with pytest.raises(InputError, match="reconstruct: no layer has a mask"):
        reconstruct(net, [x])
    l_obs(net, [x], keep=0.5)
    with pytest.raises(InputError, match="the pruned weights of 0 are 0, their old values are lost"):
        reconstruct(net, [x])
    with pytest.raises(InputError, match=r"the dense net has no layer 0 with weights \(16, 32\)"):
        reconstruct(net, [x], dense=nn.Sequential(nn.Linear(3, 4)))
    before = net[0].weight.clone()
    reconstruct(net, [x], dense=dense)
    torch.testing.assert_close(net[0].weight, before, rtol=1e-6, atol=1e-8)  # it was exact already


def test_folded_norms_leave_the_output_as_it_was() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), bw.nn.Conv2d(4, 4, 3, w="bwn"), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, affine=False),
    )  # fmt: skip
    x = torch.randn(9, 3, 8, 8)
    with torch.no_grad():
        net(x)
        nn.init.uniform_(net[1].weight, -1, 1)
        nn.init.normal_(net[1].bias)
    y = net.eval()(x).detach()
    report = fold_batchnorm(net, [(x, None)])
    assert [(r.norm, r.layer, r.reason) for r in report.rows] == [
        ("1", "0", ""), ("4", "3", "the weight goes through bwn"), ("7", "6", ""),
    ]  # fmt: skip
    assert isinstance(net[1], nn.Identity) and isinstance(net[4], nn.BatchNorm2d)
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="fold_batchnorm: no images"):
        fold_batchnorm(net, [])


NET = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
X = torch.randn(20, 4)
BAD: list[tuple[Callable[[nn.Module], Any], str]] = [
    (lambda n: l_obs(n, [X], keep=0), r"l_obs: keep=0\.?0?; possible: above 0 and at most 1"),
    (lambda n: l_obs(n, [X], keep=1.5), "l_obs: keep=1.5; possible"),
    (lambda n: l_obs(n, [X], sparsity=1.0), "l_obs: sparsity=1.0; possible: at least 0 and below 1"),
    (lambda n: l_obs(n, [X], keep={"0": 0.5, "2": -1}), "l_obs: keep=-1"),
    (lambda n: l_obs(n, [X]), "l_obs: neither keep nor sparsity is given"),
    (lambda n: l_obs(n, [X], keep=0.5, sparsity=0.5), "l_obs: both keep and sparsity are given"),
    (lambda n: l_obs(n, [X], keep={"fc": 0.5}), "l_obs: keep of 'fc' matches no layer"),
    (lambda n: l_obs(n, [X], keep={}), "keep is an empty mapping"),
    (lambda n: l_obs(n, [X], keep=0.5, damping=0), "l_obs: damping=0; possible"),
    (lambda n: l_obs(n, [X], keep=0.5, max_rows=0), "l_obs: max_rows=0"),
    (lambda n: l_obs(n, [], keep=0.5), "l_obs: no images"),
    (lambda n: l_obs(n, [X * torch.nan], keep=0.5), "l_obs: 0 reads NaN numbers in batch 0"),
    (lambda n: sparse_gpt(n, [X], pattern=cast(Any, "1:2")), "sparse_gpt: pattern='1:2'; possible: 2:4, 4:8"),
    (lambda n: sparse_gpt(n, [X], pattern="2:4", keep=0.5), "says how much is kept; leave keep and sparsity out"),
    (lambda n: sparse_gpt(n, [X], pattern="2:4", max_dim=2), "0 has 4 inputs, more than max_dim"),
    (lambda n: magnitude(n, pattern="2:4", schedule="cubic", at=0.5), "has one sparsity; leave schedule out"),
    (
        lambda n: l_obs(nn.Linear(4, 2), [X], keep=0.5),
        "l_obs: model: the model is one Linear, which cannot be replaced",
    ),
    (
        lambda n: l_obs(nn.Sequential(nn.ConvTranspose3d(1, 1, 3)), [X], keep={"0": 0.5}),
        "l_obs: keep of '0' matches no|no layer that it",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD)
def test_bad_input_is_one_line_and_leaves_the_net(call: Callable[[nn.Module], Any], text: str) -> None:
    net: Any = copy.deepcopy(NET)
    with pytest.raises(InputError, match=text) as caught:
        call(net)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, NET.state_dict()[k]) for k, v in net.state_dict().items()) and type(net[0]) is nn.Linear


def test_factor_of_a_singular_layer_says_its_damping() -> None:
    h = torch.zeros(1, 3, 3, dtype=torch.float64)
    assert inverse_factor(h).upper[0].tolist() == torch.eye(3).tolist()
