"""The native sum of a gate, and the native split of a code, against the definitions: layouts, types, instruction sets; where they
step back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bitwright as bw
from bitwright.engine import native
from bitwright.fn import kernels
from bitwright.fn.fast import GatedSum, moments, split_code, takes_gate
from bitwright.fn.gate import add_where_on, gate, halves
from bitwright.parts.gate_call import GateCall

pytestmark = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")


SHAPES: dict[str, tuple[tuple[int, ...], bool]] = {  # shape of the outputs; whether channels are the last axis
    "image": ((3, 6, 5, 7), False),
    "many rows": ((2, 16, 40, 40), False),
    "a wide row": ((3, 70, 2, 3), False),
    "blocks of rows": ((2, 128, 3, 3), False),
    "one channel": ((3, 1, 5, 5), False),
    "one sample": ((1, 4, 6, 6), False),
    "sequence": ((3, 6, 11), False),
    "volume": ((2, 4, 3, 4, 5), False),
    "linear": ((9, 6), True),
    "tokens": ((2, 5, 6), True),
}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def closed_form(
    base: Tensor, rest: Tensor, threshold: Tensor, grad: Tensor, to_on: Tensor, norm: bool, sparse: bool, last: bool
) -> list[Tensor]:
    """y, on, and gradients of base, rest, threshold, written out in float64."""
    base, rest, grad, to_on = (t.double().movedim(-1, 1) if last else t.double() for t in (base, rest, grad, to_on))
    axes, wide = [a for a in range(base.dim()) if a != 1], (-1, *[1] * (base.dim() - 2))
    rate = 1 / (base.var(axes, correction=0, keepdim=True) + 1e-5).sqrt() if norm else torch.ones(())
    z = (base - base.mean(axes, keepdim=True)) * rate if norm else base
    v = z - threshold.double().reshape(wide)
    on = (v > 0).double()
    s = torch.sigmoid(3.0 * v)
    dv = (grad * rest + to_on) * 3.0 * s * (1 - s)
    dv = dv * (v >= 0) if sparse else dv
    to_z = rate * (dv - dv.mean(axes, keepdim=True) - z * (dv * z).mean(axes, keepdim=True)) if norm else dv
    rows = [base + on * rest, on, grad + to_z, grad * on]
    return [*(t.movedim(1, -1) if last else t for t in rows), -dv.sum(axes)]


def inputs(label: str, form: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(what GatedSum gets: two tensors, or one with both halves; base and rest themselves)."""
    shape, _ = SHAPES[label]
    if form == "halves":
        both = torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(dtype)
        both = both.to(memory_format=FORMATS[len(shape)]) if len(shape) == 4 else both
        return both, None, *halves(both)
    base, rest = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if form == "channels_last":
        base, rest = (t.to(memory_format=FORMATS[len(shape)]) for t in (base, rest))
    return base, rest, base, rest


def rates_of(base: Tensor, rest: Tensor | None, last: bool, norm: bool) -> Any:
    _, mean, square = moments(base, rest, last)
    return (mean.float(), torch.rsqrt(square - mean.square() + 1e-5).float(), 1e-5) if norm else None


CASES = [
    (label, form)
    for label, (shape, last) in SHAPES.items()
    for form in ("plain", "channels_last", "halves")
    if (form != "channels_last" or len(shape) in FORMATS) and (form != "halves" or (not last and shape[1] > 1))
]


@pytest.mark.parametrize(("norm", "sparse"), [(False, False), (True, True)])
@pytest.mark.parametrize(("label", "form"), CASES)
def test_values_and_gradients_are_the_closed_form(label: str, form: str, norm: bool, sparse: bool, isa: str) -> None:
    last = SHAPES[label][1]
    first, second, base, rest = inputs(label, form)
    threshold = (torch.randn(SHAPES[label][0][-1 if last else 1]) * 0.5).requires_grad_()
    leaves = [t.requires_grad_() for t in (first, second) if t is not None]
    y, on = GatedSum.apply(
        first, second, threshold, rates_of(first.detach(), second, last, norm), 3.0, sparse, last, True
    )
    grad, to_on = torch.randn(y.shape), torch.randn(y.shape)  # contiguous, in whatever order y is
    want = closed_form(base.detach(), rest.detach(), threshold.detach(), grad, to_on, norm, sparse, last)
    found = torch.autograd.grad([y, on], [*leaves, threshold], [grad, to_on])
    gradients = [*halves(found[0]), found[1]] if second is None else found
    for got, value in zip([y, on, *gradients], want, strict=True):
        torch.testing.assert_close(got.double(), value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["plain", "channels_last", "halves"])
