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


class Shortcut(nn.Module):
    """x + layer(x): the input lies as the sum does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def coded(c: int, o: int, x: Any = "sign") -> nn.Module:
    return bw.nn.Conv2d(c, o, 3, padding=1, w="bwn", x=x)


# channels, the net, whether an image may come with its channels first
FIRST_LAYERS: dict[str, tuple[int, nn.Module, bool]] = {
    "bytes": (3, coded(3, 9, {"part": "uniform", "bits": 8}), True),
    "bits": (20, coded(20, 16), True),
    "floats": (3, nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), coded(16, 4)), True),
    "floats, a large window": (3, nn.Sequential(nn.Conv2d(3, 16, 7, stride=2, padding=3), coded(16, 4)), True),
    "floats, one pixel": (4, nn.Sequential(nn.Conv2d(4, 16, 1), coded(16, 4)), True),
    "floats, 15 channels": (15, nn.Sequential(nn.Conv2d(15, 16, 3), coded(16, 4)), True),
    "floats, 16 channels": (16, nn.Sequential(nn.Conv2d(16, 16, 3), coded(16, 4)), False),
    "pooling": (3, nn.Sequential(nn.MaxPool2d(2), coded(3, 4)), True),  # of codes
    "shortcut": (16, Shortcut(coded(16, 16)), False),
}


@pytest.mark.parametrize("name", FIRST_LAYERS)
@pytest.mark.parametrize("n, h, w", [(2, 9, 7), (1, 16, 16)])
def test_an_image_may_have_its_channels_first(name: str, n: int, h: int, w: int) -> None:
    """As torch makes images. The numbers are the same, and none is copied where the first kernels read them so."""
    c, layer, direct = FIRST_LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w)
    packed = bw.convert(nn.Sequential(layer).eval(), x, verify=False).model
    assert isinstance(packed, PackedModel)
    want = packed(x.contiguous(memory_format=torch.channels_last))
    for _ in range(3):
        assert torch.equal(packed(x), want)
    if native.isa() != "portable":  # torch's operators take float layers there
        assert (packed.prepare(x) is x) == direct
    x[0, 0, 0, 0] = torch.inf
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(packed(x), packed(last), rtol=0, atol=0, equal_nan=True)


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
