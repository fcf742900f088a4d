"""Layers that skip, every instruction set of this machine, against the masked dense result in int64 and float64.

The oracle computes base and rest of every output and knows nothing of shares that are cut, lists or strips. For floats it is given
the kernel's own base, that of the same layer with infinite thresholds, because the decision is that of the base as computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine import native
from bitwright.engine.native_output import CodeOutput, FloatOutput
from bitwright.engine.native_skip import ByteSkip, FloatSkip
from bitwright.engine.thresholds import EvenGrid
from bitwright.errors import InputError

os.environ.setdefault("BITWRIGHT_AMX", "always")

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
SIZES = (2, 3, 15, 16, 17, 31, 33, 64, 65)


def base_of(c: int, o: int, groups: int, splits: int, shared: bool) -> Tensor:
    """float64 [o, c / groups, 1, 1]: 1 where an output has an input in its base, written as the loops of the definition."""
    fan, outs = c // groups, o // groups
    mask = torch.zeros(o, fan, dtype=torch.float64)
    for output in range(o):
        share = 0 if shared else min(output % outs // (outs // splits), splits - 1)
        for i in range(fan):
            mask[output, i] = min(i // (fan // splits), splits - 1) == share
    return mask[:, :, None, None]


class Case:
    """One layer with random numbers: `layer(threshold)` makes it, `base` and `rest` are its sums in float64."""

    def __init__(
        self, kind: str, c: int, o: int, *, n: int = 2, size: tuple[int, int] = (5, 6), kernel: tuple[int, int] = (3, 3),
        splits: int = 2, shared: bool = False, low_bits: int = 0, most: int = 127, x_zero: Any = 0, groups: int = 1,
        **place: Any,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(1000 * c + o)
        self.kind, place = kind, {"groups": groups, **place}
        options: dict[str, Any] = {"low_bits": low_bits} if low_bits else {"splits": splits, "shared": shared}
        shape = o, c // groups, *kernel
        if kind == "floats":
            self.weight, self.x = torch.randn(shape, generator=g), torch.randn(n, c, *size, generator=g)
            self.bias, made = torch.randn(o, generator=g), FloatSkip
            x = self.x.double()
        else:
            self.weight = torch.randint(-most, most + 1, shape, generator=g)
            codes = torch.randint(0, 256, (n, c, *size), generator=g)
            self.x = codes.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
            self.bias, made = torch.randint(-99, 100, (o,), generator=g), ByteSkip
            options["x_zero"] = x_zero
            x = codes.double() + torch.as_tensor(x_zero).double().reshape(-1, 1, 1)
        self.layer: Callable[..., Any] = lambda threshold, **more: made(
            self.weight, threshold, bias=self.bias, **options, **place, **more
        )
        w, bias = self.weight.double(), self.bias.double()
        self.size = F.conv2d(x.abs(), w.abs(), bias.abs(), **place)
        if low_bits:
            high = torch.div(x, 2**low_bits, rounding_mode="floor") * 2**low_bits
            self.base, self.rest = F.conv2d(high, w, bias, **place), F.conv2d(x - high, w, **place)
        else:
            mask = base_of(c, o, groups, splits, shared)
            self.base, self.rest = F.conv2d(x, w * mask, bias, **place), F.conv2d(x, w * (1 - mask), **place)

    def threshold(self, share: float) -> Tensor:
        """With it about `share` of each channel's outputs are on. A value of the base: the output that has it is off."""
        values = self.base.transpose(0, 1).flatten(1).sort(1).values
        threshold = values[:, min(int((1 - share) * values.shape[1]), values.shape[1] - 1)]
        return threshold.float() if self.kind == "floats" else threshold.long()

    def run(self, threshold: Tensor, threads: int = 1, **more: Any) -> Tensor:
        layer = self.layer(threshold, **more)
        return layer.run(self.x, threads) if self.kind == "floats" else layer.run_int(self.x, threads)

    def check(self, share: float = 0.4, threads: int = 1) -> None:
        threshold = self.threshold(share)
        cut = threshold[:, None, None]
        got = self.run(threshold, threads)
        if self.kind == "bytes":
            assert got.dtype == torch.int32
            assert torch.equal(got.double(), self.base + (self.base > cut) * self.rest)
            return
        own = self.run(torch.full_like(threshold, math.inf))  # what the kernel decides by
        bound = 1e-6 * self.size  # of the products' magnitudes
        assert ((own.double() - self.base).abs() <= bound).all()
        assert ((got.double() - self.base - (own > cut) * self.rest).abs() <= bound).all()
        assert torch.equal(got[own <= cut], own[own <= cut])  # off: the base, to the bit


