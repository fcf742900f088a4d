"""Units that nothing reads, or that never change, are left out of the graph that runs, and every answer stays."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.fold import fold
from bitwright.engine.fuse import LIMIT, fuse
from bitwright.engine.graph import Graph
from bitwright.engine.packed import PackedModel
from bitwright.engine.sparse_linear import runs_on_connections
from bitwright.engine.trace import trace
from bitwright.engine.unused import without_unused

ZERO_ONE: dict[str, Any] = {"part": "zero_one", "init": "keep"}
STEP: dict[str, Any] = {"part": "heaviside", "threshold": 0.5}
TWO: dict[str, Any] = {"w": {"part": "twn"}, "x": {"part": "dorefa_a", "bits": 2}}


def layer(kind: str, inputs: int, outputs: int, share: float, seed: int, **slots: Any) -> nn.Module:
    """Weights of which a share is on, and a norm with numbers of its own behind it."""
    torch.manual_seed(seed)
    made = getattr(bw.nn, kind)(inputs, outputs, *((3,) if kind == "Conv2d" else ()), bias=False, **slots)
    with torch.no_grad():
        on = (torch.rand_like(made.weight) < share).float()
        signs = 1 if slots.get("w") == ZERO_ONE else torch.randn_like(made.weight)
        made.weight.copy_(on * signs)
    norm = (nn.BatchNorm2d if kind == "Conv2d" else nn.BatchNorm1d)(outputs)
    norm.running_mean.normal_(1, 1)  # type: ignore[union-attr]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    return nn.Sequential(made, norm)


def step_net(*widths: int, fan: float = 2.0) -> nn.Module:
    pairs = list(itertools.pairwise(widths))
    return nn.Sequential(
        *[layer("Linear", a, b, fan / a, i, w=ZERO_ONE, x=STEP) for i, (a, b) in enumerate(pairs)]
    ).eval()


def tanh_net(*widths: int) -> nn.Module:
    found: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        made: Any = layer("Linear", a, b, 2 / a, i, w=ZERO_ONE, **({"x": STEP} if i == 0 else {}))
        found += [made[0], nn.Tanh(), made[1]]
    return nn.Sequential(*found).eval()


def graph_of(net: nn.Module, *shape: int) -> Graph:
    return fold(trace(net, torch.rand(2, *shape)).graph)


def units(graph: Graph) -> list[int]:
    return [n.shape[0] for n in graph.nodes if "units" in n.attrs]


def both(net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """The answer with all units, and without those left out."""
    graph = graph_of(net, *x.shape[1:])
    y = PackedModel(graph, backend)(x)
    with monkeypatch.context() as m:
        m.setenv("BITWRIGHT_ZEROS", "0")
        whole = PackedModel(graph, backend)
        return whole(x), y


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_step_net_gives_the_same_bits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = step_net(40, 70, 60, 50, 5), torch.rand(33, 40)
    want, got = both(net, x, monkeypatch, backend)
    assert torch.equal(want, got)
    ran = PackedModel(graph_of(net, 40)).runtime
    sizes = [n.attrs["weight"]["shape"] for n in ran.nodes if n.op == "coded_linear"]
    assert sizes[0][1] == 40 and sizes[-1][0] == 5
    assert all(a[0] == b[1] and a[0] < full for a, b, full in zip(sizes, sizes[1:], (70, 60, 50), strict=False))
    # what is left: every column is read, and a unit is no constant of zeros alone
    for n in ran.nodes:
        if n.op == "coded_linear" and n.attrs["weight"]["shape"][1] != 40:
            assert bool(bw.engine.reference.weight_integers(ran, n)[0].any(0).all())


def test_what_a_constant_adds_is_added_once() -> None:
    """Unit 1 reads nothing and is always on: the threshold of its reader moves by one."""
    first: Any = bw.nn.Linear(2, 2, w=ZERO_ONE, x=STEP)
    second = bw.nn.Linear(2, 1, bias=False, w=ZERO_ONE, x=STEP)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        first.bias.copy_(torch.tensor([0.0, 1.0]))
        second.weight.fill_(1.0)
    graph = fuse(graph_of(nn.Sequential(first, second).eval(), 2))
    one, two = (n for n in graph.nodes if n.op == "coded_linear")
    assert one.attrs["weight"]["shape"] == [1, 2] and two.attrs["weight"]["shape"] == [1, 1]
    assert graph.need(two, "shift").tolist() == [1]
    y = PackedModel(graph_of(nn.Sequential(first, second).eval(), 2))(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert y.tolist() == [[2.0], [1.0]]


def test_a_chain_of_constants_ends_in_the_answer() -> None:
    """No weight of the first layer is on: all that follows is constant, down to one unit of each layer."""
    net = step_net(8, 6, 6, 3)
    nn.init.zeros_(net[0][0].weight)  # type: ignore[index]
    graph, x = graph_of(net, 8), torch.rand(5, 8)
    assert units(fuse(graph)) == [1] * len(units(fuse(graph)))
    packed = PackedModel(graph)
    y = packed(x)
    assert torch.allclose(y, net(x)) and torch.equal(y, y[:1].expand_as(y))


def test_float_layers_lose_units_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = tanh_net(40, 70, 60, 5), torch.rand(33, 40)
    want, got = both(net, x, monkeypatch)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert any(n.op == "linear" and n.attrs["weight"]["shape"][1] < 70 for n in fuse(graph_of(net, 40)).nodes)
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    with torch.no_grad():
        plain[2].weight[:, 3:20] = 0  # type: ignore[index]
        plain[0].weight[25] = 0  # type: ignore[index]
    assert units(fuse(graph_of(plain, 20))) == [12, 12]
    want, got = both(plain, torch.rand(7, 20), monkeypatch)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class Residual(nn.Module):
    """Convolutions with padding, a pool, a sum of two layers, and a linear layer behind a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.one = layer("Conv2d", 20, 20, 0.02, 1, **TWO)
        self.two = layer("Conv2d", 20, 20, 0.02, 2, **TWO)
        self.head = layer("Linear", 20 * 4, 10, 0.05, 3, **TWO)
        for conv in (self.one, self.two):
            conv[0].padding = (1, 1)  # type: ignore[index]
        with torch.no_grad():
            for part in (self.one[0], self.two[0]):  # type: ignore[index]
                part.weight[:, 5:9] = 0
                part.weight[12:15] = 0
            self.head[0].weight.reshape(10, 20, 4)[:, 3:9] = 0  # type: ignore[index]
            self.stem.weight[7] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.one(x))
        x = torch.relu(self.two(y) + x)
        return self.head(torch.nn.functional.max_pool2d(x, 4).flatten(1))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_images_sums_and_flattened_values(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(5, 3, 8, 8)
    want, got = both(net, x, monkeypatch, backend)
    assert torch.equal(want, got)
    graph = fuse(graph_of(net, 3, 8, 8))
    left = {
        n.owner: n.attrs["weight"]["shape"] if "weight" in n.attrs else n.shape
        for n in graph.nodes
        if n.op.startswith("c")
    }
    assert left["stem"][0] < 20 and left["one.0"][0] < 20
    assert left["two.0"][0] == left["stem"][0], "two values that are added keep the same units"
    assert bw.convert(net, x, threads=1).report.status != "REFUSE"


def test_a_dense_net_keeps_all() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        layer("Linear", 9, 8, 1.0, 0, w="bwn", x="sign"), layer("Linear", 8, 3, 1.0, 1, w="bwn", x="sign")
    )
    graph = graph_of(net.eval(), 9)
    assert without_unused(graph.copy(), LIMIT).nodes == graph.nodes


