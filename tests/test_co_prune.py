"""Co-Prune: exact counts, the mix of two nets, masks that may grow back, one call per step, and the ready trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError, Negative
from bitwright.parts.mask import Mask
from bitwright.procedures import CoPrune, co_prune, watching

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly


def net_of(seed: int, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def images(seed: int, count: int = 24, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 4, 4, generator=draws)
    return [(x[i : i + 8], (x[i : i + 8].sum((1, 2, 3)) > 0).long() % classes) for i in range(0, count, 8)]


def weight_of(net: nn.Module, name: str) -> Tensor:
    weight = net.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def gradient_of(net: nn.Module) -> Tensor:
    gradient = weight_of(net, "0").grad
    assert gradient is not None
    return gradient


def mask_of(net: nn.Module, name: str) -> Mask:
    layer: Any = net.get_submodule(name)
    assert isinstance(layer.w, Mask)
    return layer.w


def kept(score: Tensor, k: int) -> Tensor:
    """The k highest, found one by one."""
    out, left = torch.zeros(score.numel(), dtype=torch.bool), score.double().flatten().clone()
    for _ in range(k):
        best = max(range(len(left)), key=lambda i: (left[i].item(), i))
        out[best], left[best] = True, -torch.inf
    return out.reshape(score.shape)


LAYERS = ("0", "2", "5")


# -- the masks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [0.5, 0.13, 1e-6, {"*": 0.3, "5": 0.7}])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_exactly_k_of_the_mix(keep: Any, alpha: float) -> None:
    source, target = net_of(1), net_of(2)
    w = {n: (weight_of(source, n).detach().abs(), weight_of(target, n).detach().abs()) for n in LAYERS}
    CoPrune(source, target, keep, alpha=alpha)
    for name, (one, two) in w.items():
        share = keep if isinstance(keep, float) else keep.get(name, keep["*"])
        k = max(1, round(share * one.numel()))
        assert torch.equal(mask_of(source, name).mask.bool(), kept(one, k))
        assert torch.equal(mask_of(target, name).mask.bool(), kept(alpha * one + (1 - alpha) * two, k))
        assert torch.equal(weight_of(target, name).abs(), two), "the weights stay"


def test_alpha_one_is_the_masks_of_the_source_and_zero_those_of_the_target() -> None:
    source, target, alone = net_of(1), net_of(2), net_of(2)
    bw.procedures.magnitude(alone, keep=0.4)
    pruner = CoPrune(source, target, 0.4, alpha=1.0)
    for name in LAYERS:
        assert torch.equal(mask_of(target, name).mask, mask_of(source, name).mask)
    pruner.alpha = 0.0
    pruner.draw()
    for name in LAYERS:
        assert torch.equal(mask_of(target, name).mask, mask_of(alone, name).mask)


def test_the_source_never_looks_at_the_target() -> None:
    masks = []
    for seed in (2, 3):
        source = net_of(1)
        CoPrune(source, net_of(seed), 0.3, alpha=0.5)
        masks.append([mask_of(source, name).mask for name in LAYERS])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_equal_weights_still_leave_k() -> None:
    """The public code keeps what is above the k-th value: k - 1 weights, and none where all are equal."""
    source, target = net_of(1), net_of(2)
    for net in (source, target):
        for name in LAYERS:
            weight_of(net, name).data.fill_(0.25)
    CoPrune(source, target, {"0": 28 / 72, "2": 51 / 72, "5": 1e-9})
    assert [int(mask_of(target, n).mask.sum()) for n in LAYERS] == [28, 51, 1]
    zeros, others = net_of(1), net_of(2)
    for name in LAYERS:
        weight_of(zeros, name).data.zero_()
    for normalize in ("none", "layer_l2", "rank"):
        CoPrune(copy.deepcopy(zeros), copy.deepcopy(others), 0.5, normalize=normalize)


@pytest.mark.parametrize(("normalize", "same"), [("none", False), ("layer_l2", True), ("rank", True)])
def test_the_size_of_the_source_matters_only_without_normalizing(normalize: Any, same: bool) -> None:
    masks = []
    for factor in (1.0, 0.05):
        source, target = net_of(1), net_of(2)
        for name in LAYERS:
            weight_of(source, name).data.mul_(factor)
        CoPrune(source, target, 0.4, alpha=0.5, normalize=normalize)
        masks.append(torch.cat([mask_of(target, n).mask.flatten() for n in LAYERS]))
    assert torch.equal(*masks) == same


def test_ranks_by_hand() -> None:
    source, target = nn.Sequential(nn.Linear(4, 1)), nn.Sequential(nn.Linear(4, 1))
    weight_of(source, "0").data.copy_(torch.tensor([[9.0, 1.0, 2.0, 3.0]]))
    weight_of(target, "0").data.copy_(torch.tensor([[0.1, 0.4, 0.3, -0.2]]))
    CoPrune(source, target, 0.5, alpha=0.25, normalize="rank")
    # ranks / 3: source 1, 0, 1/3, 2/3; target 0, 1, 2/3, 1/3. Mixed: .25, .75, .58, .42
    assert mask_of(target, "0").mask.tolist() == [[0, 1, 1, 0]]


# -- growing back -------------------------------------------------------------------------------------------------------
def test_pruned_weights_learn_and_come_back() -> None:
    source, target = nn.Sequential(nn.Linear(3, 1, bias=False)), nn.Sequential(nn.Linear(3, 1, bias=False))
    for net in (source, target):
        weight_of(net, "0").data.copy_(torch.tensor([[3.0, 2.0, 1.0]]))
    pruner = CoPrune(source, target, 1 / 3, alpha=0.0)
    optimizer = torch.optim.SGD(target.parameters(), 1.0)
    target(torch.tensor([[0.0, 0.0, -5.0]])).sum().backward()
    assert gradient_of(target).tolist() == [[0.0, 0.0, -5.0]], "the dense gradient"
    optimizer.step()
    assert pruner.step() == 1
    assert mask_of(target, "0").mask.tolist() == [[0, 0, 1]] and pruner.source_swaps == 0
    assert target(torch.ones(1, 3)).item() == 6.0
    pruner.finish()
    target.zero_grad()
    target(torch.ones(1, 3)).sum().backward()
    assert gradient_of(target).tolist() == [[0.0, 0.0, 1.0]], "pruned weights learn no more"
    weight_of(target, "0").data.copy_(torch.tensor([[90.0, 0.0, 1.0]]))
    assert pruner.frozen and pruner.step() == 0 and mask_of(target, "0").mask.tolist() == [[0, 0, 1]]


def test_refreshing_and_freezing() -> None:
    source, target = net_of(1), net_of(2)
    pruner = CoPrune(source, target, 0.3, refresh_every=3, freeze_after=7)
    changed = []
    for _ in range(9):
        for name in LAYERS:
            weight_of(target, name).data.copy_(torch.randn(weight_of(target, name).shape))
        changed.append(pruner.step() > 0)
    assert changed == [False, False, True, False, False, True, True, False, False]
    assert pruner.frozen and int(pruner.count) == 7
    again = CoPrune(source, target, 0.3, freeze_after=7)
    assert mask_of(target, "0").grow
    again.load_state_dict(pruner.state_dict())
    assert again.frozen and again.step() == 0 and not mask_of(target, "0").grow, "a loaded state is as final as it was"


# -- second-order scores --------------------------------------------------------------------------------------------------
def test_second_order_scores_equal_those_of_explicit_patches() -> None:
    source, target = net_of(1), net_of(2)
    mine, theirs = images(3), images(4)
    wanted = [_obs(net, batches, "2") for net, batches in ((source, mine), (target, theirs))]
    CoPrune(source, target, {"2": 0.4}, alpha=0.6, score="obs", source_batches=mine, target_batches=theirs)
    k = round(0.4 * 72)
    assert torch.equal(mask_of(source, "2").mask.bool(), kept(wanted[0], k))
    assert torch.equal(mask_of(target, "2").mask.bool(), kept(0.6 * wanted[0] + 0.4 * wanted[1], k))


def _obs(net: nn.Sequential, batches: list[tuple[Tensor, Tensor]], name: str) -> Tensor:
    """w^2 / [H^-1]_qq over its mean, of the grouped convolution."""
    with torch.no_grad():
        x = net[:2](torch.cat([b for b, _ in batches])).double()
    weight = weight_of(net, name).detach().double()
    out = torch.empty_like(weight)
    for g in range(2):
        patches = F.unfold(x[:, 2 * g : 2 * g + 2], 3).transpose(1, 2).reshape(-1, 18)
        h = patches.T @ patches / len(patches)
        h = h + 0.01 * h.diagonal().mean() * torch.eye(18)
        own = weight[2 * g : 2 * g + 2]
        out[2 * g : 2 * g + 2] = (own.reshape(2, 18).square() / torch.linalg.inv(h).diagonal()).reshape(own.shape)
    return out / out.mean()


def test_a_dead_input_is_pruned_first() -> None:
    source, target = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2))
    x = torch.randn(64, 4)
    x[:, 1] = 0
    weight_of(target, "0").data[:, 1] = weight_of(source, "0").data[:, 1] = 100.0
    CoPrune(source, target, 0.75, score="obs", source_batches=[x], target_batches=[x])
    assert not mask_of(target, "0").mask[:, 1].any()


# -- after it -------------------------------------------------------------------------------------------------------------
def test_the_result_is_a_pruned_net_like_any(tmp_path: Path) -> None:
    source, target = net_of(1), net_of(2)
    pruner = CoPrune(source, target, 0.25)
    pruner.finish()
    x = images(5)[0][0]
    wanted = target.eval()(x)
    bw.save(target, tmp_path / "pruned.safetensors")
    again = bw.load(tmp_path / "pruned.safetensors", net_of(9)).eval()
    assert torch.equal(again(x), wanted)
    counts = [round(0.25 * weight_of(target, n).numel()) for n in LAYERS]
    effective = [int((mask_of(again, n)(weight_of(again, n)) != 0).sum()) for n in LAYERS]
    assert effective == counts == [row.kept for row in pruner.rows()]
    assert "grow" not in bw.recipe_of(target).to_toml()
    bw.procedures.reconstruct(target, images(5, 64))
    bw.apply(target, [{"match": "5", "w": ["bwn", "mask"]}])
    assert bw.convert(target, x, form="layers").model is not None


def test_training_goes_on_from_saved_states(tmp_path: Path) -> None:
    source, target = net_of(1), net_of(2)
    pruner = CoPrune(source, target, 0.3, alpha=0.6, refresh_every=2)
    _train(source, target, pruner, 3)
    bw.save(target, tmp_path / "target.safetensors")
    assert "grow = true" in bw.recipe_of(target).to_toml()
    twins: list[nn.Module] = [copy.deepcopy(source), bw.load(tmp_path / "target.safetensors", net_of(9))]
    second = CoPrune(twins[0], twins[1], 0.3, alpha=0.1, refresh_every=2)
    for net, old in zip(twins, (source, target), strict=True):
        net.load_state_dict(old.state_dict())
    second.load_state_dict(pruner.state_dict())
    _train(source, target, pruner, 4)
    _train(twins[0], twins[1], second, 4)
    assert second.alpha == 0.6 and int(second.count) == 7
    for one, two in zip(target.state_dict().values(), twins[1].state_dict().values(), strict=True):
        assert torch.equal(one, two)


def _train(source: nn.Module, target: nn.Module, pruner: CoPrune, steps: int) -> None:
    optimizer = torch.optim.SGD([*source.parameters(), *target.parameters()], 0.1)
    for x, y in (images(7) * 2)[:steps]:
        optimizer.zero_grad()
        (F.cross_entropy(source(x), y) + F.cross_entropy(target(x), y)).backward()
        optimizer.step()
        pruner.step()


# -- the ready trainer ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_trainer_learns_prunes_and_reports() -> None:
    source, target = net_of(1), net_of(2)
    source.train()
    target.eval()
    held = images(8)
    report = co_prune(
        source, target, images(3, 64), images(4, 32), {"*": 0.5, "5": 0.75}, alpha=(0.7, 0.3), epochs=25, lr=0.02, val=held,
        normalize="layer_l2",
    )  # fmt: skip
    assert [row.kept for row in report.rows] == [36, 36, 36] and report.samples == 32
    assert [int(mask_of(net, n).mask.sum()) for net in (source, target) for n in LAYERS] == [36] * 6
    assert [stage.alpha for stage in report.stages] == [0.7, 0.3] and report.kept == pytest.approx(108 / 192)
    assert not mask_of(target, "0").grow and (source.training, target.training) == (True, False)
    with torch.no_grad():
        right = sum(int((target(x).argmax(1) == y).sum()) for x, y in held) / 24
    assert right == report.stages[-1].accuracy and right > 0.8
    table = report.to_markdown()
    assert "also kept in the source" in table and "37.5 %" not in table
    assert report.to_dict()["stages"][0]["swaps"] > 0


def test_the_rate_falls_and_the_stage_ends_where_nothing_improves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of next to nothing the loss repeats: three epochs to wait, three times a tenth, the stage is over."""
    rates: list[float] = []
    step = torch.optim.Adam.step

    def note(self: Any, *args: Any) -> None:
        rates.append(self.param_groups[0]["lr"])
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", note)
    one = images(3, 8)
    report = co_prune(net_of(1), net_of(2), one, one, 0.5, alpha=(0.5,), epochs=100)
    assert report.stages[0].epochs == 10  # the first sets the mark, then three times three
    assert sorted({round(r, 9) for r in rates}, reverse=True) == [1e-3, 1e-4, 1e-5]


