"""count_macs against brute force, on the nets and in the corners where a count could be wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bitwright as bw
from bitwright.analysis.active import Active, ActiveChannels
from bitwright.errors import InputError
from bitwright.transforms.tracer import Tracer
from bitwright.transforms.walk import walk
from processes import spawned

FBS = {"part": "fbs", "keep": 0.5}


class Between(nn.Module):
    """A gated layer, something, a layer that reads it: `dense` is the work of the second alone, `half` with the mask."""

    def __init__(self, middle: Callable[[Tensor], Tensor], reader: nn.Module | None = None, size: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1, bias=False)
        self.n = nn.BatchNorm2d(8)
        self.middle = middle
        self.b = reader or nn.Conv2d(8, 4, 1, bias=False)
        bw.apply(self, [{"match": "a", "gate": FBS}], torch.zeros(1, 3, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(F.leaky_relu(self.n(self.a(x)))))


def count(net: nn.Module, x: Any, training: bool = False) -> Any:
    with bw.count_macs(net.train(training)) as macs:
        net(x)
    return macs


def second(middle: Callable[[Tensor], Tensor], training: bool = False, reader: nn.Module | None = None) -> int:
    """Share of the dense work of the reader, in eighths."""
    macs = count(Between(middle, reader), torch.randn(2, 3, 4, 4), training)
    return macs.per_layer["b"] * 8 // macs.per_layer_dense["b"]


def write_part(x: Tensor) -> Tensor:
    x[:, :4].add_(1.0)
    return x


def write_rows(x: Tensor) -> Tensor:
    x = x.clone()
    x[0] = 1.0
    return x


def write_late(x: Tensor) -> Tensor:
    view = x.flatten(2)
    x.add_(1.0)
    return view.unflatten(2, (4, 4))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "middle", "eighths"),
    [
        ("nothing", lambda x: x, 4),
        ("relu", F.relu, 4),
        ("relu in place", lambda x: F.relu_(x.clone()), 4),
        ("relu6", F.relu6, 4),
        ("hardtanh", F.hardtanh, 4),
        ("hardtanh of other bounds", lambda x: F.hardtanh(x, 0.0, 2.0), 4),
        ("hardtanh above zero", lambda x: F.hardtanh(x, 0.5, 2.0), 8),
        ("clamp from 0", lambda x: x.clamp(min=0), 4),
        ("clamp to 6", lambda x: x.clamp(max=6), 4),
        ("clamp to -1", lambda x: x.clamp(max=-1), 8),
        ("clamp from 1", lambda x: x.clamp(min=1), 8),
        ("clamp by a tensor", lambda x: x.clamp(min=torch.ones(())), 8),
        ("sigmoid", torch.sigmoid, 8),
        ("plus a number", lambda x: x + 0.5, 8),
        ("plus itself", lambda x: x + x, 4),
        ("plus a map", lambda x: x + torch.ones_like(x), 8),
        ("times a number", lambda x: 3 * x, 4),
        ("times a map", lambda x: x * torch.rand(2, 8, 1, 1), 4),
        ("dropout", lambda x: F.dropout(x, 0.5), 4),
        ("pool", lambda x: F.max_pool2d(x, 2), 4),
        ("mean pool", lambda x: F.avg_pool2d(x, 2), 4),
        ("pad", lambda x: F.pad(x, (1, 1, 1, 1)), 4),
        ("pad with ones", lambda x: F.pad(x, (1, 1), value=1.0), 8),
        ("pad channels", lambda x: F.pad(x[:, :6], (0, 0, 0, 0, 1, 1))[:, 1:7].repeat(1, 2, 1, 1)[:, :8], 8),
        ("concat of halves", lambda x: torch.cat([x[:, :3], x[:, 3:]], 1), 4),
        ("strided", lambda x: x[:, :, ::2, ::2], 4),
        ("write into a part", write_part, 8),
        ("write into a row", write_rows, 8),
        ("write behind a view", write_late, 8),
        ("permute", lambda x: x.permute(0, 1, 3, 2), 8),
        ("other channels", lambda x: x.flip(1), 8),
    ],
)
def test_operators_between(name: str, middle: Any, eighths: int, training: bool) -> None:
    assert second(middle, training) == eighths, name


def test_norms_and_affine_layers_end_a_mask() -> None:
    assert second(nn.BatchNorm2d(8), True) == second(nn.BatchNorm2d(8)) == second(nn.GroupNorm(2, 8)) == 8


def test_flatten_lays_the_places_of_a_channel_in_a_row() -> None:
    assert second(nn.Flatten(), reader=nn.Linear(8 * 16, 4)) == 4
    assert second(lambda x: x.mean((2, 3)), reader=nn.Linear(8, 4)) == 4
    assert second(lambda x: x.mean((1, 2)), reader=nn.Linear(4, 4)) == 8


def test_a_linear_reads_the_last_axis_of_a_map() -> None:
    """Eight columns beside eight channels: a mask of channels says nothing about columns."""
    net = Between(nn.Identity(), nn.Linear(8, 4), size=8)
    macs = count(net, torch.randn(2, 3, 8, 8))
    assert macs.per_layer["b"] == macs.per_layer_dense["b"] == 2 * 8 * 8 * 8 * 4


def test_tokens_are_not_channels() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = bw.nn.Linear(6, 8, bias=False, gate=FBS)
            self.b = nn.Conv1d(8, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    macs = count(Tokens(), torch.randn(2, 8, 6))
    assert macs.per_layer["b"] == 2 * 8 * 8 * 4
    assert macs.per_layer["a"] == 2 * (8 * 6 * 4 + 6 * 8 + 8 * 8) and macs.fired["a"] == 2 * 4


@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_layer_passes_a_mask_on(bias: bool) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.middle = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=bias)
            self.net = Between(lambda x: self.middle(x), nn.Conv2d(16, 4, 1, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    macs = count(Deep(), torch.randn(2, 3, 4, 4))
    assert macs.per_layer["middle"] == 2 * 9 * 16 * 4 * 2
    assert macs.per_layer["net.b"] == 2 * 16 * 4 * (16 if bias else 8)


def test_input_parts_that_move_zeros_end_a_mask() -> None:
    for part, eighths in (({"part": "pact", "bits": 4}, 4), ({"part": "kbit", "bits": 2}, 8), ("norm", 8)):
        net = Between(nn.Identity())
        bw.apply(net, [{"match": "b", "x": part}], torch.zeros(1, 3, 4, 4))
        net.train()(torch.randn(4, 3, 4, 4))
        macs = count(net, torch.randn(2, 3, 4, 4))
        assert macs.per_layer["b"] * 8 // macs.per_layer_dense["b"] == eighths, part


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "half": lambda x: x * 0.5,
    "double": lambda x: x + x,
    "shift": lambda x: x + 0.25,
    "clamp low": lambda x: x.clamp(max=-0.25),
    "clamp high": lambda x: x.clamp(-2, 2),
    "pool": lambda x: F.max_pool2d(x, 2, 1),
    "pad": lambda x: F.pad(x, (1, 0, 0, 1)),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "cut": lambda x: x[:, 1:],
    "every other": lambda x: x[:, ::2],
    "twice": lambda x: torch.cat([x, x.relu()], 1),
    "beside ones": lambda x: torch.cat([torch.ones_like(x[:, :1]), x], 1),
    "rows back to front": lambda x: x.flip(0),
    "axes": lambda x: x.transpose(2, 3),
    "samples and channels": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "gated": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "in place": lambda x: x.clone().add_(1) if x.shape[1] % 2 else x.clone().mul_(2),
    "into a view": lambda x: write_part(x.clone()),
    "into it": write_part,
    "fold": lambda x: x.reshape(x.shape[0], x.shape[1], -1, 1),
    "regroup": lambda x: x.reshape(x.shape[0], -1, 1, x.shape[3]),
    "round": torch.round,
    "masked": lambda x: x.masked_fill(x < 0, 1.0),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), st.integers(0, 10_000))
@settings(max_examples=120, deadline=None)
def test_a_channel_that_is_said_to_be_off_is_zero(steps: list[str], seed: int) -> None:
    """The one promise of a mask, whatever the operators do."""
    random = torch.Generator().manual_seed(seed)
    on = torch.rand(3, 4, generator=random) < 0.5
    x = torch.randn(3, 4, 5, 5, generator=random) * on[:, :, None, None]
    mode = ActiveChannels()
    with Tracer(mode):
        mode.put(x, Active(on))
        kept = x.flatten(2)  # a view that looks on
        for step in steps:
            if min(x.shape[1:]) < 2 or x.numel() > 20_000:
                break
            x = STEPS[step](x)
        found = [(t, mode.of(t)) for t in (x, kept)]
    for t, mask in found:
        if mask is not None:
            assert mask.channels.shape == t.shape[:2]
            assert t.flatten(2)[~mask.channels].eq(0).all(), steps
            assert (mask.least <= mask.channels.sum(1)).all()


# -- brute force


class Mixed(nn.Module):
    """All three gates, a sum, a concatenation, groups and tokens of one net; leaky, so that what is on is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.s, self.ns = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.p = nn.Conv2d(20, 6, 3, stride=2)
        self.l = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.na(self.a(x))) + F.leaky_relu(self.ns(self.s(x)))
        y = torch.cat([y, self.c(y)], 1)
        return self.l(self.p(y).flatten(2).transpose(1, 2))


