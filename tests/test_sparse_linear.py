"""Linear layers on the weights that are left: the product for every number of rows, and what such layers take in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.engine import native, sparse_linear
from bitwright.engine.fuse_connections import joined_connections
from bitwright.engine.packed import PackedModel
from bitwright.engine.sparse_linear import INPUTS, SUMS, WeightList, coded_list
from bitwright.parts.mask import Mask

pytestmark = pytest.mark.skipif(not native.available(), reason="without the core floats run in torch")


def sparse(outputs: int, inputs: int, share: float) -> torch.Tensor:
    weight = torch.randn(outputs, inputs) * (torch.rand(outputs, inputs) < share)
    weight[outputs // 2] = 0  # an output of its bias alone
    return weight


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 16, 17, 32, 33, 70])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (37, 45), (1, 5)])
def test_products_of_the_weights_that_are_left(rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = sparse(outputs, inputs, 0.3), torch.randn(outputs), torch.randn(rows, inputs)
    for threads in (1, 2):
        for add in (None, bias):
            wanted = nn.functional.linear(x, weight, add)
            torch.testing.assert_close(WeightList(weight, add).run(x, threads), wanted, rtol=1e-5, atol=1e-5)
    if rows:
        x[0, 0] = torch.inf  # where no weight reads it, nothing happens
        reads = weight[:, 0] != 0
        assert torch.equal(~WeightList(weight, bias).run(x)[0].isfinite(), reads)


def net(last: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((300, 290), (290, 310), (310, 250)):
        made = nn.Linear(inputs, outputs)
        with torch.no_grad():
            made.weight *= torch.rand_like(made.weight) < 0.04
        norm = nn.BatchNorm1d(outputs)
        norm.train()(torch.randn(64, outputs) * 3 + 1)
        with torch.no_grad():
            norm.weight.uniform_(-2, 2)
            norm.bias.normal_()
        layers += [made, nn.Tanh(), norm]
    return nn.Sequential(*layers, *([] if last is None else [last])).eval()


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("tanh", [0, INPUTS, SUMS, INPUTS | SUMS])
def test_what_is_computed_with_the_product(rows: int, tanh: int) -> None:
    torch.manual_seed(0)
    weight, bias, scale, add = sparse(37, 45, 0.2), torch.randn(37), torch.randn(37), torch.randn(37)
    x = torch.randn(rows, 45) * torch.logspace(-8, 2, 45)
    y = nn.functional.linear(x.tanh() if tanh & INPUTS else x, weight, bias)
    wanted = (y.tanh() if tanh & SUMS else y) * scale + add
    found = WeightList(weight, bias, scale, add, tanh).run(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_tanh_is_exact_to_the_last_places() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-38, 38, 5000), -torch.logspace(-3, 0.1, 5000)])[
        :, None
    ]
    for rows in (x, x[::7].t()[:, :4000]):
        many = WeightList(torch.eye(rows.shape[1]), None, tanh=INPUTS).run(rows)
        wanted = rows.double().tanh()
        assert bool(WeightList(torch.eye(2), None, tanh=INPUTS).run(torch.tensor([[torch.nan, 1.0]]))[0, 0].isnan())
        error = (many - wanted) / wanted.abs().clamp_min(1e-37)  # on some machines 0 is among them
        assert float(error.abs().max()) < 4e-7


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_affine_steps_and_tanh_join_the_product(rows: int) -> None:
    torch.manual_seed(0)
    model, x = net(), torch.randn(rows, 300)
    packed = bw.convert(model, x, threads=1, verify=False, force=True).model
    assert isinstance(packed, PackedModel)
    graph = joined_connections(packed.runtime)
    assert [n.op for n in graph.nodes] == ["input", *["connections"] * 3, "output"]
    assert len(packed.runtime.nodes) == 11, "what other exports read stays as it is"
    torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_value_with_another_reader_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.tail = net()[:3], net()[3:4]

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.net(x)
            return self.tail(y), y

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(5, 300)
    packed = bw.convert(model, x, threads=1, verify=False, force=True).model
    assert isinstance(packed, PackedModel)
    layers = [n for n in joined_connections(packed.runtime).nodes if n.op == "connections"]
    assert ["in_scale" in n.attrs["tensors"] for n in layers] == [False, False]
    assert ["out_scale" in n.attrs["tensors"] for n in layers] == [True, False]
    for found, wanted in zip(packed(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_scale_that_overflows_stays_outside() -> None:
    """0 times a joined weight that became infinite would be NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(*[*net()][:4]).eval()
    norm, last = model[2], model[3]
    assert isinstance(norm, nn.BatchNorm1d) and isinstance(last, nn.Linear)
    with torch.no_grad():
        norm.weight.fill_(1e38)
        last.weight.mul_(1e3)
    packed = bw.convert(model, torch.zeros(2, 300), threads=1, verify=False, force=True).model
    assert isinstance(packed, PackedModel)
    graph = joined_connections(packed.runtime)
    assert not any("in_scale" in n.attrs.get("tensors", {}) for n in graph.nodes)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("rows", [1, 16, 17, 45, 70])
def test_layers_of_codes_have_the_same_integers_by_their_list(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into codes, words of one bit and floats; what the list is not faster for runs as before."""
    torch.manual_seed(0)
    bits8: Any = {"part": "uniform", "bits": 8, "granularity": "channel"}
    x8: Any = {"part": "pact", "bits": 8, "alpha": 6.0}
    net = nn.Sequential(
        *(nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 290), nn.ReLU(), nn.Linear(290, 270), nn.BatchNorm1d(270))
    ).eval()
    x = torch.rand(rows, 300) * 6
    bw.procedures.magnitude(net, sparsity=0.85)
    bw.apply(net, [{"match": "*", "kind": "Linear", "w": [bits8, "mask"], "x": x8}], x)
    packed, dense = (bw.convert(net, x, threads=1, verify=False, force=True).model for _ in range(2))
    assert isinstance(packed, PackedModel) and isinstance(dense, PackedModel)
    found = packed(x)
    lists = [coded_list(n, packed.runtime) is not None for n in packed.runtime.nodes if n.op == "coded_linear"]
    assert lists == [native.isa() == "avx2"] * 3
    monkeypatch.setenv("BITWRIGHT_ZEROS", "0")
    assert torch.equal(found, dense(x))


def test_no_list_of_codes_whose_sums_may_round(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(sparse_linear, "CODED_ISAS", (native.isa(),))
    for inputs, fits in ((400, True), (4000, False)):  # 600 weights of 127 times codes of 255 pass 2^24
        layer: Any = bw.nn.Linear(
            inputs, 200, w=[{"part": "uniform", "bits": 8}, "mask"], x={"part": "pact", "bits": 8, "alpha": 6.0}
        )
        with torch.no_grad():
            layer.weight.copy_(torch.randn_like(layer.weight).sign() * (1 - 0.1 * torch.rand_like(layer.weight)))
            mask = next(m for m in layer.modules() if isinstance(m, Mask))
            mask.mask = torch.rand_like(layer.weight) < 0.18
        packed = bw.convert(nn.Sequential(layer).eval(), torch.rand(2, inputs), verify=False, force=True).model
        assert isinstance(packed, PackedModel)
        node = next(n for n in packed.runtime.nodes if n.op == "coded_linear")
        assert (coded_list(node, packed.runtime) is not None) == fits
