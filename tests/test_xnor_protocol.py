"""Five steps of `w = "xnor"` equal five steps of XNOR-Net's binarize-restore protocol, its constant factors divided out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from oracles import xnor_protocol

LR, EPS = 0.02, 1e-8


class Sign(torch.autograd.Function):
    """The script's activation: sign, gradient where |x| < 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() < 1)


class Act(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


def plain() -> nn.Sequential:
    """Float first and last layer; two binary convolutions and a binary Linear behind norms, one latent beyond 1."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4), Act(), nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6), Act(), nn.Conv2d(6, 6, 3, stride=2, groups=2, bias=False),
        nn.BatchNorm2d(6), nn.Flatten(), Act(), nn.Linear(24, 8),
        nn.ReLU(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0] = 1.7  # type: ignore[index, operator]
    return net


BINARY = ("3", "6", "10")


def binary_layers(net: nn.Module) -> Any:
    return [net.get_submodule(name) for name in BINARY]


def ours(compat: str | None = None) -> nn.Sequential:
    """The same net with slots in place of the protocol."""
    net = plain()
    options = {} if compat is None else {"compat": compat}
    rules = [{"match": name, "w": {"part": "xnor", **options}} for name in BINARY]
    return bw.apply(net, rules)


def batches() -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 1, 8, 8, generator=made).double(), torch.randint(0, 3, (8,), generator=made)) for _ in range(5)
    ]


def run_ours(net: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    with bw.attach(net, optimizer):
        for x, target in batches():
            optimizer.zero_grad()
            F.cross_entropy(net(x), target).backward()
            optimizer.step()
    return net


def gap(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("extra", [1.0, 1e9])
def test_five_steps_equal_the_protocol_without_its_factors(kind: str, decay: float, extra: float) -> None:
    def groups(p: nn.Parameter, factor: float) -> dict[str, object]:
        # a gradient c times too large: SGD wants lr / c and c times the decay, Adam wants c times eps and decay
        if kind == "sgd":
            return {"params": [p], "lr": LR / factor, "weight_decay": decay * factor}
        return {"params": [p], "eps": EPS * factor, "weight_decay": decay * factor}

    def make(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, LR, momentum=0.9) if kind == "sgd" else torch.optim.Adam(groups, LR)

    theirs = plain()
    start = copy.deepcopy(theirs)
    xnor_protocol.train(theirs, binary_layers(theirs), make, groups, batches(), F.cross_entropy, extra)
    net = ours()
    run_ours(net, make([groups(p, 1.0) for p in net.parameters()]))
    assert gap(start, theirs) > 0.01  # the weights did move
    assert gap(net, theirs) < 1e-6


def test_compat_seed_carries_the_factor_itself() -> None:
    # SGD feels the factor; no division here
    def groups(p: nn.Parameter, factor: float) -> dict[str, object]:
        return {"params": [p], "weight_decay": 0.01}

    def make(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, 0.005)

    theirs = plain()
    xnor_protocol.train(
        theirs, binary_layers(theirs), make, groups, batches(), F.cross_entropy
    )  # fmt: skip
    net = ours("seed")
    run_ours(net, make([groups(p, 1.0) for p in net.parameters()]))
    assert gap(net, theirs) < 1e-6
    other = ours()
    run_ours(other, make([groups(p, 1.0) for p in other.parameters()]))
    assert gap(other, theirs) > 1e-3


def test_the_large_factor_silences_weight_decay_so_latents_have_none() -> None:
    # the ImageNet script: Adam, one decay for all, gradients times 1e9 n: as if its latents had no decay and no eps
    def theirs_groups(p: nn.Parameter, factor: float) -> dict[str, object]:
        return {"params": [p], "weight_decay": 0.05}

    theirs = plain()
    xnor_protocol.train(
        theirs, binary_layers(theirs), lambda g: torch.optim.Adam(g, LR), theirs_groups,
        batches(), F.cross_entropy, 1e9,
    )  # fmt: skip
    net = ours()
    binary = {id(net.get_submodule(n).weight) for n in BINARY}
    groups: list[dict[str, Any]] = [
        {"params": [p], "weight_decay": 0.0, "eps": 1e-18} if id(p) in binary else {"params": [p], "weight_decay": 0.05}
        for p in net.parameters()
    ]
    run_ours(net, torch.optim.Adam(groups, LR))
    assert gap(net, theirs) < 1e-6
