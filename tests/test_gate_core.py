"""What all gates share: the decision and its slope, norms of gates, half types, copies, samples without a batch."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.fn.gate import add_where_on, gate
from bitwright.fn.whole import whole_op
from bitwright.parts import moment
from bitwright.parts.gate_norm import DualNorm, FreeNorm
from processes import spawned

GATES: list[dict[str, Any]] = [
    {"part": "fbs", "keep": 0.5},
    {"part": "channel_gate", "splits": 2},
    {"part": "precision_gate", "bits": 4, "top": 2},
]
NAMES = [str(g["part"]) for g in GATES]


def conv(gate: dict[str, Any], **kw: Any) -> Any:
    return bw.nn.Conv2d(8, 8, 3, padding=1, bias=False, gate=gate, **kw)


# -- the decision


@given(st.floats(-50, 50), st.floats(0.1, 20), st.booleans())
@settings(max_examples=60, deadline=None)
def test_decision_is_strict_and_its_slope_is_that_of_the_sigmoid(v: float, slope: float, sparse: bool) -> None:
    t = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    on = gate(t, slope, sparse)
    on.backward()
    s = 1 / (1 + math.exp(-slope * v)) if slope * v > -700 else 0.0
    assert on.item() == (1.0 if v > 0 else 0.0)
    assert t.grad is not None
    assert t.grad.item() == pytest.approx(0.0 if sparse and v < 0 else slope * s * (1 - s), rel=1e-9, abs=1e-12)


def test_a_value_at_the_threshold_is_off_and_learns() -> None:
    for sparse in (False, True):
        t = torch.zeros(1, requires_grad=True)
        on = gate(t, 2.0, sparse)
        on.backward()
        assert on.item() == 0.0 and t.grad is not None and t.grad.item() == 0.5  # the peak, slope / 4


def test_values_that_are_not_finite() -> None:
    v = torch.tensor([math.nan, math.inf, -math.inf])
    for sparse in (False, True):
        on = gate(v, 5.0, sparse)
        assert on[0].isnan() and on[1:].tolist() == [1.0, 0.0]


def test_second_derivatives_are_those_of_the_sigmoid() -> None:
    v = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(gate(v, 2.0), v, create_graph=True)
    (second,) = torch.autograd.grad(first, v)
    s = 1 / (1 + math.exp(-0.6))
    assert second.item() == pytest.approx(4 * s * (1 - s) * (1 - 2 * s))


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_of_single_samples_are_those_of_single_calls(sparse: bool) -> None:
    def value(v: Tensor) -> Tensor:
        return (gate(v, 2.0, sparse) * torch.arange(1.0, 4.0)).sum()

    rows = torch.tensor([[-1.0, 0.0, 2.0], [0.5, -0.25, 3.0]])
    alone = [torch.func.grad(value)(row) for row in rows]
    together: Tensor = torch.func.vmap(torch.func.grad(value))(rows)
    assert torch.equal(together, torch.stack(alone)) and together.abs().sum() > 0


def test_off_is_exactly_the_base_whatever_the_rest_is() -> None:
    nan, inf = math.nan, math.inf
    base = torch.tensor([1.5, -2.0, 3.0, 4.0, 5.0, nan, 6.0])
    on = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, nan])
    rest = torch.tensor([inf, -inf, nan, 2.0, inf, 1.0, 1.0])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        y = add_where_on(base.to(dtype), on.to(dtype), rest.to(dtype))
        assert y[:5].tolist() == [1.5, -2.0, 3.0, 6.0, inf] and y[5:].isnan().all()


def test_the_sum_has_the_gradients_of_base_plus_on_times_rest() -> None:
    base, rest, on = torch.randn(4, 5).double(), torch.randn(4, 5).double(), (torch.rand(4, 5) < 0.5).double()
    inputs = [t.requires_grad_() for t in (base, on, rest)]
    grad, second = torch.randn(4, 5).double().requires_grad_(), [torch.randn(4, 5).double() for _ in range(3)]
    found = []
    for added in (add_where_on, torch.addcmul):
        y = added(*inputs)
        first = torch.autograd.grad(y, inputs, grad, create_graph=True)
        found.append([y, *first, *torch.autograd.grad(first, [grad, on, rest], second)])
    assert (
        all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][2].ne(0).all()
    )  # to on where it is off

    def value(base: Tensor, on: Tensor, rest: Tensor) -> Tensor:
        return add_where_on(base, on, rest).square().sum()

    rows = [t.detach() for t in inputs]
    together: Any = torch.func.vmap(torch.func.grad(value, (0, 1, 2)))(*rows)
    for i in range(4):
        alone = torch.func.grad(value, (0, 1, 2))(*(t[i] for t in rows))
        assert all(torch.equal(a[i], b) for a, b in zip(together, alone, strict=True))


# -- norms of gates


def test_free_norm_is_batch_norm_without_gain_for_images_and_tokens() -> None:
    x = torch.randn(3, 5, 4, 4) * 3 + 2
    for mode in (True, False):
        ours, theirs = FreeNorm(5).train(mode), nn.BatchNorm2d(5, affine=False).train(mode)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    tokens = torch.randn(3, 7, 5)
    ours, theirs1 = FreeNorm(5, last=True), nn.BatchNorm1d(5, affine=False)
    torch.testing.assert_close(ours(tokens), theirs1(tokens.flatten(0, 1)).reshape(3, 7, 5))


def test_one_value_per_channel_uses_running_statistics() -> None:
    norm = FreeNorm(2)
    assert norm.running_mean is not None
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    out = norm(torch.tensor([[2.0, 2.0]]).reshape(1, 2, 1, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([1 / math.sqrt(1 + 1e-5), 0.0]))
    assert norm.running_mean.tolist() == [1.0, 2.0]  # nothing was learned from one value


def test_a_constant_partial_sum_is_zero_deviations_from_its_mean() -> None:
    layer = conv({"part": "channel_gate", "splits": 2})
    layer.weight.data.mul_(~layer.gate.base[:, :, None, None])
    x = torch.randn(2, 8, 4, 4)
    rest = layer.op(x, layer.weight, None)
    assert layer(x).eq(0).all() and rest.ne(0).any()  # z = 0 / sqrt(eps), not above the threshold 0
    nn.init.constant_(layer.gate.threshold, -0.01)
    torch.testing.assert_close(layer(x), rest)


def dual_oracle(y: Tensor, on: Tensor, norms: list[tuple[Tensor, Tensor]], eps: float) -> Tensor:
    """Channel by channel, kind by kind: (value - mean) / deviation * gain + shift over the chosen values alone."""
    out = torch.zeros_like(y)
    for c in range(y.shape[1]):
        for kind, (gain, shift) in zip((1, 0), norms, strict=True):
            at = on[:, c] == kind
            values = y[:, c][at]
            if len(values) > 1:
                values = (values - values.mean()) / (values.var(correction=0) + eps).sqrt()
            else:
                values = values / math.sqrt(1 + eps)  # the running statistics as made: 0 and 1
            out[:, c][at] = values * gain[c] + shift[c]
    return out


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_dual_norm_takes_statistics_of_each_kind_alone(offset: float) -> None:
    y = torch.randn(3, 4, 5, 5, dtype=torch.float64) + offset
    on = (torch.rand(3, 4, 5, 5) < 0.4).double()
    on[:, 2], on[:, 3] = 0, 1  # a kind that never occurs
    on[0, 2, 0, 0] = 1  # and one that occurs once: count < 2
    like = nn.BatchNorm2d(4).double()
    norm = DualNorm(like)
    with torch.no_grad():
        for kind in (norm.on, norm.off):
            kind.weight.uniform_(0.5, 2)
            kind.bias.normal_()
    want = dual_oracle(y, on, [(k.weight, k.bias) for k in (norm.on, norm.off)], like.eps)
    torch.testing.assert_close(norm(y, on), want, rtol=1e-8, atol=1e-7)
    for c in (0, 1):
        chosen = y[:, c][on[:, c] == 1]
        torch.testing.assert_close(norm.on.running_mean[c], 0.1 * chosen.mean())
        torch.testing.assert_close(norm.on.running_var[c], 0.9 + 0.1 * chosen.var())
    assert norm.on.running_mean[2] == 0 and norm.on.running_var[2] == 1  # one value teaches nothing
    assert norm.off.running_mean[3] == 0 and norm.off.running_var[3] == 1


def test_dual_norm_keeps_a_small_variance_beside_a_large_mean() -> None:
    """In float32 the difference of two sums of squares would be noise."""
    y = torch.randn(4, 2, 8, 8) + 3000
    norm = DualNorm(nn.BatchNorm2d(2))
    out = norm(y, (torch.rand_like(y) < 0.5).float())
    assert (out.std((0, 2, 3)) - 1).abs().max() < 0.01


def test_dual_norm_in_evaluation_and_its_gradient() -> None:
    norm = DualNorm(nn.BatchNorm1d(3)).double()
    y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    on = torch.tensor([[1.0, 0, 1]] * 3 + [[0.0, 1, 1]] * 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: norm(t, on), (y,))
    norm.eval()
    whole = norm(y, on)
    torch.testing.assert_close(torch.cat([norm(y[:1], on[:1]), norm(y[1:], on[1:])]), whole)


def _rank(rank: int, folder: str) -> None:
    norm, y, on = _synced()
    mine = slice(0, 4) if rank == 0 else slice(4, 6)
    part = y[mine].clone().requires_grad_()
    out = norm(part, on[mine])
    out.square().mul(torch.arange(1, 4).double()[:, None]).sum().backward()
    torch.save([out.detach(), part.grad, norm.on.running_mean, norm.off.running_var], Path(folder) / f"{rank}.pt")


def _synced() -> tuple[DualNorm, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    y = torch.randn(6, 3, 5, dtype=torch.float64, generator=random) * 2 + 1
    on = (torch.rand(6, 3, 5, generator=random) < 0.4).double()
    on[:, 1], on[0, 1, 0], on[5, 1, 0] = 0, 1, 1  # two values of a kind, one on each process
    return DualNorm(nn.SyncBatchNorm(3)).double(), y, on


@pytest.mark.slow
def test_synced_dual_norms_on_two_processes_are_one(tmp_path: Path) -> None:
    norm, y, on = _synced()
    y.requires_grad_()
    out = norm(y, on)
    out.square().mul(torch.arange(1, 4).double()[:, None]).sum().backward()
    spawned(_rank, tmp_path / "store", str(tmp_path))
    got = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([got[0][0], got[1][0]]), out.detach())
    torch.testing.assert_close(torch.cat([got[0][1], got[1][1]]), y.grad)
    for rank in (0, 1):
        torch.testing.assert_close(got[rank][2:], [norm.on.running_mean, norm.off.running_var])


def _free(rank: int, folder: str) -> None:
    for case in range(3):
        norm, x, gain, shift = _free_norm(case)
        sizes = ((4, 2), (6, 0), (5, 1))[case]  # one process may have no image at all
        part = x.split(sizes)[rank].clone().requires_grad_()
        norm(part, gain, shift)
        out = norm(part, gain, shift)
        out.square().mul(torch.arange(1, 4).double()[:, None]).sum().backward()
        state = list(norm.state_dict().values())
        torch.save([out.detach(), part.grad, gain.grad, shift.grad, *state], Path(folder) / f"{case}{rank}.pt")
    one = FreeNorm(2)
    one.follow(nn.SyncBatchNorm(2))
    mine = torch.ones(1 - rank, 2)  # one value a channel in all: no variance, the running statistics serve
    assert one(mine).isfinite().all() and one.num_batches_tracked == 0


def _free_norm(case: int) -> tuple[FreeNorm, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(case)
    x = torch.randn(6, 3, 5, dtype=torch.float64, generator=random) * 2 + 1
    norm = FreeNorm(3).double()
    norm.follow(nn.SyncBatchNorm(3, eps=1e-3, momentum=None if case == 2 else 0.3))
    gain, shift = (torch.randn(3, dtype=torch.float64, generator=random).requires_grad_() for _ in range(2))
    return norm, x, gain, shift


@pytest.mark.slow
def test_synced_norms_on_two_processes_are_one(tmp_path: Path) -> None:
    spawned(_free, tmp_path / "store", str(tmp_path))
    for case in range(3):
        norm, x, gain, shift = _free_norm(case)
        x.requires_grad_()
        norm(x, gain, shift)
        out = norm(x, gain, shift)
        out.square().mul(torch.arange(1, 4).double()[:, None]).sum().backward()
        one, two = (torch.load(tmp_path / f"{case}{rank}.pt", weights_only=True) for rank in (0, 1))
        torch.testing.assert_close(torch.cat([one[0], two[0]]), out.detach())
        torch.testing.assert_close(torch.cat([one[1], two[1]]), x.grad)
        torch.testing.assert_close([one[2] + two[2], one[3] + two[3]], [gain.grad, shift.grad])
        torch.testing.assert_close(one[4:], list(norm.state_dict().values()))
        torch.testing.assert_close(two[4:], one[4:])


def test_a_gated_net_is_synced_by_torchs_own_converter() -> None:
    """The converter replaces every _BatchNorm; the gate's own norm must stay, and hear of it."""
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), conv(GATES[1]))
    x = torch.rand(4, 8, 6, 6)
    dual = {"part": "channel_gate", "output_bn": "dual"}
    bw.apply(net, [{"match": "0", "gate": GATES[0]}, {"match": "2", "gate": dual}], x)
    synced: Any = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert list(synced.state_dict()) == list(net.state_dict())
    norms = [synced[0].gate.norm, synced[2].gate.norm, synced[2].gate.output_norm, synced[4].gate.norm]
    assert all(type(m) in (FreeNorm, DualNorm) and isinstance(m.scope, nn.SyncBatchNorm) for m in norms)
    for mode in (True, False):  # without a group of processes nothing else changes
        assert torch.equal(synced.train(mode)(x), net.train(mode)(x))
    pickle.loads(pickle.dumps(synced))
    assert bw.plan(net, [{"match": "4", "w": "bwn"}]).untouched == ""  # norms inside gates are no layers of the net


