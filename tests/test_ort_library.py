"""The operators inside onnxruntime, on every instruction set of this machine, against slow arithmetic on values.

A case is a graph of one node. The oracles work on codes as ordinary integers and know nothing of words or borders.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import bitwright as bw
from bitwright.engine import native, native_library, reference
from bitwright.engine.thresholds import EvenGrid
from bitwright.errors import InputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
ISAS = native.isas() if native.available() else []
SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129)
Array = NDArray[Any]
TYPES = {"float": TensorProto.FLOAT, "codes": TensorProto.UINT8, "int": TensorProto.INT32}


# ---- graphs of one node ----------------------------------------------------------------------------------------


def graph(op: str, inputs: list[Array], outputs: str, attrs: dict[str, Any], fed: tuple[int, ...] = (0,)) -> bytes:
    """The inputs numbered in `fed` are fed at run time, the others are initializers."""
    names = [f"i{k}" for k in range(len(inputs))]
    kinds = outputs.split()
    node = helper.make_node(op, names, [f"o{k}" for k in range(len(kinds))], domain="bitwright", **attrs)
    values = [
        helper.make_tensor_value_info(
            names[k], helper.np_dtype_to_tensor_dtype(inputs[k].dtype), [None] * inputs[k].ndim
        )
        for k in fed
    ]
    results = [helper.make_tensor_value_info(f"o{k}", TYPES[kind], None) for k, kind in enumerate(kinds)]
    constants = [
        numpy_helper.from_array(v, n) for k, (v, n) in enumerate(zip(inputs, names, strict=True)) if k not in fed
    ]
    return whole(helper.make_graph([node], "one", values, results, constants)).SerializeToString()


def whole(made: Any, functions: tuple[Any, ...] = ()) -> Any:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bitwright", 1)]
    model = helper.make_model(made, opset_imports=opsets, functions=functions)
    model.ir_version = 9  # what onnxruntime 1.17 reads
    return model


def run(
    op: str, inputs: list[Any], outputs: str, fed: tuple[int, ...] = (0,), threads: int = 1, **attrs: Any
) -> list[Array]:
    arrays = [np.asarray(i, order="C") for i in inputs]
    session: Any = bw.ort.session(graph(op, arrays, outputs, attrs, fed), threads)
    return session.run(None, {f"i{k}": arrays[k] for k in fed})


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


NONE = np.zeros(0, np.uint8)


def words(code: Tensor, planes: int, groups: int) -> Tensor:
    """Codes [N, C, H, W] as the library carries them: bytes for planes = 0, else the bytes of the words."""
    last = code.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    if not planes:
        return last
    packed = native.to_words(last, planes, groups)
    return torch.from_numpy(packed.numpy().view(np.uint8).reshape(*last.shape[:3], -1).copy())


def same(got: Array, want: Tensor) -> bool:
    """Equal, NaN included, 0.0 and -0.0 apart where floats are compared."""
    expected = want.contiguous().numpy()
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


# ---- convolutions ----------------------------------------------------------------------------------------------


class Case:
    """Weights and codes of one geometry, and the exact sums [N, O, OH, OW]."""

    def __init__(
        self, seed: int, c: int, o: int = 0, n: int = 0, size: tuple[int, int] = (0, 0), x_planes: int = -1, groups: int = 0,
    ) -> None:  # fmt: skip
        pick, g = random.Random(seed), torch.Generator().manual_seed(seed)
        self.groups = groups or pick.choice([d for d in (1, 1, 2, 3, c) if c % d == 0])
        self.o = o or pick.choice((1, 2, 15, 16, 17, 33, 64, 65)) * self.groups
        self.kernel, self.stride = (pick.randint(1, 3), pick.randint(1, 3)), [pick.randint(1, 2), pick.randint(1, 2)]
        self.padding, self.dilation = [pick.randint(0, 2), pick.randint(0, 2)], [pick.randint(1, 2), pick.randint(1, 2)]
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        self.size = size if size[0] else (pick.randint(1, 5) + reach[0], pick.randint(1, 5) + reach[1])
        self.x_planes = x_planes if x_planes >= 0 else pick.choice((0, 1, 1, 2, 3))
        self.n, self.planes = n or pick.choice((1, 3)), pick.choice((1, 1, 2, 3))
        self.code = torch.randint(0, 1 << (self.x_planes or 8), (self.n, c, *self.size), generator=g)
        bits = torch.randint(0, 2, (self.planes, self.o, c // self.groups, *self.kernel), generator=g)
        self.bits = reference.pack_bits(bits)
        sign = pick.random() < 0.6
        self.mult = [2 << q for q in range(self.planes)] if sign else [pick.randint(-7, 7) for _ in range(self.planes)]
        self.zero = 1 - (1 << self.planes) if sign else pick.randint(-3, 3)
        self.x_mult = 2 if sign else pick.randint(1, 3)
        x_zero = torch.randint(-3, 4, (1, c, 1, 1), generator=g).double()
        weight = self.zero + (bits * torch.tensor(self.mult).view(-1, 1, 1, 1, 1)).sum(0)
        self.weight, self.x_zero = weight.double(), x_zero
        self.sums = self.sums_of(self.code)
        seen = x_zero.reshape(self.groups, -1).repeat_interleave(self.o // self.groups, 0)  # by each output
        self.taps = torch.einsum("ockl,oc->okl", weight.double(), seen).to(torch.int32)
        self.oh, self.ow = self.sums.shape[2:]
        self.scale = torch.rand(self.o, generator=g) / 100 * torch.tensor([1.0, -1.0])[torch.arange(self.o) % 2]
        self.add = torch.randn(self.o, generator=g) / 10
        self.residual = torch.randn(self.n, self.oh, self.ow, self.o, generator=g) / 10
        self.flip = torch.randint(0, 2, (self.o,), generator=g).to(torch.uint8)
        self.pick, self.generator = pick, g

    def sums_of(self, code: Tensor) -> Tensor:
        """[N, O, OH, OW] of codes of any size."""
        x = code.double() * self.x_mult + self.x_zero
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups).long()

    def inputs(self) -> list[Any]:
        shape = [self.planes, self.o, self.code.shape[1] // self.groups, *self.kernel]
        return [
            words(self.code, self.x_planes, self.groups), self.bits, np.array(shape, np.int64), np.array(self.mult, np.int32),
            np.array([self.zero], np.int32), np.array([self.x_mult], np.int32), self.taps,
        ]  # fmt: skip

    def attrs(self) -> dict[str, Any]:
        return {
            "x_planes": self.x_planes, "strides": self.stride, "pads": self.padding * 2, "dilations": self.dilation,
            "group": self.groups,
        }  # fmt: skip

    def floats(self, relu: bool = False, residual: bool = False) -> Tensor:
        y = self.sums.permute(0, 2, 3, 1).float() * self.scale + self.add
        y = y + self.residual if residual else y
        return torch.where(y < 0, torch.zeros(()), y) if relu else y

    def float_inputs(self, relu: bool, residual: bool) -> tuple[list[Any], tuple[int, ...]]:
        floor = np.array(0.0 if relu else -np.inf, np.float32)
        beside = self.residual if residual else f32(0)
        return [*self.inputs(), self.scale, self.add, floor, beside], (0, 10) if residual else (0,)

    def ladder(self, levels: int) -> Tensor:
        low, high = int(self.sums.min()), int(self.sums.max())
        return torch.randint(low, high + 2, (levels, self.o), generator=self.generator).sort(0).values.to(torch.int32)

    def counted(self, ladder: Tensor, flip: bool) -> Tensor:
        """Codes [N, O, OH, OW]."""
        code = (self.sums[None] >= ladder[:, None, :, None, None]).sum(0)
        return torch.where(self.flip[:, None, None].bool(), len(ladder) - code, code) if flip else code


GRID = EvenGrid(3.0, "multiply", 5, 1, 9)
GRID_INPUT = f32(3, 1, 5, 1, 9)
DIVIDE = EvenGrid(0.3, "divide", -2, 0, 3)
DIVIDE_INPUT = f32(1, 0.3, -2, 0, 3)


def check_convolutions(case: Case, threads: int = 1) -> None:
    attrs, relu = {**case.attrs(), "threads": threads}, case.pick.random() < 0.5
    (y,) = run("ConvInt", case.inputs(), "int", **attrs)
    assert same(y, case.sums.permute(0, 2, 3, 1).to(torch.int32))

    residual = case.pick.random() < 0.5
    inputs, fed = case.float_inputs(relu, residual)
    want = case.floats(relu, residual)
    (y,) = run("Conv", inputs, "float", fed, **attrs)
    assert same(y, want)

    flip, as_bytes = case.pick.random() < 0.5, case.pick.random() < 0.5
    cuts = torch.randn(case.o, generator=case.generator) / 10
    bit = (want >= cuts).long().permute(0, 3, 1, 2) ^ (case.flip[:, None, None].long() if flip else 0)
    y, code = run(
        "ConvCut", [*inputs, cuts, case.flip if flip else NONE], "float codes", fed, out_bytes=int(as_bytes), **attrs
    )
    assert same(y, want) and same(code, words(bit, 0 if as_bytes else 1, 1))

    grid, given = (GRID, GRID_INPUT) if case.pick.random() < 0.5 else (DIVIDE, DIVIDE_INPUT)
    y, code = run("ConvRound", [*inputs, given], "float codes", fed, **attrs)
    assert same(y, want) and same(code, grid.codes(want).to(torch.uint8))
    if not residual and min(want.shape[1:3]) > 2:
        most = F.max_pool2d(want.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
        window = {"pool_kernel": [3, 3], "pool_strides": [2, 2], "pool_pads": [1, 1, 1, 1]}
        (y,) = run("ConvPool", inputs, "float", fed, **window, **attrs)
        assert same(y, most)
        y, code = run("ConvRoundPool", [*inputs, given], "float codes", fed, **window, **attrs)
        assert same(y, most) and same(code, grid.codes(most).to(torch.uint8))
    (code,) = run("ConvRoundCodes", [*case.inputs(), case.scale, case.add, given], "codes", **attrs)
    assert same(code, grid.codes(case.floats()).to(torch.uint8))

    levels = case.pick.choice((1, 2, 3, 7))
    planes, groups = levels.bit_length(), case.pick.choice([d for d in (1, 1, 2, case.o) if case.o % d == 0])
    ladder = case.ladder(levels)
    form = {"out_bytes": int(as_bytes), "out_planes": planes, "out_groups": groups}
    (code,) = run("ConvCodes", [*case.inputs(), ladder, case.flip if flip else NONE], "codes", **form, **attrs)
    assert same(code, words(case.counted(ladder, flip), 0 if as_bytes else planes, groups))


@pytest.mark.parametrize("c", SIZES)
def test_convolutions(isa: str, c: int) -> None:
    for seed in range(3):
        check_convolutions(Case(100 * c + seed, c))


def test_a_linear_layer_and_the_border_sums_of_the_core(isa: str) -> None:
    case = Case(7, 64, o=64, size=(9, 8), x_planes=1)
    plan = native.ConvPlan.bits(
        reference.unpack_bits(case.bits, (case.planes, 64, 64 // case.groups, *case.kernel)), w_mult=case.mult, w_zero=case.zero,
        x_mult=[case.x_mult], x_zero=-1, stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups,
    )  # fmt: skip
    codes = native.to_words(case.code.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), 1, case.groups)
    want = plan.run(codes, native.KernelOutput())
    (y,) = run("ConvInt", [*case.inputs()[:6], plan.tap_sums.to(torch.int32)], "int", **case.attrs())
    assert same(y, want.permute(0, 2, 3, 1))

    code, bits = torch.randint(0, 2, (3, 100, 1, 1)), torch.randint(0, 2, (1, 10, 100, 1, 1))
    weight, taps = bits[0] * 2 - 1, -(bits[0] * 2 - 1).sum(1)
    attrs: dict[str, Any] = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    shape, mult = np.array([1, 10, 100, 1, 1]), np.array([2], np.int32)
    inputs = [words(code, 1, 1), reference.pack_bits(bits), shape, mult, mult - 3, mult, taps.to(torch.int32)]
    (y,) = run("ConvInt", inputs, "int", group=1, x_planes=1, **attrs)
    want = F.linear((code * 2 - 1).flatten(1).float(), weight.flatten(1).float())
    assert same(y.reshape(3, 10), want.to(torch.int32))


# ---- floats to codes -------------------------------------------------------------------------------------------


def floats(seed: int, n: int, c: int, h: int, w: int) -> Tensor:
    """[N, C, H, W] with NaN, infinities and both zeros among them."""
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed))
    odd = torch.tensor([torch.nan, -0.0, 0.0, torch.inf, -torch.inf, 1e-45, -1e-45])
    flat = x.view(-1)
    flat[:: max(1, flat.numel() // 9)] = odd.repeat(20)[: len(flat[:: max(1, flat.numel() // 9)])]
    return x


def laid_out(x: Tensor, last: bool) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if last else x


@pytest.mark.parametrize("c", SIZES)
def test_packing(isa: str, c: int) -> None:
    pick = random.Random(c)
    for last, n in itertools.product((True, False), (1, 3)):
        x, levels = floats(c, n, c, pick.randint(1, 6), pick.randint(1, 20)), pick.choice((1, 1, 2, 3, 7, 20))
        per_channel, flips = pick.random() < 0.5, pick.random() < 0.5
        ladder = torch.randn(c if per_channel else 1, levels).sort(1).values
        ladder[:, 0] = torch.where(torch.rand(len(ladder)) < 0.5, torch.zeros(()), ladder[:, 0]).minimum(ladder[:, -1])
        ladder = ladder.sort(1).values
        flip = torch.randint(0, 2, (c,)).to(torch.uint8)
        code = (x[..., None] >= ladder.view(1, -1, 1, 1, levels)).sum(-1)
        code = torch.where(flip[:, None, None].bool(), levels - code, code) if flips else code
        given = [laid_out(x, last), ladder if per_channel else ladder[0], flip if flips else NONE]
        groups = pick.choice([d for d in (1, 1, 2, 3, c) if c % d == 0])
        planes = levels.bit_length()
        (got,) = run("PackBits", given, "codes", channels_last=int(last), planes=planes, groups=groups)
        assert same(got, words(code, planes, groups))
        (got,) = run("PackBytes", given, "codes", channels_last=int(last))
        assert same(got, words(code, 0, 1))


@pytest.mark.parametrize("grid, given", [(GRID, GRID_INPUT), (DIVIDE, DIVIDE_INPUT)])
def test_packing_by_rounding(isa: str, grid: EvenGrid, given: Array) -> None:
    for c, last in itertools.product((1, 3, 17, 64), (True, False)):
        x = floats(c, 3, c, 3, 37)
        half = 0.5 / grid.value if grid.kind == "multiply" else 0.5 * grid.value  # goes to the even code
        x.view(-1)[5::11] = half
        (got,) = run("PackRound", [laid_out(x, last), given], "codes", channels_last=int(last))
        assert same(got, words(grid.codes(x), 0, 1))


def test_pooling(isa: str) -> None:
    for seed, planes in itertools.product(range(12), (0, 1, 3)):
        pick = random.Random(seed)
        kernel, stride = [pick.randint(1, 3), pick.randint(1, 3)], [pick.randint(1, 3), pick.randint(1, 3)]
        pads, ceil = [pick.randint(0, k // 2) for k in kernel], pick.random() < 0.5
        dilation = [pick.randint(1, 2), pick.randint(1, 2)]
        code = torch.randint(0, 1 << (planes or 8), (pick.choice((1, 3)), pick.choice((3, 32, 65)), 7, 8))
        want = F.max_pool2d(code.double(), kernel, stride, pads, dilation, ceil).long()
        attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": pads * 2, "dilations": dilation}
        (got,) = run("MaxPool", [words(code, planes, 1)], "codes", planes=planes, ceil_mode=int(ceil), **attrs)
        assert same(got, words(want, planes, 1))


def test_guard_marks_samples_beyond_the_proof() -> None:
    x = torch.randn(7, 3, 5, 3)
    x[1, 2, 4, 2], x[2, 0, 0, 0], x[3, 1, 1, 1] = torch.nan, -1048577.0, torch.inf
    x[4, 0, 0, 0], x[5, 0, 0, 1] = 1048576.0, -1048576.0
    (got,) = run("Guard", [x], "float")
    np.testing.assert_array_equal(got, f32(0, np.nan, np.nan, np.nan, 0, 0, 0))
    for shape in ((2,), (0, 5), (2, 3), (1, 2, 1, 1, 2, 1)):
        (got,) = run("Guard", [np.ones(shape, np.float32)], "float")
        np.testing.assert_array_equal(got, np.zeros(shape[0], np.float32))


def test_empty_batches_give_empty_results() -> None:
    case = Case(3, 32, x_planes=1)
    inputs = case.inputs()
    (y,) = run("ConvInt", [inputs[0][:0], *inputs[1:]], "int", **case.attrs())
    assert y.shape == (0, case.oh, case.ow, case.o)
    (y,) = run(
        "PackBits", [np.zeros((0, 2, 2, 8), np.float32), f32(0), NONE], "codes", channels_last=1, planes=1, groups=1
    )
    assert y.shape == (0, 2, 2, 4)


# ---- threads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x_planes", [0, 1, 2])
def test_two_threads_equal_one(isa: str, x_planes: int) -> None:
    """Large enough that the work is split: 12 million products of bits."""
    case = Case(40 + x_planes, 65, o=130, n=3, size=(30, 28), x_planes=x_planes)
    check_convolutions(case, threads=2)


def test_two_threads_equal_one_for_floats_and_pooling(isa: str) -> None:
    x = floats(1, 5, 40, 40, 41)
    tries: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("PackBits", [f32(0), NONE], {"planes": 1, "groups": 1, "channels_last": 0}),
        ("PackBytes", [f32(-1, 0, 1), NONE], {"channels_last": 1}),
        ("PackRound", [GRID_INPUT], {"channels_last": 0}),
        ("Guard", [], {}),
    ]
    for op, extra, attrs in tries:
        kind = "float" if op == "Guard" else "codes"
        one, two = (run(op, [x, *extra], kind, threads=t, **attrs)[0] for t in (1, 2))
        assert one.tobytes() == two.tobytes()
    code = torch.randint(0, 256, (5, 64, 60, 60))
    attrs = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "ceil_mode": 0}
    for planes in (0, 8):
        one, two = (
            run("MaxPool", [words(code, planes, 1)], "codes", threads=t, planes=planes, **attrs)[0] for t in (1, 2)
        )
        assert (
            same(one, words(F.max_pool2d(code.float(), 3, 1, 1).long(), planes, 1)) and one.tobytes() == two.tobytes()
        )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_no_threads_beside_those_of_the_runtime() -> None:
    case = Case(41, 64, o=64, n=4, size=(32, 32), x_planes=1, groups=1)
    arrays = [np.asarray(i, order="C") for i in case.inputs()]
    session = bw.ort.session(graph("ConvInt", arrays, "int", case.attrs()), threads=2)
    before = len(os.listdir("/proc/self/task"))
    session.run(None, {"i0": arrays[0]})
    assert len(os.listdir("/proc/self/task")) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_every_run_gives_the_same_sums(isa: str, threads: int) -> None:
    """A node cuts its work anew when it has seen whether other threads help, and again from time to time."""
    case = Case(419, 64, o=80, n=1, size=(20, 22), x_planes=0, groups=1)
    assert case.kernel == (3, 3) and case.stride == case.dilation == [1, 1]  # by Winograd, where there is one
    arrays = [np.asarray(i, order="C") for i in case.inputs()]
    session: Any = bw.ort.session(graph("ConvInt", arrays, "int", case.attrs()), threads)
    first, *later = (session.run(None, {"i0": arrays[0]})[0] for _ in range(75))
    assert same(first, case.sums.permute(0, 2, 3, 1).to(torch.int32))
    assert all(y.tobytes() == first.tobytes() for y in later)


@pytest.mark.parametrize("threads", [1, 2])
def test_four_python_threads_share_a_session(threads: int) -> None:
    case = Case(5, 65, o=130, n=3, size=(20, 20), x_planes=1)
    inputs, fed = case.float_inputs(True, True)
    arrays = [np.asarray(i, order="C") for i in inputs]
    session: Any = bw.ort.session(graph("Conv", arrays, "float", case.attrs(), fed), threads)
    want, wrong = case.floats(True, True), []

    def go(first: int) -> None:
        for n in [first, 3] * 10:  # each thread has batches of its own size too
            n = min(n, 3)
            (y,) = session.run(None, {"i0": arrays[0][:n], "i10": arrays[10][:n]})
            if not same(y, want[:n]):
                wrong.append(n)

    workers = [threading.Thread(target=go, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_one_session_takes_every_size_from_several_threads(isa: str) -> None:
    case = Case(23, 17, o=34, n=1, x_planes=2)
    arrays = [np.asarray(i, order="C") for i in case.inputs()]
    session: Any = bw.ort.session(graph("ConvInt", arrays, "int", case.attrs()))
    reach = [d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel, strict=True)]
    sizes = [(reach[0] + h, reach[1] + w) for h in range(9) for w in range(9)]  # more than a kernel keeps
    codes = [torch.randint(0, 4, (1, 17, *size), generator=case.generator) for size in sizes]
    fed = [words(code, 2, case.groups).numpy() for code in codes]
    want = [case.sums_of(code).permute(0, 2, 3, 1).to(torch.int32) for code in codes]
    wrong: list[Any] = []

    def go(first: int) -> None:
        for k in [*range(first, len(sizes)), *range(len(sizes))]:
            (y,) = session.run(None, {"i0": fed[k]})
            if not same(y, want[k]):
                wrong.append(sizes[k])

    workers = [threading.Thread(target=go, args=(20 * k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# ---- errors ----------------------------------------------------------------------------------------------------

PACK: dict[str, Any] = {"channels_last": 1, "planes": 1, "groups": 1}
X = np.zeros((1, 4, 4, 6), np.float32)
POOL: dict[str, Any] = {
    "planes": 1,
    "kernel_shape": [2, 2],
    "strides": [2, 2],
    "pads": [0] * 4,
    "dilations": [1, 1],
    "ceil_mode": 0,
}


def conv(change: dict[int, Any] | None = None, op: str = "ConvInt", **attrs: Any) -> list[Array]:
    """A small convolution with some inputs or attributes changed."""
    case = Case(11, 32, o=8, n=1, size=(6, 6), x_planes=1, groups=1)
    tail: dict[str, list[Any]] = {
        "ConvInt": [], "Conv": case.float_inputs(False, False)[0][7:], "ConvCodes": [case.ladder(1), NONE],
        "ConvRoundCodes": [case.scale, case.add, GRID_INPUT],
    }  # fmt: skip
    inputs = [*case.inputs(), *tail[op]]
    fed = (0,)
    for k, value in (change or {}).items():
        inputs[k] = value
        fed = (0, k) if k == 10 and np.size(value) > 1 else fed
    return run(op, inputs, {"ConvInt": "int", "Conv": "float"}.get(op, "codes"), fed, **{**case.attrs(), **attrs})


def ones(n: int, dtype: Any = np.float32) -> Array:
    return np.ones(n, dtype)


ERRORS: dict[str, tuple[Any, str]] = {
    "width": (lambda: conv({0: np.zeros((1, 6, 6, 8), np.uint8)}), "ConvInt: codes have 8 bytes per pixel, 32 channels need 4"),
    "rank": (lambda: conv({0: np.zeros((6, 6, 4), np.uint8)}), "ConvInt: codes must have 4 axes, got 3"),
    "too small": (lambda: conv({0: np.zeros((1, 0, 6, 4), np.uint8)}, pads=[0] * 4), "codes of 0x6 are smaller than the kernel"),
    "bits": (lambda: conv({1: ones(3, np.uint8)}), "ConvInt: bits has 3 elements, it needs"),
    "shape": (lambda: conv({2: np.array([1, 0, 32, 1, 1])}), "ConvInt: shape, strides, dilations and group must be positive"),
    "huge shape": (lambda: conv({2: np.array([1, 2**31 - 1, 2**31 - 1, 2**31 - 1, 5])}), "ConvInt: taps must be"),
    "mult": (lambda: conv({3: ones(9, np.int32)}), "ConvInt: mult has 9 elements, it needs"),
    "sums": (lambda: conv({5: np.array([2**30], np.int32)}), "ConvInt: its sums of products may exceed 32 bits"),
    "taps": (lambda: conv({6: np.zeros((7, 1, 1), np.int32)}), r"ConvInt: taps must be \[8, "),
    "pads": (lambda: conv(pads=[0, 0, 1, 0]), "ConvInt: pads must be the same on both sides"),
    "negative pads": (lambda: conv(pads=[-1, 0, -1, 0]), "ConvInt: pads must not be negative"),
    "strides": (lambda: conv(strides=[1]), "ConvInt: needs the attribute strides, 2 integers"),
    "group": (lambda: conv(group=0), "ConvInt: shape, strides, dilations and group must be positive"),
    "odd group": (lambda: conv(group=3), "multiples of groups"),
    "x_planes": (lambda: conv(x_planes=9), r"ConvInt: x_planes must be -8 \(bytes of so many bits\) to 8"),
    "byte weights": (lambda: conv({4: np.array([300], np.int32)}, x_planes=0), "outside -255..255"),
    "scale": (lambda: conv({7: ones(7)}, "Conv"), "Conv: scale has 7 elements, it needs 8"),
    "floor": (lambda: conv({9: np.float32(1)}, "Conv"), r"Conv: floor must be 0 \(relu\) or -inf \(none\)"),
    "residual": (lambda: conv({10: np.zeros((1, 2, 2, 8), np.float32)}, "Conv"), r"Conv: residual is \[1, 2, 2, 8\], the result"),
    "one residual": (lambda: conv({10: f32(1)}, "Conv"), "Conv: residual must be like the result, or a constant 0"),
    "ladder": (lambda: conv({7: ones(8, np.int32)}, "ConvCodes", out_bytes=1), r"ConvCodes: thresholds must be \[L, 8\]"),
    "flip": (lambda: conv({8: ones(3, np.uint8)}, "ConvCodes", out_bytes=1), "ConvCodes: flip has 3 elements, it needs 8 or none"),
    "levels": (
        lambda: conv({7: np.ones((2, 8), np.int32)}, "ConvCodes", out_bytes=0, out_planes=1, out_groups=1),
        "ConvCodes: 2 levels do not fit 1 planes",
    ),
    "out_groups": (lambda: conv(None, "ConvCodes", out_bytes=0, out_planes=1, out_groups=3), "no multiple of out_groups = 3"),
    "grid": (lambda: conv({9: f32(2, 2, 0, 0, 1)}, "ConvRoundCodes"), "one of grid's multiply and divide must be 1"),
    "grid codes": (lambda: conv({9: f32(1, 1, 0, 3, 1)}, "ConvRoundCodes"), "grid's low and high must be codes"),
    "grid whole": (lambda: conv({9: f32(1, 1, 0.5, 0, 1)}, "ConvRoundCodes"), "must be whole numbers from -255 to 255"),
    "grid sign": (lambda: conv({9: f32(-1, 1, 0, 0, 1)}, "ConvRoundCodes"), "multiply and divide must be positive"),
    "alignment": (
        lambda: conv({0: np.zeros(6 * 6 * 4 + 1, np.uint8)[1:].reshape(1, 6, 6, 4)}),
        "ConvInt: codes must start at a multiple of 4 bytes",
    ),
    "pack rank": (lambda: run("PackBits", [X[0], f32(0), NONE], "codes", **PACK), "PackBits: x must have 4 axes, got 3"),
    "pack flip": (lambda: run("PackBits", [X, f32(0), ones(5, np.uint8)], "codes", **PACK), "PackBits: thresholds or flip are for 5"),
    "pack both": (
        lambda: run("PackBytes", [X, np.zeros((6, 1), np.float32), ones(5, np.uint8)], "codes", channels_last=1),
        "PackBytes: flip is for 5 channels, thresholds for 6",
    ),
    "pack levels": (lambda: run("PackBits", [X, f32(0, 1), NONE], "codes", **PACK), "PackBits: 2 levels do not fit 1 planes"),
    "pack ladder": (lambda: run("PackBits", [X, np.float32(0), NONE], "codes", **PACK), r"PackBits: thresholds must be \[L\]"),
    "pack groups": (lambda: run("PackBits", [X, f32(0), NONE], "codes", **{**PACK, "groups": 4}), "no multiple of groups = 4"),
    "pack fed": (lambda: run("PackBits", [X, f32(0), NONE], "codes", (0, 1), **PACK), "PackBits: thresholds must be an initializer"),
    "pack empty": (lambda: run("PackBits", [X[:, :0], f32(0), NONE], "codes", **PACK), "x has an axis of no elements"),
    "pack attribute": (lambda: run("PackBytes", [X, f32(0), NONE], "codes"), "PackBytes: needs the attribute channels_last"),
    "pool bytes": (lambda: run("MaxPool", [ones(6, np.uint8).reshape(1, 1, 1, 6)], "codes", **POOL), "MaxPool: codes of 6 bytes"),
    "pool small": (lambda: run("MaxPool", [ones(4, np.uint8).reshape(1, 1, 1, 4)], "codes", **POOL), "smaller than the window"),
    "pool pads": (
        lambda: run("MaxPool", [ones(4, np.uint8).reshape(1, 1, 1, 4)], "codes", **{**POOL, "pads": [2] * 4}),
        "MaxPool: pads must be smaller than the window",
    ),
    "no image": (lambda: run("MeanFloats", [X[:, :0]], "float"), "MeanFloats: mean: n, h, w and channels must be positive"),
    "guard": (lambda: run("Guard", [np.float32(1)], "float"), "Guard: x must have at least one axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_that_names_the_operator(name: str) -> None:
    call, text = ERRORS[name]
    with pytest.raises(Exception, match=text) as caught:
        call()
    assert "bitwright." in str(caught.value) and "\n" not in str(caught.value).strip()


def test_the_session_of_another_instruction_set_says_so() -> None:
    if len(ISAS) < 2:
        pytest.skip(f"only one weight layout on this machine: {ISAS}")
    case = Case(11, 32, o=8, n=1, size=(6, 6), x_planes=1, groups=1)
    inputs = [np.asarray(i, order="C") for i in case.inputs()]
    session = bw.ort.session(graph("ConvInt", inputs, "int", case.attrs()))
    try:
        native.force_isa("portable")
        with pytest.raises(Exception, match=r"bitwright\.ConvInt: weights were packed for another instruction set"):
            session.run(None, {"i0": inputs[0]})
    finally:
        native.force_isa("")


def test_environment_chooses_the_kernels_and_torch_is_not_needed(tmp_path: Path) -> None:
    case = Case(1, 33, n=3)
    arrays = [np.asarray(i, order="C") for i in case.inputs()]
    (tmp_path / "net.onnx").write_bytes(graph("ConvInt", arrays, "int", case.attrs()))
    np.save(tmp_path / "x.npy", arrays[0])
    code = (
        "import sys, numpy as np, bitwright as bw; from bitwright.fn.library import open_core; "
        "y, = bw.ort.session('net.onnx').run(None, {'i0': np.load('x.npy')}); np.save('y.npy', y); "
        "print(open_core({})[0].bw_isa().decode(), 'torch' in sys.modules)"
    )
    env = {**os.environ, "BITWRIGHT_ISA": "portable"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["portable", "False"]
    assert same(np.load(tmp_path / "y.npy"), case.sums.permute(0, 2, 3, 1).to(torch.int32))


# ---- registration ----------------------------------------------------------------------------------------------


def net_with_function() -> bytes:
    """Guard, with a function of another meaning: the answer tells which of the two ran."""
    body = [
        helper.make_node("Constant", [], ["seven"], value=numpy_helper.from_array(f32(7))),
        helper.make_node("Identity", ["seven"], ["y"]),
    ]
    function = helper.make_function("bitwright", "Guard", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node("Guard", ["x"], ["y"], domain="bitwright")
    return whole(helper.make_graph([node], "guard", values[:1], values[1:]), (function,)).SerializeToString()


def answer(session: Any) -> list[float]:
    """0 from the kernel, 7 from the function."""
    return session.run(None, {"x": f32(1)})[0].tolist()


def test_kernels_take_precedence_over_the_functions_of_the_file() -> None:
    plain = onnxruntime.InferenceSession(net_with_function(), providers=["CPUExecutionProvider"])
    assert answer(plain) == [7]
    assert answer(bw.ort.session(net_with_function())) == [0]


def test_a_file_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(net_with_function())
    for given in (path, str(path)):
        session = bw.ort.session(given, threads=2)
        assert answer(session) == [0]
        assert session.get_session_options().intra_op_num_threads == 2
        assert session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(InputError, match=r"bw\.ort\.session: there is no file .*nothing\.onnx"):
        bw.ort.session(tmp_path / "nothing.onnx")
    with pytest.raises(InputError, match="threads=-1; possible: 0 to 1024"):
        bw.ort.session(path, threads=-1)


def test_registering_twice_does_nothing() -> None:
    options = onnxruntime.SessionOptions()
    for _ in range(2):
        bw.ort.register(options)
    for _ in range(2):  # one options object may serve several sessions
        session = onnxruntime.InferenceSession(net_with_function(), options)
        assert answer(session) == [0]
    others = [onnxruntime.SessionOptions() for _ in range(8)]
    workers = [threading.Thread(target=bw.ort.register, args=(o,)) for o in others * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for o in others:
        assert answer(onnxruntime.InferenceSession(net_with_function(), o)) == [0]


def test_without_the_core_the_functions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_LIBRARY", "/nonexistent/core.so")
    assert answer(bw.ort.session(net_with_function())) == [7]
    with pytest.raises(InputError, match=r"bw\.ort\.register: native core not found"):
        bw.ort.register(onnxruntime.SessionOptions())


def test_an_old_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    assert answer(bw.ort.session(net_with_function())) == [7]
    with pytest.raises(InputError, match=r"onnxruntime 1\.16\.3 is installed, the operators need 1\.17"):
        bw.ort.register(onnxruntime.SessionOptions())


def test_the_library_itself_refuses_an_old_runtime() -> None:
    """A caller from C gets the error too: a runtime that has only what the first version had."""
    said: list[bytes] = []

    def create_status(code: int, text: bytes) -> int:
        said.append(text)
        return 1234

    make = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(create_status)
    table = (ctypes.c_void_p * 1)(ctypes.cast(make, ctypes.c_void_p))
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda v: ctypes.addressof(table) if v == 1 else None)
    base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), None)
    register = native_library.library().RegisterCustomOps
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    assert register(None, ctypes.addressof(base)) == 1234
    assert said == [b"bitwright's operators need onnxruntime 1.17 or newer"]


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"bw\.ort: onnxruntime cannot be imported .*pip install onnxruntime"):
        bw.ort.session(b"")


def test_terms_by_hand() -> None:
    sums = np.array([[[[1, 2, 10, 20], [3, -4, 0, 5]]]], np.int32)  # two outputs, two terms
    scale, add = f32(0.5, 2, -0.25, 1).reshape(2, 2), f32(1, 0)
    (y,) = run("Terms", [sums, scale, add], "float")
    assert y.tolist() == [[[[0.5 - 2.5 + 1, 4 + 20], [1.5 + 1, -8 + 5]]]]


def test_terms_that_do_not_fit() -> None:
    with pytest.raises(Exception, match="Terms: sums are for 3 values a pixel, scale for 4"):
        run("Terms", [np.zeros((1, 1, 1, 3), np.int32), f32(1, 1, 1, 1).reshape(2, 2), f32(0, 0)], "float")
    with pytest.raises(Exception, match=r"Terms: scale must be \[terms, O\]"):
        run("Terms", [np.zeros((1, 1, 1, 2), np.int32), f32(1, 1), f32(0, 0)], "float")


@pytest.mark.parametrize("channels", [1, 3, 16, 33])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), [(2, 2, 0, 0), (3, 2, 1, 0), (3, 2, 1, 1), (1, 3, 0, 1)])
def test_pooling_of_floats(channels: int, kernel: int, stride: int, pad: int, ceil: int) -> None:
    x = torch.randn(2, channels, 9, 7)
    last = x.permute(0, 2, 3, 1).numpy()
    window = {
        "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "dilations": [1, 1], "ceil_mode": ceil
    }  # fmt: skip
    (most,) = run("MaxPoolFloats", [last], "float", **window)
    assert np.array_equal(most, F.max_pool2d(x, kernel, stride, pad, ceil_mode=bool(ceil)).permute(0, 2, 3, 1))
    (mean,) = run("MeanFloats", [last], "float")
    assert np.allclose(mean[:, 0, 0], x.mean((2, 3)), rtol=1e-6, atol=1e-6)
    (mean,) = run("AveragePoolFloats", [last], "float", **{**window, "ceil_mode": 0})
    want = F.avg_pool2d(x, kernel, stride, pad, count_include_pad=False).permute(0, 2, 3, 1)
    assert np.allclose(mean, want, rtol=1e-6, atol=1e-6)
