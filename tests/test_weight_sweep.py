"""weight_sweep: shares by a slow double oracle in all three norm modes, exact keys, ranking, circuits, nothing left behind."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.analysis.sweep_result import NORMS, WeightSweep, side_by_side
from bitwright.analysis.weight_sweep import LARGE, ON, weight_sweep
from bitwright.errors import InputError

TENTHS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
Batch = tuple[Tensor, Tensor]


class Invert(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


def linear(i: int, o: int, share: float = 0.3) -> Any:
    layer = bw.nn.Linear(i, o, bias=False, w="zero_one")
    with torch.no_grad():
        layer.weight.copy_((torch.rand(o, i) < share).float())
    return layer


def nor(width: int = 24) -> Any:
    return nn.Sequential(
        linear(16, width, 0.15), nn.Tanh(), Invert(), linear(width, width, 0.15), nn.Tanh(), Invert(),
        linear(width, 4, 0.15), nn.Tanh(), Invert(),
    )  # fmt: skip


def norm_net(width: int = 12) -> Any:
    def norm(n: int) -> nn.Module:
        made = nn.BatchNorm1d(n, eps=1e-4, momentum=0.15)
        nn.init.uniform_(made.weight, 0.5, 1.5)
        nn.init.normal_(made.bias, 0, 0.3)
        made.running_mean = torch.rand(n) * 0.5
        made.running_var = torch.rand(n) * 0.2 + 0.05
        return made

    return nn.Sequential(
        linear(16, width), nn.Tanh(), norm(width), linear(width, width), nn.Tanh(), norm(width), linear(width, 4), nn.Tanh(),
        norm(4),
    )  # fmt: skip


def batches(*sizes: int, seed: int = 5) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x = (torch.rand(n, 16, generator=g) < 0.3).double()
    y = torch.randint(0, 4, (n,), generator=g)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


# ---- a slow oracle: lists of Python floats, one image after another ---------------------------------------------------------
def first_best(values: list[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


class Oracle:
    """Forward of `nor` and `norm_net`, layer by layer over a whole batch; norms by `kind`."""

    def __init__(self, net: Any, on: float, kind: str) -> None:
        self.modules, self.on, self.kind = list(net), on, kind
        self.put: dict[int, tuple[list[float], list[float]]] = {}

    def run(self, x: Tensor, kind: str, collect: dict[int, list[list[float]]] | None = None) -> tuple[Any, Any]:
        rows, last = x.tolist(), []
        for k, m in enumerate(self.modules):
            if isinstance(m, nn.Linear):
                picked = [[i for i, w in enumerate(r) if w >= 0.5] for r in m.weight.tolist()]
                rows = [[self.on * sum(r[i] for i in at) for at in picked] for r in rows]
                last = rows
            elif isinstance(m, nn.Tanh):
                rows = [[math.tanh(v) for v in r] for r in rows]
            elif isinstance(m, Invert):
                rows = [[1 - v for v in r] for r in rows]
            else:
                if collect is not None:
                    collect.setdefault(k, []).extend(rows)
                rows = self.norm(k, m, rows, kind)
        return rows, last

    def norm(self, k: int, m: Any, rows: list[list[float]], kind: str) -> list[list[float]]:
        mean, var = m.running_mean.tolist(), m.running_var.tolist()
        if kind == "batch":
            columns = list(zip(*rows, strict=True))
            mean = [sum(c) / len(c) for c in columns]
            var = [sum((v - a) ** 2 for v in c) / len(c) for c, a in zip(columns, mean, strict=True)]
        elif kind == "recalibrate":
            mean, var = self.put[k]
        gain, shift = m.weight.tolist(), m.bias.tolist()
        return [
            [(v - a) / math.sqrt(b + m.eps) * g + s for v, a, b, g, s in zip(r, mean, var, gain, shift, strict=True)]
            for r in rows
        ]

    def estimate(self, train: list[Batch]) -> None:
        read: dict[int, list[list[float]]] = {}
        for x, _ in train:
            self.run(x, "batch", read)
        for k, rows in read.items():
            n, columns = len(rows), list(zip(*rows, strict=True))
            mean = [sum(c) / n for c in columns]
            var = [sum((v - a) ** 2 for v in c) / (n - 1) for c, a in zip(columns, mean, strict=True)]
            self.put[k] = mean, var


def slow(
    net: Any, data: list[Batch], values: list[float], kind: str, train: list[Batch], limit: float, sign: int
) -> Any:
    """on -> (right, right by pre-activation, as the circuit, tied), as counts."""

    def said(on: float) -> list[tuple[int, int, int, bool]]:
        oracle, found = Oracle(net, on, kind), []
        if kind == "recalibrate":
            oracle.estimate(train)
        for x, _ in data:
            for out, before in zip(*oracle.run(x, kind), strict=True):
                pairs = [(o, sign * b) for o, b in zip(out, before, strict=True)]
                best = max(pairs)
                ranked = first_best([b for _, b in pairs])
                found.append((first_best(out), ranked, pairs.index(best), out.count(max(out)) > 1))
        return found

    true = [int(t) for _, y in data for t in y]
    circuit = [whole for _, _, whole, _ in said(limit)]
    counts = {}
    for v in values:
        answers = said(v)
        counts[v] = (
            sum(a[0] == t for a, t in zip(answers, true, strict=True)),
            sum(a[1] == t for a, t in zip(answers, true, strict=True)),
            sum(a[2] == c for a, c in zip(answers, circuit, strict=True)),
            sum(a[3] for a in answers),
        )
    return counts


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("make", "sign"), [(nor, -1), (norm_net, 1)])
def test_shares_are_those_of_a_slow_double_oracle(make: Any, sign: int, kind: str) -> None:
    net, data, train = make().double(), batches(20, 20, 7), batches(16, 16, 5, seed=8)
    values = [0.1, 0.5, 1.0, 2.5, 4.0]
    sweep = weight_sweep(net, data, values, kind, train, limit=30)
    expected = slow(net, data, values, kind, train, 30, sign)
    assert sweep.images == 47
    for p in sweep.points:
        assert (p.right, p.preactivation, p.agree, p.tied) == expected[p.on], p.on
    assert sweep.accuracy[2.5] == expected[2.5][0] / 47 and sweep.agreement[0.5] == expected[0.5][2] / 47
    assert sweep.ranking == ("smallest" if sign < 0 else "largest") and sweep.output == "6"
    assert len({tuple(e) for e in expected.values()}) > 1, "the value matters in this net, else nothing is tested"


# ---- keys -------------------------------------------------------------------------------------------------------------------
def test_keys_are_the_numbers_one_writes() -> None:
    net, data = nor(), [(x.float(), y) for x, y in batches(6)]
    sweep = weight_sweep(net, data)
    assert list(sweep.accuracy) == [round(0.1 * i, 1) for i in range(41)] == list(ON)
    assert list(sweep.accuracy)[:11] == TENTHS and 0.3 in sweep.agreement
    assert 0.1 + 0.2 not in sweep.accuracy  # what summing up steps would make of the key
    summed = weight_sweep(net, data, torch.arange(0, 4.05, 0.1, dtype=torch.float64).tolist())
    assert list(summed.accuracy) == list(sweep.accuracy)
    assert list(weight_sweep(net, data, "large").accuracy) == [*ON, *LARGE]
    assert list(weight_sweep(net, data, (2, 2.0, 1)).accuracy) == [2.0, 1.0]


# ---- batches ----------------------------------------------------------------------------------------------------------------
def test_a_ragged_last_batch_weighs_what_it_holds() -> None:
    """Seven images right, one wrong: the mean of batch means would be 1/2."""
    net: Any = nn.Sequential(bw.nn.Linear(2, 2, bias=False, w="zero_one"))
    net[0].weight.data.copy_(torch.eye(2))
    x = torch.eye(2)[torch.zeros(8, dtype=torch.int64)]
    y = torch.tensor([0] * 7 + [1])
    sweep = weight_sweep(net, [(x[:7], y[:7]), (x[7:], y[7:])], (1,))
    assert sweep.accuracy == {1.0: 7 / 8} and sweep.images == 8
    assert weight_sweep(net, [(x, y)], (1,)).accuracy == {1.0: 7 / 8}, "one batch works"


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["running", "recalibrate"]), st.integers(0, 50)
)
def test_an_evaluation_does_not_depend_on_the_batches(sizes: list[int], kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    net, train = norm_net().double(), batches(20)
    pieces = batches(*sizes, seed=seed)
    whole = [(torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces]))]
    a, b = (weight_sweep(net, data, (0.4, 1, 3), kind, train) for data in (pieces, whole))
    assert a == b
    backwards = weight_sweep(net, pieces[::-1], (3, 0.4, 1), kind, train)
    assert backwards.accuracy == a.accuracy and backwards.agreement == a.agreement


def test_batch_statistics_do_depend_on_them_and_absorb_the_value() -> None:
    """One layer whose tanh is hardly bent: its norm hides a factor of ten, the running statistics do not."""
    net: Any = nn.Sequential(linear(16, 4), nn.Tanh(), nn.BatchNorm1d(4, eps=1e-12)).double()
    data = batches(40)
    with torch.no_grad():
        net[2].running_mean.copy_(torch.tensor([0.002, 0.001, 0.003, 0.002]))
        net[2].running_var.fill_(1e-6)
    values = (0.0001, 0.001, 0.01)
    of_batch, running = (weight_sweep(net, data, values, kind) for kind in ("batch", "running"))
    assert len(set(of_batch.accuracy.values())) == 1 < len(set(running.accuracy.values()))
    parts = weight_sweep(
        net, [(x, y) for b in data for x, y in zip(b[0].split(2), b[1].split(2), strict=True)], (0.01,), "batch"
    )
    assert parts.accuracy[0.01] != of_batch.accuracy[0.01], "what else is in the batch decides"


def test_a_stream_can_be_read_only_once_and_that_is_enough() -> None:
    net, data, train = norm_net().double(), batches(9, 9), batches(12, 12, 3)
    once = weight_sweep(net, iter(data), (0.5, 2), "recalibrate", iter(train))
    assert once == weight_sweep(net, data, (0.5, 2), "recalibrate", train) and once.train_images == 27


# ---- what is left behind: nothing -------------------------------------------------------------------------------------------
def everything(net: Any) -> Any:
    parts = [m for m in net.modules() if hasattr(m, "random_mag")]
    return (
        {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()],
        [(p.on, copy.deepcopy(p.__dict__.get("spec"))) for p in parts], torch.get_rng_state(),
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        [getattr(m, "momentum", None) for m in net.modules()],
    )  # fmt: skip


def same(a: Any, b: Any) -> bool:
    return (
        all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and a[0].keys() == b[0].keys() and a[1:3] == b[1:3]
        and torch.equal(a[3], b[3]) and a[4:] == b[4:]
    )  # fmt: skip


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_the_net_is_as_it_was(kind: str, training: bool) -> None:
    net = norm_net().double().train(training)
    net[0].set_slots(w={"part": "zero_one", "on": 1.5, "random_mag": 0.5, "init": "keep"})
    net[5].train(not training)
    before = everything(net)
    weight_sweep(net, batches(8, 3), (0.2, 7), kind, batches(10, 5))
    assert same(everything(net), before)


class Torn:
    """Batches that break off: what an unplugged disk does."""

    def __init__(self, good: list[Batch]) -> None:
        self.good = good

    def __iter__(self) -> Iterator[Batch]:
        yield from self.good
        raise OSError("unplugged")


@pytest.mark.parametrize("kind", NORMS)
def test_the_net_is_as_it_was_after_an_exception(kind: str) -> None:
    net = norm_net().double().train()
    before = everything(net)
    with pytest.raises(OSError, match="unplugged"):
        weight_sweep(net, Torn(batches(8, 3)), (0.2, 7), kind, batches(10, 5))
    assert same(everything(net), before)
    if kind == "recalibrate":
        with pytest.raises(OSError, match="unplugged"):
            weight_sweep(net, batches(8), (0.2, 7), kind, Torn(batches(10, 5)))
        assert same(everything(net), before)


def test_test_images_do_not_reach_the_statistics_of_later_values() -> None:
    """The notebook's loop lets every point of a sweep move them: then the order of the values would matter."""
    net, data = norm_net().double(), batches(15, 15)
    one = weight_sweep(net, data, (1,), "batch")
    assert weight_sweep(net, data, (4, 0.1, 3, 1), "batch").accuracy[1.0] == one.accuracy[1.0]
    assert weight_sweep(net, data, (1,)).accuracy == weight_sweep(net, data, (1,)).accuracy


