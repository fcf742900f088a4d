"""The short way of a net that is one native run, taken from the second call of a kind on, gives what the long way gives."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.native_run import KEPT
from bitwright.engine.packed import PackedModel
from bitwright.errors import InputError

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")


@pytest.fixture(scope="module")
def net() -> PackedModel:
    torch.manual_seed(0)
    trained = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    x = torch.rand(2, 3, 8, 8)
    bw.apply(trained, [{"match": "*", "kind": "Conv2d", "w": "bwn", "x": {"part": "uniform", "bits": 8}}], x)
    packed = bw.convert(trained, x, verify=False).model
    assert isinstance(packed, PackedModel)
    return packed


def image(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 8, 8).contiguous(memory_format=torch.channels_last)


def long_way(net: PackedModel, x: Tensor) -> Tensor:
    return net.run(net.environment(x))


def test_answers_are_those_of_the_long_way(net: PackedModel) -> None:
    for n in (2, 1, 7, 0, 2):
        for _ in range(3):
            x = image(n)
            assert torch.equal(net(x), long_way(net, x))
    assert {kind[1][0] for kind in net._ready} >= {0, 1, 2, 7}


def test_each_answer_is_a_tensor_of_its_own(net: PackedModel) -> None:
    x = image()
    first, second = net(x), net(image())
    assert torch.equal(first, net(x)) and first.data_ptr() != second.data_ptr()
    x.requires_grad_()
    assert not net(x).requires_grad


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -3e6])
def test_numbers_that_are_too_large_go_the_long_way(net: PackedModel, wrong: float) -> None:
    x = image()
    net(x)
    want = net(x)
    x[1, 2, 3, 4] = wrong
    y = net(x)
    assert torch.equal(y[0], want[0]) and bool(y[1].isnan().all()) == (wrong != wrong)
    torch.testing.assert_close(y, long_way(net, x), rtol=0, atol=0, equal_nan=True)


def test_what_lies_or_reads_otherwise_is_checked_anew(net: PackedModel) -> None:
    x = image()
    net(x)
    assert torch.equal(net(x.contiguous()), net(x))
    pixels = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    assert torch.equal(net(pixels), net(pixels.float() / 255))
    assert torch.equal(net(x.double()), net(x))
    for given in (x[0], x[:, :2], torch.rand(2, 3, 9, 8), x.to("meta"), "x"):
        with pytest.raises(InputError, match="packed model"):
            net(given)
    with pytest.raises(InputError, match="takes 1 inputs"):
        net(x, x)


def test_weights_that_change_are_seen(net: PackedModel) -> None:
    x, other = image(), copy.deepcopy(net)
    before = [other(x) for _ in range(2)][1]
    state: dict[str, Any] = {k: -v if v.is_floating_point() else v for k, v in other.state_dict().items()}
    other.load_state_dict(state)
    assert not torch.equal(other(x), before)
    assert torch.equal(net(x), before)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), before)


def test_a_caller_that_varies_the_batch_does_not_fill_the_memory(net: PackedModel) -> None:
    for n in range(1, KEPT + 3):
        net(image(n))
    assert len(net._ready) <= KEPT
    x = image(3)
    assert torch.equal(net(x), long_way(net, x))


def test_hooks_are_called(net: PackedModel) -> None:
    seen: list[Any] = []
    handle = net.register_forward_hook(lambda *given: seen.append(given[-1]))
    try:
        y = [net(image()) for _ in range(2)][1]
    finally:
        handle.remove()
    assert len(seen) == 2 and seen[1] is y


@pytest.mark.parametrize("answers", ["pair", "dict"])
def test_other_structures_keep_the_long_way(answers: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = bw.nn.Conv2d(3, 4, 3, w="bwn", x={"part": "uniform", "bits": 8})

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return (y, y) if answers == "pair" else {"y": y}

    trained, x = Net().eval(), image()
    trained(x)
    packed = bw.convert(trained, x, verify=False).model
    assert packed is not None
    for _ in range(2):
        y: Any = packed(x)
        assert isinstance(y, tuple if answers == "pair" else dict)