# -- every gate


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_gradients_of_single_samples_and_of_gradients(gate: dict[str, Any]) -> None:
    layer = conv(gate).double()
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    layer(x)  # a range to quantize by, statistics
    layer.eval()
    named = {name: p.detach() for name, p in layer.named_parameters()}

    def value(named: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, named, (x,)).square().sum()

    together: Any = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(named, x)
    for i, one in enumerate(x):
        for name, grad in torch.func.grad(value)(named, one).items():
            torch.testing.assert_close(together[name][i], grad, msg=name)
    assert all(grad.abs().sum() > 0 for grad in together.values())
    x.requires_grad_()
    weight = layer.weight
    (first,) = torch.autograd.grad(layer(x).square().sum(), weight, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), weight)[0]
    assert second.isfinite().all() and second.abs().sum() > 0


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept_and_decisions_stay_in_float32(gate: dict[str, Any], dtype: torch.dtype) -> None:
    layer = conv(gate).to(dtype)
    x = torch.rand(2, 8, 5, 5, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype and y.isfinite().all()
    y.float().sum().backward()
    part = layer.gate
    kept = [part.threshold] if hasattr(part, "threshold") else []
    kept += [] if getattr(part, "norm", None) is None else [part.norm.running_mean, part.norm.running_var]
    assert kept and {t.dtype for t in kept} == {torch.float64 if dtype == torch.float64 else torch.float32}


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_half_a_net_decides_as_the_whole_one(gate: dict[str, Any]) -> None:
    layer = conv(gate).eval()
    x = torch.rand(4, 8, 6, 6)
    full, half = layer(x), copy.deepcopy(layer).bfloat16()(x.bfloat16()).float()
    close = (full - half).abs() <= 0.05 * full.abs().max()
    assert close.float().mean() > 0.97  # but where a decision was a tie within bfloat16


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_autocast_keeps_its_type(gate: dict[str, Any]) -> None:
    layer = conv(gate)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.rand(2, 8, 5, 5))
        plain = nn.Conv2d(8, 8, 3)(torch.rand(2, 8, 5, 5))
    assert y.dtype == plain.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_copies_and_states_after_a_step(gate: dict[str, Any]) -> None:
    net = nn.Sequential(conv(gate), nn.ReLU())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.rand(4, 8, 6, 6)
    (net(x).square().mean() + bw.penalty(net)).backward()
    opt.step()
    net(x)  # a graph hangs about, as right after a step
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    fresh = nn.Sequential(conv(gate), nn.ReLU())
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    want = net.eval()(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert torch.equal(other.eval()(x), want)


@pytest.mark.parametrize("gate", GATES[1:], ids=NAMES[1:])
def test_a_copy_starts_unwatched(gate: dict[str, Any]) -> None:
    net = nn.Sequential(conv(gate))
    budget = bw.Budget(net, torch.zeros(1, 8, 5, 5), **{"bops" if "bits" in gate else "macs": 0.75})
    other: Any = copy.deepcopy(net)
    assert net[0].gate.governed and net[0].gate.watchers  # pyright: ignore[reportAttributeAccessIssue]
    assert not other[0].gate.governed and not other[0].gate.watchers
    assert other(torch.rand(2, 8, 5, 5)).shape == (2, 8, 5, 5) and pickle.dumps(net)
    budget.remove()


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_evaluation_does_not_depend_on_the_batch(gate: dict[str, Any]) -> None:
    layer = conv(gate)
    layer(torch.rand(8, 8, 6, 6))
    layer.eval()
    x = torch.rand(7, 8, 6, 6, dtype=torch.float64)
    layer.double()
    whole = layer(x)
    for sizes in ([1] * 7, [3, 4], [6, 1]):
        torch.testing.assert_close(torch.cat([layer(part) for part in x.split(sizes)]), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(x.flip(0)).flip(0), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unit", ["raw", "normalized"])
@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_one_sample_without_a_batch(gate: dict[str, Any], unit: str) -> None:
    """Eight rows and eight channels: thresholds laid along the rows would fit as well."""
    options = gate if gate["part"] == "fbs" else {**gate, "unit": unit}
    layer = conv(options).eval()
    if hasattr(layer.gate, "threshold"):
        layer.gate.threshold.data.normal_()
    x = torch.rand(8, 8, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    linear = bw.nn.Linear(8, 8, gate=options).eval()
    torch.testing.assert_close(linear(x[0, 0]), linear(x[0, :1])[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_an_empty_batch(gate: dict[str, Any], training: bool) -> None:
    for layer, x in ((conv(gate), torch.zeros(0, 8, 5, 5)), (bw.nn.Linear(8, 8, gate=gate), torch.zeros(0, 8))):
        layer.train(training)
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        y = layer(x)
        assert y.shape == x.shape and bw.penalty(layer).isfinite()
        (y.sum() + bw.penalty(layer)).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
        tracked = "num_batches_tracked"
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items() if tracked not in k)
        net = nn.Sequential(layer)
        with bw.count_macs(net) as macs:
            net(x)
        assert (macs.samples, macs.total, len(macs.per_sample)) == (0, 0, 0)


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_nan_is_never_silently_a_number(gate: dict[str, Any]) -> None:
    layer = conv(gate).eval()
    x = torch.rand(2, 8, 5, 5)
    clean = layer(x)
    x[0, 3, 2, 2] = math.nan
    seen: list[Tensor] = []
    layer.gate.watchers = (lambda part, on: seen.append(on),)
    y = layer(x)
    reads = torch.ones(8, dtype=torch.bool)
    if gate["part"] == "channel_gate":  # bases of outputs 4-7 do not read channel 3, and what is skipped cannot matter
        reads = (torch.arange(8) < 4) | (seen[0][0, :, 2, 2] > 0)
        torch.testing.assert_close(y[0, ~reads, 2, 2], clean[0, ~reads, 2, 2])
    assert y[0, reads, 2, 2].isnan().all() and reads.sum() >= 4
    torch.testing.assert_close(y[1], clean[1])  # the other sample knows nothing of it


@pytest.mark.parametrize("gate", GATES[:2], ids=NAMES[:2])
def test_infinity_reaches_the_output(gate: dict[str, Any]) -> None:
    layer = conv(gate).eval()
    x = torch.rand(1, 8, 5, 5)
    x[0, 3, 2, 2] = math.inf
    assert not layer(x)[0, :, 2, 2].isfinite().all()


def test_infinity_saturates_a_code() -> None:
    layer = conv(GATES[2])
    x = torch.rand(2, 8, 5, 5)
    layer(x)
    layer.eval()
    high = x.clone()
    x[0, 3, 2, 2], high[0, 3, 2, 2] = math.inf, 1e6
    torch.testing.assert_close(layer(x), layer(high))


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_one_position_in_training(gate: dict[str, Any]) -> None:
    y = conv(gate)(torch.rand(1, 8, 1, 1))
    assert y.isfinite().all()


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
@pytest.mark.parametrize(
    "slots",
    [
        {"w": "bwn"},
        {"w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "pact", "bits": 4}},
        {"w": {"part": "lsq", "bits": 3}, "x": {"part": "lsq", "bits": 4}},
        {"w": "bwn", "x": [{"part": "norm"}, {"part": "kbit", "bits": 4}]},
        {"x": {"part": "dorefa_a", "bits": 4}},
    ],
    ids=str,
)
def test_gates_and_quantizers_compose(gate: dict[str, Any], slots: dict[str, Any]) -> None:
    """Whatever the gate decides, what it adds up are the operator's products of the quantized weight and input."""
    opened = dict(gate, keep=1.0) if gate["part"] == "fbs" else dict(gate, init=-math.inf)
    layer: Any = conv(opened, **slots).double()
    x = torch.rand(4, 8, 5, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert layer.weight.grad.abs().max() > 0
    layer.eval()
    seen = x if layer.x is None else layer.x(x)
    plain = nn.functional.conv2d(seen, layer.quantized_weight(), None, padding=1)
    if gate["part"] == "precision_gate" and layer.x is None:
        plain = nn.functional.conv2d(layer.gate.quantizer(x), layer.quantized_weight(), None, padding=1)
    if gate["part"] == "fbs":
        raw = x if layer.x is None or not isinstance(slots["x"], list) else layer.x.before(x)
        g = layer.gate.predictor(raw.abs().mean((2, 3))).relu()[:, :, None, None]
        plain = g * (layer.gate.norm(plain) + layer.gate.shift[:, None, None])
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)  # units of some parts are float32


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_the_compiler_takes_a_gate_whole(gate: dict[str, Any], training: bool, backend: str) -> None:
    layer = conv(gate).train(training)
    if hasattr(layer.gate, "quantizer"):
        bw.calibrate(layer, [torch.rand(2, 8, 6, 6)])
    other = copy.deepcopy(layer)
    x = torch.rand(2, 8, 6, 6)
    want = layer(x)
    want.square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own compiler
        got = torch.compile(other, fullgraph=True, backend=backend)(x)
        got.square().sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(layer.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


# -- rubbish


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "fbs", "keep": 0}, "keep=0; a share above 0"),
        ({"part": "fbs", "keep": 1.2}, "keep=1.2"),
        ({"part": "fbs", "keep": "half"}, "keep='half'; a share above 0"),
        ({"part": "fbs", "keep": math.nan}, "keep=nan"),
        ({"part": "fbs", "l1": -1}, "l1=-1; 0 or more"),
        ({"part": "fbs", "channel_block": 3}, "0: part fbs: 8 output channels do not divide by channel_block=3"),
        ({"part": "fbs", "channel_block": 0}, "channel_block=0"),
        ({"part": "channel_gate", "splits": 1}, "splits=1; a whole number from 2"),
        ({"part": "channel_gate", "splits": 2.5}, "splits=2.5"),
        ({"part": "channel_gate", "slope": 0}, "slope=0; above 0"),
        ({"part": "channel_gate", "init": math.nan}, "init=nan; a number"),
        ({"part": "channel_gate", "init": "a"}, "init='a'; a number"),
        ({"part": "channel_gate", "target": None}, "target=None; a number"),
        ({"part": "channel_gate", "weight": math.inf}, "weight=inf; 0 or more"),
        ({"part": "channel_gate", "unit": "std"}, "unit='std' is none of raw, normalized"),
        ({"part": "channel_gate", "output_bn": "two"}, "output_bn='two' is none of shared, dual"),
        ({"part": "precision_gate", "bits": 4, "top": 4}, "top=4 of bits=4; 1 to 3"),
        ({"part": "precision_gate", "bits": 4, "top": 0}, "top=0"),
        ({"part": "precision_gate", "bits": 1, "top": 1}, "bits=1; 2 to 8"),
        ({"part": "precision_gate", "bits": 4, "topp": 2}, "unknown option topp=2. Nearest: top"),
        ({"part": "precision_gate", "scale": "max"}, "scale='max' is none of static, batch_max"),
        ({"part": "precision_gate", "penalty": "abs"}, "penalty='abs' is none of norm, sq"),
        ({"part": "precision_gate", "compat": "old"}, "compat='old' is none of seed"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_clear_line(options: dict[str, Any], words: str) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(InputError) as caught:
        bw.apply(net, [{"match": "0", "gate": options}], torch.zeros(1, 8, 5, 5))
    text = str(caught.value)
    assert words in text and "\n" not in text and "rule 0" in text
    assert type(net[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("tail", "gate", "words"),
    [
        ([nn.ReLU()], "fbs", "the gate part of 0 takes over the BatchNorm that is the only reader of its output"),
        ([nn.BatchNorm2d(8, track_running_stats=False)], "fbs", "part of 0 takes over the BatchNorm 1, which keeps no"),
        ([nn.ReLU()], {"part": "channel_gate", "output_bn": "dual"}, "the gate part of 0 takes over the BatchNorm"),
    ],
)
def test_a_part_that_owns_a_norm_finds_one_or_says_so(tail: list[nn.Module], gate: Any, words: str) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3), *tail)
    with pytest.raises(InputError) as caught:
        bw.apply(net, [{"match": "0", "gate": gate}], torch.zeros(1, 8, 5, 5))
    assert words in str(caught.value) and caught.value.code == "norm-none"
    with pytest.raises(InputError, match="give an example"):
        bw.apply(net, [{"match": "0", "gate": gate}])


def test_a_norm_over_tokens_is_not_that_of_the_features() -> None:
    """Eight tokens and eight features: the BatchNorm would fit, and normalize along the wrong axis."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    with pytest.raises(InputError, match="the only reader of its output; there is none"):
        bw.apply(net, [{"match": "0", "gate": "fbs"}], torch.zeros(2, 8, 4))
    assert type(bw.apply(net, [{"match": "0", "gate": "fbs"}], torch.zeros(2, 4))[1]) is nn.Identity


@pytest.mark.parametrize("second", ["float", "channel_gate", {"part": "fbs", "compat": "seed"}])
def test_a_norm_is_not_lost_by_a_second_recipe(second: Any) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    example = torch.rand(2, 8, 5, 5)
    bw.apply(net, [{"match": "0", "gate": "fbs"}], example)
    want = net.eval()(example)
    with pytest.raises(InputError, match="0 holds the BatchNorm 1 in a part that this recipe takes away"):
        bw.apply(net, [{"match": "0", "gate": second}], example)
    assert torch.equal(net(example), want)


# -- decisions on codes


ON_CODES: dict[str, Any] = {
    "conv": (lambda **k: bw.nn.Conv2d(8, 8, 3, padding=1, **k), (3, 8, 6, 6)),
    "plain": (lambda **k: bw.nn.Conv2d(8, 6, 3, stride=2, bias=False, **k), (3, 8, 7, 7)),
    "groups": (lambda **k: bw.nn.Conv2d(8, 8, 3, groups=2, **k), (2, 8, 6, 6)),
    "transposed": (lambda **k: bw.nn.ConvTranspose2d(8, 6, 3, stride=2, **k), (2, 8, 4, 4)),
    "linear": (lambda **k: bw.nn.Linear(8, 6, **k), (40, 8)),
    "tokens": (lambda **k: bw.nn.Linear(8, 6, **k), (4, 9, 8)),
}


@pytest.mark.parametrize("w", ["bwn", {"part": "lsq", "bits": 3}, ["mask", {"part": "dorefa_w", "bits": 2}]], ids=str)
@pytest.mark.parametrize("gate", ["channel_gate", "precision_gate"])
@pytest.mark.parametrize("kind", ON_CODES)
def test_what_is_coded_decides_as_whole_numbers(kind: str, gate: str, w: Any) -> None:
    """Thresholds lie on sums that occur: an order of additions that rounds would open some of those gates."""
    make, shape = ON_CODES[kind]
    layer: Any = make(w=w, x={"part": "pact", "bits": 4}, gate={"part": gate, "unit": "raw"}).eval()
    x, on = torch.rand(shape) * 6, list[Tensor]()
    layer.gate.watchers = (lambda gate, now: on.append(now),)
    x_code, x_unit = layer.x.whole(x)
    w_code, w_unit = moment(layer.w, "whole")(layer.slot_weight())  # type: ignore[misc]
    w_code = layer.from_slot(w_code).double()
    if gate == "precision_gate":
        first, _ = layer.gate.split(layer.op, (x_code.double() // 4 * 4, x_code.double() % 4), w_code, None)
    else:
        first, _ = layer.gate.split(layer.op, x_code.double(), w_code, None)
    assert torch.equal(first, first.round())
    axes = [1] * (layer.weight.dim() - 2)
    value = first.float() * (w_unit.double() * x_unit.double()).float().reshape(-1, *axes)
    value = value if layer.bias is None else value + layer.bias.reshape(-1, *axes)
    rows = value.movedim(-1 if layer.gate.last else 1, 0).flatten(1)
    layer.gate.threshold.data.copy_(rows.sort(1).values[:, rows.shape[1] // 2])  # of each channel, one that occurs
    with torch.no_grad():
        layer(x)
    layer(x)
    want = value > layer.gate.threshold.reshape(-1, *axes)
    assert torch.equal(on[0] > 0, want) and torch.equal(on[1] > 0, want) and 0 < on[0].mean() < 1


def test_sums_beyond_the_whole_numbers_of_float32() -> None:
    """4000 products of 255 with 127 and with -127, and one of 1: float32 alone loses the one."""
    x, w = torch.full((1, 8001), 255.0), torch.ones(1, 8001)
    w[0, :4000], w[0, 4000:8000], x[0, 8000] = 127.0, -127.0, 1.0
    exact = whole_op(nn.functional.linear, w)
    assert exact(x, w, None).item() == 1.0
    assert exact(x.half(), w.half(), None).item() == 1.0  # 65504 is the largest of half
    with torch.autocast("cpu", torch.bfloat16):
        got = exact(x, w, None)
    assert got.item() == 1.0 and got.dtype == torch.float32
