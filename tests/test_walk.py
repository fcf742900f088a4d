"""walk and trace_flow: MACs by hand, execution order, nothing changed, where inputs come from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.transforms import trace_flow, walk


def one(layer: nn.Module, x: Tensor) -> bw.LayerInfo:
    (row,) = walk(nn.Sequential(layer), x)
    return row


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 3), (2, 5), 5 * 3),
        (nn.Linear(5, 3), (2, 7, 5), 7 * 5 * 3),
        (nn.Linear(5, 3), (2, 7, 4, 5), 7 * 4 * 5 * 3),
        (nn.Linear(5, 3), (5,), 5 * 3),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 6 * 8 * 4 * 3),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 8, 8), 6 * 4 * 4 * 4 * 3 * 3),
        (nn.Conv2d(4, 6, 3), (4, 8, 8), 6 * 6 * 6 * 4 * 3 * 3),
        (nn.Conv2d(4, 8, (3, 1), groups=4), (3, 4, 8, 8), 8 * 6 * 8 * 1 * 3 * 1),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 3 * 3 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5), 4 * 5 * 5 * 6 * 2 * 2),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5), 4 * 5 * 5 * 3 * 2 * 2),
    ],
)
def test_macs_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert one(layer, torch.zeros(shape)).macs == macs


class TwoPaths(nn.Module):
    """Defined in another order than executed; `twice` runs two times, `never` not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.never = nn.Linear(9, 9)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.twice(self.twice(x))))


def test_order_calls_and_uncalled() -> None:
    rows = walk(TwoPaths(), torch.zeros(3, 4))
    assert [(r.name, r.calls, r.macs) for r in rows] == [("twice", 2, 32), ("last", 1, 8), ("never", 0, 0)]
    assert rows[0].x_shape == (3, 4) and rows[1].y_shape == (3, 2)
    assert "not called" in rows[2].notes


def test_walk_leaves_no_trace() -> None:
    net: Any = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), bw.nn.Linear(4, 2, x="uniform")
    ).train()
    net[1].eval()
    flags = [m.training for m in net.modules()]
    state, hooks = copy.deepcopy(net.state_dict()), [len(m._forward_hooks) for m in net.modules()]
    before = torch.get_rng_state()
    walk(net, torch.randn(5, 4))
    trace_flow(net, torch.randn(5, 4))
    assert [m.training for m in net.modules()] == flags
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not torch.equal(before, torch.get_rng_state())  # only by the two randn above
    assert not any(p.grad is not None for p in net.parameters())


def test_a_module_that_writes_its_buffer_in_eval_is_put_back() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(()))
            self.register_buffer("m", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.n += 1
            self.m = self.m + 1
            return x

    net: Any = nn.Sequential(Counter(), nn.Linear(2, 2))
    walk(net, torch.zeros(1, 2))
    assert net[0].n.item() == 0 and net[0].m.item() == 0


def test_an_error_in_forward_still_restores() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 4)).train()
    with pytest.raises(bw.InputError, match="the model does not run on this example: mat1 and mat2"):
        walk(net, torch.zeros(1, 5))
    assert net.training and not net[0]._forward_hooks


def test_bits_planes_and_bytes() -> None:
    layer: Any = bw.nn.Conv2d(4, 6, 3, w="ttq", x=["norm", "sign"])
    row = one(layer, torch.zeros(1, 4, 5, 5))
    assert (row.w_bits, row.w_planes, row.x_bits, row.x_planes) == (2, 2, 1, 1)
    assert (row.w_part, row.x_part) == ("ttq", "norm+sign")
    assert row.weights == 6 * 4 * 9 and row.weight_bytes == 216 * 2 / 8
    # bias 6, scales p and n, norm: weight, bias, mean, var of 4 channels
    assert row.float_bytes == 4 * (6 + 2 + 4 * 4)


@pytest.mark.parametrize(
    ("w", "bits", "scales"),
    [
        ("bwn", 1, 6),
        ({"part": "bwn", "granularity": "layer"}, 1, 1),
        ({"part": "dorefa_w", "bits": 4}, 4, 1),
        ({"part": "uniform", "bits": 8, "granularity": "channel"}, 8, 6),
        (["bwn", "mask"], 2, 6),
        ("mask", 33, 0),
        (None, 32, 0),
    ],
)
def test_storage(w: object, bits: int, scales: int) -> None:
    row = one(bw.nn.Linear(10, 6, bias=False, w=w), torch.zeros(1, 10))
    assert row.weight_bytes == 60 * bits / 8
    assert row.float_bytes == 4 * scales


def test_density_of_a_mask() -> None:
    layer: Any = bw.nn.Linear(4, 2, w=["bwn", "mask"])
    layer.w.mask.mask[0] = 0
    assert one(layer, torch.zeros(1, 4)).density == 0.5