@pytest.mark.few()
@pytest.mark.parametrize("kind", ["floats", "bytes"])
@pytest.mark.parametrize("c", SIZES)
def test_channels(isa: str, kind: str, c: int) -> None:
    for o in SIZES:
        splits = min(c, o, 2 + (c + o) % 3)
        Case(kind, c, o, splits=splits, padding=1).check()
        Case(kind, c, o, splits=splits, kernel=(1, 1), shared=True).check()


@pytest.mark.few()
@pytest.mark.parametrize("c", (1, *SIZES))
def test_channels_of_high_and_low_bits(isa: str, c: int) -> None:
    for o in (1, 3, 16, 17, 65):
        Case("bytes", c, o, low_bits=1 + (c + o) % 7, padding=1).check()
        Case("bytes", c, o, low_bits=4, kernel=(1, 1), most=255).check()


@pytest.mark.parametrize("c, o", [(32, 16), (33, 17), (64, 65), (100, 48)])
def test_small_weights(isa: str, c: int, o: int) -> None:
    """AVX-512 takes Winograd's form for the high bits of 3x3 layers like these."""
    for low_bits, padding, size in ((2, 1, (5, 6)), (4, 0, (9, 4)), (7, 2, (1, 13))):
        Case("bytes", c, o, low_bits=low_bits, most=7, padding=padding, size=size).check()
    case = Case("bytes", c, o, low_bits=4, most=1, padding=1)
    threshold = case.threshold(0.3)
    assert torch.equal(case.run(threshold, threads=3), case.run(threshold))
    Case("bytes", c, o, low_bits=4, most=7, padding=1, stride=2).check()


@pytest.mark.parametrize("low_bits", [0, 4, 7])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("most", [1, 2, 16, 17, 127, 128, 255])
def test_the_largest_sums(isa: str, most: int, sign: int, low_bits: int) -> None:
    """Every code and every weight as large as can be: sums of 16 bits, where a kernel has them, hold exactly so many products."""
    weight = torch.full((20, 48, 3, 3), sign * most)
    x = torch.full((1, 5, 5, 48), 255, dtype=torch.uint8)
    options: dict[str, Any] = {"low_bits": low_bits} if low_bits else {"splits": 3}
    on = torch.full((20,), -(2**31), dtype=torch.int64)
    got = ByteSkip(weight, on, padding=1, **options).run_int(x)
    want = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), None, 1, 1)
    assert torch.equal(got.double(), want)


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_geometry(isa: str, kind: str) -> None:
    done = 0
    for kernel in ((1, 1), (1, 3), (2, 2), (3, 3), (5, 2)):
        for stride, padding, dilation in ((1, 0, 1), (1, 2, 1), (2, 1, 1), (3, 1, 2), (1, 1, 2), (2, 0, 1)):
            for size in ((5, 9), (9, 4)):
                if min(n + 2 * padding - dilation * (k - 1) for n, k in zip(size, kernel, strict=True)) < 1:
                    continue
                place: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
                shape: dict[str, Any] = {"size": size, "kernel": kernel, **place}
                Case(kind, 21, 18, splits=4, shared=bool(done % 2), **shape).check()
                if kind == "bytes":
                    Case(kind, 21, 18, low_bits=3, **shape).check()
                done += 1
    assert done > 20
    Case(kind, 12, 8, splits=3, size=(9, 8), kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)).check()


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_many_pixels_and_many_channels(isa: str, kind: str) -> None:
    Case(kind, 8, 8, n=1, size=(3, 300), splits=4, padding=1).check(0.2)  # a row is longer than a strip
    Case(kind, 16, 40, n=1, size=(40, 21), splits=4, padding=1).check(0.1)
    Case(kind, 300, 20, n=1, size=(3, 3), splits=3, padding=1).check()  # shares of several chunks
    Case(kind, 700, 33, n=3, size=(1, 1), kernel=(1, 1), splits=2, shared=True).check()
    if kind == "bytes":
        Case(kind, 400, 20, n=1, size=(3, 3), low_bits=4, padding=1, most=255).check()


