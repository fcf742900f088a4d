"""attach, param_groups, penalty: once per step, nothing left out."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import forget, part
from bitwright.transforms import apply, attach, param_groups, penalty


@pytest.fixture(autouse=True)
def counting() -> Iterator[None]:
    @part("counts", "w", "x")
    class Counts(nn.Module):
        """Toy part with every moment. source: none"""

        bits = 1
        decay = 0.25

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.seen: list[int] = []
            self.bound: Any = None

        def forward(self, t: Tensor) -> Tensor:
            return t * self.scale

        def after_step(self, weight: Tensor) -> None:
            assert not torch.is_grad_enabled()
            self.seen.append(weight.numel())

        def bind(self, optimizer: Any, group: Any) -> None:
            self.bound = (type(optimizer).__name__, group["lr"])

        def penalty(self) -> Tensor:
            return 2 * self.scale

    yield
    forget("counts")


def step(net: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    net(torch.ones(1, 2)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def two(w: Any = "counts") -> Any:
    return nn.Sequential(bw.nn.Linear(2, 2, w=w), bw.nn.Linear(2, 2, w=w))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(param_groups(net, 0.1, 0.0))


def test_once_per_step_and_until_removed() -> None:
    net: Any = two()
    optimizer = sgd(net)
    handle = attach(net, optimizer)
    step(net, optimizer)
    step(net, optimizer)
    assert net[0].w.seen == [4, 4]
    handle.remove()
    handle.remove()
    step(net, optimizer)
    assert net[0].w.seen == [4, 4]


def test_context_manager() -> None:
    net: Any = two()
    optimizer = sgd(net)
    with attach(net, optimizer):
        step(net, optimizer)
    step(net, optimizer)
    assert net[0].w.seen == [4]


def test_attached_twice_is_still_once_per_step() -> None:
    net: Any = two()
    optimizer = sgd(net)
    first = attach(net, optimizer)
    attach(net, optimizer)
    first.remove()  # the stale handle takes nothing away
    step(net, optimizer)
    assert net[0].w.seen == [4]


def test_tied_weights_once() -> None:
    net: Any = two()
    net[1].weight = net[0].weight
    optimizer = sgd(net)
    attach(net, optimizer)
    step(net, optimizer)
    assert len(net[0].w.seen) + len(net[1].w.seen) == 1


def test_only_weights_of_this_optimizer() -> None:
    net: Any = two()
    a = torch.optim.SGD(net[0].parameters(), 0.1)
    b = torch.optim.Adam(net[1].parameters(), 0.2)
    attach(net, a)
    attach(net, b)
    step(net, a)
    assert (net[0].w.seen, net[1].w.seen) == ([4], [])
    step(net, a, b)
    assert (net[0].w.seen, net[1].w.seen) == ([4, 4], [4])
    assert (net[0].w.bound, net[1].w.bound) == (("SGD", 0.1), ("Adam", 0.2))


def test_missing_part_parameters_are_listed() -> None:
    net: Any = two()
    weights = [p for n, p in net.named_parameters() if ".w." not in n]
    optimizer = torch.optim.SGD(weights, 0.1, weight_decay=0.5)
    with pytest.raises(InputError, match=r"in no group of the optimizer: 0\.w\.scale, 1\.w\.scale"):
        attach(net, optimizer)
    attach(net, optimizer, add=True)
    assert optimizer.param_groups[1]["params"] == [net[0].w.scale, net[1].w.scale]
    assert optimizer.param_groups[1]["weight_decay"] == 0.25  # the part's own
    assert optimizer.param_groups[1]["lr"] == 0.1


def test_added_group_has_no_decay() -> None:
    net: Any = two("ttq")
    weights = [p for n, p in net.named_parameters() if ".w." not in n]
    optimizer = torch.optim.SGD(weights, 0.1, weight_decay=0.5)
    attach(net, optimizer, add=True)
    assert optimizer.param_groups[1]["weight_decay"] == 0 and len(optimizer.param_groups[1]["params"]) == 4


def test_part_parameters_in_another_attached_optimizer_are_fine() -> None:
    net: Any = two()
    weights = torch.optim.SGD([p for n, p in net.named_parameters() if ".w." not in n], 0.1)
    scales = torch.optim.SGD([p for n, p in net.named_parameters() if ".w." in n], 0.1)
    attach(net, scales)
    handle = attach(net, weights)
    step(net, weights, scales)
    assert net[0].w.seen == [4]
    handle.remove()


def test_frozen_part_parameters_are_not_asked_for() -> None:
    net: Any = two()
    for layer in net:
        layer.w.scale.requires_grad_(False)
    attach(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1))


def test_a_part_that_stands_alone_counts() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(2, 2), bw.make_part("counts"))
    with pytest.raises(InputError, match=r"1\.scale"):
        attach(net, torch.optim.SGD(net[0].parameters(), 0.1))


def test_copies_and_pickles_do_not_know() -> None:
    net: Any = two("bwn")
    optimizer = sgd(net)
    attach(net, optimizer)
    step(net, optimizer)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again[0].weight, net[0].weight)
    copy.deepcopy(optimizer.state_dict())
    copied = copy.deepcopy(net)
    other = sgd(copied)
    attach(copied, other)
    step(copied, other)


@pytest.mark.slow
def test_optimizer_does_not_keep_the_model_alive_through_the_hook() -> None:
    import weakref

    net: Any = two("bwn")
    optimizer = torch.optim.SGD([net[0].bias], 0.1)
    attach(net, optimizer)
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    optimizer.step()


# -- optimizers around optimizers --------------------------------------------------------------------
class TwoStep(torch.optim.Optimizer):
    """As sharpness-aware minimization is written: climb, come back, and the base optimizer steps."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.1})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)
        self.param_groups = self.base.param_groups

    def descend(self) -> None:
        self.base.step()

    def step(self, closure: Any = None) -> Any:
        self.descend()


