"""HardInvert and SoftInvert: formulas by hand, t in [0, 1] after each step and never written by forward, packing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import bitwright as bw
from bitwright.nn import HardInvert, SoftInvert


def soft(t: float) -> SoftInvert:
    made = SoftInvert().double()
    made.invert.data.fill_(t)
    return made


def test_hard_invert_and_its_gradient() -> None:
    x = torch.tensor([0.0, 0.3, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    y = HardInvert()(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert y.tolist() == [1.0, 0.7, 0.0, 3.0] and x.grad is not None and x.grad.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert not HardInvert().state_dict()


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, -0.5, 1.75])
def test_soft_invert_by_hand_also_where_the_clip_holds_t(t: float) -> None:
    layer, held = soft(t), min(1.0, max(0.0, t))
    numbers, sent = [0.0, 0.25, 1.0, -1.5], [1.0, -2.0, 0.5, 4.0]
    x = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.backward(torch.tensor(sent, dtype=torch.float64))
    assert x.grad is not None and layer.invert.grad is not None
    assert y.tolist() == pytest.approx([v * (1 - held) + (1 - v) * held for v in numbers], abs=1e-15)
    assert x.grad.tolist() == [g * (1 - 2 * held) for g in sent]
    assert layer.invert.grad.item() == pytest.approx(sum(g * (1 - 2 * v) for g, v in zip(sent, numbers, strict=True)))
    assert layer.invert.item() == t  # forward wrote nothing


def test_it_starts_uniform_on_zero_to_one_from_the_seed() -> None:
    torch.manual_seed(0)
    first = [SoftInvert().invert.item() for _ in range(300)]
    torch.manual_seed(0)
    assert first == [SoftInvert().invert.item() for _ in range(300)]
    assert min(first) >= 0 and max(first) < 1 and sum(first) / 300 == pytest.approx(0.5, abs=5 * 0.289 / 300**0.5)


def test_adam_moves_t_as_the_notebook_that_clips_before_each_forward() -> None:
    layer, t = soft(0.9), torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    ours, theirs = torch.optim.Adam(layer.parameters(), 0.05), torch.optim.Adam([t], 0.05)
    ends = 0
    with bw.attach(layer, ours):
        for step in range(40):
            x = torch.rand(8, generator=torch.Generator().manual_seed(step)).double()
            goal = 1 - x if step < 10 else x  # first to the upper end, against the clip, then down to the lower one
            t.data.clamp_(0, 1)
            for optimizer, y in ((ours, layer(x)), (theirs, x * (1 - t) + (1 - x) * t)):
                optimizer.zero_grad()
                ((y - goal) * 3 + (0.3 if step < 10 else -0.3)).square().sum().backward()
                optimizer.step()
            assert layer.invert.item() == pytest.approx(t.detach().clamp(0, 1).item(), abs=1e-12)
            assert 0 <= layer.invert.item() <= 1
            ends += layer.invert.item() in (0.0, 1.0)
    assert ends > 5


def test_only_the_optimizer_that_holds_t_puts_it_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), SoftInvert())
    layer = net[1]
    assert isinstance(layer, SoftInvert)
    weights = torch.optim.SGD(net[0].parameters(), 0.1)
    layer.invert.data.fill_(3.0)
    with bw.attach(net, weights):
        net(torch.rand(1, 2)).sum().backward()
        weights.step()
    assert layer.invert.item() == 3.0
    own = torch.optim.SGD([layer.invert], 0.0)
    with bw.attach(net, own):
        own.step()
    assert layer.invert.item() == 1.0


def test_param_groups_do_not_decay_t() -> None:
    net = nn.Sequential(nn.Linear(2, 2), SoftInvert())
    plain = next(g for g in bw.param_groups(net, 0.1, 0.5) if g["name"] == "plain")
    assert plain["weight_decay"] == 0 and any(p is net[1].invert for p in plain["params"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [HardInvert(), SoftInvert()])
def test_dtypes_and_functional_calls_and_copies(layer: nn.Module, dtype: torch.dtype) -> None:
    x = torch.rand(3, 4, 2, 2).to(dtype)
    y = layer(x)
    assert y.dtype == dtype and y.shape == x.shape
    state = {k: torch.full_like(v, 2.0) for k, v in layer.state_dict().items()}
    assert torch.equal(functional_call(layer, state, (x,)), (1 - x))  # t = 2 is read as 1
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)


@pytest.mark.few("0.0", "0.3")
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_packed_nets_hold_the_inversion_as_one_affine_step(t: float) -> None:
    torch.manual_seed(0)
    inverts: list[nn.Module] = [HardInvert(), SoftInvert()]
    for invert in inverts:
        if isinstance(invert, SoftInvert):
            invert.invert.data.fill_(t)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), invert, nn.Flatten(), bw.nn.Linear(64, 8, w="zero_one", x=STEP), invert
        )
        net.eval()
        x = torch.rand(16, 1, 6, 6)
        converted = bw.convert(net, x).model
        assert converted is not None
        expected: Tensor = net(x)
        assert torch.allclose(converted(x), expected, rtol=0, atol=1e-6)


STEP = {"part": "heaviside", "threshold": 0.5}
