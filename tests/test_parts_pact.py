"""pact: alpha's own grid, alpha's own gradient, alpha's own decay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import moment
from oracles import steps
from oracles.compare import close, layouts, special


def own(part: nn.Module) -> float:
    grad = part.alpha.grad
    assert isinstance(grad, Tensor)
    return grad.item()


def test_values_and_gradients_by_hand() -> None:
    # alpha 6, two bits: steps of 2; 3 lies between 2 and 4 and goes to the even code 2
    x = torch.tensor([-1.0, 0.0, 0.9, 3.0, 6.0, 7.0], dtype=torch.float64, requires_grad=True)
    part = bw.make_part("pact", bits=2, alpha=6.0).double()
    value = part(x)
    assert value.tolist() == [0.0, 0.0, 0.0, 4.0, 6.0, 6.0]
    value.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64))
    assert x.grad is not None and x.grad.tolist() == [0, 2, 4, 8, 16, 0]
    assert own(part) == 48


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_equals_the_oracle(bits: int, alpha: float) -> None:
    for label, form in layouts(special(3, 4, 2, 2)):
        part = bw.make_part("pact", bits=bits).double()
        part.alpha.data.fill_(alpha)  # type: ignore[operator, union-attr]
        x, sent = form.detach().requires_grad_(), torch.randn(3, 4, 2, 2, dtype=torch.float64)
        value = part(x)
        value.backward(sent)
        seen = [steps.pact(v, alpha, bits) for v in form.flatten().tolist()]
        back = sent.flatten().tolist()
        assert x.grad is not None
        close(f"{label} value", value.detach().flatten(), [s[0] for s in seen])
        close(f"{label} gradient", x.grad.flatten(), [s[1] * d for s, d in zip(seen, back, strict=True)])
        assert math.isclose(own(part), math.fsum(s[2] * d for s, d in zip(seen, back, strict=True)), abs_tol=1e-12)


def test_alpha_has_its_own_decay_group() -> None:
    net = nn.Sequential(bw.nn.Linear(2, 2, w="ttq", x={"part": "pact", "bits": 4, "decay": 0.01}))
    groups = [(g["name"], g["weight_decay"], len(g["params"])) for g in bw.param_groups(net, 0.1, 1e-4)]
    assert groups == [("latents", 0.0, 1), ("plain", 0.0, 1), ("parts", 0.0, 2), ("parts", 0.01, 1)]
    optimizer = torch.optim.SGD([net[0].weight, net[0].bias], 0.1)  # type: ignore[list-item]
    bw.attach(net, optimizer, add=True)
    alpha = net[0].x.alpha  # type: ignore[union-attr]
    (group,) = [g for g in optimizer.param_groups if any(p is alpha for p in g["params"])]
    assert group["weight_decay"] == 0.01


def test_decay_shrinks_alpha_where_nothing_is_clipped() -> None:
    net = nn.Sequential(bw.nn.Linear(2, 2, x={"part": "pact", "decay": 0.5}))
    optimizer = torch.optim.SGD(bw.param_groups(net, 0.1, 0.0), 0.1)
    net(torch.full((1, 2), 0.1)).sum().backward()
    optimizer.step()
    assert net[0].x.alpha.item() == pytest.approx(10 * (1 - 0.1 * 0.5))  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("alpha", [0.0, -3.0])
def test_an_alpha_at_or_below_zero_keeps_a_grid_and_a_gradient(alpha: float) -> None:
    part = bw.make_part("pact", bits=2)
    part.alpha.data.fill_(alpha)  # type: ignore[operator, union-attr]
    value = part(torch.tensor([-1.0, 0.5]))
    assert value.tolist() == [0.0, pytest.approx(1e-3)]
    value.sum().backward()
    assert own(part) == 1.0


def test_calibration_takes_a_percentile_and_averages_batches() -> None:
    net = nn.Sequential(bw.nn.Linear(1, 1, x="pact"))
    one = torch.arange(1.0, 1001.0)[:, None]  # 99.9 % lie at or below 999
    bw.calibrate(net, [one, 3 * one, -one])
    assert net[0].x.alpha.item() == pytest.approx(2 * 999)  # type: ignore[union-attr, operator]


def test_seed_only_clips_and_has_no_codes() -> None:
    part = bw.make_part("pact", bits=2, alpha=6.0, compat="seed")
    x = torch.tensor([-1.0, 1.3, 6.0, 7.0])
    value = part(x)
    value.sum().backward()
    assert torch.equal(value, torch.tensor([0.0, 1.3, 6.0, 6.0])) and own(part) == 1.0
    assert moment(part, "encode") is None


@pytest.mark.parametrize("options", [{"bits": 0}, {"alpha": 0.0}, {"decay": -1.0}, {"compat": "paper"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part pact: "):
        bw.make_part("pact", **options)
