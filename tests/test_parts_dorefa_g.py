"""dorefa_g: right on average, on its grid, and its generator lives in the state dict."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bitwright as bw
from bitwright.fn.noise import centered_noise
from bitwright.parts.dorefa_g import quantized


def back(part: Any, sent: Tensor) -> Tensor:
    y = torch.zeros_like(sent, requires_grad=True)
    part(y).backward(sent)
    assert y.grad is not None
    return y.grad


def by_hand(g: float, largest: float, noise: float, bits: int) -> float:
    """2 m (q_k(clip(g / (2 m) + 1/2 + noise / n, 0, 1)) - 1/2), one number at a time."""
    n = 2**bits - 1
    place = min(1.0, max(0.0, g / (2 * largest) + 0.5 + noise / n))
    return 2 * largest * (round(place * n) / n - 0.5)


def test_the_formula_with_given_noise() -> None:
    sent = torch.randn(3, 2, 4, dtype=torch.float64)
    noise = torch.rand(3, 2, 4, dtype=torch.float64) - 0.5
    for bits in (1, 2, 6):
        got = quantized(sent, noise, 2**bits - 1)
        for i in range(3):
            largest = sent[i].abs().max().item()
            for g, u, found in zip(sent[i].flatten(), noise[i].flatten(), got[i].flatten(), strict=True):
                assert found.item() == pytest.approx(by_hand(g.item(), largest, u.item(), bits), abs=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_unbiased_for_every_entry_the_largest_too(bits: int) -> None:
    part = bw.make_part("dorefa_g", bits=bits).train()
    sample = torch.tensor([1.0, -1.0, 0.9, 0.3, 0.0, -0.05, -0.77])
    draws = torch.stack([back(part, sample.expand(500, 7)) for _ in range(40)]).double()
    mean, step = draws.mean((0, 1)), 2 / (2**bits - 1)
    # 20,000 draws; a step wide, so a standard deviation of at most step / 2 / sqrt(20000)
    assert (mean - sample).abs().max() < 5 * step / 2 / math.sqrt(20000)
    assert (draws[..., :2] == sample[:2]).all()  # the ends are on the grid


def test_a_sample_of_zeros_gives_zeros_and_inf_reaches_the_scaler() -> None:
    sent = torch.tensor([[0.0, 0.0], [torch.inf, 1.0], [1.0, 2.0]])
    got = back(bw.make_part("dorefa_g", bits=2).train(), sent)
    assert got[0].tolist() == [0.0, 0.0] and not torch.isfinite(got[1]).all() and torch.isfinite(got[2]).all()


def test_evaluation_and_the_value_are_untouched() -> None:
    part, sent = bw.make_part("dorefa_g", bits=1), torch.randn(2, 3)
    assert torch.equal(back(part.eval(), sent), sent)
    assert torch.equal(part.train()(sent), sent)
    y = torch.randn(2, 3, requires_grad=True)
    F.relu_(part(y)).sum().backward()  # an in-place neighbor


def test_a_resumed_run_draws_the_same_noise_and_layers_draw_their_own() -> None:
    net = torch.nn.Sequential(bw.nn.Linear(4, 4, g={"part": "dorefa_g", "bits": 2}), bw.nn.Linear(4, 4, g="dorefa_g"))
    part: Any = net[0].g
    sent = torch.randn(8, 4)
    back(part, sent)
    saved = copy.deepcopy(net.state_dict())
    assert saved["0.g.count"].item() == 1 and saved["0.g.stream"] != saved["1.g.stream"]
    first, second = back(part, sent), back(part, sent)
    assert not torch.equal(first, second)
    twin = copy.deepcopy(net)
    twin.load_state_dict(saved)
    assert torch.equal(back(twin[0].g, sent), first) and torch.equal(back(twin[0].g, sent), second)


def test_a_file_keeps_the_generator(tmp_path: Any) -> None:
    net = torch.nn.Sequential(bw.nn.Linear(4, 4, g="dorefa_g"))
    back(net[0].g, torch.randn(2, 4))
    bw.save(net, tmp_path / "net.safetensors")
    other = bw.load(tmp_path / "net.safetensors", torch.nn.Sequential(torch.nn.Linear(4, 4)))
    for key in ("stream", "count"):
        assert torch.equal(other.state_dict()[f"0.g.{key}"], net.state_dict()[f"0.g.{key}"])


def test_noise_is_uniform_and_independent_between_places_and_draws() -> None:
    size = 1 << 16
    stream = torch.tensor(12345)
    one, two = (centered_noise(stream, torch.tensor(c), [size]).double() for c in (0, 1))
    other = centered_noise(stream + 1, torch.tensor(0), [size]).double()
    sigma = math.sqrt(1 / 12)
    for u in (one, two, other):
        assert u.abs().max() < 0.5
        assert abs(u.mean()) < 5 * sigma / math.sqrt(size)
        counts = torch.histc(u, 64, -0.5, 0.5)
        chi = ((counts - size / 64) ** 2 / (size / 64)).sum()
        assert chi < 63 + 5 * math.sqrt(2 * 63)
    for a, b in ((one, two), (one, other), (one[1:], one[:-1]), (one[64:], one[:-64])):
        correlation = (a * b).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(size - 64)
