"""A packed net in torch: neighboring native operations run in one call, threads share a model, compilers see one operator."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native, native_run
from bitwright.engine.native_run import Laid, NativeRun, Program
from bitwright.engine.packed import PackedModel

B = bw.nn
needs_core = pytest.mark.skipif(not native.available(), reason=native.notice())


class Residual(nn.Module):
    """Bits, bytes, two terms, a residual, a float operator between them, two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = B.Conv2d(3, 16, 3, padding=1, w="bwn", x={"part": "uniform", "bits": 8})
        self.one = B.Conv2d(16, 16, 3, padding=1, bias=False, w="bwn", x="sign")
        self.norm = nn.BatchNorm2d(16)
        self.two = B.Conv2d(16, 16, 3, padding=1, bias=False, w="ttq", x={"part": "dorefa_a", "bits": 2})
        self.head = B.Linear(16, 5, w="bwn", x={"part": "lsq", "bits": 4, "signed": True})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        y = x + self.norm(self.one(x))
        y = self.two(y.clamp(0, 1))
        return {"classes": self.head(y.mean((2, 3))), "map": y}


class Sequence_(nn.Module):
    """Linear layers on [N, T, C], then a convolution over T: the same floats with their channels on another axis."""

    def __init__(self) -> None:
        super().__init__()
        self.line = B.Linear(8, 6, w="bwn", x={"part": "dorefa_a", "bits": 2})
        self.conv = B.Conv1d(5, 4, 3, w="bwn", x="sign")
        self.last = B.Linear(4, 3, w="bwn", x="sign")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.line(x)))


def packed(net: nn.Module, x: Tensor, backend: str = "auto") -> PackedModel:
    made = bw.convert(net.eval(), x, verify=False, backend=backend).model
    assert isinstance(made, PackedModel)
    return made


def outputs(net: PackedModel, x: Tensor) -> list[Tensor]:
    return net.answers(net.environment(x))


def residual() -> tuple[PackedModel, Tensor]:
    torch.manual_seed(0)
    net, x = Residual(), torch.rand(2, 3, 9, 7)
    with torch.no_grad():
        net.train()(x)
    return packed(net, x), x


@needs_core
@pytest.mark.parametrize(
    ("net", "shape"),
    [(Residual(), (3, 9, 7)), (Sequence_(), (5, 8))],
    ids=["residual", "sequence"],
)
def test_one_call_gives_what_plain_torch_gives(net: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    net = copy.deepcopy(net)
    first = torch.rand(2, *shape)
    with torch.no_grad():
        net.train()(first)
    mine = packed(net, first)
    oracle = PackedModel(mine.graph, "reference")
    for n in (1, 2, 5):
        x = torch.rand(n, *shape)
        layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
        for given in layouts:
            for got, want in zip(outputs(mine, given), outputs(oracle, given), strict=True):
                assert torch.equal(got, want)


@needs_core
def test_the_native_part_of_a_net_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        *(layer for _ in range(4) for layer in (B.Conv2d(8, 8, 3, padding=1, w="bwn", x="sign"), nn.BatchNorm2d(8)))
    )
    mine = packed(net, torch.randn(1, 8, 6, 6))
    calls: list[int] = []
    run = Program.run

    def counted(self: Program, *args: Any) -> None:
        calls.append(self.count)
        run(self, *args)

    monkeypatch.setattr(Program, "run", counted)
    mine.run(mine.environment(torch.randn(1, 8, 6, 6)))
    assert calls == [5]  # the quantizer and four layers


@needs_core
def test_answers_stay_when_the_model_is_called_again() -> None:
    mine, x = residual()
    kept = mine(x)
    before = {k: v.clone() for k, v in kept.items()}
    for _ in range(3):
        mine(torch.rand_like(x))
    assert all(torch.equal(kept[k], before[k]) for k in kept)