def test_raw_units_equal_plain_torch_bit_for_bit(form: str, dtype: torch.dtype, isa: str) -> None:
    """All but the gradient through the slope: its exponential is our own."""
    first, second, base, rest = inputs("many rows", form, dtype)
    for t in (first, second):
        if t is not None:
            t[0, ::3, 0, :6] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40])
    base, rest = halves(first) if second is None else (first, second)
    threshold = torch.linspace(-1, 1, 16)
    threshold[4] = base[0, 4, 1, 1].float()  # exactly at it: off
    leaves = [t.requires_grad_() for t in (first, second) if t is not None]
    y, on = GatedSum.apply(first, second, threshold, None, 2.0, True, False, True)
    held = [t.detach().requires_grad_() for t in (base, rest)]
    want_on = gate(held[0].float() - threshold.reshape(-1, 1, 1), 2.0, True)
    want = add_where_on(held[0], want_on.to(dtype), held[1])
    assert torch.equal(on.nan_to_num(7), want_on.nan_to_num(7)) and on[0, 4, 1, 1] == 0
    assert torch.equal(y.nan_to_num(7), want.nan_to_num(7)) and y.dtype == dtype
    grad = torch.randn(y.shape).to(dtype)
    found = torch.autograd.grad(y, leaves, grad)
    got = halves(found[0]) if second is None else found
    wanted = torch.autograd.grad(want, held, grad)
    assert torch.equal(got[1].nan_to_num(7), wanted[1].nan_to_num(7))
    torch.testing.assert_close(
        got[0], wanted[0], rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6, equal_nan=True
    )


def test_every_instruction_set_and_thread_count_gives_the_same_bits() -> None:
    found: list[list[Tensor]] = []
    first, _, _, _ = inputs("many rows", "halves")
    first.requires_grad_()
    threshold, threads = torch.linspace(-1, 1, 16).requires_grad_(), torch.get_num_threads()
    grad = torch.randn(2, 16, 40, 40)
    try:
        for name in native.isas():
            for count in (1, 2):
                native.force_isa(name)
                torch.set_num_threads(count)
                rates = rates_of(first.detach(), None, False, True)
                y = GatedSum.apply(first, None, threshold, rates, 2.0, False, False, False)
                found.append([y.detach(), *rates[:2], *torch.autograd.grad(y, [first, threshold], grad)])
    finally:
        native.force_isa("")
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


GATES: dict[str, dict[str, Any]] = {
    "halves": {"gate": {"part": "channel_gate", "splits": 2, "init": 0.2}},
    "quarters": {"gate": {"part": "channel_gate", "splits": 4, "init": 0.2}},
    "first channels": {"gate": {"part": "channel_gate", "splits": 2, "group": False, "unit": "raw"}},
    "dual": {"gate": {"part": "channel_gate", "splits": 2, "output_bn": "dual"}},
    "own code": {"gate": {"part": "precision_gate", "bits": 4, "top": 2, "init": 0.1}},
    "code": {
        "gate": {"part": "precision_gate", "bits": 3, "top": 2, "unit": "normalized"},
        "x": {"part": "pact", "bits": 3},
    },
}


def gated(name: str) -> Any:
    torch.manual_seed(3)
    layer: Any = bw.nn.Conv2d(8, 12, 3, padding=1, **copy.deepcopy(GATES[name]))
    if name == "dual":
        layer.gate.take_norm(torch.nn.BatchNorm2d(12))
    return layer.train().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "half"), [(n, h) for n in GATES for h in (False, True) if n != "dual" or not h])
def test_a_step_of_a_layer_is_that_of_plain_torch(name: str, half: bool) -> None:
    layers = [gated(name), gated(name)]
    x = torch.rand(3, 8, 9, 9).to(memory_format=torch.channels_last) * 4 - 1
    seen: list[list[Tensor]] = []
    grad = torch.randn(3, 12, 9, 9)
    for layer, on in zip(layers, (True, False), strict=True):
        with kernels.switched(on), torch.autocast("cpu", torch.bfloat16, enabled=half):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            assert y.dtype == (torch.bfloat16 if half else torch.float32)
            y.backward(grad.to(y.dtype))
        values = [leaf.grad, *(p.grad for p in layer.parameters())]
        seen.append([y.detach(), *(v for v in values if v is not None), *layer.buffers()])
    close: dict[str, Any] = {"rtol": 5e-2, "atol": 5e-2} if half else {"rtol": 1e-4, "atol": 1e-4}
    for got, want in zip(*seen, strict=True):
        if half and got.dim() == 4:  # a decision within the last digits of its threshold may be the other one
            far = (got.float() - want.float()).abs() > 0.05 + 0.05 * want.float().abs()
            assert far.float().mean() < 0.02
        else:
            torch.testing.assert_close(got, want, **close)
    assert seen[0][2].abs().sum() > 0


@pytest.mark.parametrize("name", ["halves", "quarters", "own code"])
def test_second_derivatives_are_those_of_plain_torch(name: str) -> None:
    x, found = torch.rand(2, 8, 5, 5), []
    for on in (True, False):
        layer = gated(name)
        with kernels.switched(on):
            y = layer(x)
            learned = [layer.weight, layer.gate.threshold]
            first = torch.autograd.grad(y.square().sum(), learned, create_graph=True)
            squares = torch.stack([g.square().sum() for g in first]).sum()
            found.append([*first, *torch.autograd.grad(squares, learned)])
    assert found[0][2].abs().sum() > 0
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.detach().abs().max()))


