"""PCA: known ranks, what must not change the counts, streams and processes, order and shortcuts, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.analysis.pca_result import Pca
from bitwright.analysis.scatter import Scatter, halves_of
from bitwright.analysis.select import components, cumulative, select_layers
from bitwright.errors import BitwrightWarning, InputError
from bitwright.transforms import trace_flow


def of_rank(rank: int, channels: int, rows: int = 4000, noise: float = 1e-4, seed: int = 0) -> Tensor:
    """Equal variance in `rank` directions, nearly none in the others; float64."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(channels, channels, generator=g, dtype=torch.float64))[0]
    x = torch.randn(rows, rank, generator=g, dtype=torch.float64) @ axes[:rank]
    return x + noise * torch.randn(rows, channels, generator=g, dtype=torch.float64)


def count(x: Tensor, convention: str = "below", threshold: float = 0.99) -> int:
    spread = Scatter(x.shape[1])
    spread.add(x)
    return components(cumulative(spread.spectrum()), threshold, convention)


# ---- counts ----


@pytest.mark.parametrize("rank", [1, 3, 7, 16])
def test_known_rank_is_found(rank: int) -> None:
    x = of_rank(rank, 16)
    assert count(x) == rank - 1 and count(x, "needed") == rank
    assert count(x.float()) == rank - 1


