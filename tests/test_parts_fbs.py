"""fbs against a loop over samples and channels; insertion into a trained net changes nothing; the public code's quirks."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.parts.fbs import mean_size


def trained(gains: Tensor | None = None, conv: Any = None, norm: Any = None, x: Tensor | None = None) -> nn.Sequential:
    """conv, norm, ReLU with statistics and gains as after a training."""
    net = nn.Sequential(conv or nn.Conv2d(3, 8, 3, padding=1), norm or nn.BatchNorm2d(8), nn.ReLU())
    two: Any = net[1]
    with torch.no_grad():
        two.weight.copy_(torch.randn(8) if gains is None else gains)
        two.bias.normal_()
    for _ in range(4):
        net(torch.randn(8, 3, 6, 6) * 3 + 1 if x is None else x)
    return net.eval()


def gated(net: nn.Sequential, x: Tensor, **options: Any) -> nn.Sequential:
    return bw.apply(net, [{"match": "0", "gate": {"part": "fbs", **options}}], x)


def slow_winners(g: Tensor, keep: float, block: int = 1) -> Tensor:
    """1 for the ceil(keep O) channels of largest g that are above 0; blocks by their mean."""
    on = torch.zeros_like(g)
    count = g.shape[1] // block
    k = max(1, math.ceil(keep * count - 1e-9))
    for n in range(len(g)):
        means = [float(g[n, j * block : (j + 1) * block].mean()) for j in range(count)]
        for j in sorted(range(count), key=lambda j: -means[j])[:k]:
            on[n, j * block : (j + 1) * block] = 1
    return on * (g > 0)


def slow(layer: Any, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """(output, g) by 1.1: s, g, A, and A g (f BN(conv) + shift)."""
    gate = layer.gate
    places = tuple(range(2, x.dim()))
    s = x.abs().mean(places) if places else x.abs()
    g = (s @ gate.predictor.weight.t() + gate.predictor.bias).clamp_min(0)
    on = slow_winners(g.detach(), gate.keep, gate.block)
    y = layer.op(x, layer.weight, layer.bias)
    shape = (1, -1, *[1] * len(places))
    axes = (0, *range(2, y.dim()))
    mean = y.mean(axes, keepdim=True) if training else gate.norm.running_mean.reshape(shape)
    var = y.var(axes, correction=0, keepdim=True) if training else gate.norm.running_var.reshape(shape)
    z = (y - mean) / (var + gate.norm.eps).sqrt() * gate.flip.reshape(shape) + gate.shift.reshape(shape)
    return (on * g).reshape(*g.shape, *[1] * len(places)) * z, g


KINDS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d, (4, 3, 6, 6)),
    "stride": (lambda: nn.Conv2d(4, 8, 3, stride=2, bias=False, groups=2), nn.BatchNorm2d, (4, 4, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 8, 3), nn.BatchNorm1d, (4, 3, 9)),
    "conv3d": (lambda: nn.Conv3d(3, 8, 2), nn.BatchNorm3d, (4, 3, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2), nn.BatchNorm2d, (4, 4, 4, 4)),
    "linear": (lambda: nn.Linear(3, 8), nn.BatchNorm1d, (6, 3)),
}


def built(kind: str, **options: Any) -> tuple[Any, Tensor]:
    conv, norm, shape = KINDS[kind]
    x = torch.randn(shape, dtype=torch.float64)
    net = gated(trained(conv=conv().double(), norm=norm(8).double(), x=x), x, **options)
    layer: Any = net[0]
    with torch.no_grad():
        layer.gate.predictor.weight.normal_()
    return layer, x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"keep": 0.5}, {"keep": 0.3}, {"keep": 0.5, "channel_block": 2}, {"keep": 1.0}])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_formulas(kind: str, options: dict[str, Any], training: bool) -> None:
    layer, x = built(kind, **options)
    layer.train(training)
    x.requires_grad_()
    want, g = slow(layer, x, training)
    named = dict(layer.named_parameters())
    grad = torch.randn_like(want)
    theirs = torch.autograd.grad(want, [x, *named.values()], grad, allow_unused=True)
    y = layer(x)
    torch.testing.assert_close(y, want, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(y, [x, *named.values()], grad, allow_unused=True)
    for name, a, b in zip(["x", *named], ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8, msg=name)
    assert (y != 0).any() and g.gt(0).any()


@pytest.mark.few("linear")
@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_finite_differences(kind: str) -> None:
    layer, x = built(kind, keep=0.5)
    layer.eval()
    names = ["weight", "bias", "gate.shift", "gate.predictor.weight", "gate.predictor.bias"]
    values = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def value(x: Tensor, *new: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, new, strict=True)), (x,))

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), *values), eps=1e-7, atol=1e-4)


def test_by_hand() -> None:
    layer: Any = bw.nn.Linear(2, 4, bias=False, gate={"part": "fbs", "keep": 0.5}).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]]))
        layer.gate.predictor.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0.5, 0.5]]))
        layer.gate.predictor.bias.zero_()
        layer.gate.shift.fill_(0.5)
        layer.gate.norm.running_var.fill_(1 - 1e-5)  # so that the norm is the identity
    # s = |x| = [2, 3]: g = [2, 3, relu(-2) = 0, 2.5]; channels 1 and 3 win: g (z + shift)
    assert layer(torch.tensor([[-2.0, 3.0]])).tolist() == [[0.0, 3 * 3.5, 0.0, 2.5 * (-5 + 0.5)]]


@given(st.integers(1, 16), st.floats(0.01, 1.0), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_exactly_k_survive_ties_too(outputs: int, keep: float, seed: int, ties: bool) -> None:
    gate = bw.make_part("fbs", layer=nn.Linear(3, outputs), keep=keep) if outputs > 1 else None
    if gate is None:
        return
    random = torch.Generator().manual_seed(seed)
    g = (
        torch.randint(1, 3, (4, outputs), generator=random).double()
        if ties
        else torch.rand(4, outputs, generator=random)
    )
    k = max(1, math.ceil(keep * outputs - 1e-9))
    on: Any = gate.winners(g)  # pyright: ignore[reportCallIssue]
    assert on.sum(1).tolist() == [k] * 4
    for row, chosen in zip(g, on.bool(), strict=True):
        assert not len(row[~chosen]) or row[chosen].min() >= row[~chosen].max()
    assert gate.density() == k / outputs  # pyright: ignore[reportCallIssue]


def test_shares_that_floats_cannot_hold_are_not_rounded_up() -> None:
    gate: Any = bw.make_part("fbs", layer=nn.Linear(2, 10), keep=0.7)
    assert gate.winners(torch.rand(1, 10)).sum() == 7  # 0.7 * 10 is 7.000000000000001 in floats of some order


def test_nothing_salient_is_exactly_zero_and_the_predictor_hears_no_task() -> None:
    layer, x = built("conv2d", keep=0.5)
    layer.train()
    with torch.no_grad():
        layer.gate.predictor.weight.zero_()
        layer.gate.predictor.bias.fill_(-1.0)
    y = layer(x)
    assert y.eq(0).all()
    y.sum().backward()
    assert layer.gate.predictor.weight.grad.eq(0).all() and layer.weight.grad.eq(0).all()


def test_the_penalty_is_a_mean_over_the_batch_and_reaches_losers() -> None:
    layer, x = built("conv2d", keep=0.125, l1=0.5)
    layer.train()
    _, g = slow(layer, x, True)
    layer(x)
    penalty = bw.penalty(layer)
    torch.testing.assert_close(penalty, 0.5 * g.sum(1).mean())
    penalty.backward()
    torch.testing.assert_close(layer.gate.predictor.bias.grad, 0.5 * (g > 0).double().mean(0))
    assert bw.penalty(layer) == 0  # taken once
    layer(torch.cat([x, x]))
    torch.testing.assert_close(bw.penalty(layer), penalty)  # no matter how large the batch is
    layer.eval()(x)
    assert bw.penalty(layer) == 0


# -- into a trained net


@pytest.mark.parametrize("gains", ["random", "negative", "tiny", "zero", "mixed"])
def test_insertion_changes_nothing(gains: str) -> None:
    sizes = {
        "random": torch.randn(8),
        "negative": -torch.rand(8) - 0.1,
        "tiny": torch.tensor([1e-5, -1e-5] * 4),
        "zero": torch.zeros(8),
        "mixed": torch.tensor([1.0, -1.0, 1e-4, -1e-4, 1e-5, 1e-7, 0.0, 3.0]),
    }
    net, x = trained(sizes[gains]), torch.randn(16, 3, 6, 6) * 3 + 1
    want = net(x)
    gated(net, x, keep=1.0)
    assert (net(x) - want).abs().max() <= 1e-5 * max(1, want.abs().max())
    net.train()(x).sum().backward()
    gate: Any = net[0].gate
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert gate.flip.abs().min() >= 0.01  # a gain of 0 can still be learned
    assert gate.norm.weight is None and type(net[1]) is nn.Identity


@pytest.mark.parametrize("norm", ["affine", "plain", "eps"])
def test_norms_of_every_kind_are_taken_over(norm: str) -> None:
    two: Any = {
        "affine": nn.BatchNorm2d(8),
        "plain": nn.BatchNorm2d(8, affine=False),
        "eps": nn.BatchNorm2d(8, eps=1e-2, momentum=None),
    }[norm]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), two)
    for _ in range(3):
        net(torch.randn(8, 3, 6, 6) + 2)
    x = torch.randn(4, 3, 6, 6)
    want = net.eval()(x)
    gated(net, x, keep=1.0)
    torch.testing.assert_close(net(x), want, rtol=1e-5, atol=1e-5)
    fresh = copy.deepcopy(net)
    fresh.train()(x + 1)
    gate: Any = fresh[0].gate
    assert gate.norm.num_batches_tracked == 4 and gate.norm.momentum == two.momentum


def test_statistics_without_a_count_are_not_a_fresh_norm() -> None:
    """A checkpoint of an old format has statistics and no num_batches_tracked."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    two: Any = net[1]
    two.running_mean.normal_()
    two.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 6, 6)
    want = net.eval()(x)
    torch.testing.assert_close(gated(net, x, keep=1.0)(x), want, rtol=1e-5, atol=1e-5)