class Around(torch.optim.Optimizer):
    """As Lookahead is often written: the constructor of its base class is never called."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults

    def step(self, closure: Any = None) -> Any:
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Plain:
    """A trainer's wrapper, no optimizer of torch."""

    def __init__(self, inner: Any) -> None:
        self._parts = {"all": inner}

    def step(self) -> None:
        self._parts["all"].step()

    def zero_grad(self) -> None:
        self._parts["all"].zero_grad()


class Template(TwoStep):
    """Steps by itself; the optimizer inside only lends its groups."""

    def step(self, closure: Any = None) -> Any:
        pass


class Half(torch.optim.Optimizer):
    """Matrices by itself, the rest by an optimizer inside."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__([g for g in groups if g["name"] == "latents"], {"lr": 0.1})
        self.rest = torch.optim.SGD([g for g in groups if g["name"] != "latents"], lr=0.1)

    def step(self, closure: Any = None) -> Any:
        self.rest.step()


AROUND: dict[str, Any] = {
    "two steps": TwoStep,
    "no constructor": lambda groups: Around(torch.optim.SGD(groups, 0.1)),
    "no optimizer": lambda groups: Plain(torch.optim.SGD(groups, 0.1)),
    "nested": lambda groups: Plain(Around(torch.optim.SGD(groups, 0.1))),
    "template": Template,
    "half": Half,
}


@pytest.mark.parametrize("name", AROUND)
def test_projections_run_once_per_step_of_what_really_steps(name: str) -> None:
    net: Any = two()
    optimizer = AROUND[name](param_groups(net, 0.1, 0.0))
    handle = attach(net, optimizer)
    handle = attach(net, optimizer)  # again: still once
    step(net, optimizer)
    step(net, optimizer)
    assert net[0].w.seen == net[1].w.seen == [4, 4]
    if name == "two steps":
        optimizer.descend()  # past the outer step, as its users call it
        optimizer.descend()
        assert net[0].w.seen == [4] * 4
    handle.remove()
    seen = list(net[0].w.seen)
    step(net, optimizer)
    assert net[0].w.seen == seen


@pytest.mark.parametrize("name", ["two steps", "no constructor", "no optimizer"])
def test_latents_stay_in_their_range(name: str) -> None:
    net: Any = two("bwn")
    optimizer = AROUND[name]([{"params": list(net.parameters()), "lr": 30.0}])
    attach(net, optimizer)
    for _ in range(2):
        net(torch.ones(1, 2)).sum().backward()
        getattr(optimizer, "descend", optimizer.step)()
    assert max(float(layer.weight.detach().abs().max()) for layer in net) == 1


def test_part_parameters_are_added_to_the_optimizer_that_steps() -> None:
    net: Any = two()
    optimizer = TwoStep([{"params": [p for n, p in net.named_parameters() if ".w." not in n]}])
    with pytest.raises(InputError, match=r"in no group of the optimizer: 0.w.scale, 1.w.scale"):
        attach(net, optimizer)
    attach(net, optimizer, add=True)
    assert optimizer.base.param_groups[-1]["params"] == [net[0].w.scale, net[1].w.scale]
    assert net[0].w.bound[0] == "SGD"


def test_what_cannot_be_attached_says_what_to_give() -> None:
    net = two("bwn")
    with pytest.raises(
        InputError, match=r"Plain is no optimizer of torch and holds none.*Give the torch.optim.Optimizer whose"
    ):
        attach(net, Plain(None))
    copies = torch.optim.SGD([p.detach().clone() for p in net.parameters()], 0.1)
    with pytest.raises(InputError, match="SGD holds no parameter of this Sequential, perhaps copies of them"):
        attach(net, copies)


def test_transposed_convolution_is_written_back() -> None:
    net: Any = nn.Sequential(bw.nn.ConvTranspose2d(2, 4, 2, w="bwn", groups=2))
    optimizer = torch.optim.SGD(net.parameters(), 100.0)
    with attach(net, optimizer):
        net(torch.ones(1, 2, 2, 2)).sum().backward()
        optimizer.step()
    assert net[0].weight.abs().max() == 1


def test_bias_parts_get_the_bias() -> None:
    @part("bias_toy", "b")
    class BiasToy(nn.Module):
        """source: none"""

        def forward(self, t: Tensor) -> Tensor:
            return t

        def after_step(self, weight: Tensor) -> None:
            weight.zero_()

    try:
        net: Any = nn.Sequential(bw.nn.Linear(2, 3, b="bias_toy"))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with attach(net, optimizer):
            step(net, optimizer)
        assert net[0].bias.tolist() == [0, 0, 0] and net[0].weight.abs().sum() > 0
    finally:
        forget("bias_toy")


# -- param_groups ------------------------------------------------------------------------------------
def mixed() -> Any:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        bw.nn.Conv2d(4, 4, 3, w="bwn", x=["norm", "sign"]),
        bw.nn.Conv2d(4, 4, 3, w={"part": "dorefa_w", "bits": 2}),
        bw.nn.Conv2d(4, 4, 3, w={"part": "dorefa_w", "bits": 4}),
        bw.nn.Conv2d(4, 4, 3, w="counts", bias=False),
        nn.LayerNorm([4, 3, 3]),
    )


def test_groups_by_hand() -> None:
    net: Any = mixed()
    groups = {(g["name"], g["weight_decay"]): {id(p) for p in g["params"]} for g in param_groups(net, 0.1, 0.01)}
    byname = {n: id(p) for n, p in net.named_parameters()}
    assert groups == {
        ("weights", 0.01): {byname["0.weight"], byname["5.weight"]},
        ("latents", 0.0): {byname["3.weight"], byname["4.weight"], byname["6.weight"]},
        ("plain", 0.0): {
            byname[n]
            for n in [
                "0.bias",
                "1.weight",
                "1.bias",
                "2.weight",
                "3.bias",
                "4.bias",
                "5.bias",
                "7.weight",
                "7.bias",
            ]
        },
        ("parts", 0.0): {byname["3.x.links.0.weight"], byname["3.x.links.0.bias"]},
        ("parts", 0.25): {byname["6.w.scale"]},
    }
    assert all(g["lr"] == 0.1 for g in param_groups(net, 0.1, 0.01))


def test_every_trainable_parameter_exactly_once() -> None:
    net: Any = mixed()
    net[5].weight = net[4].weight  # tied: the 2-bit latent decides
    net[0].weight.requires_grad_(False)
    groups = param_groups(net, 0.1, 0.01)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert all(g["name"] != "weights" for g in groups)


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_any_optimizer(cls: Any) -> None:
    net: Any = two("ttq")
    optimizer = cls(param_groups(net, 0.1, 1e-4))
    with attach(net, optimizer):
        step(net, optimizer)


# -- penalty -----------------------------------------------------------------------------------------
def test_penalty() -> None:
    assert penalty(nn.Linear(1, 1)).shape == () and penalty(nn.ReLU()).item() == 0
    net: Any = nn.Sequential(bw.nn.Linear(2, 2, w="counts", x=["counts", "norm"]), bw.make_part("counts"))
    value = penalty(net)
    assert value.shape == () and value.item() == 6
    value.backward()
    assert net[0].w.scale.grad.item() == 2


def test_own_model_trains() -> None:
    """The example of the front page, in small."""
    net: Any = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    x = torch.randn(64, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    apply(net, "w1a1", x[:1])
    optimizer = torch.optim.Adam(param_groups(net, 1e-2, 1e-4))
    attach(net, optimizer)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(x), y) + penalty(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert net[3].weight.abs().max() <= 1
