"""Budget: the work of gated nets is held where it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.experiment import Experiment

X = torch.zeros(1, 3, 8, 8)


def net(match: str = "layer*.conv1", **gate: Any) -> Any:
    torch.manual_seed(0)
    model = bw.models.create("resnet20", width=0.5)
    return bw.apply(model, [{"match": match, "gate": gate}], X)


def trained(model: nn.Module, budget: bw.Budget, steps: int = 120) -> None:
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


@pytest.mark.parametrize(
    ("gate", "limit"),
    [
        ({"part": "channel_gate"}, {"macs": 0.8}),
        pytest.param({"part": "channel_gate", "unit": "raw", "splits": 2}, {"macs": 0.9}, marks=pytest.mark.slow),
        pytest.param({"part": "precision_gate", "bits": 4, "top": 2}, {"bops": 0.97}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_thresholds_find_the_budget(gate: dict[str, Any], limit: dict[str, float]) -> None:
    model = net(**gate)
    budget = bw.Budget(model, X, **limit)
    trained(model, budget)
    ((key, wanted),) = limit.items()
    budget.refit(torch.randn(64, 3, 8, 8))
    with torch.no_grad(), bw.count_macs(model.eval()) as count:
        model(torch.randn(64, 3, 8, 8))
    got = count.total / count.dense if key == "macs" else count.bops / count.dense_bops
    assert abs(got / wanted - 1) < 0.02
    assert bw.penalty(model).item() == 0  # the gates' own target does not pull beside it


def test_fbs_finds_the_share_of_channels() -> None:
    model, x = net("layer*.conv?", part="fbs", keep=1.0), torch.randn(8, 3, 8, 8)
    budget = bw.Budget(model, x, macs=0.6)
    with torch.no_grad(), bw.count_macs(model.eval()) as count:
        model(x)
    assert 0.5 < count.total / count.dense <= 0.6
    gate = model.layer1[0].conv1.gate
    assert gate.keep < 1 and bw.recipe_of(model).rules[0].slots["gate"]["keep"] == gate.keep
    assert budget.state_dict()["layer1.0.conv1"] == gate.keep
    budget.load_state_dict({"layer1.0.conv1": 0.25})
    assert gate.keep == 0.25


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
    ("limit", "text"),
    [
        ({}, "one of macs and bops"),
        ({"macs": 0.5, "bops": 0.5}, "one of macs and bops"),
        ({"macs": -1.0}, "a share up to 1"),
        ({"macs": 0.1}, "with every gate shut"),
    ],
)
def test_what_cannot_be_is_one_line(limit: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        bw.Budget(net(part="channel_gate"), X, **limit)
    assert "\n" not in str(error.value)


def test_a_net_without_gates_has_no_budget() -> None:
    with pytest.raises(InputError, match="no gate"):
        bw.Budget(nn.Linear(2, 2), torch.zeros(1, 2), macs=0.5)


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
                    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
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
    assert abs(count.total / count.dense / 0.75 - 1) < (0.02 if part["part"] == "channel_gate" else 0.06)
