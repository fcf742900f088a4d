"""The native kernels, every instruction set of this machine, against slow integer arithmetic.

The oracles work on values in int64 / float64 and know nothing of bits, words or borders.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.engine import native, native_library
from bitwright.engine.graph import Node
from bitwright.engine.native_run import Laid, Program
from bitwright.engine.thresholds import EvenGrid, float_thresholds
from bitwright.errors import InputError
from kernels import Pair, maxpool, pack_codes, run_int

# The AMX table leaves small maps to AVX-512; here it must take every shape it can.
os.environ.setdefault("BITWRIGHT_AMX", "always")

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
ISAS = native.isas() if native.available() else []
SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129)


# ---- oracles ---------------------------------------------------------------------------------------------


def conv_oracle(x: Tensor, w: Tensor, stride, padding, dilation, groups: int) -> Tensor:
    """float64 is exact here: every sum is far below 2**53."""
    return F.conv2d(x.double(), w.double(), None, stride, padding, dilation, groups).long()


def code_oracle(values: Tensor, thresholds: Tensor, flip: Tensor | None) -> Tensor:
    """values [N, O, H, W], thresholds [levels, O]."""
    code = sum((values >= t[None, :, None, None]).long() for t in thresholds)
    assert isinstance(code, Tensor)
    return code if flip is None else torch.where(flip.bool()[None, :, None, None], len(thresholds) - code, code)


def words_oracle(code: Tensor, planes: int, groups: int) -> Tensor:
    """code [N, C, H, W] -> words, one bit at a time."""
    n, c, h, w = code.shape
    per_group = c // groups
    group_words = -(-per_group // 32)
    out = np.zeros((n, h, w, planes, groups * group_words), dtype=np.uint32)
    for channel, plane in itertools.product(range(c), range(planes)):
        word = channel // per_group * group_words + channel % per_group // 32
        bit = (code[:, channel].numpy() >> plane & 1).astype(np.uint32)
        out[:, :, :, plane, word] |= bit << np.uint32(channel % per_group % 32)
    return torch.from_numpy(out.view(np.int32))


class Case:
    """Random weights and codes of one geometry, as plan and as values."""

    def __init__(
        self, seed: int, n: int, c: int, o: int, size, kernel, a: int = 1, q: int = 1, stride: Pair = 1,
        padding: Pair = 0, dilation: Pair = 1, groups: int = 1, grid: str = "sign", w_mult: Any = None,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        self.code = torch.randint(0, 2**a, (n, c, *size), generator=g)
        bits = torch.randint(0, 2, (q, o, c // groups, *kernel), generator=g)
        if grid == "sign":
            w_mult, w_zero = [2**i * 2 for i in range(q)], 1 - 2**q
            x_mult, x_zero = [2**i * 2 for i in range(a)], torch.tensor(1 - 2**a)
        elif grid == "codes":  # times -3, and weights on one side of 0
            w_mult, w_zero = w_mult or [2**i for i in range(q)], 1
            x_mult, x_zero = [-3 * 2**i for i in range(a)], torch.tensor(0)
        else:  # anything goes
            w_mult = torch.randint(-7, 8, (q,), generator=g).tolist()
            x_mult = torch.randint(-7, 8, (a,), generator=g).tolist()
            w_zero, x_zero = 3, torch.randint(-3, 4, (c,), generator=g)
        digits = (self.code[None] >> torch.arange(a).view(-1, 1, 1, 1, 1)) & 1
        x = (digits * torch.tensor(x_mult).view(-1, 1, 1, 1, 1)).sum(0)
        x = x + (x_zero.view(1, -1, 1, 1) if x_zero.dim() else x_zero)
        w = (bits * torch.tensor(w_mult).view(-1, 1, 1, 1, 1)).sum(0) + w_zero
        place = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.plan = native.ConvPlan.bits(bits, w_mult=w_mult, w_zero=w_zero, x_mult=x_mult, x_zero=x_zero, **place)
        self.words = words_oracle(self.code, a, groups)
        self.want = conv_oracle(x, w, stride, padding, dilation, groups)

    def check(self, threads: int = 1) -> None:
        got = run_int(self.plan, self.words, threads)
        assert got.dtype == torch.int32
        assert torch.equal(got.long(), self.want)


# ---- the largest sums: what partial sums of 8 and 16 bits must not overflow ------------------------------------


@pytest.mark.parametrize(
    "planes, c",
    [(1, 1000), (1, 32766), (1, 32767), (2, 513), (3, 200), (4, 40), (4, 8736), (4, 8752), (6, 90), (8, 8752)],
)
@pytest.mark.parametrize(
    "levels", [((0,), (1,)), ((-1,), (2,)), ((-3,), (2, 4)), ((0,), (3, -3))], ids=["0 1", "signs", "2 bits", "ternary"]
)
def test_all_bits_on(isa: str, planes: int, c: int, levels: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    (zero,), mult = levels
    weight = torch.ones(len(mult), 3, c, 1, 1)
    weight[:, 1], weight[:, 2, ::2] = 0, 0
    if mult[-1] < 0:  # the largest sums have one plane on and the other off
        weight[1] = 1 - weight[1]
    plan = native.ConvPlan.bits(weight, w_mult=mult, w_zero=zero, x_mult=[1 << i for i in range(planes)])
    want = (zero + (weight * torch.tensor(mult).view(-1, 1, 1, 1, 1)).sum(0)).sum(1).view(1, 3, 1, 1) * (2**planes - 1)
    words = words_oracle(torch.full((1, c, 1, 1), 2**planes - 1), planes, 1)
    for rows in (1, 3):  # several rows of one bit are done in pairs
        got = run_int(plan, words.expand(2, rows, -1, -1, -1).contiguous())
        assert torch.equal(got.long(), want.expand(2, -1, rows, 1).long())


@pytest.mark.parametrize(
    "bits, weight", [(8, 1), (8, 15), (8, 16), (8, 17), (8, 127), (8, 128), (8, 255), (4, 127), (1, 127)]
)
@pytest.mark.parametrize("c, kernel", [(700, 1), (57, 3), (58, 3)])  # 57 * 9 * 255^2 is just below 2^25
def test_all_codes_largest(isa: str, bits: int, weight: int, c: int, kernel: int) -> None:
    values = torch.full((17, c, kernel, kernel), weight)
    values[1::2] = -weight
    values[2, ::2] = 0
    code = torch.full((1, 6, 7, c), 2**bits - 1, dtype=torch.uint8)
    got = native.ConvPlan.bytes(values, x_bits=bits, padding=kernel // 2).run(code, native.KernelOutput())
    want = conv_oracle(code.permute(0, 3, 1, 2).long(), values, 1, kernel // 2, 1, 1)
    assert torch.equal(got.long(), want)


@pytest.mark.parametrize("planes, c", [(1, 32766), (1, 32767), (2, 10922), (2, 10923)])
def test_bits_of_sums_that_just_fit_16_bits(isa: str, planes: int, c: int) -> None:
    """Thresholds at, beyond and far beyond such sums."""
    weight, sums = torch.zeros(1, 2, c, 1, 1), c * (2**planes - 1)
    weight[0, 1] = 1
    plan = native.ConvPlan.bits(weight, w_mult=[2], w_zero=-1, x_mult=[1 << i for i in range(planes)])
    words = native.to_words(torch.full((2, 3, 1, c), 2**planes - 1, dtype=torch.uint8), planes)
    want = torch.tensor([-sums, sums]).view(1, 2, 1, 1).expand(2, 2, 3, 1)
    for low, high in ((-sums, sums), (1 - sums, sums + 1), (-32768, 32767), (-32769, 32768), (-(2**31), 2**31 - 1)):
        one, three = torch.tensor([[low, high]]), torch.tensor([[low, low], [low, high], [high, high]])
        for thresholds, planes_out in ((one, 1), (three, 2)):
            got = plan.run(words, native.CodeOutput(thresholds, planes=planes_out))
            assert torch.equal(got, words_oracle(code_oracle(want, thresholds, None), planes_out, 1))


@pytest.mark.few(every=2)
@pytest.mark.parametrize("a", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("mult", [(1, -1), (-2, 2), (3, 3)], ids=str)
@pytest.mark.parametrize(
    "n, c, o, size, kernel, padding",
    [
        (1, 300, 33, (1, 1), (1, 1), 0),  # rows of a linear layer: alone, a few, and many
        (3, 17, 65, (1, 1), (1, 1), 0),
        (7, 100, 20, (1, 1), (1, 1), 0),
        (2, 17, 33, (7, 5), (3, 3), 1),
        (1, 64, 16, (9, 6), (1, 5), 2),
    ],
)
def test_two_planes_of_one_size(
    isa: str, a: int, mult: Pair, n: int, c: int, o: int, size: Pair, kernel: Pair, padding: int
) -> None:
    """Ternary weights: one plane adds what the other subtracts, or both add the same."""
    case = Case(a + c, n, c, o, size, kernel, a, 2, padding=padding, grid="codes", w_mult=mult)
    for threads in (1, 2):
        case.check(threads)


@pytest.mark.few(every=2)
@pytest.mark.parametrize(
    "a, q, grid", [(2, 1, "sign"), (2, 2, "codes"), (2, 2, "sign"), (1, 1, "codes"), (3, 1, "codes")]
)
@pytest.mark.parametrize(
    "c, o, groups", [(1, 1, 1), (20, 3, 1), (17, 33, 1), (64, 48, 1), (5, 64, 2), (33, 65, 1), (16, 30, 3)]
)
def test_three_levels(isa: str, c: int, o: int, groups: int, a: int, q: int, grid: str) -> None:
    """Codes of two bits, alone and beside floats, of sums that fit 16 bits."""
    case = Case(c + o, 2, c, o, (7, 5), (3, 3), a, q, padding=1, grid=grid)
    g, column = torch.Generator().manual_seed(o), (1, -1, 1, 1)
    spread = int(case.want.abs().max()) + 1
    thresholds = torch.randint(-spread, spread, (3, o), generator=g).sort(0).values
    thresholds[:, o // 2] = thresholds[1, o // 2]  # one step of three levels
    extremes = [-(2**31), -1, 2**31 - 1], [-32769, -32768, 32767], [-32768, 32767, 32768], [0, 32766, 70000]
    for i, extreme in enumerate(extremes[: o - 1]):
        thresholds[:, i] = torch.tensor(extreme)
    for flip in (None, torch.randint(0, 2, (o,), generator=g)):
        want = code_oracle(case.want, thresholds, flip)
        for threads, planes in ((1, 2), (2, 2), (1, 3)):
            got = case.plan.run(case.words, native.CodeOutput(thresholds, flip, planes, groups), threads=threads)
            assert torch.equal(got, words_oracle(want, planes, groups))
    scale, add = torch.randn(o, generator=g), torch.randn(o, generator=g)
    cuts, residual = torch.randn(3, o, generator=g).sort(0).values * spread / 3, torch.randn(2, o, 7, 5, generator=g)
    cuts[:, o // 2], cuts[2, 0] = cuts[0, o // 2], torch.inf
    residual[0, 0, 1], residual[1, -1, 2] = torch.nan, torch.inf
    for skip, relu in ((None, False), (residual, False), (residual, True)):
        y = case.want.float() * scale.view(column) + add.view(column) + (0 if skip is None else skip)
        y = torch.where(y < 0, 0.0, y) if relu else y
        found, words = case.plan.run(case.words, native.FloatOutput(scale, add, relu=relu, cuts=cuts), skip, 2)
        assert torch.equal(found.nan_to_num(7e9), y.nan_to_num(7e9))
        assert torch.equal(words, words_oracle((y >= cuts.view(3, *column)).sum(0), 2, 1))  # NaN reaches no level


@pytest.mark.parametrize("rows", [2, 4, 5, 9, 33])
@pytest.mark.parametrize("c, o", [(40, 17), (1000, 33)])
def test_rows_of_a_linear_layer(isa: str, rows: int, c: int, o: int) -> None:
    """Ways that pay for several rows: two at a time of one bit, weights that become bytes for many bits."""
    for a, q in ((1, 1), (1, 2), (3, 3), (8, 1), (8, 2)):
        Case(rows + c, rows, c, o, (1, 1), (1, 1), a=a, q=q).check()


# ---- convolution on bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("c", SIZES)
def test_conv_channels(isa: str, c: int) -> None:
    for o in SIZES:
        Case(c * o, 1, c, o, (4, 3), (3, 3), padding=1).check()
        Case(c * o, 2, c, o, (2, 2), (1, 1), grid="any").check()


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (2, 2), (3, 3), (5, 2), (4, 5), (5, 5)])
def test_conv_geometry(isa: str, kernel: tuple[int, int]) -> None:
    done = 0
    for h, w, stride, padding, dilation in itertools.product((1, 2, 5, 9), (1, 4, 7), (1, 2, 3), (0, 1, 2), (1, 2)):
        room = [n + 2 * padding - dilation * (k - 1) for n, k in zip((h, w), kernel, strict=True)]
        if min(room) < 1:
            continue
        grid = "sign" if done % 2 else "any"
        Case(done, 2, 33, 18, (h, w), kernel, 1 + done % 2, 1, stride, padding, dilation, 1, grid).check()
        done += 1
    assert done > 20


def test_conv_unequal_sides(isa: str) -> None:
    Case(1, 2, 40, 20, (9, 8), (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)).check()
    Case(2, 2, 40, 20, (9, 8), (2, 3), 2, 2, stride=(1, 3), padding=(0, 1), dilation=(2, 1), grid="any").check()
    Case(3, 3, 64, 20, (4, 4), (4, 4)).check()  # linear after flatten: the kernel is the whole map


@pytest.mark.parametrize("groups, c, o", [(2, 6, 4), (2, 128, 64), (3, 99, 96), (33, 33, 66), (64, 64, 64)])
def test_conv_groups(isa: str, groups: int, c: int, o: int) -> None:
    for grid in ("sign", "any"):
        Case(c, 2, c, o, (5, 4), (3, 3), 2, 2, padding=1, stride=2, groups=groups, grid=grid).check()


@pytest.mark.parametrize("planes", range(1, 9))
def test_conv_planes(isa: str, planes: int) -> None:
    for q in range(1, 9):
        for grid in ("sign", "any"):
            Case(planes * q, 1, 35, 17, (3, 3), (2, 2), planes, q, padding=1, grid=grid).check()


def test_conv_many_pixels_and_threads(isa: str) -> None:
    for n, size, o in [(1, (14, 14), 64), (7, (7, 7), 80), (64, (1, 1), 128), (3, (40, 31), 48)]:
        case = Case(n, n, 64, o, size, (3, 3), padding=1)
        case.check(1)
        case.check(2)
        case.check(5)


def test_conv_batch_zero_and_changing_sizes(isa: str) -> None:
    case = Case(0, 2, 32, 8, (5, 5), (3, 3), padding=1)
    case.check()
    empty = run_int(case.plan, case.words[:0])
    assert empty.shape == (0, 8, 5, 5)
    assert torch.equal(run_int(case.plan, case.words[:1].contiguous()).long(), case.want[:1])
    case.check()


LINES: list[tuple[int, int, int, tuple[int, int], tuple[int, int], dict[str, Any]]] = [
    (
        3,
        64,
        33,
        (9, 8),
        (3, 3),
        {"padding": 1},
    ),  # a narrow map: whole images, with positions that are dropped
    (2, 96, 40, (30, 33), (3, 3), {"padding": 1}),  # rows of 33; an odd number of words per run
    (2, 32, 16, (33, 30), (3, 3), {"padding": 1, "stride": 2}),
    (2, 130, 20, (7, 50), (3, 1), {"stride": (1, 2), "dilation": (2, 1)}),
    (5, 64, 17, (6, 5), (1, 1), {}),  # the batch is one line
    (70, 256, 48, (1, 1), (1, 1), {}),  # a linear layer
    (3, 64, 20, (40, 1), (3, 1), {"padding": (1, 0)}),  # one column
    (40, 33, 70, (4, 4), (4, 4), {}),  # linear after flatten
    (2, 512, 64, (12, 12), (3, 3), {"padding": 1}),  # long sums
]


@pytest.mark.parametrize("a, q, grid", [(1, 1, "sign"), (2, 1, "sign"), (3, 2, "sign"), (1, 2, "any")])
@pytest.mark.parametrize("n, c, o, size, kernel, place", LINES)
def test_conv_tiles(isa: str, n, c, o, size, kernel, place, a: int, q: int, grid: str) -> None:
    """Every way the AMX kernels cut pixels into tiles."""
    case = Case(7, n, c, o, size, kernel, a, q, grid=grid, **place)
    for threads in (1, 2):
        case.check(threads)
    plan, x, want = byte_case(7, n, c, o, size, kernel, 127, **place)
    for threads in (1, 2):
        assert torch.equal(run_int(plan, x, threads).long(), want)


@pytest.mark.slow
def test_kernel_choice_does_not_change_results() -> None:
    """Without BITWRIGHT_AMX=always the table chooses by cost: below and above the limit, the same integers."""
    code = """