def test_batches_of_gradients() -> None:
    x, found = torch.rand(2, 8, 5, 5), []
    grads = torch.randn(3, 2, 12, 5, 5)
    for on in (True, False):
        layer = gated("halves")
        with kernels.switched(on):
            (got,) = torch.autograd.grad(layer(x), layer.gate.threshold, grads, is_grads_batched=True)
        found.append(got)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_watchers_see_a_decision_with_its_slope() -> None:
    found = []
    for on in (True, False):
        layer = gated("halves")
        seen: list[Tensor] = []
        layer.gate.watchers = (lambda gate, on, seen=seen: seen.append(on),)
        with kernels.switched(on):
            y = layer(torch.linspace(-1, 1, 2 * 8 * 25).reshape(2, 8, 5, 5))
            (to_threshold,) = torch.autograd.grad(seen[0].sum() + 0 * y.sum(), layer.gate.threshold)
        found.append([seen[0].detach(), to_threshold])
    assert 0 < found[0][0].mean() < 1 and found[0][1].abs().sum() > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_gate_saves_its_two_sums_and_nothing_else() -> None:
    layer, kept = gated("halves"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(4, 8, 16, 16))
    outputs, x = 4 * 12 * 256, 4 * 8 * 256
    assert sum(kept) < 2 * outputs + x + 4000  # base and rest; the input for the weight's gradient; weights


@pytest.mark.parametrize("size", [(0, 8, 4, 4), (1, 8, 1, 1), (1, 8, 2, 2)])
@pytest.mark.parametrize("name", ["halves", "quarters", "own code", "code"])
def test_no_sample_one_sample_one_value(name: str, size: tuple[int, ...]) -> None:
    layers = [gated(name), gated(name)]
    x, found = torch.rand(size) * 4, []
    for layer, on in zip(layers, (True, False), strict=True):
        with kernels.switched(on):
            y = layer(x)
            y.sum().backward()
        found.append([y.detach(), layer.weight.grad, layer.gate.threshold.grad, *layer.buffers()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_where_it_steps_back() -> None:
    base, threshold = torch.randn(2, 6, 4, 4), torch.zeros(6)
    assert takes_gate(base, base.clone(), threshold)
    assert not takes_gate(base.double(), base.double(), threshold)
    assert not takes_gate(base[:, ::2], None, threshold)  # memory with gaps
    assert not takes_gate(base, base.to(memory_format=torch.channels_last), threshold)
    assert not takes_gate(base[:0], base[:0], threshold)
    with kernels.switched(False):
        assert not takes_gate(base, base, threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_split_code_is_that_of_the_whole_numbers(bits: int, dtype: torch.dtype, isa: str) -> None:
    for number in range(40):
        unit = torch.tensor(0.013 * 1.37**number % 7 + 0.01)
        whole = torch.arange(-(2**bits) + 1, 2.0**bits)
        x = (whole * unit).to(dtype).requires_grad_()
        if bits == 8 and dtype == torch.bfloat16:
            assert split_code(x, unit, bits, 2.0) is None  # 8 significant bits round some to their neighbor
            continue
        for top in range(1, bits):
            one = 2.0 ** (bits - top)
            made = split_code(x, unit, bits, one)
            assert made is not None
            cut = (whole / one).trunc() * one
            assert torch.equal(made[0], (cut * unit).to(dtype)), (number, top)
            assert torch.equal(made[1], ((whole - cut) * unit).to(dtype)) and not made[1].requires_grad
            grad = torch.randn(x.shape).to(dtype)
            assert torch.equal(torch.autograd.grad(made[0], x, grad)[0], grad)
    made = split_code(torch.tensor([math.nan, 1.0]), torch.tensor(0.5), 4, 2.0)
    assert made is not None and [part.isnan().tolist() for part in made] == [[True, False], [True, False]]


@pytest.mark.parametrize("part", ["pact", "dorefa_a", "lsq", "sign_magnitude", "kbit"])
def test_the_unit_of_one_sample_is_that_of_the_batch(part: str) -> None:
    """What training reads; and the value is the whole number times that unit, as the native split takes it to be."""
    layer: Any = bw.nn.Conv2d(4, 4, 3, x={"part": part, "bits": 4})
    x = torch.rand(3, 4, 6, 6) * torch.tensor([1.0, 9.0, 0.1]).reshape(3, 1, 1, 1)
    value = layer.x(x).detach()
    call = GateCall(layer.op, whole=layer.x.whole, seen=x)
    assert call.code is not None and call.unit is not None and call.code[1].numel() == 1
    assert torch.equal(call.unit, call.code[1])
    assert torch.equal((value / call.unit).round(), call.code[0].float())


def test_wrong_shapes_are_refused_by_the_core() -> None:
    x = torch.zeros(6)
    with pytest.raises(RuntimeError, match="native core: halves need an even number of channels"):
        kernels.call_core("bw_gate_moments", x.data_ptr(), x.data_ptr(), 1, 3, 1, 1, 0, 1)
    with pytest.raises(RuntimeError, match="native core: a tensor is null"):
        kernels.call_core("bw_split_forward", x.data_ptr(), x.data_ptr(), None, 6, x.data_ptr(), 2.0, 0, 1)
