"""First layers of byte codes in steps of 2, of which a kernel may take several pixels together: every instruction set of this machine
against slow integer arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import native
from bitwright.errors import InputError
from kernels import run_int

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")


def sums(x: Tensor, w: Tensor, stride: int, padding: int | tuple[int, int]) -> Tensor:
    """float64 is exact here."""
    return F.conv2d(x.permute(0, 3, 1, 2).double(), w.double(), None, stride, padding).long()


def weights(o: int, c: int, kernel: tuple[int, int], most: int, g: torch.Generator) -> Tensor:
    """Among them filters that reach the largest sums, and of what a kernel may make of the taps of a phase the largest numbers."""
    w = torch.randint(-most, most + 1, (o, c, *kernel), generator=g)
    w[0], w[1], w[2] = most, -most, torch.where(w[2] < 0, -most, most)
    rows, columns = (torch.tensor([1, -1, 1, -1])[torch.arange(k) // 2] for k in kernel)
    w[3], w[4] = most * rows.view(-1, 1) * columns, -most * columns
    return w


SIZES = (((23, 38), 3, 1), ((8, 9), (0, 9), 3), ((40, 73), (2, 3), 1), ((1, 2), (4, 5), 2), ((112, 20), 1, 1))


@pytest.mark.few(every=3)
@pytest.mark.parametrize("kernel", [(5, 5), (6, 7), (7, 7), (8, 8), (7, 5), (8, 6)], ids=str)
@pytest.mark.parametrize("c", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("most", [7, 127, 255])
def test_sums(isa: str, c: int, kernel: tuple[int, int], most: int) -> None:
    g = torch.Generator().manual_seed(c * most)
    for o, (size, padding, n) in zip((64, 16, 33, 50, 15), SIZES, strict=True):
        w = weights(o, c, kernel, most, g)
        plan = native.ConvPlan.bytes(w, stride=2, padding=padding)
        for x in (torch.randint(0, 256, (n, *size, c), generator=g), torch.full((n, *size, c), 255)):
            want = sums(x, w, 2, padding)
            for threads in (1, 2):
                assert torch.equal(run_int(plan, x.to(torch.uint8), threads).long(), want)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("pool", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2), (1, 4, 0), (8, 1, 4)], ids=str)
@pytest.mark.parametrize("c, kernel", [(3, (7, 7)), (1, (8, 7)), (4, (5, 6))])
@pytest.mark.parametrize("o", [16, 33, 64, 75])
def test_sums_that_are_pooled(isa: str, o: int, c: int, kernel: tuple[int, int], pool: tuple[int, int, int]) -> None:
    """Floats, with bits beside them as words and as bytes."""
    g = torch.Generator().manual_seed(o * c)
    w, scale, add = weights(o, c, kernel, 127, g), torch.randn(o, generator=g) / 999, torch.randn(o, generator=g)
    cuts, flip, column = torch.randn(o, generator=g), torch.randint(0, 2, (o,), generator=g), (1, -1, 1, 1)
    for size, padding, n in (((24, 23), 3, 3), ((61, 130), (2, 3), 1)):
        x = torch.randint(0, 256, (n, *size, c), generator=g)
        plan = native.ConvPlan.bytes(w, x_zero=-1, stride=2, padding=padding)
        y = sums(x - 1, w, 2, padding).float() * scale.view(column) + add.view(column)
        for threads, relu, as_bytes in ((1, True, False), (2, False, True), (3, False, False)):
            want = F.max_pool2d(y.relu() if relu else y, *pool)
            output = native.FloatOutput(scale, add, pool=pool, relu=relu, cuts=cuts, flip=flip, bytes=as_bytes)
            found, beside = plan.run(x.to(torch.uint8), output, None, threads)
            assert torch.equal(found, want)
            bit = ((want >= cuts.view(column)).permute(0, 2, 3, 1) ^ flip.bool()).to(torch.uint8)
            assert torch.equal(beside, bit if as_bytes else native.to_words(bit, 1))


def test_weights_are_packed_for_a_stride(isa: str) -> None:
    g = torch.Generator().manual_seed(0)
    w, x = weights(20, 3, (7, 7), 127, g), torch.randint(0, 256, (1, 12, 13, 3), generator=g, dtype=torch.uint8)
    plan = native.ConvPlan.bytes(w, stride=2)
    plan.stride = (1, 1)
    plan.struct.stride_h = plan.struct.stride_w = 1
    if isa == "avx2":
        with pytest.raises(InputError, match="pack them again"):
            run_int(plan, x)
    else:
        assert torch.equal(run_int(plan, x).long(), sums(x, w, 1, 0))