def test_rotation_order_and_shift_of_channels_change_nothing() -> None:
    x = of_rank(5, 12) @ torch.diag(torch.linspace(0.2, 2, 12, dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    plain = Scatter(12)
    plain.add(x)
    for other in (x @ turn, x[:, torch.randperm(12, generator=torch.Generator().manual_seed(2))], x + 1000 * turn[0]):
        changed = Scatter(12)
        changed.add(other)
        assert torch.allclose(changed.spectrum(), plain.spectrum(), atol=1e-9)
        assert count(other) == count(x)


def test_pieces_equal_the_whole_to_nine_digits() -> None:
    x = of_rank(6, 10) + 300  # a large mean costs nothing
    whole, pieces = Scatter(10), Scatter(10)
    whole.add(x)
    for piece in x.split([1, 7, 992, 0, 3000]):
        pieces.add(piece)
    one, two = Scatter(10), Scatter(10)
    one.add(x[:1234])
    two.add(x[1234:])
    exact = torch.cov(x.T, correction=0)
    for found in (whole, pieces, one.merged(two)):
        assert torch.allclose(found.scatter / found.count, exact, rtol=1e-9, atol=1e-9)
        assert torch.allclose(found.mean, x.mean(0), rtol=1e-12)
        assert found.count == 4000


def test_spectrum_is_that_of_sklearn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = of_rank(4, 8, noise=0.3) + 5
    ratio = torch.tensor(decomposition.PCA(8).fit(x.numpy()).explained_variance_ratio_).cumsum(0)
    spread = Scatter(8)
    spread.add(x)
    assert torch.allclose(cumulative(spread.spectrum()), ratio, atol=1e-10)


def test_counts_of_a_curve_by_hand() -> None:
    curve = [0.4, 0.7, 0.98, 0.99, 1.0]
    assert components(curve, 0.99) == 3 and components(curve, 0.99, "needed") == 4  # reaching it is enough
    assert components(curve, 0.5) == 1 and components([1.0, 1.0]) == 0
    assert components([0.0, 0.0]) == components([0.0], count="needed") == 0
    assert components([0.5, 1 - 1e-17], 0.999999999) == 1


# ---- the rule ----

# counts of the published curves of ResNet-20 without shortcuts on CIFAR-100, layers conv2 to conv19
PUBLISHED = {
    0.99: ([14, 14, 14, 13, 13, 13, 23, 26, 27, 25, 25, 23, 41, 50, 51, 51, 52, 50], [8, 9, 14, 15]),
    0.999: ([15, 15, 15, 15, 15, 15, 30, 31, 31, 30, 31, 30, 59, 62, 62, 62, 62, 62], [8, 14, 15]),
}
WIDTHS = [16] * 6 + [32] * 6 + [64] * 6


def chained(counts: list[int]) -> tuple[dict[str, int], dict[str, str], dict[str, int]]:
    names = [f"conv{i}" for i in range(2, 2 + len(counts))]
    return (
        dict(zip(names, counts, strict=True)),
        dict(zip(names[1:], names, strict=False)),
        dict(zip(names, WIDTHS, strict=False)),
    )


def spectrum_with(n: int, channels: int, threshold: float) -> Tensor:
    """Variances of which exactly n cumulative shares lie below the threshold."""
    first = torch.full((n,), threshold * (1 - 1e-6) / max(1, n), dtype=torch.float64)
    rest = torch.full((channels - n,), 1e-9, dtype=torch.float64)
    rest[0] = 1 - first.sum() - rest[1:].sum()
    return torch.cat([first, rest])


@pytest.mark.parametrize("threshold", [0.99, 0.999])
def test_the_published_counts_give_the_published_layers(threshold: float) -> None:
    wanted, layers = PUBLISHED[threshold]
    counts, before, _ = chained(
        [components(cumulative(spectrum_with(n, c, threshold)), threshold) for n, c in zip(wanted, WIDTHS, strict=True)]
    )
    assert list(counts.values()) == wanted
    assert select_layers(counts, before) == [f"conv{i}" for i in layers]
    # the other convention counts one more everywhere, so the choice is the same
    needed = {name: n + 1 for name, n in counts.items()}
    assert select_layers(needed, before) == select_layers(counts, before)


def test_relative_budget_always_never() -> None:
    counts, before, widths = chained(PUBLISHED[0.99][0])
    # 23/32 < 13/16: a layer whose width doubles does not rise per channel; conv9: 3/32, conv15: 9/64
    assert select_layers(counts, before, relative=0.09, widths=widths) == ["conv9", "conv15"]
    assert select_layers(counts, before, relative=0.12, widths=widths) == ["conv15"]
    weights = {name: 9 * w * w for name, w in widths.items()}
    total = sum(weights.values())
    # largest rises: conv14 (+18), conv8 (+10), conv15 (+9), conv9 (+3)
    two = (weights["conv14"] + weights["conv8"]) / total
    assert select_layers(counts, before, budget=two, weights=weights) == ["conv8", "conv14"]
    small = weights["conv8"] / total
    assert select_layers(counts, before, budget=small, weights=weights) == ["conv8"]  # conv14 did not fit
    assert select_layers(counts, before, always=["conv2"], never=["conv1[45]"]) == ["conv2", "conv8", "conv9"]
    with pytest.raises(InputError, match=r"pca: never='con' is no analyzed layer"):
        select_layers(counts, before, never=["con"])
    with pytest.raises(InputError, match="both in always and in never"):
        select_layers(counts, before, always=["conv2"], never=["conv2"])


def test_the_first_analyzed_layer_is_never_significant() -> None:
    assert select_layers({"a": 99}, {}, delta=0) == []


# ---- order ----


class Scrambled(nn.Module):
    """Layers registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.c, self.b, self.a = (nn.Linear(6, 6) for _ in range(4))
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.c(self.b(self.a(self.first(x)).relu()).tanh()))


def test_order_is_that_of_execution() -> None:
    found = bw.analyze.pca(Scrambled(), [torch.randn(200, 6)])
    assert list(found.components) == ["a", "b", "c"] and found.before == {"b": "a", "c": "b"}
    assert (found.first, found.last) == ("first", "last")


def test_producers_reach_through_norms_pools_and_adds() -> None:
    net = bw.models.create("resnet20", width=0.25, shortcut="conv")
    found = trace_flow(net, torch.zeros(2, 3, 32, 32))
    assert found.inputs["layer1.0.conv2"] == ("layer1.0.conv1",)
    assert found.inputs["layer1.1.conv1"] == ("conv1", "layer1.0.conv2")  # the sum
    assert found.shortcuts == {f"layer{i}.0.downsample.0": f"layer{i}.0.conv1" for i in (2, 3)}
    assert found.order[0] == "conv1" and found.order[-1] == "fc"


class Bottleneck(nn.Module):
    """Two 1x1 convs read the same input; the one beside three layers is the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)
        self.reduce, self.conv, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 8, 1)
        self.fc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.side(x) + self.expand(self.conv(self.reduce(x))))


def test_the_shortcut_of_a_bottleneck() -> None:
    assert trace_flow(Bottleneck(), torch.zeros(1, 3, 4, 4)).shortcuts == {"side": "reduce"}


