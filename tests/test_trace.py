"""trace: a model becomes a graph with its own names; messages name layer, kind and the user's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.fold import fold
from bitwright.engine.packed import PackedModel
from bitwright.engine.store import from_json, stored
from bitwright.engine.trace import trace
from bitwright.errors import InputError
from bitwright.transforms.geometry import crop_of, describe, padding_of

B = bw.nn
S: dict[str, Any] = {"w": "bwn", "x": "sign"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList([B.Conv2d(4, 4, 3, padding=1, **S), B.Conv2d(4, 4, 3, padding=1, **S)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for block in self.blocks:
            x = block(x) + x
        return x.mean((2, 3))


def test_nodes_carry_the_names_of_the_users_modules() -> None:
    traced = trace(Net(), torch.randn(2, 3, 8, 8))
    owners = [n.owner for n in traced.graph.nodes if n.op in ("conv", "coded_conv")]
    assert owners == ["first", "blocks.0", "blocks.1"] and traced.refused == {}
    assert traced.graph.nodes[0].shape == (3, 8, 8)
    line = next(i for i, s in enumerate(Path(__file__).read_text().splitlines(), 1) if "x = block(x) + x" in s)
    frames = [n.attrs["frame"] for n in traced.graph.nodes if n.owner == "blocks.1"]
    assert frames[-1] == f"test_trace.py line {line}"


def test_shapes_hold_for_any_batch() -> None:
    graph = trace(Net(), torch.randn(1, 3, 8, 8)).graph
    packed = PackedModel(fold(graph), "reference")
    for n in (1, 2, 5):
        values = packed.values(packed.environment(torch.randn(n, 3, 8, 8)))
        for node, _, _ in packed.steps:
            assert values[node.name].shape[0] == n


def test_the_model_is_not_touched() -> None:
    net = Net().train()
    before = [(n, id(m), m.training) for n, m in net.named_modules()]
    trace(net, torch.randn(2, 3, 8, 8))
    assert [(n, id(m), m.training) for n, m in net.named_modules()] == before


def test_how_a_layer_is_described() -> None:
    assert describe(nn.Conv2d(64, 32, (1, 3))) == "Conv2d 64>32 1x3"
    assert describe(nn.Linear(5, 7)) == "Linear 5>7"
    assert describe(nn.ReLU()) == "ReLU"


def test_padding_in_words_and_numbers() -> None:
    assert padding_of(nn.Conv2d(1, 1, 3, padding="same", dilation=2)) == [2, 2]
    assert padding_of(nn.Conv2d(1, 1, (3, 5), padding="valid")) == [0, 0]
    assert padding_of(nn.Conv1d(1, 1, 4, padding=3)) == [3]
    even = nn.Conv2d(1, 1, (2, 5), padding="same", dilation=(3, 1))  # 1 left and 2 right; 2 and 2
    assert padding_of(even) == [2, 2] and crop_of(even) == [1, 0]


def values(net: nn.Module, *shape: int) -> PackedModel:
    """The packed graph of a net without slots is the net, for every batch."""
    net = net.eval()
    packed = PackedModel(fold(trace(net, torch.randn(3, *shape)).graph), "reference")
    again = PackedModel(from_json(*stored(packed.graph)), "reference")
    for n in (3, 1, 4):
        x = torch.randn(n, *shape)
        torch.testing.assert_close(packed(x), net(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(again(x), packed(x))
    return packed


class Do(nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


OPERATIONS: dict[str, Any] = {
    "clamps": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + x.clamp(max=0.3) + torch.clamp_min(x, 0),
    "activations": lambda x: (
        F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.hardswish(x) + x.abs() - (-x).tanh()
    ),
    "softmax": lambda x: x.softmax(1) + F.log_softmax(x, -1),
    "shapes": lambda x: x.permute(0, 2, 3, 1).transpose(1, 3).reshape(x.shape[0], -1).unsqueeze(1).squeeze(1),
    "view with -1": lambda x: x.view(-1, 4, 36).mean(2, keepdim=True),
    "slices": lambda x: torch.cat([x[:, :2, 1:5], x[:, -2:, -5:-1], x[:, ::3, 0:4]], 1),
    "arithmetic": lambda x: 2 * x + 1 - x / 4 - x * x,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad modes": lambda x: F.pad(F.pad(x, (1, 1, 1, 1), mode="circular"), (1, 1, 1, 1), mode="reflect"),
    "pools": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) + F.max_pool2d(x, 3, 2, 1),
    "layer norm": lambda x: F.layer_norm(x, (6, 6)),
    # by the generic node
    "more activations": lambda x: F.elu(x) + F.mish(x) + F.softplus(x) + F.selu(x) + F.hardsigmoid(x) + F.logsigmoid(x),
    "upsampling": lambda x: (
        F.interpolate(x, scale_factor=2) + F.interpolate(x, (12, 12), mode="bilinear", align_corners=False)
    ),
    "parts": lambda x: torch.cat([*x.chunk(2, 1)[::-1], *x.split([1, 3], 1), x.unbind(1)[0][:, None]], 1),
    "parts of the batch's axis moved": lambda x: x.permute(1, 0, 2, 3).split(2)[1].transpose(0, 1),
    "picking": lambda x: x[:, [2, 0]] + x.narrow(1, 1, 2) + x[:, None, 1] + x.index_select(1, torch.tensor([3, 3])),
    "norms": lambda x: (
        F.group_norm(x, 2) + F.instance_norm(x) + x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    ),
    "shuffles": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) + x.roll((1, 2), (2, 3)) + x.flip(1),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 3) + F.adaptive_avg_pool2d(x, (3, None))[..., :3],
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "products": lambda x: (
        torch.einsum("ncij,ncjk->ncik", x, x) + x @ x.transpose(-1, -2) + torch.bmm(x[:, 0], x[:, 1])[:, None]
    ),
    "masks": lambda x: x.masked_fill(x > 0.5, float("-inf")).softmax(-1) + torch.where(x < 0, x, x.exp()),
    "reductions": lambda x: (
        x.sum((2, 3)) + x.amax((2, 3)) + x.flatten(2).std(2) + x.flatten(2).max(2)[0] + x.logsumexp((2, 3))
    ),
    "computed quotients": lambda x: x / (x.abs() + 1) + 1 / (x.abs() + 1) + x // 2,
    "types": lambda x: x.half().float() + x.double().sin().float() + (x > 0).float() + x.argmax(1).float()[:, None],
    "windows": lambda x: (
        x.view(x.size(0), 4, 2, 3, 2, 3)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(-1, 4, 3, 3)
        .relu()
        .view(x.size(0), -1, 4, 3, 3)
    ),
    "sums over the batch": lambda x: x - x.mean() + x.sum(0, keepdim=True),
    "constants of the batch's size": lambda x: (
        x + torch.arange(6.0) + torch.zeros(x.shape[0], 4, 6, 6) + x.new_ones(4, 1, 1)
    ),
    "writes into views": lambda x: _written(x),
    "cumulative": lambda x: x.cumsum(2) + x.tril(),
    "by size": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) / x.shape[1] + x.size(0),
}


def _written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1].add_(3)
    y[:, :, ::2] = 0
    return y.relu_() + x


@pytest.mark.few(every=3)
@pytest.mark.parametrize("name", OPERATIONS)
def test_float_operations(name: str) -> None:
    values(Do(OPERATIONS[name]), 4, 6, 6)


@pytest.mark.slow
def test_norms_fold_where_other_operators_are_decomposed() -> None:
    """A write into a view is made a value by torch, which splits the norm into a call of several results."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = B.Conv2d(4, 4, 3, padding=1, **S), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            y[:, 1].add_(3)
            return y.relu()

    graph = fold(trace(Writes().eval(), torch.randn(2, 4, 6, 6)).graph)
    assert not any("norm" in n.attrs.get("call", n.op) for n in graph.nodes)