def test_a_new_net_starts_as_in_the_paper() -> None:
    net = gated(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), torch.zeros(1, 3, 6, 6))
    gate: Any = net[0].gate
    assert gate.predictor.bias.eq(1).all() and gate.flip.eq(1).all()
    torch.testing.assert_close(gate.shift.detach(), torch.full((8,), 0.1))
    assert 0.01 < gate.predictor.weight.std() < 0.07


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_float_checkpoint_loads_before_and_after_apply(wrapped: bool) -> None:
    source, x = trained(), torch.randn(4, 3, 6, 6)
    want, state = source(x), source.state_dict()
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    gated(net, x, keep=1.0)
    net = copy.deepcopy(net)  # the hook goes along, and to the copy's own parts
    if wrapped:
        outer = nn.ModuleDict({"net": net})
        outer.load_state_dict({f"net.{k}": v for k, v in state.items()})
    else:
        net.load_state_dict(state)
    torch.testing.assert_close(net.eval()(x), want, rtol=1e-5, atol=1e-5)
    again = gated(trained(), x, keep=1.0)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


def test_staged_keep_goes_on_with_predictor_and_norm() -> None:
    net, x = trained(), torch.randn(8, 3, 6, 6)
    gated(net, x, keep=1.0)
    layer: Any = net[0]
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for keep in (0.75, 0.5, 0.25):
        net.train()
        net(x).square().mean().backward()
        opt.step()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        parameters = {id(p) for p in net.parameters()}
        gated(net, x, keep=keep)
        assert layer is net[0] and layer.gate.keep == keep
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and len(before) == len(
            net.state_dict()
        )
        assert {id(p) for p in net.parameters()} == parameters  # the optimizer still holds what learns
        on = (net.eval()(x) != 0).flatten(2).any(2).sum(1)
        assert on.max() <= 8 * keep
    rebuilt = bw.apply(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        bw.Recipe.from_toml(net.bitwright_recipe.to_toml()),  # type: ignore[union-attr]
        x,
    )
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(rebuilt.eval()(x), net(x))