@pytest.mark.parametrize("kind", ["floats", "bytes"])
@pytest.mark.parametrize("groups, c, o", [(2, 32, 64), (3, 21, 30), (4, 64, 32)])
def test_groups(isa: str, kind: str, groups: int, c: int, o: int) -> None:
    Case(kind, c, o, groups=groups, splits=2, padding=1).check()
    Case(kind, c, o, groups=groups, splits=3, shared=True, padding=1, stride=2).check()
    if kind == "bytes":
        Case(kind, c, o, groups=groups, low_bits=5, padding=1).check()


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_all_off_and_all_on(isa: str, kind: str) -> None:
    case = Case(kind, 16, 24, splits=4, padding=1)
    off, on = (math.inf, -math.inf) if kind == "floats" else (2**31 - 1, -(2**31))
    assert not torch.equal(case.base, case.base + case.rest)
    torch.testing.assert_close(case.run(torch.full((24,), off)).double(), case.base, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case.run(torch.full((24,), on)).double(), case.base + case.rest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "c, o, splits, shared", [(16, 16, 4, False), (24, 48, 2, True), (48, 96, 4, False), (64, 130, 2, False)]
)
def test_by_winograd(isa: str, c: int, o: int, splits: int, shared: bool) -> None:
    """Whole shares of 3x3 layers: the base is Winograd's; `dense`, so is the rest, and the decisions are the same to the bit."""
    for size, padding in (((5, 6), 1), ((9, 4), 0), ((1, 13), 2), ((30, 31), 1)):
        case = Case("floats", c, o, splits=splits, shared=shared, size=size, padding=padding)
        case.check()
        threshold = case.threshold(0.4)
        got, dense = case.run(threshold), case.run(threshold, dense=True)
        shut = case.run(torch.full_like(threshold, math.inf))
        assert torch.equal(case.run(torch.full_like(threshold, math.inf), dense=True), shut)
        assert torch.equal(dense[shut <= threshold[:, None, None]], shut[shut <= threshold[:, None, None]])
        assert ((got.double() - dense).abs() <= 1e-6 * case.size).all()
        assert torch.equal(case.run(threshold, threads=3, dense=True), dense)


def test_a_residual_is_added_in_front_of_the_relu(isa: str) -> None:
    for dense in (False, True):
        case = Case("floats", 16, 24, splits=2, padding=1)
        threshold, norms = case.threshold(0.4), {"scale": torch.rand(24), "add": torch.randn(24)}
        layer, residual = case.layer(threshold, relu=True, dense=dense, **norms), torch.randn(2, 24, 5, 6)
        plain = case.layer(threshold, dense=dense, **norms).run(case.x)
        assert torch.equal(layer.run(case.x, residual=residual), (plain + residual).relu())
    with pytest.raises(InputError, match="residual must be float32"):
        layer.run(case.x, residual=residual[:1])


def test_at_the_threshold_is_off(isa: str) -> None:
    weight = torch.tensor([[1.0, 10.0], [10.0, 1.0]])[:, :, None, None]
    x = torch.tensor([[2.0, 3.0]])[:, :, None, None]
    for threshold, want in (((2.0, 3.0), (2.0, 3.0)), ((1.9, 3.0), (32.0, 3.0)), ((2.0, 2.9), (2.0, 23.0))):
        assert FloatSkip(weight, torch.tensor(threshold), splits=2).run(x).flatten().tolist() == list(want)
        whole = torch.tensor(threshold).floor()  # 1.9 -> 1
        codes = x.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
        assert ByteSkip(weight, whole, splits=2).run_int(codes).flatten().tolist() == list(want)
    codes = torch.tensor([[[[23]]]], dtype=torch.uint8)  # 16 + 7
    for threshold, want in ((47, 69), (48, 48)):
        layer = ByteSkip(torch.tensor([[[[3]]]]), torch.tensor([threshold]), low_bits=3)
        assert layer.run_int(codes).item() == want


