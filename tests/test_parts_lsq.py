"""lsq: value, three gradients, the step's start, calibration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from oracles import steps
from oracles.compare import close, layouts, rows, special


def made(step: float | list[float], **options: Any) -> nn.Module:
    part = bw.make_part("lsq", **options).double()
    with torch.no_grad():
        part.step.copy_(torch.tensor(step))  # type: ignore[operator, union-attr, arg-type]
    return part


def own(part: nn.Module) -> Tensor:
    grad = part.step.grad
    assert isinstance(grad, Tensor)
    return grad


def test_values_by_hand() -> None:
    t = torch.tensor([-9.0, -0.75, -0.25, 0.25, 0.75, 9.0], dtype=torch.float64)
    # step 0.5, two bits: -2 .. 1; halves go to even: -1.5 -> -2, -0.5 -> 0, 0.5 -> 0
    assert made(0.5, bits=2)(t).tolist() == [-1.0, -1.0, 0.0, 0.0, 0.5, 0.5]
    assert made(0.5, bits=2, signed=False)(t).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.5]


def test_gradients_by_hand() -> None:
    # t / s = -3, 0.25, 1, 4 on -2 .. 1: shares -2, -0.25, 1, 1; N P = 4 * 1, c = 1/2
    w = torch.tensor([[-3.0, 0.25, 1.0, 4.0]], dtype=torch.float64, requires_grad=True)
    part = made(1.0, bits=2)
    part(w).backward(torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=torch.float64))
    assert w.grad is not None and w.grad.tolist() == [[0.0, 2.0, 4.0, 0.0]]
    assert own(part).item() == 0.5 * (-2 - 0.5 + 4 + 8)


@pytest.mark.parametrize(("bits", "signed"), [(1, False), (2, True), (3, False), (4, True), (8, False)])
def test_weights_equal_the_oracle(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    for label, form in layouts(special(3, 4, 2, 2)):
        part = made(0.125 if bits > 2 else 0.5, bits=bits, signed=signed)
        step = part.step.item()  # type: ignore[operator, union-attr]
        w, sent = form.detach().requires_grad_(), torch.randn(3, 4, 2, 2, dtype=torch.float64)
        value = part(w)
        value.backward(sent)
        expected, grad, pulled = steps.lsq_all(rows(form), rows(sent), [step] * 3, low, low + 2**bits - 1, w.numel())
        assert w.grad is not None
        close(f"{label} value", value.detach(), expected)
        close(f"{label} gradient", w.grad, grad)
        assert math.isclose(own(part).item(), math.fsum(pulled), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("slot", ["w", "x"])
def test_a_step_per_channel_counts_only_its_own_values(slot: str) -> None:
    layer, t = nn.Conv2d(4, 3, 2), special(3, 4, 2, 2)
    part = bw.make_part("lsq", slot=slot, layer=layer, bits=3, per_channel=True, signed=True).double()
    by_channel = t if slot == "w" else t.transpose(0, 1)
    chosen = torch.linspace(0.2, 0.6, by_channel.shape[0]).double()
    with torch.no_grad():
        part.step.copy_(chosen)  # type: ignore[operator, union-attr]
    t, sent = t.requires_grad_(), torch.randn(t.shape, dtype=torch.float64)
    part(t).backward(sent)
    features = 16 if slot == "w" else 4  # a filter of 4 x 2 x 2 weights; a channel of 2 x 2 pixels
    seen = sent if slot == "w" else sent.transpose(0, 1)
    _, _, pulled = steps.lsq_all(rows(by_channel.detach()), rows(seen), chosen.tolist(), -4, 3, features)
    close("steps", own(part), pulled)


def test_the_learning_rate_of_an_input_step_does_not_follow_the_batch() -> None:
    grads = []
    for batch in (1, 5):
        part = bw.make_part("lsq", slot="x", bits=2)
        part(torch.full((batch, 4), 0.3)).mean().backward()
        grads.append(own(part).item())
    assert grads[0] == pytest.approx(grads[1])


def test_steps_start_from_the_weights() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
    whole = bw.make_part("lsq", layer=layer, bits=3)
    assert whole.step.item() == pytest.approx(2 * 1 / math.sqrt(3))  # type: ignore[operator, union-attr]
    each = bw.make_part("lsq", layer=layer, bits=3, per_channel=True)
    assert each.step.tolist() == pytest.approx([2 * 2 / math.sqrt(3), 1.0])  # type: ignore[operator, union-attr]


def test_input_steps_wait_for_calibration_and_average_its_batches() -> None:
    net = nn.Sequential(bw.nn.Linear(2, 1, x={"part": "lsq", "bits": 2}))
    part: Any = net[0].x
    net.train()(torch.full((3, 2), 9.0))
    assert part.step.item() == 1.0  # nothing happens by itself
    bw.calibrate(net, [torch.full((3, 2), 1.0), torch.full((3, 2), 2.0), torch.zeros(1, 2)])
    assert part.step.item() == pytest.approx(2 * 1.5 / math.sqrt(3))


def test_calibration_starts_weight_steps_again_after_weights_were_loaded() -> None:
    net = nn.Sequential(bw.nn.Linear(2, 1, w={"part": "lsq", "bits": 3}))
    net.load_state_dict({"0.weight": torch.tensor([[1.0, -3.0]])}, strict=False)
    bw.calibrate(net, [torch.zeros(1, 2)])
    assert net[0].w.step.item() == pytest.approx(4 / math.sqrt(3))  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("step", [0.0, -0.5, 1e-45])
def test_a_step_at_or_below_zero_neither_flips_nor_breaks_the_grid(step: float) -> None:
    part = bw.make_part("lsq", bits=3)
    part.step.data.fill_(step)  # type: ignore[operator, union-attr]
    w = torch.tensor([[0.6, -0.6, 0.0]], requires_grad=True)
    value = part(w)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(own(part)) and (value * w >= 0).all()


def test_pruned_weights_do_not_pull_the_step() -> None:
    layer = bw.nn.Linear(2, 1, bias=False, w=[{"part": "lsq", "bits": 3}, "mask"])
    with torch.no_grad():
        layer.w.mask.mask.copy_(torch.tensor([[1, 0]]))  # type: ignore[union-attr]
        layer.weight.copy_(torch.tensor([[0.3, torch.inf]]))
    layer(torch.ones(1, 2)).sum().backward()
    (grad,) = [p.grad for k, p in layer.named_parameters() if k.endswith("step")]
    assert grad is not None and torch.isfinite(grad)


def test_steps_have_no_decay() -> None:
    net = nn.Sequential(bw.nn.Linear(2, 2, w="lsq", x="lsq"))
    by_name = {g["name"]: g for g in bw.param_groups(net, 0.1, 1e-2)}
    assert len(by_name["parts"]["params"]) == 2 and by_name["parts"]["weight_decay"] == 0
    assert by_name["weights"]["weight_decay"] == 1e-2  # four bits: the weight's size matters


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"per_channel": True}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part lsq: "):
        bw.make_part("lsq", **options)