@pytest.mark.slow
def test_residual_predecessors() -> None:
    net = bw.models.create("bireal_resnet20", width=0.5).eval()
    x = torch.randn(40, 3, 32, 32)
    latest = bw.analyze.pca(net, [x])
    assert latest.before["layer2.0.conv2"] == "layer2.0.conv1" and "layer2.0.shortcut.1" not in latest.components
    assert latest.before["layer1.1.conv1"] == "layer1.0.conv2" and "layer1.0.conv1" not in latest.before
    largest = bw.analyze.pca(net, [x], residual="largest")
    for name, other in largest.before.items():
        makers = [n for n in trace_flow(net, x[:2]).inputs[name] if n in largest.components]
        assert largest.components[other] == max(largest.components[n] for n in makers)


# ---- the analysis ----


def small() -> nn.Module:
    torch.manual_seed(0)
    net = bw.models.create("resnet20_plain", width=0.5)
    return bw.apply(net, "xnor", torch.zeros(2, 3, 32, 32)).eval()


def test_linear_output_before_norm_and_activation() -> None:
    """Counted by hand from the convolution's own output."""
    net, x = small(), torch.randn(24, 3, 32, 32)
    kept: list[Tensor] = []
    layer = net.get_submodule("layer2.0.conv1")
    handle = layer.register_forward_hook(lambda m, a, y: kept.append(y.detach()))
    with torch.no_grad():
        net(x)
    handle.remove()
    rows = kept[0].double().permute(0, 2, 3, 1).reshape(-1, 16)
    shares = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0).clamp_min(0).cumsum(0)
    found = bw.analyze.pca(net, [x])
    assert torch.allclose(
        torch.tensor(found.spectra["layer2.0.conv1"], dtype=torch.float64), shares / shares[-1], atol=1e-9
    )
    assert found.components["layer2.0.conv1"] == int((shares / shares[-1] < 0.99).sum())
    assert found.layers[6].rows == 24 * 16 * 16


def close(a: Pca, b: Pca) -> None:
    assert a.components == b.components and a.significant == b.significant and a.halves == b.halves
    for name, shares in a.spectra.items():
        assert max(abs(x - y) for x, y in zip(shares, b.spectra[name], strict=True)) < 1e-9


@pytest.mark.slow
def test_one_batch_many_batches_any_order() -> None:
    net, x = small(), torch.randn(60, 3, 32, 32)
    whole = bw.analyze.pca(net, [x])
    close(whole, bw.analyze.pca(net, [(part, None) for part in x.split(7)]))
    close(whole, bw.analyze.pca(net, iter(x.flip(0).split(25))))


def test_a_result_shows_as_other_results_do() -> None:
    found = bw.analyze.pca(small(), [torch.randn(40, 3, 32, 32)])
    head, rule, *rows = found.to_markdown().splitlines()
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: | --- |" and len(rows) == len(found.layers)
    first, *lines = found.to_csv().splitlines()
    assert first == "layer,channels,rows,components,rise,significant" and len(lines) == len(rows)
    assert lines[0].split(",")[3] == str(found.components[found.layers[0].name]) == rows[0].split("|")[4].strip()
    assert found._repr_html_() == f"<pre>{found}</pre>" and "components" in head


def test_nothing_is_changed() -> None:
    net = small().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bw.analyze.pca(net, [torch.randn(40, 3, 32, 32)])
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


