"""The statistics of what layers read: against explicit patches, and one pass for all layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.procedures.layerwise.linalg import (
    damped,
    inverse_factor,
    invert_upper_,
    woodbury_update,
)
from bitwright.procedures.layerwise.progress import Step, watching
from bitwright.procedures.layerwise.select import compressible, per_layer
from bitwright.procedures.layerwise.stats import LayerStats, Limits, visit_layers


def stats_of(model: nn.Module, batches: Any, **options: Any) -> dict[str, LayerStats]:
    """The statistics of all layers, none of which is changed."""
    found: dict[str, LayerStats] = {}
    units = compressible(model, "test")
    visit_layers(model, batches, units, lambda s: found.__setitem__(s.name, s), who="test", **options)
    return found


def patches(layer: Any, x: Tensor, group: int) -> Tensor:
    """[rows, D] by plain loops over output positions and taps, in the order (channel, taps)."""
    each = layer.in_channels // layer.groups
    x = x[:, group * each : (group + 1) * each]
    axes = x.dim() - 2
    if layer.padding == "same":
        sides = [
            ((d * (k - 1)) // 2, d * (k - 1) - (d * (k - 1)) // 2)
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
    else:
        sides = [(p, p) for p in layer.padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, [n for pair in reversed(sides) for n in pair], mode=mode)
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    out = [(x.shape[2 + i] - spans[i]) // layer.stride[i] + 1 for i in range(axes)]
    rows = []
    for n in range(len(x)):
        for at in itertools.product(*map(range, out)):
            row = []
            for c in range(each):
                for tap in itertools.product(*map(range, layer.kernel_size)):
                    place = tuple(at[i] * layer.stride[i] + tap[i] * layer.dilation[i] for i in range(axes))
                    row.append(x[(n, c, *place)])
            rows.append(torch.stack(row))
    return torch.stack(rows)


CONVS = {
    "plain": lambda: nn.Conv2d(2, 3, 3, bias=False),
    "stride": lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
    "dilation": lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=(2, 1), bias=False),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "reflect": lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect", bias=False),
    "circular": lambda: nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=1, padding_mode="circular", bias=False),
    "same even kernel": lambda: nn.Conv2d(2, 3, (2, 4), padding="same", bias=False),
    "1-d": lambda: nn.Conv1d(3, 2, 4, stride=2, padding=1, dilation=2, bias=False),
    "3-d": lambda: nn.Conv3d(2, 2, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1), bias=False),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", list(CONVS))
def test_matrix_of_a_convolution_is_that_of_its_patches(kind: str) -> None:
    torch.manual_seed(0)
    layer = CONVS[kind]().double()
    size = {"1-d": (13,), "3-d": (4, 5, 6)}.get(kind, (8, 9))
    x = torch.randn(3, layer.in_channels, *size, dtype=torch.float64)
    found = stats_of(nn.Sequential(layer), [x[:2], x[2:]])["0"]
    for group in range(layer.groups):
        rows = patches(layer, x, group)
        torch.testing.assert_close(found.h[0][group], rows.T @ rows / len(rows), rtol=0, atol=1e-12)
        assert found.rows == len(rows)
    # and those rows times the weight are what the layer puts out
    rows = patches(layer, x, 0)
    y = rows @ layer.weight[: layer.out_channels // layer.groups].flatten(1).T
    first = layer(x)[:, : layer.out_channels // layer.groups].movedim(1, -1)
    torch.testing.assert_close(y, first.reshape(y.shape))


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)])
def test_tokens_and_the_constant_input_of_the_bias(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    found = stats_of(nn.Sequential(nn.Linear(5, 2).double()), [x])["0"]
    rows = torch.cat([x.reshape(-1, 5), torch.ones(x.numel() // 5, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(found.h[0][0], rows.T @ rows / len(rows), rtol=0, atol=1e-12)
    assert found.bias and found.w[0].shape == (1, 2, 6)


def test_padded_tokens_are_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2, bias=False).double()

        def forward(self, x: Tensor, real: Tensor) -> Tensor:
            return self.fc(x)

    x = torch.randn(2, 4, 3, dtype=torch.float64)
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    found = stats_of(Net(), [{"x": x, "real": real}], tokens="real")["fc"]
    rows = x[real]
    torch.testing.assert_close(found.h[0][0], rows.T @ rows / 5)
    assert found.rows == 5


def test_float32_products_in_small_pieces_reach_float64_sums() -> None:
    x = torch.randn(4000, 6) + 100  # a large mean would cost digits if it were not taken off
    found = stats_of(nn.Sequential(nn.Linear(6, 2, bias=False)), x.split(37))["0"]
    exact = x.double().T @ x.double() / len(x)
    assert float((found.h[0][0] - exact).abs().max() / exact.abs().max()) < 1e-7
    assert torch.equal(found.h[0], found.h[0].mT)


def test_half_weights_and_channels_last() -> None:
    net: Any = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False))
    net.to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(4, 2, 6, 6).to(torch.bfloat16)
    found = stats_of(net, [x])["0"]
    rows = patches(net[0], x.double(), 0)
    torch.testing.assert_close(found.h[0][0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
    before = net[0].weight.clone()
    found.write([w * 0.5 for w in found.w])
    assert net[0].weight.dtype == torch.bfloat16 and torch.equal(net[0].weight, before * 0.5)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_tied_weights_are_one_unit_and_sum_their_inputs() -> None:
    a, b = nn.Linear(3, 3, bias=False).double(), nn.Linear(3, 3, bias=False).double()
    b.weight = a.weight
    net = nn.Sequential(a, nn.Tanh(), b)
    x = torch.randn(9, 3, dtype=torch.float64)
    found = stats_of(net, [x])
    rows = torch.cat([x, torch.tanh(a(x))]).detach()
    assert list(found) == ["0"] and found["0"].positions == 2
    torch.testing.assert_close(found["0"].h[0][0], rows.T @ rows / 18)


def test_all_calls_of_one_layer_count() -> None:
    fc = nn.Linear(3, 3, bias=False).double()
    net = nn.Sequential(fc, nn.Tanh(), nn.Linear(3, 3).double(), fc)
    x = torch.randn(9, 3, dtype=torch.float64)
    found = stats_of(net, [x[:5], x[5:]])
    rows = torch.cat([x, net[2](torch.tanh(fc(x)))]).detach()
    assert list(found) == ["2", "0"]  # by the last call
    torch.testing.assert_close(found["0"].h[0][0], rows.T @ rows / 18)


def test_later_layers_read_what_changed_layers_put_out() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    before = torch.relu(net[0](x)).detach()
    for inputs in ("original", "compressed"):
        seen: dict[str, LayerStats] = {}

        def halve(s: LayerStats, seen: dict[str, LayerStats] = seen) -> None:
            seen[s.name] = s
            s.write([w * 0.5 for w in s.w])

        visit_layers(net, x.split(7), compressible(net, "test"), halve, who="test", inputs=inputs)
        rows = before if inputs == "original" else torch.relu(net[0](x)).detach()
        torch.testing.assert_close(seen["2"].h[0][0], rows.T @ rows / 20)


def test_all_layers_take_one_pass() -> None:
    calls: list[str] = []
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    for i, layer in enumerate(net):
        layer.register_forward_hook(lambda *_, i=i: calls.append(str(i)))
    stats_of(net, torch.randn(40, 4).split(10))
    # one batch for the order of the layers, 2 x 2 samples to see that forwards may wait, and the pass itself (4 batches),
    # which ends in front of the last layer
    assert len(calls) == 6 * (1 + 4) + 5 * 4


class Stateful(nn.Module):
    """Its forward leaves a tensor on itself between two layers: two batches at once would mix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        y = self.a(x)
        return self.b(y + self.kept)