RECIPE: list[dict[str, Any]] = [
    {"match": "a", "gate": {"part": "fbs", "keep": 0.3}},
    {"match": "s", "gate": {"part": "fbs", "keep": 0.5}},
    {"match": "c", "gate": {"part": "channel_gate", "splits": 2, "unit": "raw"}},
    {"match": "p", "gate": {"part": "precision_gate", "bits": 4, "top": 1, "unit": "normalized"}, "w": "bwn"},
]


def mixed(block: int = 1, shuffle: bool = False) -> nn.Module:
    torch.manual_seed(1)
    changes = [{"channel_block": block}, {"channel_block": block}, {"shuffle": shuffle}, {}]
    rules = [{**rule, "gate": {**rule["gate"], **more}} for rule, more in zip(RECIPE, changes, strict=True)]
    net = bw.apply(Mixed(), rules, torch.zeros(1, 3, 6, 6))
    for name in ("a", "s"):
        nn.init.normal_(getattr(net, name).gate.predictor.weight, std=3.0)
    net.train()(torch.randn(16, 3, 6, 6))
    return net.eval()


def brute(net: Any, x: Tensor) -> dict[str, tuple[list[int], list[int]]]:
    """layer -> (MACs, bit operations) of each sample, from the zeros of real tensors and the decisions, in loops."""
    decided: dict[str, Tensor] = {}
    read: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in ("a", "s", "c", "p", "l"):
        layer = getattr(net, name)
        handles.append(layer.register_forward_hook(lambda m, i, y, name=name: read.update({name: (i[0], y)})))
        if layer.__class__.__module__.startswith("bitwright") and layer.gate is not None:
            layer.gate.watchers = (lambda gate, on, name=name: decided.update({name: on}),)
    net(x)
    for handle in handles:
        handle.remove()
    for name in decided:
        getattr(net, name).gate.watchers = ()
    found: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in read}
    for n in range(len(x)):
        for name in ("a", "s"):  # channels: active inputs x on outputs x places x taps; predictor; scaling
            inputs, y = read[name]
            live, on, places = 3, int(decided[name][n].sum()), y.shape[2] * y.shape[3]
            assert on == int((y[n] != 0).flatten(1).any(1).sum())
            taps = 9 if name == "a" else 1
            work, over = taps * places * live * on, live * 8 + 8 * places
            found[name][0].append(work + over)
            found[name][1].append((work + over) * 32 * 32)
        inputs, y = read["c"]
        live_c = (inputs[n] != 0).flatten(1).any(1)
        if net.c.gate.shuffle:
            live_c = live_c.reshape(2, 4).t().flatten()  # what the layer reads: 0, 4, 1, 5, 2, 6, 3, 7
        work = 0
        for o in range(12):
            base = net.c.gate.base[o]
            mine = live_c[o // 6 * 4 : o // 6 * 4 + 4]
            for place in decided["c"][n, o].flatten().tolist():
                work += 9 * int((mine & base).sum()) + (9 * int((mine & ~base).sum()) if place > 0 else 0)
        found["c"][0].append(work)
        found["c"][1].append(work * 32 * 32)
        inputs, y = read["p"]
        live_p = 12 + int((inputs[n, :8] != 0).flatten(1).any(1).sum())  # whatever c puts out can be non-zero
        macs = bops = 0
        for on in decided["p"][n].flatten().tolist():
            macs += 9 * live_p
            bops += 9 * live_p * (1 + (3 if on > 0 else 0))
        found["p"][0].append(macs)
        found["p"][1].append(bops)
        tokens = read["l"][0].shape[1]
        found["l"][0].append(tokens * 6 * 5)
        found["l"][1].append(tokens * 6 * 5 * 32 * 32)
    return found


@pytest.mark.parametrize(("block", "shuffle"), [(1, False), (1, True), (2, False), (4, True)])
def test_every_sample_of_a_mixed_net_by_brute_force(block: int, shuffle: bool) -> None:
    net, x = mixed(block, shuffle), torch.randn(6, 3, 6, 6)
    want = brute(net, x)
    macs = count(net, x)
    assert {name: sum(rows[0]) for name, rows in want.items()} == macs.per_layer
    assert {name: sum(rows[1]) for name, rows in want.items()} == macs.per_layer_bops
    assert macs.per_sample.tolist() == [sum(rows[0][n] for rows in want.values()) for n in range(6)]
    assert macs.per_sample_bops.tolist() == [sum(rows[1][n] for rows in want.values()) for n in range(6)]
    assert len(set(macs.per_sample.tolist())) > 1 and macs.total < macs.dense
    work = sorted(macs.per_sample.tolist())
    assert macs.spread()["min"] == work[0] and macs.spread()["max"] == work[-1]
    assert macs.quadratic <= macs.total and macs.dense == count(net, x[:1]).dense * 6


def test_mean_bits_follow_the_share_that_fires() -> None:
    net = mixed()
    macs = count(net, torch.randn(4, 3, 6, 6))
    rate = macs.rates["p"]
    mean_bits = macs.per_layer_bops["p"] / macs.per_layer["p"]  # of binary weights
    assert 1 < mean_bits < 4
    dense = nn.Sequential(bw.nn.Conv2d(20, 6, 3, w="bwn", gate={"part": "precision_gate", "bits": 4, "top": 1})).eval()
    alone = count(dense, torch.rand(3, 20, 6, 6))
    assert alone.bops / alone.total == pytest.approx(1 + alone.rates["0"] * 3) and 0 < rate < 1
    assert alone.mean_bits == {"0": pytest.approx(1 + alone.rates["0"] * 3)} and alone.net_bits == alone.mean_bits["0"]
    assert macs.mean_bits["p"] == mean_bits


def test_bits_of_the_net_are_the_mean_over_its_products() -> None:
    """Float products count 32 bits; what a predictor multiplies is none of the layer's products."""
    shut = {"part": "precision_gate", "bits": 8, "top": 4, "init": math.inf}
    net = nn.Sequential(
        bw.nn.Conv2d(3, 4, 1, bias=False, gate={"part": "fbs", "keep": 1.0}),
        bw.nn.Conv2d(4, 8, 1, bias=False, w={"part": "uniform", "bits": 8}, gate=shut),
    )
    macs = count(net, torch.rand(2, 3, 5, 5))
    assert macs.overhead == 2 * (3 * 4 + 4 * 25) and macs.per_layer_overhead == {"0": macs.overhead, "1": 0}
    assert macs.mean_bits == {"0": 32.0, "1": 4.0} and macs.net_bits == (12 * 32 + 32 * 4) / 44


def test_the_sparsity_of_the_public_codes_weighs_every_output_the_same() -> None:
    gates = [{"part": "channel_gate", "init": side * math.inf} for side in (1, -1)]
    net = nn.Sequential(
        bw.nn.Conv2d(8, 8, 3, padding=1, bias=False, gate=gates[0]), bw.nn.Conv2d(8, 4, 1, bias=False, gate=gates[1]),
        nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    macs = count(net, torch.randn(2, 8, 4, 4))
    assert macs.unweighted_sparsity == pytest.approx(8 / 12) and macs.comparisons == 2 * 16 * 12
    work = 16 * (8 * 2 * 9 + 8 * 4 + 4 * 4), 16 * (8 * 8 * 9 + 8 * 4 + 4 * 4)
    assert (macs.total, macs.dense) == (2 * work[0], 2 * work[1])  # 0.31 of the work, not a third of it
    assert count(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)).unweighted_sparsity == 0


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [4, 2], [1, 5]])
def test_unequal_batches_and_reading_twice(sizes: list[int]) -> None:
    net, x = mixed().double(), torch.randn(6, 3, 6, 6, dtype=torch.float64)
    whole = count(net, x)
    with bw.count_macs(net) as macs:
        for part in x.split(sizes):
            net(part)
            assert macs.total == macs.total
    assert [macs.total, macs.bops, macs.samples] == [whole.total, whole.bops, whole.samples] == [
        macs.total, macs.bops, macs.samples,
    ]  # fmt: skip
    assert torch.equal(macs.per_sample, whole.per_sample) and macs.per_layer == whole.per_layer
    assert torch.equal(macs.fired_per_sample.sum(0), torch.tensor(list(macs.fired.values())))
    net(x)  # behind the block nothing counts, and nothing looks on
    assert macs.samples == 6 and net.a.gate.watchers == ()  # pyright: ignore[reportAttributeAccessIssue]