PROGRAM = """
import json, sys, torch, torch.distributed as dist
import bitwright as bw
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
net = bw.apply(bw.models.create("resnet20_plain", width=0.5), "xnor", torch.zeros(2, 3, 32, 32)).eval()
x = torch.load(out + "/x.pt", weights_only=True)
mine = x[:45] if rank == 0 else x[45:]
found = bw.analyze.pca(net, mine.split(16 if rank else 45))
open(f"{out}/{rank}.json", "w").write(json.dumps(found.to_dict()))
try:
    bw.analyze.pca(net, [] if rank else [x])
except bw.InputError as error:
    open(f"{out}/{rank}.txt", "w").write(str(error))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    net, x = small(), torch.randn(60, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", PROGRAM]
    jobs = [subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path)]) for rank in (0, 1)]
    assert [job.wait(300) for job in jobs] == [0, 0]
    one = bw.analyze.pca(net, [x])
    for rank in (0, 1):
        close(one, Pca.from_dict(json.loads((tmp_path / f"{rank}.json").read_text())))
        assert (tmp_path / f"{rank}.txt").read_text().startswith("pca: no batches")  # of one is of both


def test_too_few_rows_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 50), nn.Linear(50, 2))
    with pytest.raises(
        InputError, match=r"pca: 1 has 50 channels and gave 100 rows .*; needed: 500. Give 5 times"
    ) as e:
        bw.analyze.pca(net, [torch.randn(100, 4)])
    assert e.value.code == "pca-rows" and e.value.layer == "1"
    assert bw.analyze.pca(net, [torch.randn(500, 4)]).layers[0].rows == 500


def test_no_variance_counts_nothing_and_says_so() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        next(net[2].parameters()).zero_()
    for convention in ("below", "needed"):
        with pytest.warns(BitwrightWarning, match="pca: 2 gives the same output for every input"):
            found = bw.analyze.pca(net, [torch.randn(100, 4)], count=convention)
        assert found.components["1"] > 0 and found.components["2"] == 0


def test_rounding_is_no_variance() -> None:
    spread = Scatter(3)
    spread.add(1000 + torch.tensor([[1e-4, 0, 0], [0, 1e-4, 0], [0, 0, 0]], dtype=torch.float64))
    assert spread.spectrum().sum() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.0}, "threshold=1.0; possible: between 0 and 1"),
        ({"count": "most"}, "count='most'; possible: below, needed"),
        ({"residual": "all"}, "residual='all'; possible: latest, largest"),
        ({"relative": 0.1, "budget": 0.1}, "give one of them"),
    ],
)
def test_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bw.analyze.pca(small(), [torch.randn(2, 3, 32, 32)], **options)


def test_no_batches_no_layers() -> None:
    with pytest.raises(InputError, match="pca: no batches"):
        bw.analyze.pca(small(), [])
    with pytest.raises(InputError, match="the model has 2 layers"):
        bw.analyze.pca(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), [torch.randn(30, 2)])


def test_tokens_sequences_and_transposed_layers_flatten_alike() -> None:
    net = nn.Sequential(nn.Conv1d(3, 5, 1), nn.Conv1d(5, 6, 1), nn.Flatten(), nn.Linear(24, 2))
    assert bw.analyze.pca(net, [torch.randn(30, 3, 4)]).layers[0].rows == 120
    tokens = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    assert bw.analyze.pca(tokens, [torch.randn(30, 4, 3)]).layers[0].rows == 120
    up = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 2, 1))
    row = bw.analyze.pca(up, [torch.randn(9, 3, 2, 2)]).layers[0]
    assert (row.channels, row.rows) == (6, 9 * 16)


# ---- stability ----


def test_halves_are_disjoint_and_follow_the_sample() -> None:
    for x in (torch.randn(400, 3, 4, 4), torch.randint(0, 2, (400, 1, 6, 6)).float(), torch.rand(400, 5)):
        half = halves_of(x)
        assert 120 < int(half.sum()) < 280
        order = torch.randperm(400)
        assert torch.equal(halves_of(x[order]), half[order])


class Torn(nn.Module):
    """Behind layer a, the samples of one half vary in one direction only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, t: Tensor) -> Tensor:
        h = self.first(t)
        wide = halves_of(t).to(h.dtype)[:, None].expand(-1, 7) * h[:, 1:]
        return self.last(self.b(self.a(h) * torch.cat([torch.ones(len(t), 1), wide], 1)))


def test_an_unstable_choice_is_said() -> None:
    found = bw.analyze.pca(Torn(), [torch.randn(800, 8)], delta=1)
    first, second = found.layers[1].halves
    assert first < second and found.stable is False and "NOT STABLE" in found.recipe().comment
    assert bw.analyze.pca(small(), [torch.randn(60, 3, 32, 32)]).stable is True


def test_dict_and_text() -> None:
    found = bw.analyze.pca(small(), [torch.randn(40, 3, 32, 32)])
    assert Pca.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.to_markdown().count("\n") == 1 + len(found.layers)
    assert str(found).splitlines()[0].split() == ["layer", "channels", "rows", "components", "halves", "rise", "choice"]
