"""recalibrate_batchnorm: statistics of all samples whatever the batches, nothing else moved, refusals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.procedures import recalibrate_batchnorm


def small(width: int = 5) -> Any:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width, eps=1e-4, momentum=0.15), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(width, 3), nn.BatchNorm1d(3),
    )  # fmt: skip


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def oracle(net: Any, batches: list[Tensor]) -> list[tuple[list[float], list[float]]]:
    """Slowly, in Python floats: (means, unbiased variances) of each norm of `small`, one norm at a time."""
    read: list[list[list[float]]] = [[], []]
    for x in batches:
        rows = x.double() @ net[0].weight.double().T + net[0].bias.double()
        read[0] += rows.tolist()
        mean, var = rows.mean(0), rows.var(0, correction=0)
        rows = torch.tanh((rows - mean) / (var + net[1].eps).sqrt() * net[1].weight.double() + net[1].bias.double())
        read[1] += (rows @ net[4].weight.double().T + net[4].bias.double()).tolist()
    found = []
    for rows in read:
        n, columns = len(rows), list(zip(*rows, strict=True))
        means = [sum(c) / n for c in columns]
        found.append((means, [sum((v - m) ** 2 for v in c) / (n - 1) for c, m in zip(columns, means, strict=True)]))
    return found


@pytest.mark.parametrize("sizes", [[7], [4, 4], [5, 5, 2]])
def test_statistics_are_those_of_a_slow_double_oracle(sizes: list[int]) -> None:
    net, batches = small(), list(torch.randn(sum(sizes), 4).mul(3).add(1).split(sizes))
    expected = oracle(net, batches)
    report = recalibrate_batchnorm(net, batches)
    for norm, (mean, var) in zip((net[1], net[5]), expected, strict=True):
        assert norm.running_mean.tolist() == pytest.approx(mean, rel=1e-5, abs=1e-6)
        assert norm.running_var.tolist() == pytest.approx(var, rel=1e-5)
        assert int(norm.num_batches_tracked) == len(sizes)
    assert report.samples == sum(sizes) and report.layers == ["1", "5"]
    assert [row.values for row in report.rows] == [sum(sizes)] * 2


def test_a_ragged_last_batch_weighs_what_it_holds() -> None:
    """The mean of batch means would give 5.5."""
    norm = nn.BatchNorm1d(1)
    recalibrate_batchnorm(nn.Sequential(norm), [torch.tensor([[1.0]] * 9), torch.tensor([[10.0]])])
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.running_mean.item() == pytest.approx(1.9)
    assert norm.running_var.item() == pytest.approx(8.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda s: sum(s) > 1), st.integers(0, 99))
def test_the_first_norm_does_not_see_the_batches(sizes: list[int], seed: int) -> None:
    x = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed)).double() * 100 + 1000
    pieces, whole = small().double(), small().double()
    recalibrate_batchnorm(pieces, x.split(sizes))
    recalibrate_batchnorm(whole, [x])
    for key in ("running_mean", "running_var"):
        assert torch.allclose(getattr(pieces[1], key), getattr(whole[1], key), rtol=1e-9), key


def test_one_batch_gives_what_torch_gives_without_momentum() -> None:
    net, other, x = small(), small(), torch.randn(50, 4)
    recalibrate_batchnorm(net, [x])
    for m in other:
        m.train(isinstance(m, nn.BatchNorm1d))
        if isinstance(m, nn.BatchNorm1d):
            m.reset_running_stats()
            m.momentum = None
    with torch.no_grad():
        other(x)
    for i in (1, 5):
        assert torch.allclose(net[i].running_mean, other[i].running_mean, atol=1e-6)
        assert torch.allclose(net[i].running_var, other[i].running_var, rtol=1e-5)


def test_double_nets_and_maps_and_tokens() -> None:
    conv: Any = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    report = recalibrate_batchnorm(conv, x.split([4, 2]))
    y = conv[0](x).movedim(1, -1).reshape(-1, 3)
    assert torch.allclose(conv[1].running_mean, y.mean(0), rtol=1e-12)
    assert torch.allclose(conv[1].running_var, y.var(0), rtol=1e-12) and report.rows[0].values == 6 * 9
    token: Any = nn.Sequential(bw.nn.Linear(4, 2, x=["norm", "sign"], w="bwn"))
    t = torch.randn(5, 3, 4)
    recalibrate_batchnorm(token, [t[:3], t[3:]])
    assert torch.allclose(token[0].x.links[0].running_mean, t.reshape(-1, 4).mean(0), atol=1e-6)
    assert torch.allclose(token[0].x.links[0].running_var, t.reshape(-1, 4).var(0), rtol=1e-5)


def test_only_statistics_move() -> None:
    net = small()
    net.train()
    net[5].eval()  # a user froze it
    before, flags, random = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    recalibrate_batchnorm(net, torch.randn(20, 4, generator=torch.Generator().manual_seed(1)).split(8))
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f"{i}.{k}" for i in "15" for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert [m.training for m in net.modules()] == flags and torch.equal(torch.get_rng_state(), random)
    assert (net[1].momentum, net[5].momentum) == (0.15, 0.1) and not any(p.grad_fn or p.grad for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_dropout_evaluates() -> None:
    """With it the norm behind would read other values each time."""
    net: Any = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4)).train()
    x = torch.randn(30, 4)
    recalibrate_batchnorm(net, [x])
    assert torch.allclose(net[1].running_mean, x.mean(0), atol=1e-6)


def test_twice_gives_the_same_and_what_was_there_does_not_matter() -> None:
    net, x = small(), torch.randn(40, 4)
    for i in (1, 5):
        net[i].running_mean.fill_(77.0)
    recalibrate_batchnorm(net, x.split(16))
    first = state(net)
    again = recalibrate_batchnorm(net, x.split(16))
    assert all(torch.equal(v, first[k]) for k, v in net.state_dict().items())
    assert again.largest_shift == pytest.approx(0, abs=1e-6)


def test_an_exception_leaves_everything() -> None:
    net = small().train()
    before, flags = state(net), [m.training for m in net.modules()]

    def broken() -> Iterator[Tensor]:
        yield torch.randn(8, 4)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        recalibrate_batchnorm(net, broken())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags and not any(m._forward_pre_hooks for m in net.modules())


def test_a_last_batch_of_one_sample_is_normalized_by_the_values_so_far() -> None:
    net, x = small(), torch.randn(9, 4)
    report = recalibrate_batchnorm(net, [(x[:8], torch.zeros(8)), (x[8:], torch.zeros(1))])
    first: Any = copy.deepcopy(net[0])
    y = first(x).double()
    h = torch.tanh((y[8:] - y.mean(0)) / (y.var(0) + 1e-4).sqrt())
    inside = torch.tanh((y[:8] - y[:8].mean(0)) / (y[:8].var(0, correction=0) + 1e-4).sqrt())
    z = torch.cat([inside, h]) @ net[4].weight.double().T + net[4].bias.double()
    assert torch.allclose(net[5].running_mean.double(), z.mean(0), atol=1e-5)
    assert report.samples == 9


def test_a_norm_that_is_not_called_keeps_what_it_has() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(input=x)

    net: Any = Unused()
    net.b.running_mean.fill_(3.0)
    report = recalibrate_batchnorm(net, [torch.randn(5, 2) + 1])
    assert net.b.running_mean.tolist() == [3.0, 3.0] and [r.values for r in report.rows] == [5, 0]
    assert float(net.a.running_mean.mean()) != 0


def test_a_shared_norm_counts_every_call() -> None:
    norm: Any = nn.BatchNorm1d(1)
    recalibrate_batchnorm(nn.Sequential(norm, norm), [torch.tensor([[0.0], [2.0]])])
    second = 1 / (1 + norm.eps) ** 0.5  # the first call puts 0 and 2 at about -1 and 1
    values = torch.tensor([0.0, 2.0, -second, second])
    assert norm.running_mean.item() == pytest.approx(float(values.mean()))
    assert norm.running_var.item() == pytest.approx(float(values.var()), rel=1e-5)


def test_report() -> None:
    net, x = nn.Sequential(nn.BatchNorm1d(2)), torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    report = recalibrate_batchnorm(net, [x])
    (row,) = report.rows
    assert row.shift == pytest.approx(5.0, rel=1e-4) and report.largest_shift == row.shift
    assert row.constant == 1 and report.dead == []
    assert row.spread == pytest.approx((1.00001 / 0.00001) ** 0.5, rel=1e-3)
    lines = report.to_markdown().splitlines()
    assert lines[0] == "| norm | channels | values | mean moved by | deviation changed by | constant |"
    assert lines[2].startswith("| 0 | 2 | 2 | 5 sd |") and "5 sd" in str(report)
    assert report.to_dict()["rows"][0]["layer"] == "0" and report.to_csv().splitlines()[0].startswith("layer,channels")


def test_a_constant_norm_is_said() -> None:
    net = small()
    with torch.no_grad():
        net[0].weight.zero_()
    with pytest.warns(BitwrightWarning, match="1 reads the same for every input"):
        report = recalibrate_batchnorm(net, [torch.randn(7, 4), torch.randn(3, 4)])
    assert report.dead == ["1", "5"]


@pytest.mark.parametrize(
    ("net", "batches", "said"),
    [
        (nn.Sequential(nn.Linear(2, 2)), [torch.zeros(2, 2)], "no batch norm with running statistics"),
        (
            nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)),
            [torch.zeros(2, 2)],
            "no batch norm with running statistics",
        ),
        (nn.Sequential(nn.BatchNorm1d(2)), [], "no batches"),
        (nn.Sequential(nn.BatchNorm1d(2)), [torch.zeros(0, 2)], "no batches"),
        (nn.Sequential(nn.BatchNorm1d(2)), [torch.zeros(1, 2)], "0 read one value per channel; a variance needs two"),
    ],
)
def test_refusals(net: nn.Module, batches: list[Tensor], said: str) -> None:
    before = state(net)
    with pytest.raises(InputError, match=said):
        recalibrate_batchnorm(net, batches)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_namespace_gives_the_function_whatever_was_imported_first() -> None:
    import importlib

    importlib.import_module("bitwright.procedures.recalibrate_batchnorm")
    assert bw.procedures.recalibrate_batchnorm is recalibrate_batchnorm and callable(recalibrate_batchnorm)
    assert "recalibrate_batchnorm" in bw.procedures.__all__