def test_save_and_load(tmp_path: Any) -> None:
    net, x = trained(), torch.randn(4, 3, 6, 6)
    gated(net, x, keep=0.5)
    bw.save(net, tmp_path / "net.safetensors")
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    assert torch.equal(bw.load(tmp_path / "net.safetensors", fresh).eval()(x), net.eval()(x))


@pytest.mark.parametrize("last", [False, True])
def test_mean_size_has_two_derivatives_and_single_ones(last: bool) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: mean_size(t, last), (x,))
    assert torch.autograd.gradgradcheck(lambda t: mean_size(t, last).square(), (x,))

    def value(t: Tensor) -> Tensor:
        return mean_size(t[None], last).square().sum()

    together: Any = torch.func.vmap(torch.func.grad(value))(x.detach())
    for row, grad in zip(x.detach(), together, strict=True):
        size = row.abs().mean(0 if last else 1)
        want = row.sign() * 2 * (size / 4 if last else size[:, None] / 5)
        torch.testing.assert_close(grad, want)


def test_second_differences_of_a_gated_layer() -> None:
    layer, x = built("linear", keep=0.5)
    layer.eval()
    names = ["weight", "gate.predictor.weight"]
    values = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def value(x: Tensor, *new: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, new, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(value, (x[:2].detach().requires_grad_(), *values), eps=1e-7, atol=1e-4)


def test_one_channel_is_always_kept_and_said() -> None:
    with pytest.warns(BitwrightWarning, match="one output channel"):
        layer: Any = bw.nn.Conv2d(3, 1, 3, gate={"part": "fbs", "keep": 0.1}).eval()
    assert layer.gate.winners(torch.rand(5, 1)).eq(1).all()


class Mobile(nn.Module):
    """Pointwise, depthwise and pointwise, each with a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.d, self.nd = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.nb(self.b(self.nd(self.d(self.na(self.a(x)).relu())).relu()))


def test_a_depthwise_layer_is_left_alone_and_the_plan_says_so() -> None:
    net, x = Mobile(), torch.randn(2, 3, 5, 5)
    rules = [{"match": "*", "kind": "Conv2d", "gate": {"part": "fbs", "keep": 0.5}}]
    rows = {row.name: row for row in bw.plan(net, rules, x).rows}
    assert (rows["a"].gate, rows["d"].gate, rows["b"].gate) == ("fbs", "", "fbs")
    assert "fbs: depthwise, left without a gate" in rows["d"].note and "depthwise" not in rows["a"].note
    with pytest.warns(BitwrightWarning, match="apply: d: fbs: depthwise, left without a gate") as heard:
        bw.apply(net, rules, x)
    assert len(heard) == 1 and heard[0].filename == __file__
    parts: Any = net
    assert parts.d.gate is None and type(parts.nd) is nn.BatchNorm2d and type(parts.nb) is nn.Identity
    with bw.count_macs(net.eval()) as macs:
        net(x)
    assert macs.per_layer["d"] == 2 * 9 * 25 * 4  # what the message says: half of its inputs are switched off,
    assert macs.per_layer["b"] == 2 * (25 * 8 * 3 + 8 * 6 + 25 * 6)  # and its norm makes other values of zeros
    rebuilt = Mobile()
    with pytest.warns(BitwrightWarning, match="apply: d: fbs"):
        bw.apply(rebuilt, bw.Recipe.from_toml(parts.bitwright_recipe.to_toml()), x)
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(rebuilt.eval()(x), net(x))
    assert "d" not in {rule.match for rule in bw.recipe_of(net).rules}


def test_a_warning_of_a_part_names_its_layer() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 4, 1)), torch.zeros(2, 3, 4, 4)
    rules = [{"match": "0", "gate": "fbs"}, {"match": "2", "gate": "channel_gate"}]
    assert [row.note for row in bw.plan(net, rules, x).rows] == [
        "takes over 1; fbs: one output channel (or block) is always kept: nothing is gated",
        "channel_gate: 1 input and 4 output channels a group leave nothing to split: a plain layer",
    ]
    with pytest.warns(BitwrightWarning) as heard:
        bw.apply(net, rules, x)
    assert [str(w.message).split(": ")[:3] for w in heard] == [["apply", "0", "fbs"], ["apply", "2", "channel_gate"]]
    again = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BitwrightWarning, match="apply: 0: fbs"):
            bw.apply(again, rules[:1], x)
    assert type(again[0]) is nn.Conv2d  # nothing was changed


@pytest.mark.parametrize(
    ("make", "given", "possible"),
    [
        (lambda: bw.nn.Conv2d(3, 8, 1, gate={"part": "fbs", "channel_block": 3}), "channel_block=3", "1, 2, 4, 8"),
        (lambda: bw.make_part("fbs", layer=nn.ReLU()), "ReLU", "Linear, Conv1d, Conv2d, Conv3d, ConvTranspose2d"),
        (lambda: bw.make_part("channel_gate", layer=nn.ReLU()), "ReLU", "Linear, Conv1d, Conv2d, Conv3d, ConvTranspose2d"),
    ],
)  # fmt: skip
def test_an_error_says_what_was_given_and_what_is_possible(make: Any, given: str, possible: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert (caught.value.code, caught.value.given, caught.value.possible) == ("gate-layer", given, possible)


# -- the public code


@pytest.mark.parametrize(("keep", "survive"), [(0.5, 3), (0.125, 0), (1.0, 7), (0.3125, 1), (0.4375, 3)])
def test_seed_keeps_one_less_than_k_rounded_to_even(keep: float, survive: int) -> None:
    gate: Any = bw.make_part("fbs", layer=nn.Linear(3, 8), keep=keep, compat="seed")
    g = torch.rand(6, 8) + 0.1
    assert gate.winners(g).sum(1).tolist() == [survive] * 6  # 2.5 and 3.5 channels: k = 2 and 4
    assert gate.winners(torch.ones(1, 8)).sum() == 0  # ties drop them all
    assert gate.density() == survive / 8


def test_seed_takes_magnitudes_and_gates_before_the_norm() -> None:
    net, x = trained(), torch.randn(4, 3, 6, 6)
    torch.manual_seed(3)
    gated(net, x, keep=0.5, compat="seed")
    layer: Any = net[0]
    assert type(net[1]) is nn.BatchNorm2d and not hasattr(layer.gate, "norm")
    g = F.linear(x.abs().mean((2, 3)), layer.gate.predictor.weight, layer.gate.predictor.bias).abs()
    kth = g.sort(1, descending=True).values[:, 3:4]
    y = layer.op(x, layer.weight, layer.bias) * (g * (g > kth))[:, :, None, None]
    torch.testing.assert_close(layer(x), y)
    assert (net[:2](x) != 0).all()  # behind the affine norm nothing is zero
    with bw.count_macs(net) as macs:
        net(x)
    assert macs.rates == {"0": 3 / 8}


def test_seed_linear_takes_each_input_for_itself() -> None:
    layer: Any = bw.nn.Linear(3, 8, gate={"part": "fbs", "compat": "seed"})
    x = torch.randn(5, 3)
    g = layer.gate.predictor(x.abs()).abs()
    on = g > g.topk(4, 1).values[:, -1:]
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) * g * on)


def test_seed_sums_its_penalty_over_the_batch() -> None:
    layer: Any = bw.nn.Linear(3, 8, gate={"part": "fbs", "compat": "seed", "l1": 0.5})
    x = torch.randn(5, 3)
    layer(x)
    torch.testing.assert_close(bw.penalty(layer), 0.5 * layer.gate.predictor(x.abs()).abs().sum())


def test_a_synced_norm_that_is_taken_over_stays_one() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4, eps=1e-3, momentum=0.3)), torch.randn(2, 3, 5, 5)
    gated(net, x, keep=0.5)
    norm: Any = net[0].gate.norm
    assert isinstance(norm.scope, nn.SyncBatchNorm) and (norm.eps, norm.momentum) == (1e-3, 0.3)
    gated(net, x, keep=0.25)
    assert net[0].gate.norm is norm