def test_unknown_bits_count_as_float_and_say_so() -> None:
    class Own(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return t

    row = one(bw.nn.Linear(4, 2, w=Own(), x=Own()), torch.zeros(1, 4))
    assert row.w_bits is None and row.x_bits is None and row.weight_bytes == 4 * 8
    assert row.notes == (
        "weight bits unknown: counted as float",
        "input bits unknown: counted as float",
        "stays float when packed: slot w holds Own, which has no integer codes",
    )


def test_other_kinds_are_listed_with_a_reason() -> None:
    row = one(nn.LSTM(3, 4), torch.zeros(2, 5, 3))
    assert row.kind == "LSTM" and "MACs not counted" in row.notes
    assert any("skipped" in n for n in row.notes)


def test_several_arguments_and_keywords() -> None:
    net: Any = nn.Bilinear(2, 3, 4)
    assert walk(nn.Sequential(), torch.zeros(1)) == []
    assert walk(net, (torch.zeros(1, 2), torch.zeros(1, 3)))[0].calls == 1
    assert walk(net, {"input1": torch.zeros(1, 2), "input2": torch.zeros(1, 3)})[0].calls == 1


class Through(nn.Module):
    def __init__(self, between: Any) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


NONNEG = {
    "functional relu": F.relu,
    "in place": lambda t: F.relu_(t + 0),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "softmax": lambda t: t.softmax(1),
    "abs": torch.abs,
    "square": lambda t: t * t,
    "pow": lambda t: t**2,
    "exp": torch.exp,
    "clamp": lambda t: t.clamp(0, 1),
    "clamp_min": lambda t: t.clamp_min(0.0),
    "hardtanh": lambda t: F.hardtanh(t, 0, 1),
    "max pool": lambda t: F.max_pool2d(t.relu(), 2),
    "avg pool": lambda t: F.avg_pool2d(t.relu(), 2),
    "adaptive pool": lambda t: F.adaptive_avg_pool2d(t.relu(), 1),
    "adaptive pool 2": lambda t: F.adaptive_avg_pool2d(t.relu(), 2),
    "views": lambda t: t.relu().flatten(1).view(t.shape).permute(0, 1, 3, 2).contiguous()[:, :, 1:],
    "cat": lambda t: torch.cat([t.relu(), t.abs()], 3),
    "add": lambda t: t.relu() + t.abs(),
    "mul": lambda t: t.relu() * t.sigmoid() * 2,
    "dropout": lambda t: F.dropout(t.relu(), 0.5, False),
    "pad": lambda t: F.pad(t.relu(), (1, 1)),
    "batch norm off": lambda t: t.relu().mean((2, 3), keepdim=True),
    "maximum": lambda t: torch.maximum(t, t.relu()),
}
SIGNED = {
    "nothing": lambda t: t,
    "leaky": lambda t: F.leaky_relu(t),
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "residual": lambda t: t + t.relu(),
    "cat": lambda t: torch.cat([t.relu(), t], 3),
    "minus": lambda t: t.relu() - 1,
    "negated": lambda t: -t.relu(),
    "times minus": lambda t: t.relu() * -1.0,
    "pad": lambda t: F.pad(t.relu(), (1, 1), value=-1.0),
    "overwritten": lambda t: t.relu().sub_(1),
    "clamp": lambda t: t.clamp(-1, 1),
}


@pytest.mark.parametrize("name", NONNEG)
def test_non_negative_inputs_are_found(name: str) -> None:
    flow = trace_flow(Through(NONNEG[name]), torch.randn(2, 2, 8, 8))
    assert set(flow.nonneg) == {"b"}


@pytest.mark.parametrize("name", SIGNED)
def test_signed_inputs_are_left_alone(name: str) -> None:
    assert trace_flow(Through(SIGNED[name]), torch.randn(2, 2, 8, 8)).nonneg == {}


def test_flow_names_module_and_operator() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(2, 2))
    assert trace_flow(net, torch.zeros(1, 2)).nonneg == {"2": ("1.0", "relu")}


def test_a_batch_norm_in_between_ends_it() -> None:
    net: Any = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert trace_flow(net, torch.zeros(1, 2)).nonneg == {}


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.na, self.nb = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.na(self.a(x))
        y = self.b(x)
        return self.c(self.nb(y) + y)  # b has two readers, c is returned


def test_only_reader() -> None:
    assert trace_flow(Norms(), torch.zeros(3, 2)).reader == {"a": "na"}


def test_a_tied_weight_counts_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    a, b = walk(net, torch.zeros(1, 3))
    assert (a.weight_bytes, b.weight_bytes, a.macs, b.macs) == (36, 0, 9, 9)
    assert b.notes == ("weight tied to 0",)


def test_lazy_layers_are_not_given_a_shape() -> None:
    net = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(bw.InputError, match="0 has no shape yet"):
        walk(net, torch.zeros(1, 3))
    assert isinstance(net[0], nn.LazyLinear)