def test_padded_samples_do_not_count() -> None:
    net, x = mixed(), torch.randn(6, 3, 6, 6)
    with bw.count_macs(net) as macs:
        net(x[:4])
        with macs.valid(2):
            net(torch.cat([x[4:], x[:2]]))
        with macs.valid(0):
            net(x)
        with macs.valid(9):
            pass
    assert macs.samples == 6 and macs.total == count(net, x).total


def test_a_pass_that_breaks_off_does_not_count() -> None:
    net = mixed()
    x = torch.randn(2, 3, 6, 6)
    with bw.count_macs(net) as macs:
        net(x)
        once = macs.total
        handle = net.l.register_forward_pre_hook(lambda *_: 1 / 0)  # type: ignore[union-attr]
        with pytest.raises(ZeroDivisionError):
            net(x)
        handle.remove()
        assert (macs.total, macs.samples) == (once, 2)
        net(x)
    assert (macs.total, macs.samples) == (2 * once, 4)


def test_counts_inside_counts() -> None:
    net, x = mixed(), torch.randn(2, 3, 6, 6)
    want = count(net, x)
    with bw.count_macs(net) as outer:
        with bw.count_macs(net) as inner:
            net(x)
        net(x)
    assert (inner.total, outer.total) == (want.total, 2 * want.total)