# ---- ranking and circuits ---------------------------------------------------------------------------------------------------
def test_saturated_outputs_tie_and_the_preactivation_does_not() -> None:
    net, data = nor(), [(x.float(), y) for x, y in batches(60)]
    sweep = weight_sweep(net, data, (1, 10, 100))
    for p in sweep.points[1:]:
        net_at = copy.deepcopy(net).eval()
        layers: list[Any] = [m for m in net_at if isinstance(m, nn.Linear)]
        for layer in layers:
            layer.w.on = p.on
        with torch.no_grad():
            counts = net_at[:7](data[0][0])
            hidden = net_at[:6](data[0][0])
            out = net_at(data[0][0])
        assert set(hidden.unique().tolist()) <= {0.0, 1.0} and set(out.unique().tolist()) <= {0.0, 1.0}
        assert p.preactivation == int((counts.argmin(1) == data[0][1]).sum())
        assert p.right == int((out.argmax(1) == data[0][1]).sum()) != p.preactivation
        assert p.agree == 60 and p.tied == int((out == out.amax(1, keepdim=True)).sum(1).gt(1).sum()) > 30
    assert sweep.digital == 1.0 and sweep.agreement[1.0] < 1
    assert weight_sweep(net, data, (1,), limit=1).digital != 1.0


