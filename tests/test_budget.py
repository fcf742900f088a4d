"""Budget: the work of gated nets is held where it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.analysis.budget_fit import fit_channels
from bitwright.errors import InputError
from bitwright.experiment import Experiment
from processes import spawned

X = torch.zeros(1, 3, 8, 8)


def net(match: str = "layer*.conv1", **gate: Any) -> Any:
    torch.manual_seed(0)
    model = bw.models.create("resnet20", width=0.5)
    return bw.apply(model, [{"match": match, "gate": gate}], X)


def trained(model: nn.Module, budget: bw.Budget, steps: int) -> list[float]:
    """What each step spent."""
    spent = []
    optimizer = torch.optim.SGD(bw.param_groups(model, 0.02, 1e-4), momentum=0.9)
    bw.attach(model, optimizer)
    for i in range(steps):
        torch.manual_seed(i)
        x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))
        loss = nn.functional.cross_entropy(model.train()(x), y) + bw.penalty(model) + budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        budget.step()
        spent.append(budget.spent)
    return spent


def small(match: str, **gate: Any) -> Any:
    """80 % of its work is in the layers 3 and 6."""
    torch.manual_seed(0)

    def block(i: int, o: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    body = [*block(3, 8), *block(8, 8), *block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return bw.apply(nn.Sequential(*body), [{"match": match, "gate": gate}], X)


def share(model: nn.Module, x: Tensor, key: str = "macs") -> float:
    with torch.no_grad(), bw.count_macs(model.eval()) as count:
        model(x)
    return count.total / count.dense if key == "macs" else count.bops / count.dense_bops


@pytest.mark.few("channel_gate")
@pytest.mark.parametrize(
    ("match", "gate", "limit"),
    [
        ("[36]", {"part": "channel_gate"}, {"macs": 0.58}),
        ("[36]", {"part": "channel_gate", "unit": "raw", "splits": 2}, {"macs": 0.68}),
        ("[036]", {"part": "precision_gate", "bits": 4, "top": 2, "unit": "normalized"}, {"bops": 0.64}),
    ],
    ids=["channel_gate", "raw", "precision_gate"],
)
def test_thresholds_find_the_budget(match: str, gate: dict[str, Any], limit: dict[str, float]) -> None:
    model = small(match, **gate)
    ((key, wanted),) = limit.items()
    budget = bw.Budget(model, X, **limit)
    x = torch.randn(128, 3, 8, 8)
    model.train()(x)
    budget.step()
    assert budget.spent / wanted > 1.1, "far off at first"
    spent = trained(model, budget, 160)
    assert abs(sum(spent[-20:]) / 20 / wanted - 1) < 0.02, "the loop alone holds it"
    assert abs(share(model, x, key) / wanted - 1) < 0.05, "in evaluation, before refit, nearly"
    budget.refit(x)
    assert budget.spent == share(model, x, key) and abs(budget.spent / wanted - 1) < 0.005
    assert abs(share(model, torch.randn(128, 3, 8, 8), key) / wanted - 1) < 0.02, "on other images"
    assert bw.penalty(model).item() == 0  # the gates' own target does not pull beside it


@pytest.mark.slow
def test_fbs_finds_the_share_of_channels() -> None:
    model, x = net("layer*.conv?", part="fbs", keep=1.0), torch.randn(8, 3, 8, 8)
    budget = bw.Budget(model, x, macs=0.6)
    assert 0.98 * 0.6 <= share(model, x) <= 0.6 and budget.spent == share(model, x)
    gate = model.layer1[0].conv1.gate
    keeps = {g.keep for g in budget.channels.values()}
    assert len(keeps) > 1 and all(0 < keep < 1 for keep in keeps), "one share for all cannot come as near"
    assert bw.recipe_of(model).rules[0].slots["gate"]["keep"] == gate.keep
    assert budget.state_dict()["layer1.0.conv1"] == gate.keep
    budget.load_state_dict({"layer1.0.conv1": 0.25})
    assert gate.keep == 0.25


class Coarse:
    """An fbs layer as the search sees it: each block of channels costs the same."""

    def __init__(self, outputs: int, price: float, block: int = 1) -> None:
        self.outputs, self.price, self.block, self.keep = outputs, price, block, 1.0

    def set_keep(self, keep: float) -> None:
        self.keep = keep


@pytest.mark.parametrize(
    ("target", "keeps"),
    [
        (0.70, (1.0, 1.0)),  # all of it: 0.1 + 4 x 0.1 + 8 x 0.02 = 0.66
        (0.53, (3 / 4, 6 / 8)),  # by share b2 b3 b4 a2 b5 b6 a3: 0.52; b7 would be 0.54
        (0.50, (2 / 4, 8 / 8)),  # a3 would be 0.52: so a2 b6, 0.42; a3 does not fit, b7 and b8 do: 0.46
        (0.20, (1 / 4, 1 / 8)),  # one block each is 0.22: too much, and for the caller to say
    ],
)
def test_channels_are_raised_until_the_next_would_overshoot(target: float, keeps: tuple[float, float]) -> None:
    gates: Any = {"a": Coarse(4, 0.1), "b": Coarse(16, 0.02, 2)}

    def work() -> float:
        return (0.1 + sum(g.keep * g.outputs / g.block * g.price for g in gates.values())) / target - 1

    fit_channels(gates, work, lambda: {name: g.price / target for name, g in gates.items()})
    assert (gates["a"].keep, gates["b"].keep) == keeps


def test_steps_of_channels_that_are_too_coarse_are_told() -> None:
    model = nn.Sequential(bw.nn.Conv2d(8, 8, 1, bias=False, gate={"part": "fbs", "keep": 1.0}))
    # 16 x 8 per channel, and 8 x 8 + 8 x 16 for predictor and scaling, of 1024: two channels are 0.4375, three 0.5625
    with pytest.warns(bw.BitwrightWarning, match=r"of 512 per sample, .* than 448 \(-12.5 %\); 0.312 to 1.188 of 1024"):
        budget = bw.Budget(model, torch.rand(4, 8, 4, 4), macs=0.5)
    assert budget.spent == 0.4375 and budget.state_dict() == {"0": 0.25}


def test_refit_finds_thresholds_that_are_far_away() -> None:
    model = small("[36]", part="channel_gate", init=-40.0)
    budget = bw.Budget(model, X, macs=0.5)
    budget.refit(torch.randn(64, 3, 8, 8))
    assert abs(budget.spent / 0.5 - 1) < 0.005
    assert float(model[3].gate.threshold.detach().min()) > -40


def test_gates_that_move_as_one_are_told() -> None:
    """All sums are equal: the rest is added to all outputs or to none."""
    gate = {"part": "channel_gate", "unit": "raw", "init": 0.0}
    layer = bw.nn.Conv2d(8, 8, 1, bias=False, gate=gate)
    nn.init.ones_(layer.weight)
    model = nn.Sequential(layer)
    budget = bw.Budget(model, torch.ones(1, 8, 4, 4), macs=0.5)
    with pytest.warns(bw.BitwrightWarning, match=r"of 512 per sample, .* than 256 \(-50.0 %\); 0.250 to 1.000 of 1024"):
        budget.refit(torch.ones(2, 8, 4, 4))
    assert budget.spent == 0.25


def test_the_gradient_of_the_penalty_is_the_formula() -> None:
    gate = {"part": "channel_gate", "unit": "raw", "sparse_backprop": False, "slope": 3.0}
    layer: Any = bw.nn.Conv2d(8, 8, 1, bias=False, gate=gate)
    model, x = nn.Sequential(layer), torch.randn(4, 8, 5, 5)
    budget = bw.Budget(model, x, macs=0.4, weight=2.0)
    model.train()(x)
    budget.penalty().backward()
    base = nn.functional.conv2d(x, layer.weight * layer.gate.base[:, :, None, None])
    s, on = torch.sigmoid(3.0 * base), (base > 0).sum()
    spent, target = 25 * 8 * 2 + 6 * on / 4, 0.4 * 25 * 64  # two channels are base, six the rest
    slope = 2 * 2.0 * (spent / target - 1) / target
    expected = -slope * 6 / 4 * (3.0 * s * (1 - s)).sum((0, 2, 3))
    torch.testing.assert_close(layer.gate.threshold.grad, expected)


def test_the_penalty_pulls_at_thresholds_only_above_the_budget() -> None:
    model = net(part="channel_gate", sparse_backprop=False)
    threshold = model.layer1[0].conv1.gate.threshold
    for macs, pulled in ((0.7, True), (1.0, False)):
        budget = bw.Budget(model, X, macs=macs)
        model.train()(torch.randn(4, 3, 8, 8))
        term = budget.penalty()
        threshold.grad = None
        term.backward()
        assert (term.item() > 0) == pulled
        assert threshold.grad is not None and bool((threshold.grad < 0).any()) == pulled  # a higher threshold helps
        budget.remove()
    assert not model.layer1[0].conv1.gate.watchers and bw.penalty(model).item() > 0


def test_the_value_of_the_penalty_is_the_formula() -> None:
    model = net(part="channel_gate")
    budget = bw.Budget(model, X, macs=0.7, weight=3.0)
    x = torch.randn(4, 3, 8, 8)
    with bw.count_macs(model.train()) as count:
        model(x)
    expected = 3.0 * max(0.0, count.total / count.dense / 0.7 - 1) ** 2
    assert budget.penalty().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("limit", "text", "given", "possible"),
    [
        ({}, "one of macs and bops", "neither", "macs or bops"),
        ({"macs": 0.5, "bops": 0.5}, "one of macs and bops", "both", "macs or bops"),
        ({"macs": -1.0}, "a share up to 1", "-1.0", "a share above 0"),
        ({"macs": 0.1}, "with every gate shut", "0.1", "0.401 to 1.000 of 6.928e+04"),  # 0.25 of 55,296, and 13,984
        ({"macs": 1e4}, "with every gate shut", "10000", "2.781e+04 to 6.928e+04"),
        ({"macs": 1e5}, "more than the net with no gate", "100000", "2.781e+04 to 6.928e+04"),
        ({"bops": 1e9}, "more than the net with no gate", "1e+09", "2.848e+07 to 7.094e+07"),
    ],
)
def test_what_cannot_be_is_one_line(limit: dict[str, float], text: str, given: str, possible: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        bw.Budget(small("[36]", part="channel_gate"), X, **limit)
    assert "\n" not in str(error.value) and error.value.code == "budget"
    assert error.value.given == given and str(error.value.possible).startswith(possible)


def test_one_channel_a_layer_may_be_too_much() -> None:
    model = small("[036]", part="fbs", keep=1.0)
    with pytest.raises(InputError, match="one channel a layer spends") as error:
        bw.Budget(model, torch.rand(2, 3, 8, 8), macs=0.02)
    assert error.value.given == "0.02" and "of 6.928e+04" in str(error.value.possible)
    assert model[3].gate.keep == 1 / 8


def test_nets_that_no_budget_can_hold() -> None:
    with pytest.raises(InputError, match="no gate") as error:
        bw.Budget(nn.Linear(2, 2), torch.zeros(1, 2), macs=0.5)
    assert error.value.given == "Linear" and "channel_gate" in str(error.value.possible)
    both = small("3", part="channel_gate")
    bw.apply(both, [{"match": "6", "gate": {"part": "fbs"}}], X)
    with pytest.raises(InputError, match="in one net") as error:
        bw.Budget(both, X, macs=0.5)
    assert (error.value.layer, error.value.possible) == ("6", "one kind")
    with pytest.raises(InputError, match="6: an infinite threshold") as error:
        bw.Budget(small("6", part="channel_gate", init=float("inf")), X, macs=0.8)
    assert (error.value.layer, error.value.given) == ("6", "init=inf")


@pytest.mark.slow
@pytest.mark.parametrize("part", [{"part": "channel_gate"}, {"part": "fbs", "keep": 1.0}], ids=lambda p: p["part"])
def test_an_experiment_holds_its_budget(part: dict[str, Any], tmp_path: Path) -> None:
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits", "batch": 32, "limit": 640},
            "model": {"name": "resnet20", "width": 0.5},
            "stage": [
                {
                    "epochs": 6,
                    "rule": [{"match": "layer*.conv1", "gate": part}],
                    "budget": {"macs": 0.75},
                    "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
                }
            ],
            "train": {"threads": 1},
            "log": {"tensorboard": False},
        }
    )
    bw.train(experiment, tmp_path / "run")
    model: Any = bw.load(tmp_path / "run" / "model.safetensors", bw.models.create("resnet20", width=0.5, in_channels=1))
    x = next(iter(bw.data.load("digits", split="test").batches(128)))[0]
    with torch.no_grad(), bw.count_macs(model.eval()) as count:
        model(x)
    assert abs(count.total / count.dense / 0.75 - 1) < 0.02


def _rank(rank: int, folder: str) -> None:
    """Raw thresholds move in units of a running deviation, which each process has of its own images."""
    model = small("[36]", part="channel_gate", unit="raw")
    budget = bw.Budget(model, X, macs=0.58)
    torch.manual_seed(rank)
    for _ in range(3):
        model.train()((rank + 1) * torch.randn(8, 3, 8, 8))
        budget.step()
    budget.refit((rank + 1) * torch.randn(16, 3, 8, 8))
    thresholds = [gate.threshold.detach() for gate in budget.splits.values()]
    model = net("layer*.conv?", part="fbs", keep=1.0)
    torch.manual_seed(rank)
    keeps = bw.Budget(model, torch.randn(4, 3, 8, 8), macs=0.6).state_dict()
    torch.save({"thresholds": thresholds, "keeps": keeps}, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_move_as_one(tmp_path: Path) -> None:
    spawned(_rank, tmp_path / "store", str(tmp_path))
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["keeps"] == two["keeps"]
    assert all(torch.equal(a, b) for a, b in zip(one["thresholds"], two["thresholds"], strict=True))