def test_a_copy_made_inside_does_not_count_and_runs() -> None:
    net = Between(F.relu).eval()
    x = torch.randn(2, 3, 4, 4)
    with bw.count_macs(net) as macs:
        copied = copy.deepcopy(net)
        assert torch.equal(copied(x), net(x)) and macs.samples == 2
        copied(x)
        assert macs.samples == 2
    with bw.count_macs(copied) as own:  # a copy can be counted itself
        copied(x)
    assert own.total == macs.total


def test_training_counts_too_and_gradients_are_the_same() -> None:
    net, x = mixed().train(), torch.randn(4, 3, 6, 6)
    net(x).square().sum().backward()
    want = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net = mixed().train()
    with bw.count_macs(net) as macs:
        net(x).square().sum().backward()
    assert macs.samples == 4 and 0 < macs.total < macs.dense
    for name, p in net.named_parameters():
        assert (p.grad is None) == (name not in want)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, want[name])


def test_what_is_computed_once_is_borne_by_all() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.q = nn.Linear(6, 8), nn.Linear(5, 8)
            self.p = nn.Parameter(torch.randn(1, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.q(self.p)

    macs = count(Side(), torch.randn(3, 6))
    assert macs.total == 3 * 48 + 40 and macs.per_sample.tolist() == [48 + 14, 48 + 13, 48 + 13]


def test_other_arguments_than_one_tensor() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(6, 8)

        def forward(self, batch: Any, scale: float = 1.0) -> Tensor:
            return self.l(batch["x"] * scale)

    macs = count(Named(), {"x": torch.randn(3, 6)})
    assert (macs.samples, macs.per_sample.tolist()) == (3, [48, 48, 48])
    net = nn.Sequential(nn.Linear(6, 8))
    with bw.count_macs(net) as macs:
        net(input=torch.randn(3, 6))
    assert macs.samples == 3


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = bw.nn.Conv2d(8, 8, 1, bias=False, gate={"part": "channel_gate", "splits": 2, "init": math.inf})

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.c(x))

    macs = count(Twice(), torch.randn(2, 8, 3, 3))
    assert (macs.total, macs.dense) == (2 * 2 * 9 * 8 * 4, 2 * 2 * 9 * 8 * 8)


@pytest.mark.parametrize("part", ["channel_gate", "precision_gate"])
@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"stride": 1}, {"stride": 3}], ids=str)
def test_a_transposed_convolution_never_spends_more_than_all(part: str, options: dict[str, Any]) -> None:
    """It decides on more outputs than it has inputs: each bears its share of the products."""
    work = {}
    for name, init in (("open", -math.inf), ("shut", math.inf), ("half", 0.0)):
        gate = {"part": part, "init": init, "unit": "normalized"}
        net = nn.Sequential(bw.nn.ConvTranspose2d(8, 8, 4, bias=False, gate=gate, **options))
        macs = count(net, torch.randn(2, 8, 5, 5), training=True)
        y = net(torch.randn(2, 8, 5, 5))
        work[name] = macs.total if part == "channel_gate" else macs.bops
        assert macs.decided["0"] == y.numel() and macs.comparisons == y.numel()
        assert macs.dense == 2 * 25 * 16 * 64 and macs.rates["0"] == {"open": 1.0, "shut": 0.0}.get(
            name, macs.rates["0"]
        )
    dense = 2 * 25 * 16 * 64 * (1 if part == "channel_gate" else 4 * 32)
    assert work["open"] == dense and work["shut"] == dense // (4 if part == "channel_gate" else 2)
    assert work["shut"] < work["half"] < work["open"]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_fbs_on_a_transposed_convolution_scales_every_output(keep: float, stride: int) -> None:
    gate = {"part": "fbs", "keep": keep}
    net = nn.Sequential(bw.nn.ConvTranspose2d(4, 8, 3, stride=stride, bias=False, gate=gate))
    macs = count(net, torch.randn(2, 4, 4, 4))
    side = 3 * stride + 3
    work, overhead = 9 * 16 * 4 * 8 * keep, 4 * 8 + 8 * side**2  # predictor, then one product an output
    assert (macs.total, macs.overhead, macs.dense) == (2 * (work + overhead), 2 * overhead, 2 * 9 * 16 * 4 * 8)
    assert macs.bops == macs.total * 32 * 32