def test_the_circuit_is_the_nor_of_selected_inputs() -> None:
    """At large weights the net is Boolean: evaluated here with and, or, not and counting alone."""
    net, (batch,) = nor(), batches(50)
    sweep = weight_sweep(net, [(batch[0].float(), batch[1])], (10,))
    right = 0
    for x, t in zip(batch[0].bool().tolist(), batch[1].tolist(), strict=True):
        for layer in (net[0], net[3]):
            x = [not any(v and w >= 0.5 for v, w in zip(x, row, strict=True)) for row in layer.weight.tolist()]
        counts = [sum(bool(v and w >= 0.5) for v, w in zip(x, row, strict=True)) for row in net[6].weight.tolist()]
        right += counts.index(min(counts)) == t
    assert sweep.points[0].preactivation == right


def test_hidden_values_of_norm_nets_are_two_each_only_at_the_limit() -> None:
    net, data = norm_net(), [(x.float(), y) for x, y in batches(40)]
    assert weight_sweep(net, data, (1,), limit=1e6).digital == 1.0
    assert (weight_sweep(net, data, (1,), limit=1).digital or 0.0) < 0.9


def test_a_layer_that_is_all_off_makes_one_class_of_everything() -> None:
    net = norm_net().double()
    with torch.no_grad():
        net[3].weight.zero_()
    for kind in NORMS:
        sweep = weight_sweep(net, batches(40), (0.5, 1, 4), kind, batches(20))
        assert len(set(sweep.accuracy.values())) == 1 and set(sweep.agreement.values()) == {1.0}, kind


