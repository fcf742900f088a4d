"""Packed layers in the user's module under torch.compile and torch.export: each is one operator, with the same numbers."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import torch_op
from bitwright.engine.layer_form import PackedLayer, packed_layers
from bitwright.errors import InputError

B = bw.nn
ONE = {"w": "bwn", "x": "sign"}
TWO = {"w": {"part": "dorefa_w", "bits": 2}, "x": {"part": "dorefa_a", "bits": 2}}


class Net(nn.Module):
    """A stem whose weights are trained, two packed layers, a branch on a value where it is asked for."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.branches = branches
        self.stem = nn.Conv2d(3, 16, 3)
        self.body, self.norm = B.Conv2d(16, 20, 3, padding=1, **ONE), nn.BatchNorm2d(20)
        self.head = B.Linear(20, 5, **ONE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.norm(self.body(self.stem(x))).mean((2, 3)))
        return y * 2 if self.branches and y.sum() > 0 else y


def packed(net: nn.Module, example: Tensor) -> Any:
    made = bw.convert(net.eval(), example, form="layers", verify=False, force=True).model
    assert made is not None and packed_layers(made)
    return made


def example() -> Tensor:
    return torch.randn(6, 3, 10, 10, generator=torch.Generator().manual_seed(2))


def made(**options: Any) -> Any:
    torch.manual_seed(1)
    return packed(Net(**options), example())


def compiled(net: Any, backend: str = "eager", fullgraph: bool = True) -> Any:
    torch._dynamo.reset()
    return torch.compile(net, fullgraph=fullgraph, backend=backend)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor of torch calls it
@pytest.mark.few("eager")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_code_gives_the_same_numbers_for_every_size(backend: str) -> None:
    net = made()
    run = compiled(net, backend)
    exact = backend != "inductor"  # its own code may sum the stem's products in another order
    for shape in ((6, 3, 10, 10), (1, 3, 10, 10), (4, 3, 7, 12), (2, 3, 9, 5)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            got, want = run(given), net(given)
            assert torch.equal(got, want) if exact else torch.allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.few("groups-1 bit")
@pytest.mark.parametrize("p", [ONE, TWO, {"w": "bwn"}], ids=["1 bit", "2 bits", "weight only"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda p: B.Conv2d(6, 8, 3, padding=1, groups=2, **p), (6, 5, 7)),
        (lambda p: B.Conv2d(6, 8, (3, 1), stride=(2, 1), padding=(2, 0), dilation=2, **p), (6, 9, 7)),
        (lambda p: B.Conv1d(6, 8, 4, padding="same", **p), (6, 9)),
        (lambda p: B.Linear(6, 8, **p), (6,)),
    ],
    ids=["groups", "strides", "1-d", "linear"],
)
def test_compilers_know_the_shape_of_each_layer(layer: Any, shape: tuple[int, ...], p: Any) -> None:
    torch.manual_seed(0)
    net = packed(layer(p), torch.randn(2, *shape))
    assert isinstance(net, PackedLayer)
    inputs = [torch.randn(3, *shape), torch.randn(2, *shape[:1], *(s + 3 for s in shape[1:]))]
    for x in inputs:
        arguments = (net.rows(x), net.packed.held(), net.packed.graph_text, net._sizes[0], *net._places)
        torch.library.opcheck(
            torch.ops.bitwright.packed_layer.default, arguments,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )  # fmt: skip
    run = compiled(net, "aot_eager")
    more = [torch.randn(shape)] if len(shape) > 1 else [torch.randn(2, 3, 6)]  # without a batch axis; rows of rows
    for x in (*inputs, *more, inputs[0].double(), inputs[0].bfloat16(), torch.randn(0, *shape)):
        got, want = run(x), net(x)
        assert got.dtype == want.dtype and torch.equal(got, want)
        assert got.stride() == want.stride() or not x.numel()


def test_a_forward_with_branches_compiles_in_pieces() -> None:
    net, x = made(branches=True), example()
    assert torch.equal(compiled(net, fullgraph=False)(x), net(x))


