"""Whatever of a model is made or called inside `torch.inference_mode()`: the same answers as outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
    )
    return bw.apply(made, "dorefa-w1a2", torch.rand(2, 8)).eval()


def everything(model: nn.Module, x: Tensor) -> Tensor:
    assert "Linear" in str(bw.plan(model, "dorefa-w1a2", x))
    assert bw.cost(model, x).rows
    done = bw.convert(model, x)
    assert done.model is not None and done.report.layers_exact
    return done.model(x)


@pytest.mark.parametrize("inside", [False, True], ids=["model from outside", "model made inside"])
def test_inference_mode(inside: bool) -> None:
    x = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    want, given = everything(net(), x), net()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    with torch.inference_mode():
        model = net() if inside else given
        assert torch.equal(everything(model, x.clone()), want)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_made_inside_works_outside() -> None:
    with torch.inference_mode():
        model = net()
    x = torch.rand(3, 8)
    assert torch.equal(everything(model, x), everything(net(), x))


class Counting(nn.Module):
    """Its forward writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        return self.layer(x)


def test_a_buffer_that_a_forward_writes_is_put_back() -> None:
    with torch.inference_mode():
        model = Counting()
        bw.cost(model, torch.rand(2, 8))
        assert model.calls.item() == 0  # type: ignore[operator]