def test_a_step_in_front_of_the_weights_makes_a_circuit_of_any_value() -> None:
    net = norm_net()
    for i in (3, 6):
        net[i].set_slots(x={"part": "heaviside"})
    sweep = weight_sweep(net, [(x.float(), y) for x, y in batches(40)], (1,), limit=1)
    assert sweep.digital == 1.0 and sweep.agreement[1.0] == 1.0


class Odd(nn.Module):
    """The last layer in the file is never called, and the first one defined runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.unused = linear(6, 4), linear(16, 6), linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.log_softmax(1 - torch.tanh(self.last(1 - torch.tanh(self.first(x)))), 1)


def test_the_output_layer_is_the_one_that_runs_last() -> None:
    sweep = weight_sweep(Odd().double(), batches(10), (1,))
    assert (sweep.output, sweep.ranking) == ("last", "smallest")


def test_ranking_follows_negative_gains_and_float_classifiers() -> None:
    net = norm_net().double()
    with torch.no_grad():
        net[8].weight[1] = -1.0
    mixed = weight_sweep(net, batches(30), (1,))
    assert mixed.ranking == "mixed"
    x, y = batches(30)[0]
    with torch.no_grad():
        s = net.eval()[:7](x) * torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert mixed.points[0].preactivation == int((s.argmax(1) == y).sum())
    plain = nn.Sequential(linear(16, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    assert (weight_sweep(plain, batches(9), (1,)).output, weight_sweep(plain, batches(9), (1,)).ranking) == (
        "2",
        "largest",
    )


def test_a_norm_far_from_a_half_does_not_hide_the_direction() -> None:
    net: Any = nn.Sequential(linear(16, 4), nn.BatchNorm1d(4), nn.Tanh(), Invert()).double()
    data = [(x * 60, y) for x, y in batches(12)]
    with torch.no_grad():
        net[1].running_mean.copy_(net[0](data[0][0]).mean(0))
    net[1].running_var.fill_(1e-3)
    assert weight_sweep(net, data, (1,)).ranking == "smallest"


def test_without_a_unit_per_class_there_is_no_ranking() -> None:
    pooled = nn.Sequential(bw.nn.Conv2d(1, 4, 3, w="zero_one"), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, y = torch.rand(6, 1, 5, 5), torch.arange(6) % 4
    sweep = weight_sweep(pooled, [(x, y)], (1, 50))
    assert sweep.preactivation == {} and sweep.ranking == "" and len(sweep.agreement) == 2
    assert "| 1 |" in sweep.to_markdown() and "| - |" in sweep.to_markdown()


def test_biases_follow_the_value() -> None:
    layer: Any = bw.nn.Linear(2, 2, w="zero_one", b="zero_one")
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[0.0, 1.5]])  # 1.5 v against v
    sweep = weight_sweep(nn.Sequential(layer), [(x, torch.tensor([1]))], (1, 3))
    assert sweep.accuracy == {1.0: 1.0, 3.0: 1.0}


# ---- forms and refusals -----------------------------------------------------------------------------------------------------
def test_forms() -> None:
    net, data = nor(), [(x.float(), y) for x, y in batches(10)]
    sweep = weight_sweep(net, data, (0, 1))
    assert WeightSweep.from_dict(json.loads(sweep.to_json())) == sweep
    assert sweep.trained_on == 1.0
    lines = sweep.to_markdown().splitlines()
    assert lines[0] == "| on | accuracy % | preactivation % | agreement % |" and len(lines) == 4
    assert lines[3].startswith(f"| 1 | {100 * sweep.accuracy[1.0]:.1f} |")
    assert str(sweep).splitlines()[0].split() == ["on", "accuracy", "%", "preactivation", "%", "agreement", "%"]
    assert sweep.to_csv().splitlines()[0].startswith("on,accuracy,preactivation,agreement")
    other = weight_sweep(net, data, (0, 1), "batch")
    head, zero, one = side_by_side([sweep, other])
    assert head == ["on", "running: accuracy", "ranked", "as circuit", "batch: accuracy", "ranked", "as circuit"]
    assert zero[0] == "0" and one[1] == f"{100 * sweep.accuracy[1.0]:.1f}" and len(one) == 7


def test_progress_says_how_far() -> None:
    seen: list[tuple[str, int, int]] = []
    weight_sweep(
        norm_net().double(), batches(4, 4), (1, 2), "recalibrate", batches(5), progress=lambda *a: seen.append(a)
    )
    assert seen == [("statistics", i, 3) for i in (1, 2, 3)] + [("sweep", i, 4) for i in (1, 2, 3, 4)]
    seen.clear()
    weight_sweep(nor().double(), iter(batches(4)), (1,), progress=lambda *a: seen.append(a))
    assert seen == [("sweep", 1, 0)], "of an unknown number"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"net": nn.Linear(16, 4)}, 'no layer with 0/1 weights; give its layers w = "zero_one"'),
        ({"norm": "batches"}, "norm='batches'. Nearest: batch. Possible: running, recalibrate, batch"),
        ({"norm": "recalibrate"}, "estimates statistics from training images: give them as train="),
        ({"norm": "recalibrate", "train": []}, "weight_sweep: no batches"),
        ({"batches": []}, "no batches. Give at least one batch"),
        ({"batches": [torch.zeros(2, 16)]}, "not .input, target. pairs"),
        ({"on": []}, "no weight values were given"),
        ({"on": [1.0, math.inf]}, "on=inf is not a finite number"),
        ({"on": "all"}, "on='all'; possible: numbers, or \"large\""),
        ({"limit": math.nan}, "on=nan is not a finite number"),
        ({"net": nn.Sequential(linear(16, 4), nn.Unflatten(1, (2, 2)))}, r"the model gives \[3, 2, 2\]; possible"),
        ({"norm": "batch", "batches": batches(3, 1)}, "two images in every batch"),
    ],
)
def test_refusals(change: dict[str, Any], said: str) -> None:
    net: Any = change.pop("net", None) or norm_net()
    net = net.double()
    before = everything(net)
    with pytest.raises(InputError, match=said):
        weight_sweep(net, **{"batches": batches(3), "on": (1, 2), **change})
    assert same(everything(net), before)