def test_float_layers_run_on_their_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hardly a weight is not zero the native run multiplies the others alone; one row, many rows, no rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 300), nn.Tanh(), nn.Linear(300, 300, bias=False)).eval()
    with torch.no_grad():
        for made in (net[0], net[2]):
            made.weight *= torch.rand_like(made.weight) < 0.03  # type: ignore[index, operator]
    graph = graph_of(net, 400)
    packed = PackedModel(graph, "auto")
    for n in (0, 1, 4, 5, 70):  # few rows run on our own product
        x = torch.randn(n, 400)
        torch.testing.assert_close(packed(x), net(x), rtol=1e-5, atol=1e-5)
    if packed.backend == "native" and torch.backends.mkl.is_available():
        layer = next(n for n in packed.runtime.nodes if n.op == "linear")
        assert runs_on_connections(layer, packed.runtime, LIMIT)
        monkeypatch.setenv("BITWRIGHT_ZEROS", "0")
        assert not runs_on_connections(layer, packed.runtime, LIMIT)


def test_a_sparse_float_layer_behind_layers_that_pass_codes_on() -> None:
    """What bounds its input are layers that read the codes of the one before: no such value was known to be finite."""
    torch.manual_seed(0)
    last = nn.Linear(40, 2000)
    with torch.no_grad():
        last.weight *= torch.rand_like(last.weight) < 0.03
    net = nn.Sequential(levels_net()[:2], last).eval()
    packed, x = PackedModel(graph_of(net, 30), "auto"), torch.randn(6, 30)
    torch.testing.assert_close(packed(x), net(x), rtol=1e-5, atol=1e-5)


