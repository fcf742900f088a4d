"""The graph form of what users bring: several inputs and outputs, recurrent nets, attention, windows, hooks, other types."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.fold import fold
from bitwright.engine.packed import PackedModel
from bitwright.engine.store import from_json, stored
from bitwright.engine.trace import trace
from bitwright.errors import InputError, Negative

B = bw.nn
S: dict[str, Any] = {"w": "bwn", "x": "sign"}
BACKENDS = ["reference", *(["native"] if native.available() else [])]


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.head = B.Conv1d(4, 8, 3, padding=1, **S), B.Linear(12, 3, **S)
        self.cell = getattr(nn, kind)(8, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.conv(x).transpose(1, 2))[0][:, -1])


class Encoder(nn.Module):
    """Both orders of the axes: with the batch second, the layers read rows [T, N, C]."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        self.first, self.enter, self.body = (
            batch_first,
            B.Linear(5, 16, **S),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        )
        self.head = B.Linear(16, 3, **S)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = self.head(self.body(x if self.first else x.transpose(0, 1)))
        return x.mean(1) if self.first else x.mean(0)


class Windows(nn.Module):
    """Attention in 2x2 windows, a position bias: the windows of all images are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head, self.bias = B.Linear(8, 24, **S), B.Linear(8, 3, **S), nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1)) / 2 + self.bias).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.head(y).mean((1, 2))


class Query(nn.Module):
    """A slot layer that reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.a, self.b = nn.Parameter(torch.randn(3, 8)), B.Linear(8, 8, **S), B.Linear(8, 8, **S)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(self.query) @ self.b(x).transpose(1, 2)).softmax(-1).flatten(1)


class Kept(nn.Module):
    """A counter, a kept activation, a lock, a branch without gradients, an attribute of a layer read in forward."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lock = B.Linear(4, 8, **S), threading.Lock()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("best", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            middle = x.mean(1, keepdim=True)
        self.count += 1
        self.kept = y = self.a(x.to(self.a.weight.dtype) - middle) + self.a.in_features
        return y if self.a.bias is not None else -y


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = B.Linear(4, 8, **S), B.Linear(8, 2, **S)
        self.a.register_forward_hook(lambda m, i, o: o * 0.5 + 1)
        self.b.register_forward_pre_hook(lambda m, i: (i[0] - 0.3,))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8).half(), B.Linear(8, 6, **S), nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x.half()).float()).double())


NETS: dict[str, tuple[Any, tuple[int, ...], int]] = {  # net, one sample, layers whose products are of codes
    "gru": (lambda: Recurrent("GRU"), (4, 7), 2),
    "lstm": (lambda: Recurrent("LSTM"), (4, 7), 2),
    "encoder": (lambda: Encoder(True), (7, 5), 2),
    "encoder, batch second": (lambda: Encoder(False), (7, 5), 2),
    "windows": (Windows, (4, 4, 8), 2),
    "query": (Query, (5, 8), 2),
    "kept": (Kept, (4,), 1),
    "hooked": (Hooked, (4,), 2),
    "mixed": (Mixed, (4,), 1),
}


def both_ways(net: nn.Module, *samples: Tensor) -> list[PackedModel]:
    graph = fold(trace(net.eval(), samples).graph)
    models = [PackedModel(graph, b) for b in BACKENDS]
    return [*models, PackedModel(from_json(*stored(models[0].graph)))]


@pytest.mark.few("encoder", "query", "kept", "hooked", "mixed")
@pytest.mark.parametrize("name", NETS)
def test_the_graph_is_the_net_for_every_batch(name: str) -> None:
    torch.manual_seed(0)
    make, sample, coded = NETS[name]
    net = make().eval()
    models = both_ways(net, torch.randn(2, *sample))
    assert sum(n.op.startswith("coded") for n in models[0].graph.nodes) == coded
    for n in (1, 2, 5):
        x = torch.randn(n, *sample)
        for model in models:
            torch.testing.assert_close(model(x), net(x), rtol=1e-3, atol=1e-3)


class Two(nn.Module):
    """Numbers and an index in; a dict of tensors, a list, None out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.items, self.head = B.Linear(4, 8, **S), nn.Embedding(10, 8), B.Linear(8, 2, **S)

    def forward(self, x: Tensor, item: Tensor) -> dict[str, Any]:
        y = F.relu(self.a(x) + self.items(item))
        return {"class": self.head(y), "parts": [y, (y.argmax(1), None)]}