def test_no_gradient_passes_a_packed_layer_compiled_or_not() -> None:
    net, x = made(), example().requires_grad_()
    assert net.stem.weight.requires_grad
    runs: list[Any] = [net, compiled(net), compiled(net, "aot_eager")]
    for run in runs:
        assert not run(x).requires_grad
    graph: Any = bw.convert(Net().eval(), example(), form="graph", verify=False).model
    runs = [graph, compiled(graph), compiled(graph, "aot_eager")]
    for run in runs:
        assert not run(x).requires_grad


def test_a_wrong_input_is_the_same_line_in_compiled_code() -> None:
    net = packed(nn.Sequential(B.Linear(6, 4, **ONE)), torch.randn(2, 6))
    with pytest.raises(InputError, match=r"input is \[2, 5\], it takes 6 features on the last axis"):
        compiled(net, fullgraph=False)(torch.randn(2, 5))


def test_new_tensors_reach_compiled_layers() -> None:
    net, x = made(), example()
    run = compiled(net)
    before = run(x)
    net.load_state_dict({k: v * 2 if k.endswith("add") else v for k, v in net.state_dict().items()})
    assert torch.equal(run(x), net(x)) and not torch.equal(run(x), before)


@pytest.mark.slow
def test_nets_are_kept_ready_as_long_as_their_tensors_live(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = packed(nn.Sequential(*(B.Linear(4, 4, **ONE) for _ in range(20))), torch.randn(2, 4))
    run: Any = compiled(deep)
    x, built = torch.randn(2, 4), list[int]()
    real = torch_op.from_json
    monkeypatch.setattr(torch_op, "from_json", lambda *a: built.append(1) or real(*a))
    for _ in range(3):
        assert torch.equal(run(x), deep(x))
    assert len(built) == 20  # each layer once
    places = {p.packed.graph_text.data_ptr() for p in packed_layers(deep).values()}
    assert places <= set(torch_op._ready)
    del deep, run
    torch._dynamo.reset()
    other = made()
    compiled(other)(example())
    kept = {place for place, (memory, *_) in torch_op._ready.items() if not memory.expired()}
    assert {p.packed.graph_text.data_ptr() for p in packed_layers(other).values()} <= kept
    assert len(kept & places) <= 2  # an address may be used again


def test_a_copy_is_compiled_for_itself() -> None:
    net, x = made(), example()
    other = copy.deepcopy(net)
    other.head.packed.get_buffer("layer/scale").mul_(-1)
    assert torch.equal(compiled(net)(x), net(x))
    assert torch.equal(compiled(other)(x), other(x)) and not torch.equal(other(x), net(x))


LOAD = """
import sys, torch
import bitwright.engine.torch_op  # the operators
x, want = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(x), want)
"""


def exported() -> tuple[Any, Any]:
    net = made()
    batch, height = torch.export.Dim("batch", min=1), torch.export.Dim("height", min=4)
    return net, torch.export.export(net, (example(),), dynamic_shapes=({0: batch, 2: height},))


def test_an_export_holds_one_operator_a_layer_and_takes_other_sizes() -> None:
    net, program = exported()
    calls = [n for n in program.graph.nodes if n.target is torch.ops.bitwright.packed_layer.default]
    assert len(calls) == 2 and not any("wrap_with" in str(n.target) for n in program.graph.nodes)
    for shape in ((2, 3, 10, 10), (5, 3, 14, 10)):
        x = torch.randn(shape)
        assert torch.equal(program.module()(x), net(x))


@pytest.mark.slow
def test_an_export_needs_nothing_but_its_file(tmp_path: Path) -> None:
    net, program = exported()
    x = torch.randn(3, 3, 12, 10)
    torch.export.save(program, tmp_path / "net.pt2")
    torch.save((x, net(x)), tmp_path / "x.pt")
    arguments = [sys.executable, "-c", LOAD, str(tmp_path / "net.pt2"), str(tmp_path / "x.pt")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
