"""selfprune_mlp, selfprune_conv: the notebook's blocks, every module in use, the head by counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw

SMALL: dict[str, dict[str, Any]] = {"selfprune_mlp": {"hidden": 12}, "selfprune_conv": {"width": 0.125}}


def create(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return bw.models.create(name, size=8, **SMALL[name], **options)


def test_the_published_net() -> None:
    with torch.device("meta"):
        net = bw.models.create("selfprune_mlp")
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(784, 4000), (4000, 4000), (4000, 4000), (4000, 10)]
    assert all(m.bias is None for m in layers)
    assert [n for n, _ in net.named_children()] == [
        "flatten", "fc1", "act1", "norm1", "fc2", "act2", "norm2", "fc3", "act3", "norm3", "fcx", "actx", "normx",
    ]  # fmt: skip
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 4 and all((m.eps, m.momentum) == (1e-4, 0.15) for m in norms)


@pytest.mark.parametrize("norm", ["batch_norm", "hard_invert", "soft_invert"])
@pytest.mark.parametrize("name", list(SMALL))
def test_every_module_is_called_once_and_every_parameter_learns(name: str, norm: str) -> None:
    """The notebook builds a fourth hidden layer and its norm, and never calls them."""
    net = create(name, norm=norm)
    called: list[nn.Module] = []
    leaves = [m for m in net.modules() if not list(m.children())]
    for module in leaves:
        module.register_forward_hook(lambda m, *_: called.append(m))
    net.train()(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert [id(m) for m in called] == [id(m) for m in leaves]
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_the_blocks_by_hand() -> None:
    net: Any = create("selfprune_mlp", norm="hard_invert", depth=2)
    x = torch.rand(3, 1, 8, 8)
    h = x.flatten(1)
    for layer in (net.fc1, net.fc2, net.fcx):
        h = 1 - torch.tanh(h @ layer.weight.T)
    assert torch.allclose(net(x), h, atol=1e-6)
    conv: Any = create("selfprune_conv", norm="hard_invert")
    h = x
    for layer in (conv.conv1, conv.conv2, conv.conv3):
        h = torch.max_pool2d(1 - torch.tanh(torch.conv2d(h, layer.weight, padding=1)), 2)
    assert torch.allclose(conv(x), 1 - torch.tanh(h.flatten(1) @ conv.fcx.weight.T), atol=1e-6)


@pytest.mark.parametrize("name", list(SMALL))
def test_the_head_by_counts_ranks_what_a_tanh_makes_equal(name: str) -> None:
    block, counts = (create(name, norm="hard_invert", head=head, num_classes=2) for head in ("block", "counts"))
    for net in (block, counts):
        net.get_submodule("fcx").get_parameter("weight").data.fill_(40.0)[1].fill_(20.0)  # sums far beyond 9
        net.eval()
    x = torch.rand(5, 1, 8, 8)
    said = block(x)
    assert torch.equal(said[:, 0], said[:, 1])  # 1 - tanh: a tie, which argmax gives to class 0
    assert (counts(x).argmax(1) == 1).all()  # fewer connections that are on: the larger answer


@pytest.mark.parametrize("name", ["selfprune_mlp", "selfprune_conv"])
def test_biases_are_asked_for(name: str) -> None:
    for bias in (False, True):
        net = bw.models.create(name, size=8, width=0.01, bias=bias)
        layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert len(layers) == 4 and all((m.bias is not None) == bias for m in layers)
