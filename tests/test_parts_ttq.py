"""ttq: three latent gradients, two scale gradients, the start from the layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.engine.packing import weight_terms
from bitwright.errors import InputError
from oracles import weights
from oracles.compare import close, layouts, rows, special


def learned(p: float, n: float, **options: Any) -> nn.Module:
    part = bw.make_part("ttq", **options).double()
    with torch.no_grad():
        part.p.fill_(p)  # type: ignore[operator]
        part.n.fill_(n)  # type: ignore[operator]
    return part


def test_regions_by_hand_are_strict() -> None:
    # largest 2, threshold 0.5: d = 1. Exactly +-1 are zero.
    w = torch.tensor([2.0, 1.0, 1.0001, -1.0, -1.0001, 0.0], dtype=torch.float64)
    assert learned(3.0, 4.0, threshold=0.5)(w).tolist() == [3.0, 0.0, 3.0, 0.0, -4.0, 0.0]


def test_gradients_by_hand() -> None:
    # regions + 0 -; g = (1, 10, 100): dw = (p, 1, n) g = (3, 10, 400), dp = 1, dn = -100 (paper: +100)
    w = torch.tensor([2.0, 0.0, -1.5], dtype=torch.float64, requires_grad=True)
    part = learned(3.0, 4.0)
    part(w).backward(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    assert w.grad is not None and w.grad.tolist() == [3.0, 10.0, 400.0]
    assert part.p.grad is not None and part.p.grad.item() == 1.0  # type: ignore[union-attr]
    assert part.n.grad is not None and part.n.grad.item() == -100.0  # type: ignore[union-attr]


def test_a_grid_by_hand() -> None:
    # step 2 / 4: 2 is 4 steps, 0.7 is 1.4, so 1 step; the gradients of p and n are those without a grid
    part = learned(2.0, 0.7, grid=4)
    w = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    y = part(w)
    y.backward(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    assert y.tolist() == [2.0, 0.0, -0.5]
    assert w.grad is not None and w.grad.tolist() == [2.0, 10.0, 50.0]
    assert (part.p.grad.item(), part.n.grad.item()) == (1.0, -100.0)  # type: ignore[union-attr]
    assert learned(0.0, 0.0, grid=4)(w).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(20))
def test_a_grid_is_one_product_of_integers(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p, n = (torch.rand(2, generator=g) * 3 - 0.3).tolist()
    part = bw.make_part("ttq", grid=127)
    part.p.data.fill_(p)  # type: ignore[operator]
    part.n.data.fill_(n)  # type: ignore[operator]
    w = torch.randn(5, 7, generator=g)
    (term,) = weight_terms(part.encode(w))  # type: ignore[operator]
    assert max(abs(m) for m in term.mult) <= 127
    assert torch.equal(part.encode(w).value(), part(w))  # type: ignore[operator]


def test_n_walks_downhill() -> None:
    w, part = torch.tensor([[-1.0, 1.0]]), bw.make_part("ttq")
    optimizer = torch.optim.SGD(part.parameters(), 0.1)
    for _ in range(50):
        loss = (part(w) - torch.tensor([[-0.5, 2.0]])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert part.n.item() == pytest.approx(0.5, abs=1e-3)  # type: ignore[operator]
    assert part.p.item() == pytest.approx(2.0, abs=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize(("p", "n", "threshold"), [(0.7, 1.3, 0.05), (1.0, 1.0, 0.4), (-0.5, 2.0, 0.0)])
def test_equals_the_oracle(p: float, n: float, threshold: float) -> None:
    for label, form in layouts(special(3, 4, 2, 2)):
        part, w = learned(p, n, threshold=threshold), form.detach().requires_grad_()
        sent = torch.randn(w.shape, dtype=torch.float64)
        value = part(w)
        value.backward(sent)
        expected, grad, grad_p, grad_n = weights.ternary(rows(form), rows(sent), p, n, threshold)
        assert w.grad is not None
        close(f"{label} value", value.detach(), expected)
        close(f"{label} latents", w.grad, grad)
        assert math.isclose(part.p.grad.item(), grad_p, rel_tol=1e-12, abs_tol=1e-12)  # type: ignore[union-attr]
        assert math.isclose(part.n.grad.item(), grad_n, rel_tol=1e-12, abs_tol=1e-12)  # type: ignore[union-attr]


def test_scales_start_at_the_means_of_the_weights_they_stand_for() -> None:
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.5, 0.001, -0.25]]))
    part = bw.make_part("ttq", layer=layer)
    assert (part.p.item(), part.n.item()) == (0.75, 0.25)  # type: ignore[operator]
    one = bw.make_part("ttq", layer=layer, init="one")
    assert (one.p.item(), one.n.item()) == (1.0, 1.0)  # type: ignore[operator]


def test_a_layer_without_a_region_starts_that_scale_at_one() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
    part = bw.make_part("ttq", layer=layer)
    assert (part.p.item(), part.n.item()) == (1.5, 1.0)  # type: ignore[operator]


def test_the_code_has_a_positive_and_a_negative_plane() -> None:
    code = learned(3.0, 4.0).encode(torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64))  # type: ignore[operator]
    assert code.bit.tolist() == [[[1, 0, 0]], [[0, 0, 1]]]
    assert code.coef.flatten().tolist() == [3.0, -4.0] and code.offset.item() == 0


def test_pruned_weights_do_not_set_the_threshold() -> None:
    w, keep = torch.tensor([1.0, 0.4, 100.0], dtype=torch.float64), torch.tensor([1, 1, 0])
    assert learned(3.0, 4.0)(w, keep=keep)[:2].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 5.0])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="part ttq: threshold="):
        bw.make_part("ttq", threshold=threshold)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(InputError, match="init='zero' is neither mean nor one"):
        bw.make_part("ttq", init="zero")
