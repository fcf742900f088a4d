"""fbs, channel_gate, precision_gate against slow float64 oracles, and the edge cases of gated layers."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.fn.gate import gate

D = torch.float64


def layer(gate: Any, inputs: int = 8, outputs: int = 8, kernel: int = 3, **options: Any) -> Any:
    made = bw.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, gate=gate, **options)
    return made.double()


def spread_thresholds(module: Any) -> None:
    with torch.no_grad():
        module.gate.threshold.copy_(torch.linspace(-1, 1, module.gate.threshold.numel()))


def run(module: Any, x: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Output and every gradient of a weighted sum of it."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    (
        y * (torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape) if weights is None else weights)
    ).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **{k: g.clone() for k, g in grads.items()}}


# -- the decision -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparse", [True, False])
def test_the_gate_is_a_step_with_the_slope_of_a_sigmoid(sparse: bool) -> None:
    v = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], dtype=D, requires_grad=True)
    on = gate(v, 2.0, sparse)
    assert on.tolist() == [0, 0, 0, 1, 1]
    on.sum().backward()
    s = torch.sigmoid(2 * v.detach())
    expected = 2 * s * (1 - s) * ((v.detach() >= 0).to(D) if sparse else 1)
    torch.testing.assert_close(v.grad, expected)


def test_nan_is_neither_on_nor_off_and_infinities_are_fine() -> None:
    on = gate(torch.tensor([float("nan"), float("inf"), -float("inf")]), 2.0)
    assert on[0].isnan() and on[1:].tolist() == [1, 0]


# -- channel gating -----------------------------------------------------------------------------------------------------
def oracle_channel(x: Tensor, w: Tensor, module: Any, splits: int, group: bool, sparse: bool, slope: float) -> Tensor:
    """Masked weights, batch statistics, the surrogate written out as a product."""
    o, i = w.shape[:2]
    mask = torch.zeros(o, i, dtype=w.dtype)
    for out in range(o):
        share = min(out // (o // splits), splits - 1) if group else 0
        for inp in range(i):
            mask[out, inp] = float(min(inp // (i // splits), splits - 1) == share)
    mask = mask[..., None, None]
    base = F.conv2d(x, w * mask, padding=1)
    rest = F.conv2d(x, w * (1 - mask), padding=1)
    mean = base.mean((0, 2, 3), keepdim=True)
    z = (base - mean) / torch.sqrt(base.var((0, 2, 3), correction=0, keepdim=True) + 1e-5)
    v = z - module.gate.threshold.reshape(1, -1, 1, 1)
    hard = (v > 0).to(D).detach()
    s = torch.sigmoid(slope * v).detach()
    bump = slope * s * (1 - s) * ((v >= 0).to(D).detach() if sparse else 1)
    on = hard + bump * (v - v.detach())
    return base + on * rest


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("sizes", [(8, 8, 4), (10, 9, 4)], ids=str)
def test_channel_gate_forward_and_backward(group: bool, sparse: bool, sizes: tuple[int, int, int]) -> None:
    inputs, outputs, splits = sizes
    torch.manual_seed(0)
    options = {"part": "channel_gate", "splits": splits, "group": group, "sparse_backprop": sparse, "slope": 3.0}
    module = layer(options, inputs, outputs)
    spread_thresholds(module)
    x = torch.randn(3, inputs, 5, 5, dtype=D)
    got = run(module.train(), x)
    xs, ws = x.clone().requires_grad_(), module.weight.detach().clone().requires_grad_()
    twin = copy.deepcopy(module)
    y = oracle_channel(xs, ws, twin, splits, group, sparse, 3.0)
    (y * torch.linspace(-1, 2, y.numel(), dtype=D).reshape(y.shape)).sum().backward()
    for one, two in ((got["y"], y.detach()), (got["x"], xs.grad), (got["weight"], ws.grad)):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(got["gate.threshold"], twin.gate.threshold.grad)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv3d", "transposed", "groups"])
def test_channel_gate_of_every_kind_is_the_full_layer_when_open_and_the_base_when_shut(kind: str) -> None:
    spec = {"part": "channel_gate", "splits": 2}
    made: dict[str, tuple[Any, tuple[int, ...]]] = {
        "linear": (bw.nn.Linear(4, 6, gate=spec), (3, 4)),
        "conv1d": (bw.nn.Conv1d(4, 6, 3, gate=spec), (3, 4, 7)),
        "conv3d": (bw.nn.Conv3d(4, 6, 2, gate=spec), (3, 4, 3, 3, 3)),
        "transposed": (bw.nn.ConvTranspose2d(4, 6, 3, gate=spec), (3, 4, 4, 4)),
        "groups": (bw.nn.Conv2d(8, 8, 3, groups=2, gate=spec), (3, 8, 5, 5)),
    }
    module, shape = made[kind]
    module.double().eval()
    x = torch.randn(shape, dtype=D)
    full = module.op(x, module.weight, module.bias)
    nn.init.constant_(module.gate.threshold, -math.inf)
    torch.testing.assert_close(module(x), full)
    nn.init.constant_(module.gate.threshold, math.inf)
    shut = module(x)
    assert not torch.allclose(shut, full)
    keep = module.gate.base.double()
    keep = keep.T if kind == "transposed" else keep
    own = module.weight * keep.reshape(*keep.shape, *[1] * (module.weight.dim() - 2))
    torch.testing.assert_close(shut, module.op(x, own, module.bias))


def test_every_input_is_in_a_base_and_every_base_has_inputs() -> None:
    for inputs, outputs, splits in ((8, 8, 4), (10, 9, 4), (7, 5, 3), (3, 8, 4)):
        mask = layer({"part": "channel_gate", "splits": splits}, inputs, outputs).gate.base
        assert bool(mask.any(0).all()) and bool(mask.any(1).all())


@pytest.mark.parametrize("sizes", [(1, 8, 1), (8, 8, 8), (4, 1, 1)], ids=str)
def test_nothing_to_split_is_a_plain_layer(sizes: tuple[int, int, int]) -> None:
    inputs, outputs, groups = sizes
    with pytest.warns(BitwrightWarning, match="nothing to split"):
        module = layer("channel_gate", inputs, outputs, groups=groups)
    x = torch.randn(2, inputs, 5, 5, dtype=D)
    torch.testing.assert_close(module(x), module.op(x, module.weight, None))
    assert not module.gate.threshold.requires_grad and module.gate.penalty().item() == 0
    net = nn.Sequential(module)
    with bw.count_macs(net) as macs:
        net(x)
    assert macs.total == macs.dense and macs.comparisons == 0


def test_shuffle_deals_channels_to_all_shares() -> None:
    plain, mixed = (layer({"part": "channel_gate", "splits": 4, "shuffle": s}) for s in (False, True))
    mixed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 4, 4, dtype=D)
    dealt = x.reshape(2, 4, 2, 4, 4).transpose(1, 2).reshape(2, 8, 4, 4)
    torch.testing.assert_close(mixed.eval()(x), plain.eval()(dealt))


def test_two_norms_keep_statistics_of_their_own_positions() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)).double()
    x = torch.randn(6, 8, 6, 6, dtype=D)
    bw.apply(net, [{"match": "0", "gate": {"part": "channel_gate", "splits": 2, "output_bn": "dual"}}], x)
    assert isinstance(net[1], nn.Identity)
    y = net.train()(x)
    base, rest = net[0].gate.split(net[0].op, x, net[0].weight, None)
    mean, var = base.mean((0, 2, 3)), base.var((0, 2, 3), correction=0)
    on = ((base - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]) > 0
    for c in range(4):
        for chosen, value in ((on[:, c], (base + rest)[:, c]), (~on[:, c], base[:, c])):
            seen = value[chosen]
            expected = (seen - seen.mean()) / torch.sqrt(seen.var(correction=0) + 1e-5)
            torch.testing.assert_close(y[:, c][chosen], expected)
    running = net[0].gate.output_norm.on.running_mean
    torch.testing.assert_close(running[0], 0.1 * (base + rest)[:, 0][on[:, 0]].mean())


def test_a_kind_with_fewer_than_two_values_uses_its_running_statistics() -> None:
    net: Any = nn.Sequential(nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)).double()
    x = torch.randn(2, 8, 4, 4, dtype=D)
    gate = {"part": "channel_gate", "init": math.inf, "output_bn": "dual"}
    y = bw.apply(net, [{"match": "0", "gate": gate}], x).train()(x)
    assert bool(torch.isfinite(y).all())
    assert torch.equal(net[0].gate.output_norm.on.running_mean, torch.zeros(4, dtype=D))


# -- precision gating ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparse", [True, False])
def test_precision_gate_forward_and_backward(sparse: bool) -> None:
    torch.manual_seed(0)
    spec = {"part": "precision_gate", "bits": 4, "top": 2, "sparse_backprop": sparse}
    module = layer(spec, x={"part": "pact", "bits": 4, "alpha": 2.0})
    spread_thresholds(module)
    x = torch.randn(3, 8, 5, 5, dtype=D) * 1.5
    got = run(module.train(), x)
    xs, ws = x.clone().requires_grad_(), module.weight.detach().clone().requires_grad_()
    th = module.gate.threshold.detach().clone().requires_grad_()
    code = (xs.detach().clamp(0, 2) * 15 / 2).round()
    inside = ((xs.detach() >= 0) & (xs.detach() <= 2)).to(D)
    high = (code / 4).floor() * 4 * 2 / 15
    low = (code * 2 / 15) - high
    base = F.conv2d(high + inside * (xs - xs.detach()), ws, padding=1)  # the low bits send nothing to the input
    rest = F.conv2d(low, ws, padding=1)
    v = base - th.reshape(1, -1, 1, 1)
    s = torch.sigmoid(5 * v).detach()
    bump = 5 * s * (1 - s) * ((v >= 0).to(D).detach() if sparse else 1)
    y = base + ((v > 0).to(D).detach() + bump * (v - v.detach())) * rest
    (y * torch.linspace(-1, 2, y.numel(), dtype=D).reshape(y.shape)).sum().backward()
    for one, two in (
        (got["y"], y.detach()),
        (got["x"], xs.grad),
        (got["weight"], ws.grad),
        (got["gate.threshold"], th.grad),
    ):
        torch.testing.assert_close(one, two)


def test_high_and_low_bits_add_up_and_signs_cut_towards_zero() -> None:
    module = layer({"part": "precision_gate", "bits": 3, "top": 1}, x={"part": "lsq", "bits": 3, "signed": True})
    numbers = torch.arange(-4, 4, dtype=D)
    high, low = module.gate.cut(numbers)
    assert torch.equal(high + low, numbers)
    assert high.tolist() == [-4, 0, 0, 0, 0, 0, 0, 0] and low.tolist() == [0, -3, -2, -1, 0, 1, 2, 3]


def test_without_a_code_the_gate_quantizes_and_evaluation_does_not_look_at_the_batch() -> None:
    module = layer({"part": "precision_gate", "bits": 4, "top": 2})
    x = torch.rand(6, 8, 5, 5, dtype=D)
    module.train()(x)
    module.eval()
    torch.testing.assert_close(module(x), torch.cat([module(one) for one in x.split(1)]), rtol=0, atol=1e-12)
    batchy = layer({"part": "precision_gate", "bits": 4, "top": 2, "scale": "batch_max"}).eval()
    assert not torch.allclose(batchy(x), torch.cat([batchy(one) for one in x.split(1)]))


def test_penalties() -> None:
    cg = layer({"part": "channel_gate", "init": 0.0, "target": 1.0, "weight": 0.5})
    assert cg.gate.penalty().item() == 0.5 * 8
    pg = layer({"part": "precision_gate", "bits": 3, "top": 2, "target": 1.0, "weight": 0.5})
    assert pg.gate.penalty().item() == pytest.approx(0.5 * math.sqrt(8))
    sq = layer({"part": "precision_gate", "bits": 3, "top": 2, "target": 1.0, "weight": 0.5, "penalty": "sq"})
    assert sq.gate.penalty().item() == 0.5 * 8


# -- fbs ----------------------------------------------------------------------------------------------------------------
def block(channels: int = 8, trained: bool = True, keep: float = 1.0, **options: Any) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(4, channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU()).double()
    x = torch.randn(5, 4, 6, 6, dtype=D)
    if trained:
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor([1.5, -2.0, 1e-5, 0.0, -1e-6, 0.7, 0.2, 3.0])[:channels])
            net[1].bias.normal_()
        net.train()(x)
    source = copy.deepcopy(net).eval()
    bw.apply(net, [{"match": "0", "gate": {"part": "fbs", "keep": keep, **options}}], x)
    return net.eval(), source, x


def test_fbs_with_all_channels_is_the_net_it_was_put_into() -> None:
    net, source, x = block()
    torch.testing.assert_close(net(x), source(x), rtol=0, atol=1e-5)
    assert torch.equal(net[0].weight, source[0].weight)  # a negative gain does not touch the weight


def test_fbs_takes_a_float_checkpoint_after_apply() -> None:
    _, source, x = block()
    late, _, _ = block(trained=False)
    late.load_state_dict(source.state_dict())
    torch.testing.assert_close(late(x), source(x), rtol=0, atol=1e-5)
    again = copy.deepcopy(late)
    again.load_state_dict(late.state_dict())


def test_fbs_is_the_formula() -> None:
    net, _, x = block(trained=False, keep=0.5)
    part = net[0].gate
    nn.init.normal_(part.predictor.weight)
    part.norm.running_mean.normal_()
    g = (x.abs().mean((2, 3)) @ part.predictor.weight.T + part.predictor.bias).relu()
    rank = g.argsort(1, descending=True)
    kept = torch.zeros_like(g)
    for row in range(len(g)):
        for c in rank[row, :4].tolist():
            kept[row, c] = float(g[row, c] > 0)
    conv = F.conv2d(x, net[0].weight)
    z = (conv - part.norm.running_mean[:, None, None]) / torch.sqrt(part.norm.running_var + 1e-5)[:, None, None]
    expected = ((g * kept)[:, :, None, None] * (z + part.shift[:, None, None])).relu()
    torch.testing.assert_close(net(x), expected)
    for row in range(len(x)):
        torch.testing.assert_close(net(x[row : row + 1])[0], expected[row])


def test_ties_keep_exactly_the_wanted_number() -> None:
    net, _, x = block(trained=False, keep=0.5)
    nn.init.zeros_(net[0].gate.predictor.weight)  # all channels equal
    with bw.count_macs(net) as macs:
        net(x)
    assert macs.fired["0"] == 5 * 4 and macs.fired_per_sample[:, 0].tolist() == [4] * 5


def test_blocks_win_together_and_the_last_channel_always_stays() -> None:
    net, _, x = block(trained=False, keep=0.5, channel_block=4)
    nn.init.normal_(net[0].gate.predictor.weight, std=0.01)
    alive = net[0].gate.winners(net[0].gate.predictor(x.abs().mean((2, 3))).relu())
    assert {tuple(row) for row in alive.tolist()} <= {(1.0,) * 4 + (0.0,) * 4, (0.0,) * 4 + (1.0,) * 4}
    with pytest.warns(BitwrightWarning, match="nothing is gated"):
        block(1, keep=0.5)


def test_no_saliency_at_all_gives_zeros_and_nothing_learns() -> None:
    net, _, x = block(trained=False, keep=0.5, l1=0.1)
    nn.init.constant_(net[0].gate.predictor.bias, -100.0)
    y = net.train()(x)
    assert not y.any()
    (y.sum() + bw.penalty(net)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())  # exact zeros: DDP waits for them


def test_losers_hear_the_penalty_alone() -> None:
    net, _, x = block(trained=False, keep=0.5, l1=0.25)
    gate = net[0].gate
    nn.init.zeros_(gate.predictor.weight)
    gate.predictor.bias.data.copy_(torch.tensor([4.0, 3, 2, 1, 0.5, 0.4, 0.3, -1]))  # four win, one is not salient
    (net.train()(x).square().sum() + bw.penalty(net)).backward()
    grad = gate.predictor.bias.grad
    assert grad[4:].tolist() == [0.25, 0.25, 0.25, 0.0] and (grad[:4] - 0.25).abs().min() > 1e-3
    assert not net[0].weight.grad[4:].any() and not gate.shift.grad[4:].any() and net[0].weight.grad[:4].any()


def test_the_l1_term_is_the_batch_mean_of_the_sum_and_is_asked_once() -> None:
    net, _, x = block(trained=False, l1=0.5)
    net.train()(x)
    g = net[0].gate.predictor(x.abs().mean((2, 3))).relu()
    assert bw.penalty(net).item() == pytest.approx(0.5 * g.sum(1).mean().item())
    assert bw.penalty(net).item() == 0  # nothing is left that holds the graph


def test_a_second_recipe_changes_keep_and_keeps_what_was_learned() -> None:
    net, _, x = block()
    part = net[0].gate
    nn.init.normal_(part.predictor.weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bw.apply(net, [{"match": "0", "gate": {"part": "fbs", "keep": 0.25}}], x)
    assert net[0].gate is not part and net[0].gate.keep == 0.25
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    fresh: Any = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).double()
    again = bw.apply(fresh, bw.recipe_of(net))
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.eval()(x), net.eval()(x))


def test_seed_parity_keeps_one_channel_less_and_gates_before_the_norm() -> None:
    net, source, x = block(keep=0.5, compat="seed")
    assert isinstance(net[1], nn.BatchNorm2d)
    part = net[0].gate
    g = (x.abs().mean((2, 3)) @ part.predictor.weight.T + part.predictor.bias).abs()
    kept = g > g.sort(1, descending=True).values[:, 3:4]
    assert kept.sum(1).tolist() == [3] * 5 and part.density() == 3 / 8
    expected = source[2](source[1](F.conv2d(x, net[0].weight) * (g * kept)[:, :, None, None]))
    torch.testing.assert_close(net(x), expected)


# -- all of them --------------------------------------------------------------------------------------------------------
ALL: list[dict[str, Any]] = [
    {"gate": {"part": "channel_gate", "splits": 4}},
    {"gate": {"part": "channel_gate", "splits": 2, "unit": "raw"}, "w": "bwn", "x": {"part": "pact", "bits": 2}},
    {"gate": {"part": "precision_gate", "bits": 4, "top": 2}, "w": {"part": "lsq", "bits": 2}},
    {"gate": {"part": "precision_gate", "bits": 3, "top": 2}, "x": ["norm", {"part": "kbit", "bits": 3}]},
    {"gate": {"part": "fbs", "keep": 0.5}, "w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "dorefa_a", "bits": 2}},
]


def gated(rule: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return bw.apply(net, [{"match": "0", **rule}], torch.randn(4, 8, 6, 6))


@pytest.mark.parametrize("rule", ALL, ids=lambda r: f"{r['gate']['part']}-{'-'.join(r)}")
class TestEveryGate:
    def test_evaluation_does_not_depend_on_the_batch(self, rule: dict[str, Any]) -> None:
        net, x = gated(rule), torch.randn(7, 8, 6, 6)
        net.train()(x)
        net.eval()
        torch.testing.assert_close(net(x), torch.cat([net(part) for part in x.split([1, 4, 2])]), rtol=0, atol=1e-5)

    def test_counts_are_integers_whatever_the_batching(self, rule: dict[str, Any]) -> None:
        net, x = gated(rule).eval(), torch.randn(7, 8, 6, 6)
        seen = []
        for sizes in ([7], [1, 4, 2]):
            with torch.no_grad(), bw.count_macs(net) as macs:
                for part in x.split(sizes):
                    net(part)
            seen.append((macs.total, macs.bops, macs.per_sample.tolist(), macs.fired))
            assert macs.total == macs.total == int(macs.per_sample.sum())
        assert seen[0] == seen[1] and not net[0].gate.watchers

    def test_a_step_leaves_a_net_that_copies_pickles_and_loads(self, rule: dict[str, Any]) -> None:
        net, x = gated(rule), torch.randn(4, 8, 6, 6)
        optimizer = torch.optim.SGD(bw.param_groups(net, 0.1, 1e-4))
        bw.attach(net, optimizer)
        (net.train()(x).square().mean() + bw.penalty(net)).backward()
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad)  # DDP waits for every one
        optimizer.step()
        twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
        fresh = gated(rule)
        fresh.load_state_dict(net.state_dict())
        for twin in (*twins, fresh):
            assert torch.equal(twin.eval()(x), net.eval()(x))

    def test_no_sample_and_one_sample(self, rule: dict[str, Any]) -> None:
        net = gated(rule)
        for mode in (True, False):
            assert net.train(mode)(torch.zeros(0, 8, 6, 6)).shape == (0, 8, 6, 6)
            assert bool(torch.isfinite(net.train(mode)(torch.zeros(1, 8, 6, 6))).all())
        with bw.count_macs(net.eval()) as macs:
            net(torch.zeros(0, 8, 6, 6))
        assert (macs.total, macs.samples) == (0, 0)

    def test_half_precision_nets_decide_in_float32(self, rule: dict[str, Any]) -> None:
        net = gated(rule).bfloat16().eval()
        assert net(torch.randn(2, 8, 6, 6).bfloat16()).dtype == torch.bfloat16
        threshold = getattr(net[0].gate, "threshold", None)
        assert threshold is None or threshold.dtype == torch.float32

    def test_a_nan_is_never_silently_zero(self, rule: dict[str, Any]) -> None:
        if rule["gate"]["part"] == "fbs":
            pytest.skip("a NaN saliency switches its sample's channels off or on, by rank")
        net, x = gated(rule).eval(), torch.randn(1, 8, 6, 6)
        x[0, 3, 2, 2] = float("nan")
        assert bool(net[0](x).isnan().any())


# -- what is refused ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "options", "text"),
    [
        ({"part": "fbs", "keep": 0.0}, {}, "keep=0.0"),
        ({"part": "fbs", "channel_block": 3}, {}, "do not divide by channel_block=3"),
        ({"part": "channel_gate", "splits": 1}, {}, "splits=1"),
        ({"part": "channel_gate", "output_bn": "three"}, {}, "output_bn='three'"),
        ({"part": "precision_gate", "bits": 3, "top": 3}, {}, "top=3 of bits=3; 1 to 2"),
        ({"part": "precision_gate", "bits": 4, "top": 2}, {"x": {"part": "pact", "bits": 3}}, "pact has 3"),
        ({"part": "channel_gate", "slope": 0}, {}, "slope=0"),
    ],
    ids=str,
)
def test_what_cannot_be_gated_is_one_line(spec: dict[str, Any], options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text.replace("(", r"\(")) as error:
        layer(spec, **options)
    assert "\n" not in str(error.value)


def test_fbs_without_a_norm_names_the_layer() -> None:
    with pytest.raises(InputError, match="gate part of 0 takes over the BatchNorm") as error:
        bw.apply(nn.Sequential(nn.Linear(2, 2)), [{"match": "0", "gate": "fbs"}], torch.zeros(1, 2))
    assert error.value.layer == "0"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tracer, about its own insides
@pytest.mark.parametrize("rule", ALL, ids=lambda r: f"{r['gate']['part']}-{'-'.join(r)}")
def test_compiled_whole(rule: dict[str, Any]) -> None:
    net, x = gated(rule).eval(), torch.randn(4, 8, 6, 6)
    torch._dynamo.reset()
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    torch._dynamo.reset()


def test_autocast_keeps_the_type_of_activations() -> None:
    for rule in ALL:
        net, x = gated(rule).train(), torch.randn(4, 8, 6, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert net[0](x).dtype == torch.bfloat16
