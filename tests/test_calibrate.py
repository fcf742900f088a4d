"""calibrate: each slot sees what it will see; nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import forget, part
from bitwright.transforms import calibrate


@pytest.fixture(autouse=True)
def recorder() -> Iterator[None]:
    @part("records", "w", "b", "x", "g")
    class Records(nn.Module):
        """Keeps what it observes. source: none"""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, t: Tensor) -> Tensor:
            return t

        def observe(self, t: Tensor) -> None:
            assert not torch.is_grad_enabled() and not self.training
            self.seen.append(t.clone())

    yield
    forget("records")


BATCHES = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.5]])]


def test_every_slot_sees_its_own_tensor() -> None:
    layer: Any = bw.nn.Linear(2, 3, w="records", b="records", x="records", g="records")
    net: Any = nn.Sequential(nn.ReLU(), layer)
    calibrate(net, BATCHES)
    seen = {s: getattr(layer, s).seen for s in "wbxg"}
    assert [t.tolist() for t in seen["x"]] == [[[1.0, 0.0]], [[3.0, 0.5]]]
    assert len(seen["w"]) == len(seen["b"]) == 1  # a weight is the same in every batch
    assert torch.equal(seen["w"][0], layer.weight) and torch.equal(seen["b"][0], layer.bias)
    assert torch.equal(seen["g"][1], nn.functional.linear(torch.tensor([[3.0, 0.5]]), layer.weight, layer.bias))


def test_ranges_by_hand() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(2, 1, x={"part": "uniform", "bits": 8, "signed": True}))
    calibrate(net, BATCHES)
    assert (net[0].x.low.item(), net[0].x.high.item(), net[0].x.seen.item()) == (-2.0, 3.0, 2)


def test_layers_that_evaluate_on_whole_numbers_are_seen_too() -> None:
    """Weight and input on integer grids: evaluation multiplies the integers and would pass both parts by."""
    lsq = {"part": "lsq", "bits": 4}
    net: Any = nn.Sequential(bw.nn.Linear(2, 1, w=lsq, x={**lsq, "signed": True}))
    x = torch.cat(BATCHES)
    calibrate(net, [x])
    torch.testing.assert_close(net[0].x.step, 2 * x.abs().mean() / 7**0.5)
    with torch.no_grad():
        net[0].weight.mul_(10)
    calibrate(net, [x])
    torch.testing.assert_close(net[0].w.step, 2 * net[0].weight.abs().mean() / 7**0.5)
    pair: Any = nn.Sequential(bw.nn.Linear(2, 1, w="bwn", x={"part": "pact", "bits": 4}))
    calibrate(pair, [x])
    assert pair[0].x.alpha.item() < 10


def test_norms_of_a_net_whose_weights_grew() -> None:
    """dorefa_w on a float net: with its running statistics ranges explode from layer to layer, and the net is dead."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(32, 2))
    x = torch.randn(256, 32)
    with torch.no_grad():
        for _ in range(20):
            net.train()(x)
    rule = {"match": "*", "w": {"part": "dorefa_w", "bits": 4}, "x": {"part": "pact", "bits": 4}}
    bw.apply(net, [rule, {"match": "0", "x": "float"}])
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for norms, alive in (("running", False), ("batch", True)):
        net.load_state_dict(state)
        calibrate(net, [x], norms=norms)
        changed = {key for key, value in net.state_dict().items() if not torch.equal(value, state[key])}
        assert changed and all(key.endswith((".x.alpha", ".x.seen")) for key in changed)
        net.train()(x).square().mean().backward()
        grads = [p.grad for name, p in net.named_parameters() if name.endswith(".weight") and p.dim() == 2]
        assert (min(float(g.abs().sum()) for g in grads if g is not None) > 0) is alive
        net.zero_grad(set_to_none=False)
    with pytest.raises(InputError, match="norms='eval' is neither running nor batch"):
        calibrate(net, [x], norms="eval")


def test_chain_shows_the_link_what_it_sees() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(2, 1, x=["norm", {"part": "uniform", "bits": 8, "signed": True}]))
    with torch.no_grad():
        net[0].x.links[0].weight.fill_(2.0)
    calibrate(net, BATCHES)
    assert net[0].x.links[1].high.item() == pytest.approx(6.0, rel=1e-4)


def test_later_layers_see_quantized_inputs_in_range() -> None:
    """A part observes before it quantizes, so the first batch already reaches the next layer unclipped."""
    net: Any = nn.Sequential(bw.nn.Linear(1, 1, x="uniform", bias=False), bw.nn.Linear(1, 1, x="uniform"))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    calibrate(net, [torch.tensor([[100.0]])])
    assert net[1].x.high.item() == pytest.approx(100.0)


def test_nothing_else_changes() -> None:
    net: Any = nn.Sequential(
        nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), bw.nn.Linear(4, 2, x="uniform")
    ).train()
    net[2].eval()
    state, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    rng = torch.get_rng_state()
    calibrate(net, BATCHES)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, state[k])}
    assert changed <= {"3.x.low", "3.x.high", "3.x.seen"} and "3.x.seen" in changed
    assert [m.training for m in net.modules()] == flags and torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_pairs_and_generators() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(2, 1, x="uniform"))
    calibrate(net, ((x, torch.tensor([0])) for x in BATCHES))
    calibrate(net, [[x, 0] for x in BATCHES])
    assert net[0].x.seen.item() == 4


def test_no_batches() -> None:
    with pytest.raises(InputError, match="calibrate: no batches"):
        calibrate(nn.Sequential(bw.nn.Linear(2, 1, x="uniform")), [])


def test_a_part_alone_in_a_sequential() -> None:
    net: Any = nn.Sequential(bw.make_part("records"), nn.Linear(2, 1))
    calibrate(net, BATCHES)
    assert len(net[0].seen) == 2


def test_hooks_leave_after_an_error() -> None:
    net: Any = nn.Sequential(bw.nn.Linear(2, 1, x="uniform")).train()
    with pytest.raises(RuntimeError):
        calibrate(net, [torch.zeros(1, 7)])
    assert net.training and not net[0].x._forward_pre_hooks


def test_only_the_named_parts_are_fed():
    parts = [bw.make_part("uniform", slot="x", bits=8) for _ in range(2)]
    net = nn.Sequential(bw.nn.Linear(2, 2, x=parts[0]), bw.nn.Linear(2, 1, x=parts[1]))
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
    bw.calibrate(net, [torch.tensor([[3.0, 5.0]])], parts=parts[1:])
    moved = [any(not torch.equal(value, old[key]) for key, value in part.state_dict().items())
             for part, old in zip(parts, before, strict=True)]  # fmt: skip
    assert moved == [False, True]
