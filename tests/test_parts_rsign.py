"""rsign and the RPReLU beside it: shifts per channel and their gradients; thresholds in the packed net."""

from __future__ import annotations

import torch
from torch import nn

import bitwright as bw
from oracles import inputs
from oracles.compare import close, special


def test_values_and_gradients_by_hand() -> None:
    part = bw.make_part("rsign", layer=nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        part.shift.copy_(torch.tensor([0.5, -0.5]))  # type: ignore[operator, union-attr]
    x = torch.tensor([[-0.5, -0.75], [0.25, 0.5]]).t().reshape(2, 2, 1, 1).requires_grad_()
    # z = 0, -0.25 | -0.25, 0.0: slopes 2 - 2 |z|
    value = part(x)
    assert value.flatten().tolist() == [1.0, -1.0, -1.0, 1.0]
    value.sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [2.0, 1.5, 1.5, 2.0]
    assert part.shift.grad.tolist() == [3.5, 3.5]  # type: ignore[union-attr]


def test_equals_the_sign_of_the_moved_input() -> None:
    part = bw.make_part("rsign", features=4).double()
    with torch.no_grad():
        part.shift.copy_(torch.tensor([0.25, 0.0, -0.5, 1.0]))  # type: ignore[operator, union-attr]
    x = special(3, 4, 2, 2).requires_grad_()
    value = part(x)
    value.sum().backward()
    moved = (x.detach() + part.shift.detach().reshape(1, 4, 1, 1)).flatten().tolist()  # type: ignore[operator, union-attr]
    seen = [inputs.sign(v, "approx") for v in moved]
    assert x.grad is not None
    close("value", value.detach().flatten(), [v for v, _ in seen])
    close("gradient", x.grad.flatten(), [s for _, s in seen])


def test_a_linear_layer_shifts_its_last_axis() -> None:
    layer = bw.nn.Linear(3, 2, x="rsign")
    assert layer.x is not None and layer.x.shift.shape == (3,)
    assert layer(torch.randn(2, 5, 3)).shape == (2, 5, 2)


def test_without_a_layer_one_shift_serves_all_channels() -> None:
    assert bw.make_part("rsign")(torch.tensor([[0.0, -0.1]])).tolist() == [[1.0, -1.0]]


def test_rprelu_by_hand() -> None:
    act = bw.nn.RPReLU(2)
    with torch.no_grad():
        act.before.copy_(torch.tensor([1.0, -1.0]))
        act.slope.copy_(torch.tensor([0.5, 0.25]))
        act.after.copy_(torch.tensor([0.0, 10.0]))
    x = torch.tensor([[-3.0, 2.0], [1.0, -1.0]], requires_grad=True)
    # z = -2, 1 | 2, -2
    y = act(x)
    assert y.tolist() == [[-1.0, 11.0], [2.0, 9.5]]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0.5, 1.0], [1.0, 0.25]]
    assert act.before.grad is not None and act.before.grad.tolist() == [1.5, 1.25]
    assert act.slope.grad is not None and act.slope.grad.tolist() == [-2.0, -2.0]
    assert act.after.grad is not None and act.after.grad.tolist() == [2.0, 2.0]


def test_nothing_of_them_decays() -> None:
    net = nn.Sequential(bw.nn.Conv2d(2, 2, 1, w="bireal", x="rsign"), bw.nn.RPReLU(2))
    assert {g["weight_decay"] for g in bw.param_groups(net, 0.1, 1e-2)} == {0.0}


def test_a_reactnet_block_packs_exactly() -> None:
    net = nn.Sequential(
        bw.nn.Conv2d(3, 8, 3, padding=1, bias=False, w="bireal", x="rsign"),
        nn.BatchNorm2d(8),
        bw.nn.RPReLU(8),
        bw.nn.Conv2d(8, 4, 3, w="bireal", x="rsign"),
    ).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.split(".")[-1] in ("shift", "before", "slope", "after"):
                p.normal_(0, 0.3)
    x = torch.randn(4, 3, 6, 6)
    converted = bw.convert(net, x)
    assert converted.model is not None and converted.report.status in ("PASS", "WARN")
    torch.testing.assert_close(converted.model(x), net(x), rtol=1e-5, atol=1e-5)