def test_the_next_stage_begins_at_the_best_epoch() -> None:
    source, target = net_of(1), net_of(2)
    start = copy.deepcopy(target.state_dict())
    val = [(x, torch.full_like(y, 0)) for x, y in images(6)]
    for x, y in val:
        y.copy_(target(x).argmax(1))  # the untrained net is right about all of them
    flip = [(x, 2 - y) for x, y in images(6)]
    report = co_prune(source, target, flip, flip, {"5": 47 / 48}, alpha=(0.5,), epochs=20, lr=0.05, val=val)
    after = sum(int((target.eval()(x).argmax(1) == y).sum()) for x, y in val) / 24
    assert after == report.stages[0].accuracy
    assert start.keys() <= target.state_dict().keys()


def test_one_shot_batches_serve_every_epoch() -> None:
    told: list[str] = []
    with watching(lambda step: told.append(f"{step.done}/{step.total} {step.layer}")):
        report = co_prune(net_of(1), net_of(2), iter(images(3)), iter(images(4)), 0.5, alpha=(0.5,), epochs=3)
    assert told == ["0/1 stage 0, alpha 0.5", "1/1 "]
    assert report.stages[0].epochs == 3 and report.samples == 24


# -- errors -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.2}, "alpha=1.2; possible: 0 to 1"),
        ({"keep": 0.0}, "keep=0.0; possible: above 0"),
        ({"keep": 1}, "nothing to choose"),
        ({"keep": {"conv9": 0.5}}, "'conv9' matches no layer"),
        ({"score": "taylor"}, "score='taylor'; possible: magnitude, obs"),
        ({"normalize": "l1"}, "normalize='l1'; possible: none, layer_l2, rank"),
        ({"refresh_every": 0}, "refresh_every=0; possible: 1 and more"),
        ({"freeze_after": -1}, "freeze_after=-1"),
        ({"score": "obs"}, "reads images of both domains"),
        ({"score": "obs", "damping": 0.0}, "damping=0.0"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CoPrune(net_of(1), net_of(2), **{"keep": 0.5, **options})


def test_nets_that_do_not_go_together() -> None:
    with pytest.raises(
        InputError, match=r"weight of 5 is \[4, 16\] in the source and \[3, 16\] in the target; leave the layer"
    ):
        CoPrune(net_of(1, classes=4), net_of(2), 0.5)
    CoPrune(net_of(1, classes=4), net_of(2), {"0": 0.5, "2": 0.5})
    with pytest.raises(InputError, match="the source has no layer 5"):
        CoPrune(net_of(1)[:5], net_of(2), 0.5)
    same = net_of(1)
    with pytest.raises(InputError, match="0 is the same weight in both nets"):
        CoPrune(same, same, 0.5)


def test_batches_that_do_not_serve() -> None:
    good = images(3)
    with pytest.raises(InputError, match="target_batches is empty"):
        co_prune(net_of(1), net_of(2), good, [], 0.5)
    with pytest.raises(InputError, match=r"source_batches gives Tensor; training needs \(inputs, labels\)"):
        co_prune(net_of(1), net_of(2), [good[0][0]], good, 0.5)
    with pytest.raises(InputError, match="alpha is empty"):
        co_prune(net_of(1), net_of(2), good, good, 0.5, alpha=())
    bad = [(x * torch.nan, y) for x, y in good]
    with pytest.raises(Negative, match="the loss became nan"):
        co_prune(net_of(1), net_of(2), good, bad, 0.5, alpha=(0.5,), epochs=1)