import torch
from bitwright.engine import native as n
for size in (2, 5, 12, 40):
    w, x = torch.randint(0, 2, (1, 64, 64, 3, 3)), torch.randn(1, 64, size, size)
    sums = []
    for isa in n.isas():
        n.force_isa(isa)
        plan = n.ConvPlan.bits(w, w_mult=[2], w_zero=-1, x_mult=[2], x_zero=-1, padding=1)
        codes = (x >= 0).permute(0, 2, 3, 1).to(torch.uint8).contiguous()
        sums.append(plan.run(n.to_words(codes, 1), n.KernelOutput()))
    print(all(torch.equal(s, sums[0]) for s in sums))
for c, size, dilation in ((256, 1, 1), (64, 3, 1), (64, 5, 2), (48, 3, 1)):  # bytes, one pixel
    kernel = min(size, 3)
    w, x = torch.randint(-127, 128, (40, c, kernel, kernel)), torch.randint(0, 256, (1, size, size, c))
    sums = []
    for isa in n.isas():
        n.force_isa(isa)
        sums.append(n.ConvPlan.bytes(w, dilation=dilation).run(x.to(torch.uint8), n.KernelOutput()))
    print(all(torch.equal(s, sums[0]) for s in sums))
"""
    env = {k: v for k, v in os.environ.items() if k != "BITWRIGHT_AMX"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 8


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_conv_property(data: st.DataObject) -> None:
    pick = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    native.force_isa(data.draw(st.sampled_from(ISAS)))
    try:
        kernel, dilation, padding = (
            (pick(1, 4), pick(1, 4)),
            (pick(1, 2), pick(1, 2)),
            (pick(0, 2), pick(0, 2)),
        )
        size = tuple(
            max(1, d * (k - 1) + 1 - 2 * p) + pick(0, 5) for k, d, p in zip(kernel, dilation, padding, strict=True)
        )
        groups = pick(1, 3)
        Case(
            pick(0, 999), pick(0, 3), groups * pick(1, 40), groups * pick(1, 40), size, kernel,
            pick(1, 3), pick(1, 3), (pick(1, 3), pick(1, 3)), padding, dilation, groups,
            data.draw(st.sampled_from(("sign", "any"))),
        ).check(pick(1, 3))  # fmt: skip
    finally:
        native.force_isa("")


# ---- convolution on bytes --------------------------------------------------------------------------------


def byte_case(
    seed: int, n: int, c: int, o: int, size, kernel, limit=255, groups: Any = 1, x_zero: Any = 0, **place: Any
):
    g = torch.Generator().manual_seed(seed)
    code = torch.randint(0, 256, (n, c, *size), generator=g)
    w = torch.randint(-limit, limit + 1, (o, c // groups, *kernel), generator=g)
    w.view(-1)[:1] = limit
    code.view(-1)[:1] = 255
    plan = native.ConvPlan.bytes(w, x_zero=x_zero, groups=groups, **place)
    zero = x_zero if isinstance(x_zero, int) else x_zero.view(1, -1, 1, 1)
    args = (place.get("stride", 1), place.get("padding", 0), place.get("dilation", 1), groups)
    return (
        plan,
        code.permute(0, 2, 3, 1).contiguous().to(torch.uint8),
        conv_oracle(code + zero, w, *args),
    )


@pytest.mark.parametrize("limit", [1, 127, 255])
@pytest.mark.parametrize("c", [1, 2, 3, 4, 16, 33])
def test_bytes_conv(isa: str, c: int, limit: int) -> None:
    place: dict[str, Any]
    for seed, (o, size, kernel, place) in enumerate(
        [
            (1, (1, 1), (1, 1), {}),
            (17, (5, 4), (3, 3), {"padding": 1}),
            (64, (9, 9), (5, 2), {"stride": (2, 3), "padding": (2, 1)}),
            (33, (9, 7), (3, 3), {"dilation": 2, "padding": (0, 2), "x_zero": -128}),
            (70, (7, 7), (7, 7), {"x_zero": torch.arange(c) - 1}),
            (31, (8, 8), (2, 4), {"dilation": (1, 2)}),
        ]
    ):
        plan, x, want = byte_case(seed, 2, c, o, size, kernel, limit, **place)
        for threads in (1, 3):
            assert torch.equal(run_int(plan, x, threads).long(), want)


def test_bytes_conv_groups(isa: str) -> None:
    for groups, c, o in [(2, 6, 4), (16, 16, 16), (5, 35, 20)]:
        plan, x, want = byte_case(c, 2, c, o, (6, 5), (3, 3), groups=groups, padding=1, x_zero=-7)
        assert torch.equal(run_int(plan, x).long(), want)


# ---- outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("o", [1, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100])
def test_float_output(isa: str, o: int) -> None:
    case = Case(o, 2, 64, o, (5, 5), (3, 3), padding=1)
    g = torch.Generator().manual_seed(o)
    scale, add = torch.randn(o, generator=g), torch.randn(o, generator=g)
    scale[0] = float("nan") if o > 1 else 0.3
    add[-1] = -0.0
    residual = torch.randn(2, o, 5, 5, generator=g)
    output = native.FloatOutput(scale, add, cuts=torch.zeros(scale.numel()))
    column = (1, -1, 1, 1)
    product = case.want.float() * scale.view(column)  # rounded to float32 here,
    plain = product + add.view(column)  # and here: no fused multiply-add
    for skip in (None, residual, residual.to(memory_format=torch.channels_last)):
        want = plain if skip is None else plain + skip
        y, signs = case.plan.run(case.words, output, skip, threads=2)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y.nan_to_num(7e9), want.nan_to_num(7e9))
        assert torch.equal(signs, words_oracle((want >= 0).long(), 1, 1))
    assert torch.equal(case.plan.run(case.words, native.FloatOutput(scale, add)).nan_to_num(7e9), plain.nan_to_num(7e9))


GRIDS = [
    EvenGrid(0.37, "divide", 3, 0, 7),
    EvenGrid(2.7, "multiply", -2, 1, 15),
    EvenGrid(0.05, "divide", 127, 127, 254),
    EvenGrid(-1.5, "step", 0, 2, 3),
]


def grid_oracle(y: torch.Tensor, grid: EvenGrid) -> torch.Tensor:
    """One number after another, in Python."""

    def code(v: float) -> int:
        if v != v:
            return 0
        if grid.kind == "step":
            return grid.high if v >= grid.value else grid.low
        a, b = torch.tensor(v), torch.tensor(grid.value)
        place = float(a / b if grid.kind == "divide" else a * b)
        return max(grid.low, min(grid.high, round(max(-1e6, min(1e6, place))) + grid.base))

    return torch.tensor([code(v) for v in y.flatten().tolist()]).reshape(y.shape)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("o", [1, 16, 33, 70])
def test_outputs_by_an_even_ladder(isa: str, o: int, grid: EvenGrid) -> None:
    """Codes beside the clipped floats, codes alone, and codes of packed floats."""
    case = Case(o, 2, 64, o, (4, 5), (3, 3), padding=1)
    g = torch.Generator().manual_seed(o)
    scale, add, skip = (
        torch.randn(o, generator=g) / 9,
        torch.randn(o, generator=g),
        torch.randn(2, o, 4, 5, generator=g),
    )
    add[-1] = float("nan") if o > 1 else 0.0
    column = (1, -1, 1, 1)
    plain = case.want.float() * scale.view(column) + add.view(column)
    for relu in (False, True):
        want = plain + skip
        want = torch.where(want < 0, torch.zeros_like(want), want) if relu else want
        output = native.FloatOutput(scale, add, relu=relu, grid=grid)
        for threads in (1, 2):
            y, codes = case.plan.run(case.words, output, skip, threads)
            assert torch.equal(y.nan_to_num(7e9), want.nan_to_num(7e9))
            assert torch.equal(codes.long(), grid_oracle(want, grid).permute(0, 2, 3, 1))
    alone = case.plan.run(case.words, native.GridOutput(scale, add, grid))
    assert torch.equal(alone.long(), grid_oracle(plain, grid).permute(0, 2, 3, 1))
    if grid.low == 0:  # thresholds that say the same, for the kernels that read them
        ladder = even_ladder(grid)
        packed = pack_codes(plain, ladder, bytes=True, grid=grid)
        assert torch.equal(packed.long(), grid_oracle(plain, grid).permute(0, 2, 3, 1))
        assert torch.equal(packed, pack_codes(plain, ladder, bytes=True))


def even_ladder(grid: EvenGrid) -> torch.Tensor:
    """The smallest float of each code, by bisection of the oracle."""
    found, _ = float_thresholds(lambda x: grid_oracle(x, grid), grid.high, 1)
    return found[0]


@pytest.mark.parametrize("o", [1, 16, 33, 70])
def test_one_bit_beside_the_floats(isa: str, o: int) -> None:
    case = Case(o, 2, 64, o, (4, 5), (3, 3), padding=1)
    g = torch.Generator().manual_seed(o)
    scale, add = torch.randn(o, generator=g), torch.randn(o, generator=g)
    cuts, flip = torch.randn(o, generator=g) * 9, torch.randint(0, 2, (o,), generator=g)
    y = case.want.float() * scale.view(1, -1, 1, 1) + add.view(1, -1, 1, 1)
    bit = (y >= cuts.view(1, -1, 1, 1)).long() ^ flip.view(1, -1, 1, 1)
    as_words = case.plan.run(case.words, native.FloatOutput(scale, add, cuts=cuts, flip=flip))
    as_bytes = case.plan.run(case.words, native.FloatOutput(scale, add, cuts=cuts, flip=flip, bytes=True))
    assert torch.equal(as_words[0], y) and torch.equal(as_bytes[0], y)
    assert torch.equal(as_words[1], words_oracle(bit, 1, 1))
    assert torch.equal(as_bytes[1].long(), bit.permute(0, 2, 3, 1))


@pytest.mark.parametrize("levels", [2, 3, 7])
@pytest.mark.parametrize("o", [1, 16, 33, 64, 112, 130])
def test_codes_of_a_ladder_beside_the_floats(isa: str, o: int, levels: int) -> None:
    g = torch.Generator().manual_seed(o)
    bits, column = Case(o, 2, 64, o, (4, 5), (3, 3), padding=1), (1, -1, 1, 1)
    codes = torch.randint(0, 256, (2, 4, 5, 6), generator=g, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (o, 6, 3, 3), generator=g)
    scale, add = torch.randn(o, generator=g) / 99, torch.randn(o, generator=g)
    scale[0] = float("nan") if o > 1 else 0.3
    cuts, residual = torch.randn(levels, o, generator=g).sort(0).values, torch.randn(2, o, 4, 5, generator=g)
    for plan, x, want in (
        (bits.plan, bits.words, bits.want),
        (native.ConvPlan.bytes(weight, padding=1), codes, conv_oracle(codes.permute(0, 3, 1, 2), weight, 1, 1, 1, 1)),
    ):
        for skip in (None, residual):
            y = want.float() * scale.view(column) + add.view(column) + (0 if skip is None else skip)
            code = (y >= cuts.view(levels, *column)).sum(0)  # NaN reaches no level
            found, words = plan.run(x, native.FloatOutput(scale, add, cuts=cuts), skip, 2)
            assert torch.equal(found.nan_to_num(7e9), y.nan_to_num(7e9))
            assert torch.equal(words, words_oracle(code, levels.bit_length(), 1))


@pytest.mark.few(every=3)
@pytest.mark.parametrize("c", [31, 32, 65, 130])
@pytest.mark.parametrize("o", [15, 16, 33, 130])
@pytest.mark.parametrize("bits", [1, 4, 6])
def test_small_codes_and_weights(isa: str, c: int, o: int, bits: int) -> None:
    """3x3 convolutions that a kernel may do in fewer products: odd and even sizes, borders, the largest codes and weights."""
    g = torch.Generator().manual_seed(c * o + bits)
    most = 14
    for size, padding, n in (((7, 6), 1, 2), ((3, 3), 0, 1), ((6, 17), 2, 1), ((1, 1), 1, 3), ((16, 18), 1, 1)):
        code = torch.randint(0, 2**bits, (n, *size, c), generator=g, dtype=torch.uint8)
        weight = torch.randint(-most, most + 1, (o, c, 3, 3), generator=g)
        if bits == 6:  # sums as far out as they come
            code, weight = torch.where(code > 20, 63, 0).to(torch.uint8), torch.where(weight > 0, most, -most)
            weight[: o // 2] = most
        plan = native.ConvPlan.bytes(weight, x_bits=bits, x_zero=-1, padding=padding)
        x = code.permute(0, 3, 1, 2).long() - 1
        want = conv_oracle(x, weight, 1, padding, 1, 1)
        for threads in (1, 3):
            assert torch.equal(run_int(plan, code, threads).long(), want)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 4, 2), (1, 1, 0)])
@pytest.mark.parametrize("o, size", [(1, (6, 5)), (30, (9, 8)), (41, (8, 6)), (112, (12, 7))])  # 1 to 4 blocks of 16
def test_floats_that_are_pooled(
    isa: str, o: int, size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    """Pooled floats, and codes of these beside them, of bytes (which pool row by row) and of bits."""
    g = torch.Generator().manual_seed(o + kernel)
    codes = torch.randint(0, 256, (2, *size, 5), generator=g, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (o, 5, 3, 3), generator=g)
    plan = native.ConvPlan.bytes(weight, padding=1)
    scale, add = torch.randn(o, generator=g) / 99, torch.randn(o, generator=g)
    column = (1, -1, 1, 1)
    plain = conv_oracle(codes.permute(0, 3, 1, 2), weight, 1, 1, 1, 1).float() * scale.view(column) + add.view(column)
    grid, pool = EvenGrid(0.05, "divide", 3, 0, 200), (kernel, stride, padding)
    cuts, flip = torch.randn(o, generator=g), torch.randint(0, 2, (o,), generator=g)
    for threads in (1, 3):
        for relu in (False, True):
            clipped = plain.relu() if relu else plain
            want = torch.nn.functional.max_pool2d(clipped, kernel, stride, padding)
            y = plan.run(codes, native.FloatOutput(scale, add, pool=pool, relu=relu), None, threads)
            assert torch.equal(y, want)
            y, found = plan.run(codes, native.FloatOutput(scale, add, pool=pool, relu=relu, grid=grid), None, threads)
            assert torch.equal(y, want)
            assert torch.equal(found.long(), grid_oracle(want, grid).permute(0, 2, 3, 1))
        want = torch.nn.functional.max_pool2d(plain, kernel, stride, padding)
        bit = (want >= cuts.view(column)).long() ^ flip.view(column)
        as_words = plan.run(codes, native.FloatOutput(scale, add, pool=pool, cuts=cuts, flip=flip), None, threads)
        as_bytes = plan.run(
            codes, native.FloatOutput(scale, add, pool=pool, cuts=cuts, flip=flip, bytes=True), None, threads
        )
        assert torch.equal(as_words[0], want) and torch.equal(as_bytes[0], want)
        assert torch.equal(as_words[1], words_oracle(bit, 1, 1))
        assert torch.equal(as_bytes[1].long(), bit.permute(0, 2, 3, 1))
    case = Case(o, 2, 40, o, size, (3, 3), padding=1)
    want = torch.nn.functional.max_pool2d(
        case.want.float() * scale.view(column) + add.view(column), kernel, stride, padding
    )
    assert torch.equal(case.plan.run(case.words, native.FloatOutput(scale, add, pool=pool)), want)


@pytest.mark.few()
@pytest.mark.parametrize("values", [(1,), (-1, 1), (-255, 3, 1, -1)], ids=["on", "signs", "any"])
@pytest.mark.parametrize(
    ("c", "o", "size", "kernel", "stride", "padding"),
    [(1000, 37, (1, 1), (1, 1), 1, 0), (40, 19, (5, 6), (5, 6), 1, 0), (70, 16, (9, 8), (3, 3), 2, 1), (300, 3, (4, 3), (1, 1), 2, 0)],
    ids=["linear", "whole map", "padded", "strided"],
)  # fmt: skip
def test_lists_of_the_few_weights_that_are_not_zero(
    isa: str, c: int, o: int, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, values: tuple[int, ...]
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(c)
    weight = torch.zeros(o, c, *kernel, dtype=torch.int64)
    for at in torch.randperm(weight.numel(), generator=g)[: weight.numel() // 257].tolist():
        weight.view(-1)[at] = values[at % len(values)]
    table = torch.randint(-30, 30, (1, o), generator=g, dtype=torch.int32)
    flip, scale, add = torch.randint(0, 2, (o,), generator=g), torch.rand(o, generator=g), torch.randn(o, generator=g)
    for x_bits, zero in ((1, -1), (8, 7)):
        plan = native.ConvPlan.bytes(weight, x_bits=x_bits, x_zero=zero, stride=stride, padding=padding)
        for n in (0, 1, 3, 5, 16, 17, 49, 70):
            codes = torch.randint(0, 2**x_bits, (n, *size, c), generator=g, dtype=torch.uint8)
            inputs = (codes.long() + zero).permute(0, 3, 1, 2)
            want = conv_oracle(inputs, weight, stride, padding, 1, 1)
            assert torch.equal(run_int(plan, codes, 1).long(), want)
            y = plan.run(codes, native.FloatOutput(scale, add), None, 2)
            assert torch.equal(y, want.float() * scale.view(-1, 1, 1) + add.view(-1, 1, 1))
            bit = (want >= table.view(-1, 1, 1)).long() ^ flip.view(-1, 1, 1)
            for as_bytes in (False, True):
                got = plan.run(codes, native.CodeOutput(table, flip, bytes=as_bytes), None, 2)
                assert torch.equal(got.long(), bit.permute(0, 2, 3, 1) if as_bytes else words_oracle(bit, 1, 1).long())


@pytest.mark.few()
@pytest.mark.parametrize("mult", [(1, 1), (3, 2), (2, -1)], ids=["ones", "multiples", "negative"])
@pytest.mark.parametrize(("c", "o", "size"), [(1000, 37, (1, 1)), (33, 130, (1, 1)), (40, 19, (5, 6)), (70, 1, (1, 1))],
                         ids=["linear", "wide", "whole map", "one output"])  # fmt: skip
def test_slices_of_bits_of_many_pixels(isa: str, c: int, o: int, size: tuple[int, int], mult: tuple[int, int]) -> None:
    """Mostly zero one-bit weights: the same integers, codes and floats for any number of pixels, in lists or dense."""
    g = torch.Generator().manual_seed(c)
    weight = (torch.rand(1, o, c, *size, generator=g) < 0.08).to(torch.uint8)
    weight[:, :: max(2, o // 3)] = 0  # outputs that read nothing, and one that reads a lot
    weight[0, -1].view(-1)[: weight[0].numel() // 40] = 1
    x_mult, w_mult = mult
    whole = weight[0].long() * w_mult
    plan = native.ConvPlan.bits(
        weight, w_mult=[w_mult], w_zero=0, x_mult=[x_mult], x_zero=-1, shift=torch.arange(o) - 2
    )
    table = torch.randint(-3, 12, (1, o), generator=g, dtype=torch.int32)
    flip, scale, add = torch.randint(0, 2, (o,), generator=g), torch.rand(o, generator=g), torch.randn(o, generator=g)
    for n in (0, 1, 15, 16, 63, 64, 65, 128, 200, 257, 512, 515, 700):
        codes = torch.randint(0, 2, (n, *size, c), generator=g, dtype=torch.uint8)
        words = native.to_words(codes, 1)
        want = conv_oracle((codes.long() * x_mult - 1).permute(0, 3, 1, 2), whole, 1, 0, 1, 1) + (
            torch.arange(o) - 2
        ).view(-1, 1, 1)
        assert torch.equal(run_int(plan, words, 1).long(), want)
        y = plan.run(words, native.FloatOutput(scale, add), None, 2)
        assert torch.equal(y, want.float() * scale.view(-1, 1, 1) + add.view(-1, 1, 1))
        bit = (want >= table.view(-1, 1, 1)).long() ^ flip.view(-1, 1, 1)
        for as_bytes in (False, True):
            for threads in (1, 3):
                got = plan.run(words, native.CodeOutput(table, flip, bytes=as_bytes), None, threads)
                assert torch.equal(got.long(), bit.permute(0, 2, 3, 1) if as_bytes else words_oracle(bit, 1, 1).long())


@pytest.mark.parametrize("bits", [4, 8])
def test_pooled_floats_in_a_list_of_steps(isa: str, bits: int) -> None:
    """A layer reads the codes beside pooled floats inside one call: memory is laid out by the pooled size."""
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (2, 9, 8, 40), generator=g, dtype=torch.uint8)
    first, second = (torch.randint(-9, 10, (o, c, 3, 3), generator=g) for o, c in ((48, 40), (5, 48)))
    grid, scale, add = EvenGrid(0.5, "divide", 3, 0, 2**bits - 1), torch.full((48,), 0.01), torch.randn(48, generator=g)
    plans = [native.ConvPlan.bytes(w, x_bits=bits, padding=1) for w in (first, second)]
    pooled = native.FloatOutput(scale, add, pool=(3, 2, 1), grid=grid)
    plain = native.FloatOutput(torch.ones(5), torch.zeros(5))
    program = Program({"x": Laid((2, 9, 8, 40), torch.uint8)})
    for plan, output, source, name, size in zip(plans, (pooled, plain), "xc", "yz", ((9, 8), (5, 4)), strict=True):
        call = plan.call(2, *size)
        image = 2, *size, plan.out_channels
        writes = {"out": (name, Laid(*output.made(*image)))}
        if output.extra:
            writes["extra"] = ("c", Laid(*output.beside(*image)))
        program.add("conv_bytes", call.struct, {"x": source}, writes, weights=plan.weights, output=output.address)
    shapes = {"y": [48, 5, 4], "z": [5, 5, 4]}
    program.finish({name: Node("coded_conv", name, [], {"shape": shape}) for name, shape in shapes.items()})
    sums = conv_oracle(codes.permute(0, 3, 1, 2), first, 1, 1, 1, 1)
    y = F.max_pool2d(sums.float() * 0.01 + add.view(1, -1, 1, 1), 3, 2, 1)
    z = conv_oracle(grid_oracle(y, grid), second, 1, 1, 1, 1).float()
    for threads in (1, 3):
        env: dict[str, torch.Tensor] = {}
        program.run(env, [codes], threads)
        assert torch.equal(env["y"], y) and torch.equal(env["z"], z)


@pytest.mark.parametrize("value", [0.37, 0.0123, 1 / 255, 3.1e-5, 911.0])
def test_quotients_at_their_thresholds(isa: str, value: float) -> None:
    """The form of a division without one gives the right code on both sides of every change, and far outside."""
    grid = EvenGrid(float(torch.tensor(value)), "divide", 3, 0, 255)
    ladder = even_ladder(grid)
    y = torch.cat([ladder, torch.nextafter(ladder, torch.tensor(-torch.inf)), torch.tensor([-3e38, 3e38, -0.0])])
    y = y[None, :, None, None]
    packed = pack_codes(y, ladder, bytes=True, grid=grid)
    assert torch.equal(packed.long(), grid_oracle(y, grid).permute(0, 2, 3, 1))


@pytest.mark.few(every=3)
@pytest.mark.parametrize("levels, planes", [(1, 1), (1, 3), (2, 2), (3, 2), (7, 3), (15, 4), (31, 5), (255, 8)])
@pytest.mark.parametrize("o, groups", [(1, 1), (16, 1), (33, 1), (48, 1), (64, 2), (64, 1), (30, 3), (70, 2)])
def test_code_output(isa: str, levels: int, planes: int, o: int, groups: int) -> None:
    case = Case(o, 2, 64, o, (4, 5), (3, 3), padding=1)
    g = torch.Generator().manual_seed(levels)
    thresholds = torch.randint(-40, 40, (levels, o), generator=g).sort(0).values
    thresholds[0, -1], thresholds[-1, 0] = -(2**31), 2**31 - 1  # always, never
    for flip in (None, torch.randint(0, 2, (o,), generator=g)):
        want = code_oracle(case.want, thresholds, flip)
        for threads in (1, 2):
            as_words = native.CodeOutput(thresholds, flip, planes, groups)
            assert torch.equal(case.plan.run(case.words, as_words, threads=threads), words_oracle(want, planes, groups))
        as_bytes = native.CodeOutput(thresholds, flip, bytes=True)
        assert torch.equal(case.plan.run(case.words, as_bytes).long(), want.permute(0, 2, 3, 1))


@pytest.mark.parametrize("o", [16, 48, 70])
def test_codes_of_long_sums(isa: str, o: int) -> None:
    """Weights that outgrow the first cache are taken in other tiles."""
    case = Case(o, 1, 512, o, (5, 5), (3, 3), padding=1)
    g = torch.Generator().manual_seed(o)
    for levels, planes in ((1, 1), (3, 2)):
        thresholds = torch.randint(-90, 90, (levels, o), generator=g).sort(0).values
        flip = torch.randint(0, 2, (o,), generator=g)
        want = words_oracle(code_oracle(case.want, thresholds, flip), planes, 1)
        assert torch.equal(case.plan.run(case.words, native.CodeOutput(thresholds, flip, planes)), want)


@pytest.mark.parametrize("levels", [32, 100, 255])
def test_many_levels(isa: str, levels: int) -> None:
    """Ladders the guess hits, just misses and misses by far; ties on every level."""
    o = 35
    case = Case(levels, 1, 64, o, (9, 9), (3, 3), padding=1)
    step = torch.arange(levels)[:, None]
    outlier = (step * 3 - 200).expand(levels, o).clone()
    outlier[0], outlier[-1] = -(2**31), 2**31 - 1
    for thresholds in (
        (step * 2 - levels).expand(levels, o),
        (step.double() * 1.7 - 130 + torch.arange(o) / 9).floor().long(),
        (step.double() ** 3 / levels**2 - 60).long().expand(levels, o),
        torch.zeros(levels, o, dtype=torch.long),
        torch.full((levels, o), 2**31 - 1),
        outlier,
    ):
        for flip in (None, torch.arange(o) % 2):
            want = code_oracle(case.want, thresholds, flip)
            got = case.plan.run(case.words, native.CodeOutput(thresholds, flip, bytes=True))
            assert torch.equal(got.long(), want.permute(0, 2, 3, 1))


def test_bytes_conv_outputs(isa: str) -> None:
    plan, x, values = byte_case(3, 2, 3, 40, (6, 6), (3, 3), padding=1)
    thresholds = torch.tensor([[-20000], [0], [20000]]).expand(3, 40)
    assert torch.equal(
        plan.run(x, native.CodeOutput(thresholds, planes=2)), words_oracle(code_oracle(values, thresholds, None), 2, 1)
    )
    y = plan.run(x, native.FloatOutput(torch.full((40,), 0.1), torch.zeros(40)))
    assert torch.equal(y, values.float() * torch.tensor(0.1))


# ---- packing ---------------------------------------------------------------------------------------------


def special(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random floats with zeros of both signs, infinities, NaN and exact ties."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 0.5, -0.5, 1e-45, -1e-45, 3e38, -3e38])
    where = torch.rand(shape, generator=g) < 0.4
    return torch.where(where, odd[torch.randint(0, len(odd), shape, generator=g)], x)


@pytest.mark.few(every=4)
@pytest.mark.parametrize("levels, planes", [(1, 1), (1, 2), (3, 2), (5, 3), (15, 4), (16, 5), (255, 8)])
@pytest.mark.parametrize("c", [1, 3, 16, 31, 32, 33, 64, 96, 130])
def test_pack(isa: str, c: int, levels: int, planes: int) -> None:
    g = torch.Generator().manual_seed(c)
    x = special((2, c, 5, 7), c)
    for per_channel, flips in itertools.product((False, True), (False, True)):
        ladder = torch.randn((c, levels) if per_channel else (levels,), generator=g).sort(-1).values
        ladder[..., levels // 2] = 0.0
        ladder = ladder.sort(-1).values
        flip = torch.randint(0, 2, (c,), generator=g) if flips else None
        want = code_oracle(x, ladder.T if per_channel else ladder[:, None].expand(levels, c), flip)
        for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
            for groups in {1, 2 if c % 2 == 0 else 1, c}:
                got = pack_codes(given_x, ladder, planes, groups, flip)
                assert torch.equal(got, words_oracle(want, planes, groups))
            got = pack_codes(given_x, ladder, flip=flip, bytes=True)
            assert torch.equal(got.long(), want.permute(0, 2, 3, 1))


def test_pack_uniform_ladder(isa: str) -> None:
    """Codes of 8 bits from evenly spaced thresholds, which are guessed first: at every tie and beside it."""
    ladder = torch.linspace(-1.3, 2.1, 255)
    x = torch.cat(
        [ladder, torch.nextafter(ladder, ladder - 1), torch.nextafter(ladder, ladder + 1), special((999,), 1)]
    )
    want = (x[:, None] >= ladder).sum(1)
    assert torch.equal(pack_codes(x[None, :, None, None], ladder, bytes=True).flatten().long(), want)
    assert torch.equal(pack_codes(x[None, None, None, :], ladder, bytes=True).flatten().long(), want)
    steep = torch.tensor([-float("inf"), -1.0, 0.0, 1e-30, 1.0, float("inf")])
    assert torch.equal(pack_codes(x[:, None], steep, bytes=True).flatten().long(), (x[:, None] >= steep).sum(1))


def test_pack_shapes_and_types(isa: str) -> None:
    x = torch.randn(3, 40)
    zero = torch.zeros(1)
    want = words_oracle((x >= 0).long()[:, :, None, None], 1, 1)
    assert torch.equal(pack_codes(x, zero), want)
    assert torch.equal(
        pack_codes(x[:, :, None].expand(3, 40, 6), zero), want.expand(3, 1, 1, 1, 2).repeat(1, 1, 6, 1, 1)
    )
    assert torch.equal(pack_codes(x.t().contiguous().t(), zero), want)
    assert pack_codes(x[:0], zero).shape == (0, 1, 1, 1, 2)
    big = torch.randn(2, 70, 33, 40)
    assert torch.equal(pack_codes(big, zero, threads=1), pack_codes(big, zero, threads=4))


@pytest.mark.parametrize("planes, groups, c", [(1, 1, 1), (8, 1, 33), (3, 2, 66), (2, 5, 5)])
def test_words_round_trip(planes: int, groups: int, c: int) -> None:
    code = torch.randint(0, 2**planes, (2, c, 3, 4))
    packed = words_oracle(code, planes, groups)
    codes = code.permute(0, 2, 3, 1).contiguous().to(torch.uint8)
    assert torch.equal(native.unpack_codes(packed, c, groups), codes)
    assert torch.equal(native.to_words(codes, planes, groups), packed)


def test_word_layout_golden() -> None:
    """By hand: channel 33 of one group is bit 1 of word 1; of two groups of 17, bit 16 of word 1."""
    code = torch.zeros(1, 34, 1, 1, dtype=torch.long)
    code[0, 33] = 2
    assert words_oracle(code, 2, 1).flatten().tolist() == [0, 0, 0, 2]
    assert native.to_words(code.to(torch.uint8).view(1, 1, 1, 34), 2, 1).flatten().tolist() == [0, 0, 0, 2]
    assert native.to_words(code.to(torch.uint8).view(1, 1, 1, 34), 2, 2).flatten().tolist() == [
        0,
        0,
        0,
        1 << 16,
    ]


# ---- max pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes, channels", [(1, 37), (2, 37), (5, 37), (8, 37), (1, 128), (2, 128), (2, 256)])
def test_maxpool(isa: str, planes: int, channels: int) -> None:
    code = torch.randint(0, 2**planes, (2, channels, 9, 8))
    packed = native.to_words(code.permute(0, 2, 3, 1).contiguous().to(torch.uint8), planes)
    for kernel, stride, padding, dilation, ceil in [
        (2, None, 0, 1, False), (2, None, 0, 1, True), (3, 2, 1, 1, False), (3, 2, 1, 1, True),
        ((1, 2), (2, 1), 0, 2, False), (3, 1, 1, 2, False),
        ((3, 2), (3, 3), (1, 0), 1, True), (1, 1, 0, 1, False),
    ]:  # fmt: skip
        want = F.max_pool2d(code.double(), kernel, stride, padding, dilation, ceil).long()
        for threads in (1, 2):
            got = maxpool(packed, kernel, stride, padding, dilation, ceil, threads)
            assert torch.equal(native.unpack_codes(got, channels).permute(0, 3, 1, 2).long(), want)
        codes = code.permute(0, 2, 3, 1).contiguous().to(torch.uint8)
        assert torch.equal(maxpool(codes, kernel, stride, padding, dilation, ceil).long(), want.permute(0, 2, 3, 1))
    assert maxpool(packed[:0], 2).shape[0] == 0


# ---- errors ----------------------------------------------------------------------------------------------


def test_a_plan_refuses_pickle_and_copies() -> None:
    import copy
    import pickle

    plan = Case(0, 1, 8, 8, (3, 3), (1, 1)).plan
    with pytest.raises(TypeError, match="make it again"):
        pickle.dumps(plan)
    with pytest.raises(TypeError, match="memory laid out for this CPU"):
        copy.deepcopy(plan)


def test_errors() -> None:
    case = Case(0, 1, 40, 8, (3, 3), (3, 3))
    with pytest.raises(InputError, match=r"'sse9' is unknown.*portable"):
        native.force_isa("sse9")
    with pytest.raises(InputError, match=r"input must be \[N, H, W, 1, 2\]"):
        run_int(case.plan, case.words[..., :1].contiguous())
    with pytest.raises(InputError, match=r"contiguous torch\.int32"):
        run_int(case.plan, case.words.long())
    with pytest.raises(InputError, match="smaller than the 3x3 kernel"):
        run_int(case.plan, case.words[:, :2].contiguous())
    with pytest.raises(InputError, match=r"x_planes and w_planes must be 1\.\.8, got 9"):
        native.ConvPlan.bits(torch.ones(1, 1, 1, 1, 1), w_mult=[2], w_zero=-1, x_mult=[1] * 9)
    with pytest.raises(InputError, match="multiples of groups"):
        native.ConvPlan.bytes(torch.ones(3, 1, 1, 1), groups=2)
    with pytest.raises(InputError, match=r"-255\.\.255"):
        native.ConvPlan.bytes(torch.full((3, 1, 1, 1), 256))
    with pytest.raises(InputError, match="3 levels do not fit 1 planes"):
        case.plan.run(case.words, native.CodeOutput(torch.zeros(3, 8)))
    with pytest.raises(InputError, match="output is for 7 channels"):
        case.plan.run(case.words, native.CodeOutput(torch.zeros(1, 7)))
    with pytest.raises(InputError, match="out_groups"):
        case.plan.run(case.words, native.CodeOutput(torch.zeros(1, 8), groups=3))
    with pytest.raises(InputError, match="residual"):
        case.plan.run(case.words, native.FloatOutput(torch.ones(8), torch.ones(8)), torch.zeros(1))
    with pytest.raises(InputError, match="for 2 channels"):
        pack_codes(torch.zeros(1, 3), torch.zeros(2, 1))


def test_weights_of_another_instruction_set_are_an_error() -> None:
    if len(ISAS) < 2:
        pytest.skip(f"only one weight layout on this machine: {ISAS}")
    case = Case(0, 1, 40, 8, (3, 3), (3, 3))
    try:
        native.force_isa("portable")
        with pytest.raises(InputError, match="pack them again"):
            case.check()
    finally:
        native.force_isa("")
    case.check()


def test_null_pointers_are_errors() -> None:
    lib = native_library.library()
    for name, (_, types) in native_library.SIGNATURES.items():
        if native_library.POINTER not in types or name.endswith("_size"):
            continue
        arguments = [None if t is native_library.POINTER else 1 for t in types]
        assert getattr(lib, name)(*arguments) == 1, name
        assert b"null" in lib.bw_last_error()
    assert lib.bw_weights_size(None) == -1


@pytest.mark.few("portable-True")
@pytest.mark.parametrize("name, ok", [(isa, True) for isa in ISAS] + [("avx9000", False)])
def test_environment_forces_the_instruction_set(name: str, ok: bool) -> None:
    code = "from bitwright.engine import native as n; print(n.isa() if n.available() else n.notice())"
    env = {**os.environ, "BITWRIGHT_ISA": name}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name if ok else "'avx9000' is unknown" in done.stdout


@pytest.mark.slow
def test_without_the_library_nothing_raises_at_import() -> None:
    code = "from bitwright.engine import native as n; print(n.available(), n.notice())"
    env = {**os.environ, "BITWRIGHT_LIBRARY": "/nonexistent/core.so"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False native core not found")