def test_nan_and_infinity_are_not_lost(isa: str) -> None:
    """NaN in a base: the comparison is false and the output NaN. NaN elsewhere reaches the outputs that are on. Only the pixels
    whose windows hold it are touched, also where vectors read beyond a run."""
    for bad in (math.nan, math.inf):
        x, weight = torch.ones(1, 6, 4, 9), torch.ones(6, 6, 3, 3)
        x[0, 1, 0, 8] = bad  # channel 1: base of outputs 0 and 1 (splits=3)
        y = FloatSkip(weight, torch.tensor([1.0, 1.0, 99.0, 99.0, 1.0, 1.0]), splits=3, padding=1).run(x)
        finite = torch.isfinite(y[0])
        near = torch.zeros(4, 9, dtype=torch.bool)
        near[:2, 7:] = True
        assert torch.equal(~finite[0], near)  # base
        assert finite[2].all()  # off
        assert torch.equal(~finite[4], near)  # on: the rest holds it
        assert torch.equal(y[0, 2, 1:3, 1:8], torch.full((2, 7), 18.0))
        assert torch.equal(y[0, 4, 2:3, 1:8], torch.full((1, 7), 54.0))


def test_scales_and_relu(isa: str) -> None:
    g = torch.Generator().manual_seed(7)
    case = Case("floats", 12, 20, splits=3, padding=1)
    names = ("scale", "add", "off_scale", "off_add")
    tables = {name: torch.randn(20, generator=g) for name in names}
    threshold = case.threshold(0.5)
    on = case.run(torch.full_like(threshold, math.inf)) > threshold[:, None, None]
    full = case.base + on * case.rest
    column = {name: v[:, None, None].double() for name, v in tables.items()}
    one = full * column["scale"] + column["add"]
    two = torch.where(on, one, full * column["off_scale"] + column["off_add"])
    same = {name: tables[name] for name in names[:2]}
    wanted: list[tuple[dict[str, Any], Tensor]] = [
        (same, one),
        (tables, two),
        ({**tables, "relu": True}, two.relu()),
        ({"relu": True}, full.relu()),
    ]
    for more, want in wanted:
        torch.testing.assert_close(case.run(threshold, **more).double(), want, rtol=1e-5, atol=2e-5)
    x = case.x.clone()
    x[:] = math.nan
    assert case.layer(threshold, relu=True).run(x).isnan().all()


def test_inputs_with_a_zero_point(isa: str) -> None:
    """What x_zero adds depends on the border, in base and rest."""
    Case("bytes", 10, 9, splits=3, padding=1, x_zero=-100).check()
    Case("bytes", 10, 9, splits=2, padding=2, stride=2, x_zero=torch.arange(10) - 5).check()


def test_strides_and_dilation_are_those_of_the_packed_weights(isa: str) -> None:
    """Weights of a kernel that needs steps of 1 are never read with others: each layer packs its own, and both are exact."""
    weight, threshold = torch.randint(-1, 2, (32, 64, 3, 3)), torch.zeros(32)
    x = torch.randint(0, 256, (1, 9, 9, 64), dtype=torch.uint8)
    places: list[dict[str, Any]] = [{"stride": 2}, {"dilation": 2}, {}]
    for place in places:
        found = ByteSkip(weight, threshold, padding=1, low_bits=4, **place).run_int(x).double()
        planes, step = x.permute(0, 3, 1, 2).double(), (place.get("stride", 1), 1, place.get("dilation", 1))
        high = planes.div(16, rounding_mode="floor") * 16
        base, rest = (F.conv2d(p, weight.double(), None, *step) for p in (high, planes - high))
        assert torch.equal(found, base + (base > 0) * rest)