def test_fbs_that_keeps_all_costs_its_overhead() -> None:
    net = nn.Sequential(bw.nn.Conv2d(3, 8, 3, bias=False, gate={"part": "fbs", "keep": 1.0}))
    macs = count(net, torch.randn(2, 3, 6, 6))
    assert macs.dense == 2 * 9 * 16 * 3 * 8 and macs.overhead == 2 * (3 * 8 + 8 * 16)
    assert macs.total == macs.dense + macs.overhead and macs.reduction == macs.dense / macs.total < 1


def test_the_papers_count_is_a_whole_number_of_products() -> None:
    """1/49 of 49 products is one, not 0.999 of one."""
    net = nn.Sequential(
        bw.nn.Conv2d(3, 49, 1, bias=False, gate={"part": "fbs", "keep": 1 / 49}),
        bw.nn.Conv2d(49, 1, 1, bias=False, gate={"part": "precision_gate", "init": math.inf}),
    )
    macs = count(net, torch.randn(1, 3, 1, 1))
    assert macs.per_layer["1"] == 1 and macs.quadratic == macs.total


class Threads(nn.Module):
    """Runs halves of a batch in two threads at once, as DataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(2) as pool:
            return torch.cat(list(pool.map(self.module, x.chunk(2))))


def test_a_net_that_threads_run_at_once_is_counted_whole() -> None:
    net, x = mixed().double().eval(), _images()
    want, wrapped = count(net, x), Threads(net)
    with bw.count_macs(wrapped.module) as macs, torch.no_grad():
        for _ in range(3):
            assert wrapped(x).shape == net(x).shape
    assert macs.samples == 6 * len(x) and macs.total == 6 * want.total and macs.per_layer_bops == {
        name: 6 * bops for name, bops in want.per_layer_bops.items()
    }  # fmt: skip


def test_a_wrapper_with_threads_of_its_own_is_refused_not_counted_as_nothing() -> None:
    wrapped, x = Threads(mixed().eval()), torch.randn(4, 3, 6, 6)
    with bw.count_macs(wrapped) as macs:
        with pytest.raises(InputError, match=r"count_macs: Threads runs layers in other threads") as error:
            wrapped(x)
        assert error.value.code == "count-threads" and str(error.value.layer).startswith("module.")
        assert "wrapper.module" in str(error.value.possible) and macs.samples == 0
        wrapped.module(x)  # a part alone counts for nothing, and is no error
    assert macs.samples == 0
    parallel = nn.DataParallel(mixed())
    assert count(parallel, x).samples == 4  # on one device it calls the net itself
    parallel.device_ids = [0, 1]
    with pytest.raises(InputError, match="DataParallel runs layers in other threads"), bw.count_macs(parallel):
        pass


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="count_macs: the model has no layer to count"), bw.count_macs(nn.ReLU()):
        pass


# -- the figures of the published nets


def test_resnet18_with_seven_tenths_of_the_channels() -> None:
    """1.985x takes every input for sparse, 1.69x those of blocks for dense; what is really zero lies between."""
    net = bw.models.create("resnet18", num_classes=1000)
    x = torch.randn(1, 3, 224, 224)
    rows = walk(net, x[:1])
    assert rows[0].name == "conv1" and rows[-1].name == "fc"

    def reduction(keep: Callable[[int], float], dense_blocks: bool, union_of: float | None = None) -> float:
        work = 0.0
        for row in rows:
            inputs, outputs = row.x_shape[1], row.y_shape[1]
            enters = row.name.endswith(".conv1") or "downsample" in row.name or row.name == "fc"
            reads = 1.0 if row.name == "conv1" or (dense_blocks and enters) else keep(inputs)
            work += row.macs * reads * (1.0 if row.name == "fc" else keep(outputs))
        return sum(row.macs for row in rows) / work

    assert round(reduction(lambda c: 0.7, False), 3) == 1.985
    assert round(reduction(lambda c: 0.7, True), 2) == 1.69

    rules = [{"match": "*", "kind": "Conv2d", "gate": {"part": "fbs", "keep": 0.7}}]
    gated: Any = bw.apply(net, rules, x)
    for row in rows[:-1]:  # one random set of winners for each layer, independent of the others
        predictor = gated.get_submodule(row.name).gate.predictor
        nn.init.zeros_(predictor.weight)
        nn.init.uniform_(predictor.bias, 1, 2)
    macs = count(gated, x)
    whole = lambda c: math.ceil(0.7 * c) / c  # noqa: E731
    assert reduction(whole, True) < macs.dense / (macs.total - macs.overhead) < reduction(whole, False)
    assert macs.dense / (macs.quadratic - macs.overhead) == pytest.approx(reduction(whole, False), rel=1e-12)
    assert set(macs.rates.values()) == {math.ceil(0.7 * c) / c for c in (64, 128, 256, 512)}
    first = macs.per_layer["layer1.0.conv1"] - (45 * 64 + 64 * 56 * 56)  # behind one gate and a pooling: not dense
    assert first == 9 * 56 * 56 * 45 * 45


# -- several processes


SHARDS = {0: [[0, 1, 2, 3], [4]], 1: [[5, 6], [7, 0]]}  # unequal batches; the last one is padded with sample 0


def _numbers(macs: Any) -> dict[str, Any]:
    keys = (
        "total", "dense", "bops", "dense_bops", "overhead", "comparisons", "quadratic", "samples", "per_layer", "fired",
        "unweighted_sparsity", "net_bits",
    )  # fmt: skip
    return {key: getattr(macs, key) for key in keys} | {"per_sample": macs.per_sample.tolist()}


def _images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _rank(rank: int, folder: str) -> None:
    net, x = mixed().double(), _images()
    wrapped = DistributedDataParallel(net)
    wrapped.eval()
    with bw.count_macs(wrapped) as macs:
        for index in SHARDS[rank]:
            with macs.valid(1 if index == [7, 0] else len(index)):
                wrapped(x[index])
    with macs.here():
        assert macs.samples == sum(map(len, SHARDS[rank])) - rank
    first = _numbers(macs)
    assert _numbers(macs) == first  # reading is a sum of copies: twice is the same
    first["per_layer"] = {name.removeprefix("module."): v for name, v in first["per_layer"].items()}
    first["fired"] = {name.removeprefix("module."): v for name, v in first["fired"].items()}
    torch.save(first, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_count_the_integers_of_one(tmp_path: Path) -> None:
    want = _numbers(count(mixed().double(), _images()))
    spawned(_rank, tmp_path / "store", str(tmp_path))
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == want