def test_a_model_with_state_gets_forwards_of_its_own() -> None:
    net = Stateful().double()
    x = torch.randn(20, 4, dtype=torch.float64)
    found = stats_of(net, x.split(5))
    rows = (net.a(x) + x).detach()
    torch.testing.assert_close(found["b"].h[0][0], rows.T @ rows / 20)


def test_rows_are_limited_by_a_seeded_choice() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False))
    x = torch.randn(10, 2, 12, 12)
    some = [stats_of(net, [x], limits=Limits(rows=200, seed=s))["0"] for s in (0, 0, 1)]
    assert some[0].rows == 200
    assert torch.equal(some[0].h[0], some[1].h[0]) and not torch.equal(some[0].h[0], some[2].h[0])


def test_a_wide_layer_becomes_blocks_of_inputs() -> None:
    layer = nn.Linear(7, 2).double()
    x = torch.randn(30, 7, dtype=torch.float64)
    whole = stats_of(nn.Sequential(layer), [x])["0"].h[0][0]
    found = stats_of(nn.Sequential(layer), [x], limits=Limits(dim=3))["0"]
    assert [h.shape[-1] for h in found.h] == [3, 2, 3]
    torch.testing.assert_close(found.h[2][0], whole[5:, 5:])
    found.write([w * 2 for w in found.w])
    torch.testing.assert_close(torch.cat(found.current(), -1)[0, :, -1], layer.bias.detach())