def test_constants_of_the_model() -> None:
    class Scaled(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(1, 4, 1, 1))
            self.register_buffer("mean", torch.randn(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.shift - (x - self.mean) * self.scale

    values(Scaled(), 4, 5, 5)


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (lambda x: x + torch.rand(4, 6, 6), "rand"),
        (lambda x: F.dropout(x, 0.5, training=True), "drops values in evaluation too"),
        (lambda x: x[x > 0].sum() + x, "convert"),
        (lambda x: x if x.sum() > 0 else -x, "data-dependent"),
        (lambda x: torch.linalg.qr(x)[0], "qr"),
        (lambda x: {3: x}, "returns a dict"),
    ],
)
def test_what_has_no_form_is_one_line(f: Any, text: str) -> None:
    with pytest.raises(InputError) as error:
        trace(Do(f), torch.randn(2, 4, 6, 6))
    assert text in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("convert")
    assert error.value.code in ("convert-op", "convert-trace", "convert-outputs")


def test_sums_that_could_leave_32_bits_stay_float() -> None:
    big = {"part": "dorefa_w", "bits": 8}
    wide = {"part": "uniform", "bits": 8, "signed": True, "symmetric": False}
    net = nn.Sequential(B.Linear(70_000, 2, bias=False, w=big, x=wide))
    traced = trace(net, torch.randn(1, 70_000))
    assert "its sums of products may exceed 32 bits" in traced.refused["0"]