def test_every_output(isa: str) -> None:
    for splits, low_bits in ((4, 0), (1, 3)):
        case = Case("bytes", 24, 40, splits=splits, low_bits=low_bits, padding=1)
        threshold = case.threshold(0.4)
        layer, want = case.layer(threshold), case.run(threshold)
        scale, add = torch.linspace(0.001, 0.002, 40), torch.linspace(-3, 3, 40)
        column = scale[:, None, None], add[:, None, None]
        y, residual = want.float() * column[0] + column[1], torch.randn(want.shape)
        assert torch.equal(layer.run(case.x, FloatOutput(scale, add)), y)
        assert torch.equal(layer.run(case.x, FloatOutput(scale, add, relu=True), residual), (y + residual).relu())
        floats, bits = layer.run(case.x, FloatOutput(scale, add, cuts=torch.zeros(40), bytes=True))
        assert torch.equal(floats, y) and torch.equal(bits.permute(0, 3, 1, 2).bool(), y >= 0)
        grid = EvenGrid(4.0, "multiply", 0, 0, 15)
        _, codes = layer.run(case.x, FloatOutput(scale, add, grid=grid))
        assert torch.equal(codes.permute(0, 3, 1, 2).float(), (y * 4).round().clamp(0, 15))
        levels = torch.tensor([[-5000], [0], [5000]]).expand(3, 40)
        codes = layer.run(case.x, CodeOutput(levels, planes=2))
        unpacked = native.unpack_codes(codes, 40).permute(0, 3, 1, 2).long()
        assert torch.equal(unpacked, torch.stack([want >= t for t in (-5000, 0, 5000)]).sum(0))


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_batches_and_threads(isa: str, kind: str) -> None:
    """A sample has the same answer in every batch, with every number of threads and whatever else is on, to the bit."""
    case = Case(kind, 20, 24, n=3, size=(23, 11), splits=4, padding=1)
    threshold = case.threshold(0.4)
    whole = case.run(threshold)
    assert torch.equal(case.run(threshold, threads=3), whole)
    everything = case.x
    for n in range(3):
        case.x = everything[n : n + 1]
        assert torch.equal(case.run(threshold), whole[n : n + 1])
    case.x = everything[:0]
    assert case.run(threshold).shape == (0, *whole.shape[1:])
    case.x = everything
    fewer = case.run(case.threshold(0.1))
    kept = case.base > case.threshold(0.1)[:, None, None] + 1e-3
    assert kept.any() and torch.equal(fewer[kept], whole[kept])


def test_wrong_arguments_are_one_line() -> None:
    weight, threshold = torch.ones(4, 4, 3, 3), torch.zeros(4)
    for splits in (1, 5):
        with pytest.raises(InputError, match=r"splits must be 2\.\.4"):
            FloatSkip(weight, threshold, splits=splits)
    with pytest.raises(InputError, match="dense: only for floats"):
        FloatSkip(weight, threshold, splits=2, dense=True)
    with pytest.raises(InputError, match="splits must be 1 where low_bits decide"):
        ByteSkip(weight, threshold, splits=2, low_bits=2)
    with pytest.raises(InputError, match=r"low_bits must be 0\.\.7"):
        ByteSkip(weight, threshold, low_bits=8)
    with pytest.raises(InputError, match="threshold must have 4 entries"):
        FloatSkip(weight, threshold[:3], splits=2)
    with pytest.raises(InputError, match="zero is 0"):
        ByteSkip(weight, threshold, low_bits=2, x_zero=1)
    with pytest.raises(InputError, match=r"-255\.\.255"):
        ByteSkip(weight * 300, threshold, low_bits=2)
    with pytest.raises(InputError, match="scale and add come together"):
        FloatSkip(weight, threshold, splits=2, scale=threshold).run(torch.ones(1, 4, 3, 3))
    with pytest.raises(InputError, match="smaller than the 3x3 kernel"):
        FloatSkip(weight, threshold, splits=2).run(torch.ones(1, 4, 2, 3))
    with pytest.raises(InputError, match=r"input must be float32 \[N, 4, H, W\]"):
        FloatSkip(weight, threshold, splits=2).run(torch.ones(1, 5, 3, 3))
    with pytest.raises(InputError, match=r"input must be \[N, H, W, 4\]"):
        ByteSkip(weight, threshold, splits=2).run_int(torch.ones(1, 3, 3, 5, dtype=torch.uint8))


@pytest.mark.skipif(len(native.isas() if native.available() else []) < 2, reason="one instruction set")
def test_weights_of_another_instruction_set_are_refused() -> None:
    slow, fast = native.isas()[0], native.isas()[-1]
    native.force_isa(slow)
    layer = ByteSkip(torch.ones(4, 4, 3, 3), torch.zeros(4), splits=2)
    native.force_isa(fast)
    try:
        with pytest.raises(InputError, match="packed for another instruction set"):
            layer.run_int(torch.ones(1, 3, 3, 4, dtype=torch.uint8))
    finally:
        native.force_isa("")