def test_several_inputs_and_a_structure_of_outputs() -> None:
    net = Two().eval()
    models = both_ways(net, torch.randn(2, 4), torch.tensor([3, 4]))
    assert [(n.name, n.attrs["dtype"]) for n in models[0].inputs] == [("input", "float32"), ("item", "int64")]
    x, item = torch.randn(5, 4), torch.arange(5)
    want = net(x, item)
    for model in models:
        got = model(x, item)
        assert list(got) == ["class", "parts"] and type(got["parts"]) is list and type(got["parts"][1]) is tuple
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for wrong, text in [
        ((x,), r"takes 2 inputs \(input, item\), got 1"),
        ((x, item[:4]), "differ in the size of the batch"),
        ((x, item.float()), "item holds int64, got torch.float32"),
        ((x[0], item), r"one sample has no batch axis here, give x\[None\] \(1x4\)"),
        ((x, item[0]), "converted for"),
    ]:
        with pytest.raises(InputError, match=text):
            models[0](*wrong)


def test_what_inputs_may_be() -> None:
    with pytest.raises(InputError, match="differ in axis 0"):
        trace(Two(), (torch.randn(2, 4), torch.tensor([1])))
    with pytest.raises(InputError, match="each input is one tensor"):
        trace(Two(), (torch.randn(2, 4), 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_net_of_another_float_type_is_packed_as_its_float32_form(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), B.Conv2d(8, 4, 3, **S)).to(dtype).eval()
    x = torch.randn(2, 3, 7, 7)
    model: Any = bw.convert(net, x.to(dtype), verify=False).model
    assert isinstance(model, PackedModel)
    torch.testing.assert_close(model(x), net.float()(x), rtol=1e-4, atol=1e-4)


def test_what_a_marked_call_cannot_keep_is_refused_by_name() -> None:
    def replaced() -> nn.Module:
        net: Any = nn.Sequential(B.Linear(4, 2, **S))
        net[0].forward = lambda x: x[:, :2]
        return net

    def inside() -> nn.Module:
        net: Any = nn.Sequential(B.Linear(4, 2, **S))
        net[0].x.register_forward_hook(lambda m, i, o: -o)
        return net

    def computed() -> nn.Module:
        net: Any = nn.Sequential(B.Linear(4, 2, **S))
        raw = net[0]._parameters.pop("weight").detach()
        net[0].weight = raw
        net[0].register_forward_pre_hook(lambda m, args: setattr(m, "weight", raw * 2))
        return net

    for make, text in (
        (replaced, "forward was replaced"),
        (inside, "hook of its part"),
        (computed, "weight is computed"),
    ):
        with pytest.raises(InputError, match=rf"0: .*{text}") as error:
            bw.convert(make().eval(), torch.randn(2, 4), form="graph")
        assert error.value.code == "convert-hook"


def test_only_numbers_that_enter_a_layer_must_be_finite() -> None:
    net = Kept().eval()  # its `best` is infinite
    bw.convert(net, torch.randn(2, 4), verify=False)
    with torch.no_grad():
        net.a.weight[0, 0] = torch.nan
    with pytest.raises(Negative, match="weight holds nan"):
        bw.convert(net, torch.randn(2, 4))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x_part", ["sign", {"part": "dorefa_a", "bits": 2}, {"part": "uniform", "bits": 8}])
def test_nan_in_is_nan_out_for_that_sample_alone(backend: str, x_part: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), B.Conv2d(8, 4, 3, w="bwn", x=x_part), nn.Flatten()).eval()
    x = torch.randn(3, 3, 7, 7)
    model = PackedModel(fold(trace(net, x).graph), backend)
    want = model(x)
    x[1, 0, 2, 2] = torch.nan
    got = model(x)
    assert bool(got[1].isnan().all()) and torch.allclose(got[[0, 2]], want[[0, 2]], atol=1e-5)
