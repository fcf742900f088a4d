"""channel_gate against a slow masked-weight form: which inputs decide, which follow, and every gradient."""

from __future__ import annotations

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
from bitwright.fn.shares import base_mask, fitting, shuffled


def slow_mask(inputs: int, outputs: int, groups: int, splits: int, group: bool) -> Tensor:
    """[O, I / groups]: 1 where the output reads the input to decide. Loops over outputs and inputs."""
    fan, outs = inputs // groups, outputs // groups
    parts = splits
    while parts > (min(fan, outs) if group else fan) or splits % parts:
        parts -= 1
    mask = torch.zeros(outputs, fan, dtype=torch.float64)
    for o in range(outputs):
        mine = min((o % outs) // (outs // parts), parts - 1) if group else 0
        for i in range(fan):
            mask[o, i] = min(i // (fan // parts), parts - 1) == mine
    return mask


def slow(layer: Any, x: Tensor, options: dict[str, Any], grad: Tensor | None = None) -> Tensor | list[Tensor]:
    """Output by the formulas of the paper, or with `grad` the gradients of (x, weight, threshold) written out."""
    o = {"splits": 4, "group": True, "slope": 2.0, "unit": "normalized", "sparse_backprop": True, **options}
    linear = isinstance(layer, nn.Linear)
    outputs, inputs = (layer.out_features, layer.in_features) if linear else (layer.out_channels, layer.in_channels)
    m = slow_mask(inputs, outputs, getattr(layer, "groups", 1), o["splits"], o["group"])
    x = x.detach().requires_grad_()
    w = layer.weight.detach().requires_grad_()
    m = m.t() if getattr(layer, "transposed", False) else m
    m = m.reshape(*m.shape, *[1] * (w.dim() - 2))
    b = None if layer.bias is None else layer.bias.detach()
    base, rest = layer.op(x, w * m, b), layer.op(x, w * (1 - m), None)
    axes = [a for a in range(base.dim()) if a != (base.dim() - 1 if linear else 1)]
    shape = [1] * base.dim()
    shape[-1 if linear else 1] = outputs
    z = base
    if o["unit"] == "normalized":
        mean, var = base.mean(axes, keepdim=True), base.var(axes, correction=0, keepdim=True)
        z = (base - mean) / (var + 1e-5).sqrt()
    v = (z - layer.gate.threshold.detach().reshape(shape)).detach()
    on = (v > 0).double()
    if grad is None:
        return (base + on * rest).detach()
    s = 1 / (1 + torch.exp(-o["slope"] * v))
    dz = grad * rest.detach() * o["slope"] * s * (1 - s)
    if o["sparse_backprop"]:
        dz = dz * (v >= 0)
    # a sum whose derivative is what the formulas of 2.2 say, with everything that is held constant held constant
    total = (grad * base).sum() + (grad * on * rest).sum() + (dz * z).sum()
    gx, gw = torch.autograd.grad(total, (x, w))
    return [gx, gw, -dz.sum(axes)]


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "even": (lambda **k: bw.nn.Conv2d(8, 8, 3, padding=1, **k), (3, 8, 5, 5)),
    "wide": (lambda **k: bw.nn.Conv2d(4, 12, 3, stride=2, dilation=2, padding=2, **k), (3, 4, 7, 7)),
    "leftovers": (lambda **k: bw.nn.Conv2d(7, 9, 3, bias=False, **k), (2, 7, 5, 5)),
    "groups": (lambda **k: bw.nn.Conv2d(8, 12, 3, groups=2, **k), (2, 8, 5, 5)),
    "circular": (lambda **k: bw.nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", **k), (2, 8, 5, 5)),
    "same": (lambda **k: bw.nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect", **k), (2, 8, 5, 5)),
    "transposed": (lambda **k: bw.nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, **k), (2, 8, 4, 4)),
    "conv1d": (lambda **k: bw.nn.Conv1d(8, 8, 3, **k), (3, 8, 9)),
    "conv3d": (lambda **k: bw.nn.Conv3d(4, 8, 2, **k), (2, 4, 3, 3, 3)),
    "linear": (lambda **k: bw.nn.Linear(8, 6, **k), (5, 8)),
    "tokens": (lambda **k: bw.nn.Linear(8, 6, **k), (2, 5, 8)),
}
CHOICES = [
    {},
    {"splits": 2, "sparse_backprop": False},
    {"splits": 2, "group": False, "unit": "raw", "slope": 5.0},
    {"unit": "raw", "sparse_backprop": False},
]


def made(kind: str, options: dict[str, Any]) -> tuple[Any, Tensor]:
    make, shape = LAYERS[kind]
    layer = make(gate={"part": "channel_gate", **options}).double()
    layer.gate.threshold.data.normal_(0, 0.3)
    return layer, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_values_and_gradients_are_those_of_the_masked_form(kind: str, options: dict[str, Any]) -> None:
    layer, x = made(kind, options)
    x.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, slow(layer, x, options), rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(y)
    y.backward(grad)
    got = [x.grad, layer.weight.grad, layer.gate.threshold.grad]
    torch.testing.assert_close(got, slow(layer, x, options, grad), rtol=1e-8, atol=1e-8)
    assert layer.gate.threshold.grad.abs().sum() > 0


@pytest.mark.few("leftovers", "tokens")
@pytest.mark.parametrize("kind", ["even", "leftovers", "tokens"])
def test_finite_differences_of_weight_bias_and_input(kind: str) -> None:
    """Decisions are steps, so with a surrogate too flat to count the slope is that of what is added up."""
    layer, x = made(kind, {"splits": 2, "slope": 1e-12})
    part = layer.gate.eval()  # running statistics

    def value(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        return part(layer.op, x, w, *(b or (None,)))

    learned = [p.detach().requires_grad_() for p in (layer.weight, layer.bias) if p is not None]
    assert len(learned) == (1 if kind == "leftovers" else 2)
    assert torch.autograd.gradcheck(value, (x.requires_grad_(), *learned), eps=1e-7, atol=1e-4)


def test_by_hand() -> None:
    layer = bw.nn.Linear(4, 2, bias=False, gate={"part": "channel_gate", "splits": 2, "unit": "raw", "init": 1.0})
    layer.weight.data.copy_(torch.tensor([[1.0, 1, 10, 10], [10, 10, 1, 1]]))
    x = torch.tensor([[1.0, 1, 1, 1], [0.5, 0.5, 1, 0], [1, 0, 1, 1]])
    # bases: inputs 0-1 for output 0, 2-3 for output 1: [2, 2], [1, 1], [1, 2]; above 1: on
    assert layer(x).tolist() == [[22.0, 22.0], [1.0, 1.0], [1.0, 12.0]]


def test_all_off_is_the_base_and_all_on_the_full_sum() -> None:
    for kind in LAYERS:
        make, shape = LAYERS[kind]
        x = torch.randn(shape)
        for init in (math.inf, -math.inf):
            layer = make(gate={"part": "channel_gate", "init": init})
            y = layer(x)
            assert y.isfinite().all()
            if init < 0:
                full = layer.op(x, layer.weight, layer.bias)
                torch.testing.assert_close(y, full, rtol=1e-5, atol=1e-5)
            else:
                base, _ = layer.gate.split(layer.op, x, layer.weight, layer.bias)
                assert torch.equal(y, base)
            y.sum().backward()
            assert layer.gate.threshold.grad.eq(0).all()  # exact zeros, not missing: DDP needs them


@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 8), st.booleans(), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_every_output_has_a_base_and_every_input_is_in_one(f: int, o: int, splits: int, group: bool, g: int) -> None:
    parts = fitting(splits, min(f, o) if group else f)
    assert splits % parts == 0
    mask = base_mask(f, o, g, parts, group)
    assert mask.shape == (g * o, f) and mask.any(1).all()
    assert mask.any(0).all() or not group
    assert torch.equal(mask.double(), slow_mask(g * f, g * o, g, splits, group))
    if parts > 1:
        assert not mask.all(1).any()  # something is left to skip


def test_group_base_is_a_convolution_in_groups_and_the_cheap_road_is_taken() -> None:
    layer, x = made("even", {})
    assert layer.gate.grouped
    mask = slow_mask(8, 8, 1, 4, True)[:, :, None, None]
    cheap, _ = layer.gate.split(layer.op, x, layer.weight, layer.bias)
    torch.testing.assert_close(cheap, F.conv2d(x, layer.weight * mask, layer.bias, padding=1))
    assert not made("leftovers", {})[0].gate.grouped and not made("groups", {})[0].gate.grouped


@pytest.mark.parametrize("kind", ["even", "tokens", "leftovers"])
def test_shuffle_deals_channels_out(kind: str) -> None:
    layer, x = made(kind, {"shuffle": True, "splits": 2})
    axis = -1 if kind == "tokens" else 1
    if kind != "leftovers":
        n = x.shape[axis]
        order = torch.arange(n).view(2, n // 2).t().flatten()  # the x.view(N, p, I / p).transpose(1, 2) of the code
        assert layer.gate.order.tolist() == order.tolist()
    mixed = x.index_select(axis, layer.gate.order)
    assert sorted(layer.gate.order.tolist()) == list(range(x.shape[axis]))
    torch.testing.assert_close(layer(x), slow(layer, mixed, {"splits": 2}), rtol=1e-9, atol=1e-9)
    assert "gate.order" not in layer.state_dict()


def test_shuffle_by_hand() -> None:
    assert shuffled(8, 4).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert sorted(shuffled(7, 3).tolist()) == list(range(7))


@pytest.mark.parametrize(("i", "o", "g"), [(8, 8, 8), (1, 8, 1), (8, 1, 1)])
def test_nothing_to_split_is_a_plain_layer(i: int, o: int, g: int) -> None:
    with pytest.warns(BitwrightWarning, match="leave nothing to split"):
        conv = bw.nn.Conv2d(i, o, 3, groups=g, gate="channel_gate")
    x = torch.randn(2, i, 5, 5)
    torch.testing.assert_close(conv(x), conv.op(x, conv.weight, conv.bias))
    gate: Any = conv.gate
    assert not gate.threshold.requires_grad and gate.penalty() == 0  # unused: DDP must not wait for it
    with bw.count_macs(net := nn.Sequential(conv)) as macs:
        net(x)
    assert macs.total == macs.dense and macs.rates == {} and macs.comparisons == 0


def test_fewer_channels_than_splits_fall_back_to_a_divisor() -> None:
    assert (fitting(4, 3), fitting(4, 2), fitting(6, 4), fitting(8, 7)) == (2, 2, 3, 4)
    layer: Any = bw.nn.Conv2d(3, 8, 3, gate={"part": "channel_gate", "splits": 4})
    assert layer.gate.splits == 2 and layer.gate.base.sum(1).tolist() == [1] * 4 + [2] * 4


def test_a_transposed_convolution_with_groups_is_refused() -> None:
    with pytest.raises(InputError, match="part channel_gate: a transposed convolution with groups=2") as caught:
        bw.nn.ConvTranspose2d(8, 8, 3, groups=2, gate="channel_gate")
    assert (caught.value.code, caught.value.given, caught.value.possible) == ("gate-layer", "groups=2", "groups=1")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_shut_gates_skip_cannot_matter(value: float, training: bool, dtype: torch.dtype) -> None:
    gate = {"part": "channel_gate", "splits": 2, "init": math.inf}
    layer: Any = bw.nn.Conv2d(8, 8, 3, padding=1, gate=gate).to(dtype).train(training)
    x = torch.randn(2, 8, 5, 5).to(dtype)
    clean = layer(x)  # in the same mode: training adds by another convolution, on some CPUs in another order
    x[:, 4:, 1:3, 2] = value  # read by the bases of outputs 4-7 alone
    assert torch.equal(layer(x)[:, :4], clean[:, :4])
    assert layer(x)[:, 4:, 2, 2].isfinite().logical_not().all()  # what a base reads is never lost


# -- units and running statistics


def test_a_normalized_threshold_folds_to_a_raw_one() -> None:
    layer, x = made("even", {})
    layer(x)
    layer.eval()
    want = layer(x)
    norm, gate = layer.gate.norm, layer.gate.threshold
    raw = bw.nn.Conv2d(8, 8, 3, padding=1, gate={"part": "channel_gate", "unit": "raw"}).double().eval()
    raw.load_state_dict(layer.state_dict(), strict=False)
    raw.gate.threshold.data = norm.running_mean + gate.detach() * (norm.running_var + norm.eps).sqrt()  # type: ignore[union-attr]
    torch.testing.assert_close(raw(x), want)


def test_raw_units_remember_the_size_of_the_base() -> None:
    layer, x = made("even", {"unit": "raw"})
    gate = layer.gate
    base, _ = gate.split(layer.op, x, layer.weight, layer.bias)
    layer(x)
    torch.testing.assert_close(gate.size, 0.9 + 0.1 * base.std(correction=0).detach())
    kept = gate.size.clone()
    layer.eval()(x)
    layer.train()(torch.full_like(x, math.nan))
    assert torch.equal(gate.size, kept)  # evaluation and NaN teach nothing


def test_penalty_is_the_square_of_the_distance_to_the_target() -> None:
    net = nn.Sequential(
        bw.nn.Conv2d(8, 8, 3, gate={"part": "channel_gate", "init": 0.5, "target": 2.0, "weight": 0.01}),
        bw.nn.Conv2d(8, 4, 3, gate={"part": "channel_gate", "init": 0.0, "target": 1.0}),
    )
    assert bw.penalty(net).item() == pytest.approx(0.01 * 8 * 1.5**2 + 1e-4 * 4)
    bw.penalty(net).backward()
    gate: Any = net[0].gate
    torch.testing.assert_close(gate.threshold.grad, torch.full((8,), -0.01 * 2 * 1.5))


def test_keys_and_groups_of_parameters() -> None:
    net = nn.Sequential(bw.nn.Conv2d(8, 8, 3, gate="channel_gate"))
    keys = set(net.state_dict())
    stats = {f"0.gate.norm.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert keys == {"0.weight", "0.bias", "0.gate.threshold"} | stats  # no full-size mask, no buffer of the base
    groups = bw.param_groups(net, 0.1, 1e-4)
    gate: Any = net[0].gate
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert id(gate.threshold) not in decayed and id(net[0].weight) in decayed


# -- two norms


def source(size: int = 8) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(size, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU())
    norm: Any = net[1]
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    for _ in range(5):
        net(torch.randn(8, size, 5, 5) * 2 + 1)
    return net.eval()


DUAL = {"part": "channel_gate", "output_bn": "dual"}


def test_dual_norms_start_as_copies_and_open_gates_change_nothing() -> None:
    net, x = source(), torch.randn(4, 8, 5, 5)
    want, state = net(x), {k: v.clone() for k, v in net.state_dict().items()}
    bw.apply(net, [{"match": "0", "gate": {**DUAL, "init": -math.inf}}], x)
    assert type(net[1]) is nn.Identity
    torch.testing.assert_close(net(x), want, rtol=1e-5, atol=1e-5)
    gate: Any = net[0].gate
    gate.output_norm.on.weight.data.zero_()
    net.load_state_dict(state, strict=False)  # a float checkpoint, after apply
    torch.testing.assert_close(net(x), want, rtol=1e-5, atol=1e-5)
    missing = net.load_state_dict(state, strict=False).missing_keys
    assert {key for key in missing if "output_norm" in key} == set()


@pytest.mark.parametrize("training", [True, False])
def test_dual_norms_tell_partial_from_full_sums(training: bool) -> None:
    net, x = source().double(), torch.randn(6, 8, 5, 5, dtype=torch.float64)
    bw.apply(net, [{"match": "0", "gate": DUAL}], x)
    layer: Any = net[0]
    two = layer.gate.output_norm
    two.on.weight.data.mul_(2)
    two.off.bias.data.add_(1)
    two.off.running_mean.add_(0.5)
    layer.train(training)
    seen: list[Tensor] = []
    layer.gate.watchers = (lambda gate, on: seen.append(on.detach()),)
    stats = [(k.running_mean.clone(), k.running_var.clone()) for k in (two.off, two.on)]
    y = layer(x)
    base, rest = layer.gate.split(layer.op, x, layer.weight, layer.bias)
    on, out = seen[0], torch.zeros_like(base)
    assert 0 < on.mean() < 1
    for c in range(8):
        for kind, norm in ((0, two.off), (1, two.on)):
            at = on[:, c] == kind
            values = (base + on * rest)[:, c][at]
            mean, var = (values.mean(), values.var(correction=0)) if training else (t[c] for t in stats[kind])
            out[:, c][at] = (values - mean) / (var + norm.eps).sqrt() * norm.weight[c] + norm.bias[c]
    torch.testing.assert_close(y, out, rtol=1e-8, atol=1e-8)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in layer.parameters() if p is not layer.bias)


def test_a_later_recipe_goes_on_with_what_was_learned() -> None:
    net, x = source(), torch.randn(4, 8, 5, 5)
    bw.apply(net, [{"match": "0", "gate": DUAL}], x)
    layer: Any = net[0]
    layer.gate.threshold.data.normal_()
    net.train()(x)
    net.eval()
    want = net(x)
    bw.apply(net, [{"match": "0", "gate": {**DUAL, "target": 3.0, "weight": 0.5}}], x)
    assert layer.gate.target == 3.0
    torch.testing.assert_close(net(x), want)
    rebuilt = bw.apply(source(), bw.Recipe(bw.Recipe.from_toml(net.bitwright_recipe.to_toml()).rules), x)  # type: ignore[union-attr]
    rebuilt.load_state_dict(net.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x), want)


# -- the public code


@pytest.mark.parametrize("compat", [None, "seed"])
def test_evaluation_decides_by_the_running_statistics_as_the_code_does(compat: str | None) -> None:
    """A freshly loaded net gates by whatever statistics it came with, under the seed too."""
    layer, x = made("even", {"compat": compat, "splits": 2})
    layer.eval()
    norm = layer.gate.norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    mask = slow_mask(8, 8, 1, 2, True)[:, :, None, None]
    base = F.conv2d(x, layer.weight * mask, layer.bias, padding=1)
    full = F.conv2d(x, layer.weight, layer.bias, padding=1)
    mean, var, threshold = (t[:, None, None] for t in (norm.running_mean, norm.running_var, layer.gate.threshold))
    want = torch.where((base - mean) / (var + 1e-5).sqrt() > threshold, full, base)
    assert not torch.equal(want, full) and not torch.equal(want, base)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x[:1]), want[:1])  # whatever else is in the batch


def test_the_strict_comparison_is_the_codes_rounded_sigmoid() -> None:
    v = torch.randn(10_000)
    v = v[v.abs() > 1e-6]
    assert torch.equal(v > 0, torch.sigmoid(2.0 * v) - 0.5 > 0)


def test_a_net_learns_and_thresholds_move_to_the_target() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = nn.Sequential(
            bw.nn.Linear(8, 16, gate={"part": "channel_gate", "weight": 1.0}), nn.ReLU(), nn.Linear(16, 1)
        )
    opt = torch.optim.SGD(bw.param_groups(net, 0.05, 0.0), lr=0.05)
    x = torch.randn(128, 8)
    y = x[:, :1] - x[:, 5:6]
    first = F.mse_loss(net(x), y).item()
    for _ in range(60):
        opt.zero_grad()
        (F.mse_loss(net(x), y) + bw.penalty(net)).backward()
        opt.step()
    gate: Any = net[0].gate
    assert F.mse_loss(net(x), y).item() < first / 2 and (gate.threshold - 1).abs().max() < 0.1