def test_infinite_values_keep_all() -> None:
    """Zero times an infinite number is NaN: the unit behind `exp` has to stay."""

    class Exp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            nn.init.zeros_(self.b.weight[:, :3])

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.exp(torch.relu(self.a(x))))

    torch.manual_seed(0)
    assert not units(fuse(graph_of(Exp().eval(), 4)))


def levels_net() -> nn.Sequential:
    """Codes of two bits, and constants that the last layers read, one with whole numbers, one with floats behind it."""
    first = layer("Linear", 30, 50, 2 / 30, 0, **TWO)
    middle, last = layer("Linear", 50, 40, 0.05, 1, **TWO), layer("Linear", 40, 5, 0.2, 2, **TWO)
    for made in (first, middle):
        made[1].bias.data.fill_(0.7)  # type: ignore[index]  # a unit without weights is 1 or 2 of 3
    return nn.Sequential(first, middle, last).eval()


@pytest.mark.few("step")
@pytest.mark.parametrize("name", ["step", "levels", "tanh"])
def test_report_proof_file_and_exports(name: str, tmp_path: Path) -> None:
    """Convert proves the smaller graph and says how many units are gone; file, C file and ONNX file give the same answers."""
    nets = {
        "step": lambda: step_net(30, 50, 40, 5, fan=3.0),
        "levels": levels_net,
        "tanh": lambda: tanh_net(30, 50, 40, 5),
    }
    net, x = nets[name](), torch.rand(64, 30)
    done = bw.convert(net, x, threads=1, verify=[torch.rand(16, 30) for _ in range(3)])
    assert done.report.layers_exact and isinstance(done.model, PackedModel)
    assert any("of its 50 outputs are left out" in row.why for row in done.report.rows)
    runtime = done.model.runtime
    shifted = [n for n in runtime.nodes if runtime.tensor(n, "shift") is not None]
    assert bool(shifted) == (name != "tanh"), "else this proves nothing"
    y = done.model(x)
    done.save(tmp_path / "net.safetensors")
    assert torch.equal(bw.load(tmp_path / "net.safetensors")(x), y)
    far = x.clone()
    far[3, 4], far[5, 6] = 2.0**30, torch.nan
    torch.testing.assert_close(done.model(far)[:5], net(far)[:5], rtol=1e-5, atol=1e-5)  # the folded graph, all units
    if name != "tanh":
        report = bw.export.c(done.model, x, tmp_path / "net.c", batch=2)
        assert report.differ == 0 and report.compiled
    for packed in (False, True):
        report = bw.export.onnx(done.model, x, tmp_path / "net.onnx", packed=packed)
        assert report.differ == 0 and report.largest < 1e-4
    session = bw.ort.session(tmp_path / "net.onnx")
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)