def test_the_input_part_is_what_the_layer_reads() -> None:
    layer = bw.nn.Linear(3, 2, bias=False, x="sign").double()
    x = torch.randn(8, 3, dtype=torch.float64)
    found = stats_of(nn.Sequential(layer), [x])["0"]
    torch.testing.assert_close(found.h[0][0].diagonal(), torch.ones(3, dtype=torch.float64))


def test_error_is_the_mean_squared_change_of_the_output() -> None:
    layer: Any = nn.Conv2d(2, 4, 3, groups=2).double()
    net, x = nn.Sequential(layer), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    before = net(x).detach()
    found = stats_of(net, [x])["0"]
    with torch.no_grad():
        layer.weight *= 0.9
        layer.bias += 0.1
    change = (net(x) - before).detach()
    assert found.error() == pytest.approx(float(change.square().sum(1).mean()), rel=1e-9)
    assert found.energy == pytest.approx(float(before.square().sum(1).mean()), rel=1e-9)


def test_progress_names_layers_and_time_left() -> None:
    steps: list[Step] = []
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with watching(steps.append):
        stats_of(net, [torch.randn(9, 3)])
    assert [(s.layer, s.done, s.total) for s in steps] == [("0", 0, 2), ("1", 1, 2), ("", 2, 2)]
    assert steps[0].left is None and steps[1].left is not None and steps[2].left == 0
    stats_of(net, [torch.randn(9, 3)])
    assert len(steps) == 3


def test_few_rows_warn_once() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.warns(BitwrightWarning, match="0 read 5 rows for 8 inputs, and 1 more layers too; damping") as caught:
        stats_of(net, [torch.randn(5, 8)])
    assert len(caught) == 1


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


def embedding() -> nn.Module:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    net[0].weight = net[1].weight
    return net


X = torch.randn(9, 4)
BAD = [
    (lambda: nn.Sequential(nn.Linear(4, 2)), [], "test: no images. Give at least one batch of inputs"),
    (lambda: nn.Sequential(nn.Linear(4, 2)), [X[:0]], "test: no images"),
    (lambda: nn.Sequential(nn.Linear(4, 2)), [X, X * torch.nan], "test: 0 reads NaN numbers in batch 1"),
    (lambda: nn.Sequential(nn.Linear(4, 2)), [X / 0], "test: 0 reads infinite numbers in batch 0"),
    (lambda: Unused(), [X], "test: aux is never called by the model's forward"),
    (lambda: nn.Sequential(nn.Linear(4, 2)).to("meta"), [X], "test: the net has no weights yet"),
    (
        lambda: nn.Sequential(nn.Linear(4, 2)),
        [X.to("meta")],
        "test: the images are on meta, the net is on cpu; move one",
    ),
    (lambda: nn.Sequential(nn.ConvTranspose1d(1, 1, 3)), [X], "test: the model has no layer that it could work on"),
    (embedding, [torch.tensor([1, 2])], r"test: 1 shares its weight with 0.weight \(Embedding\)"),
    (lambda: nn.Sequential(nn.ReLU()), [X], "test: the model has no layer that it could work on"),
    (lambda: nn.Sequential(bw.nn.Linear(4, 2, w="bwn")), [X], "test: 0: its weight goes through bwn"),
]