@needs_core
def test_threads_may_share_a_model() -> None:
    mine, _ = residual()
    torch.manual_seed(2)
    batches = [torch.rand(1 + i % 4, 3, 9, 7) for i in range(16)]
    want = [outputs(mine, x) for x in batches]
    fresh = copy.deepcopy(mine)  # its programs are made by several threads at once

    def work(i: int) -> bool:
        got = outputs(fresh, batches[i % 16])
        return all(torch.equal(a, b) for a, b in zip(got, want[i % 16], strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))


def test_values_that_live_at_the_same_time_share_no_memory() -> None:
    class Struct(native_run.ctypes.Structure):
        _fields_ = [("n", native_run.ctypes.c_int64)]

    def laid(count: int) -> Laid:
        return Laid((1, 1, 1, count), torch.float32)

    program = Program({"x": laid(8)})
    program.add("pack_bits", Struct(), {"x": "x"}, {"out": ("a", laid(100))})
    program.add("conv_bits", Struct(), {"x": "a"}, {"out": ("b", laid(40)), "extra": ("c", laid(3))})
    program.add("conv_bits", Struct(), {"x": "c", "residual": "b"}, {"out": ("d", laid(30))})
    program.add("pack_bits", Struct(), {"x": "d"}, {"out": ("y", laid(5))})
    places, size = program._scratch({"x": -1, "y": -2})
    # a: 448 bytes; b: 192, c: 64 behind it; d lies where a was
    assert places == {"a": 0, "b": 448, "c": 640, "d": 0} and size == 704


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor of torch calls it
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_packed_net_compiles_as_one_operator(backend: str) -> None:
    mine, x = residual()
    torch._dynamo.reset()
    compiled: Any = torch.compile(mine, fullgraph=True, backend=backend)
    for n in (2, 1, 6):
        given = torch.rand(n, *x.shape[1:])
        got, want = compiled(given), mine(given)
        assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)


def test_new_tensors_reach_compiled_code() -> None:
    mine, x = residual()
    torch._dynamo.reset()
    compiled: Any = torch.compile(mine, fullgraph=True, backend="eager")
    compiled(x)
    state = {k: v * 2 if k.endswith(("add", "bias")) else v for k, v in mine.state_dict().items()}
    mine.load_state_dict(state)
    got, want = compiled(x), PackedModel(mine.graph)(x)
    assert all(torch.equal(got[k], want[k]) for k in want)


LOAD = """
import sys, torch
import bitwright.engine.torch_op  # the operator
x, want = torch.load(sys.argv[2])
got = torch.export.load(sys.argv[1]).module()(x)
assert torch.equal(got["classes"], want)
"""


@pytest.mark.slow
def test_an_exported_net_needs_nothing_but_its_file(tmp_path: Path) -> None:
    mine, x = residual()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(mine, (x,), dynamic_shapes=(({0: batch},),))
    given = torch.rand(5, *x.shape[1:])
    want = mine(given)["classes"]
    assert torch.equal(program.module()(given)["classes"], want)
    torch.export.save(program, tmp_path / "net.pt2")
    torch.save((given, want), tmp_path / "x.pt")
    arguments = [sys.executable, "-c", LOAD, str(tmp_path / "net.pt2"), str(tmp_path / "x.pt")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_operator_keeps_torchs_rules() -> None:
    from torch.library import opcheck

    mine, x = residual()
    tensors = [mine.get_buffer(name) for name in mine._keys.values()]
    arguments = ([x], tensors, mine.graph_text, mine._answers)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(torch.ops.bitwright.packed.default, arguments, test_utils=utils)


def test_runs_end_where_floats_change_their_order() -> None:
    torch.manual_seed(1)
    net, x = Sequence_(), torch.rand(2, 5, 8)
    mine = packed(net, x, "native") if native.available() else pytest.skip(native.notice())
    runs = [step for _, step, _ in mine._joined if isinstance(step, NativeRun)]
    assert [[n.op for n in r.nodes] for r in runs] == [
        ["quantize", "coded_linear"],
        ["quantize", "coded_conv"],
        ["quantize", "coded_linear"],
    ]