@pytest.mark.parametrize(("net", "batches", "text"), BAD)
def test_bad_input_is_one_line(net: Any, batches: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        stats_of(net(), batches)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_visit_leaves_no_thread_and_no_hook() -> None:
    import threading

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).train()

    def fail(stats: LayerStats) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        visit_layers(net, X.split(3), compressible(net, "test"), fail, who="test")
    assert threading.active_count() == before and net.training and not net[0]._forward_pre_hooks
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # what the model raises comes out as it is
        stats_of(net, [torch.randn(3, 5)])


def test_layers_by_glob() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2), nn.Linear(2, 2))
    with pytest.warns(BitwrightWarning, match=r"1 \(there is no LSTM with slots\) stays as before"):
        assert [u.name for u in compressible(net, "test")] == ["0", "2"]
    assert [u.name for u in compressible(net, "test", ["2"])] == ["2"]
    with pytest.raises(InputError, match="'3' matches no layer"):
        compressible(net, "test", ["3"])
    with pytest.raises(InputError, match="1: there is no LSTM"):
        compressible(net, "test", ["1"])
    assert per_layer(net, "test", "keep", {"*": 0.5, "2": 1}) == {"0": 0.5, "2": 1}
    with pytest.raises(InputError, match="keep of 'fc' matches no layer"):
        per_layer(net, "test", "keep", {"fc": 0.5})


def random_h(size: int, rank: int | None = None, seed: int = 0) -> Tensor:
    x = torch.randn(rank or 4 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / len(x)


def test_inverse_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    for size in (1, 64, 600):
        h = random_h(size)
        found = inverse_factor(h, 1e-3)
        exact = torch.linalg.cholesky(torch.linalg.inv(damped(h, 1e-3)), upper=True)
        torch.testing.assert_close(found.upper, exact, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            found.upper.mT @ found.upper @ damped(h, 1e-3), torch.eye(size).double(), atol=1e-6, rtol=0
        )
        assert found.damping == 1e-3 and not found.diagonal
        for i in (0, size // 2):  # what a sweep from left to right uses
            rest = torch.linalg.inv(damped(h, 1e-3)[i:, i:])
            assert float(found.upper[i, i] ** 2) == pytest.approx(float(rest[0, 0]))
    batch = torch.stack([random_h(9, seed=s) for s in range(3)])
    together = inverse_factor(batch, 0.01).upper
    for one, h in zip(together, batch, strict=True):
        torch.testing.assert_close(one, inverse_factor(h, 0.01).upper)


def test_the_damping_ladder() -> None:
    h = random_h(8, rank=3)  # singular: needs damping
    assert inverse_factor(h, 0.01).damping == 0.01
    h[0, 1] = h[1, 0] = -0.2 * float(h.diagonal().mean())  # and not even positive
    h[0, 0] = h[1, 1] = 0.05 * float(h.diagonal().mean())
    found = inverse_factor(h, 0.001)
    assert 0.001 < found.damping <= 1.0 and torch.isfinite(found.upper).all()
    broken = -random_h(4)
    broken.diagonal().copy_(torch.full((4,), 1e-9, dtype=torch.float64))
    broken[0, 1] = broken[1, 0] = 5.0
    last = inverse_factor(broken, 0.01)
    assert last.diagonal and torch.isfinite(last.upper).all()


def test_dead_inputs_do_not_touch_the_damping() -> None:
    h = torch.diag(torch.tensor([0.0, 2.0, 4.0]).double())
    assert damped(h, 0.1).diagonal().tolist() == pytest.approx([1.0, 2.3, 4.3])
    assert damped(torch.zeros(2, 2), 0.1).tolist() == [[1, 0], [0, 1]]


def test_recursion_gives_the_inverse_of_the_sum() -> None:
    x = torch.randn(50, 6, dtype=torch.float64)
    found = torch.eye(6, dtype=torch.float64) / 1e-3
    for piece in x.split(7):
        found = woodbury_update(found, piece, 50)
    exact = torch.linalg.inv(x.T @ x / 50 + 1e-3 * torch.eye(6))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_triangular_inverse_in_place() -> None:
    r = torch.linalg.cholesky(random_h(700), upper=True)
    exact = torch.linalg.inv(r)
    assert invert_upper_(r) is r
    torch.testing.assert_close(r, exact, rtol=1e-8, atol=1e-8)
