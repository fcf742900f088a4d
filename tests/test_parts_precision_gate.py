"""precision_gate against whole numbers cut by hand: prediction, update, gradients, scales, the public code's quirks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts.gate_call import GateCall

MAKE: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda **k: bw.nn.Conv2d(4, 6, 3, padding=1, **k), (3, 4, 5, 5)),
    "plain": (lambda **k: bw.nn.Conv2d(4, 6, 3, stride=2, bias=False, **k), (3, 4, 6, 6)),
    "depthwise": (lambda **k: bw.nn.Conv2d(4, 4, 3, groups=4, **k), (2, 4, 5, 5)),
    "groups": (lambda **k: bw.nn.Conv2d(4, 6, 3, groups=2, **k), (2, 4, 5, 5)),
    "one": (lambda **k: bw.nn.Conv2d(1, 1, 1, **k), (2, 1, 5, 5)),
    "transposed": (lambda **k: bw.nn.ConvTranspose2d(4, 6, 3, stride=2, **k), (2, 4, 4, 4)),
    "conv1d": (lambda **k: bw.nn.Conv1d(4, 6, 3, **k), (3, 4, 9)),
    "conv3d": (lambda **k: bw.nn.Conv3d(4, 6, 2, **k), (2, 4, 3, 3, 3)),
    "linear": (lambda **k: bw.nn.Linear(4, 6, **k), (5, 4)),
    "tokens": (lambda **k: bw.nn.Linear(4, 6, **k), (2, 5, 4)),
}


def levels(t: Tensor, bits: int, top: int, size: float) -> tuple[Tensor, Tensor]:
    """(Q, T) of 3.1, number by number: the level, and the level with its low bits cut."""
    n, q, cut = 2**bits - 1, [], []
    for value in t.flatten().tolist():
        level = round(min(abs(value) / size, 1.0) * n)  # Python rounds half to even
        high = level // 2 ** (bits - top) * 2 ** (bits - top)
        sign = -1 if value < 0 else 1
        q.append(sign * level * size / n)
        cut.append(sign * high * size / n)
    return (torch.tensor(v, dtype=t.dtype).reshape(t.shape) for v in (q, cut))  # type: ignore[return-value]


def slow(
    layer: Any, x: Tensor, bits: int, top: int, size: float, slope: float, sparse: bool, grad: Tensor | None = None
) -> Tensor | list[Tensor]:
    """Output by 3.2, or the gradients of (x, weight, threshold) written out."""
    q, cut = levels(x.detach(), bits, top, size)
    cut.requires_grad_()
    w = layer.weight.detach().requires_grad_()
    b = None if layer.bias is None else layer.bias.detach()
    high, low = layer.op(cut, w, b), layer.op(q - cut.detach(), w, None)
    axis = high.dim() - 1 if layer.gate.last else 1
    shape = [1] * high.dim()
    shape[axis] = -1
    gate: Any = layer.gate
    v = (high - gate.threshold.detach().reshape(shape)).detach()
    on = (v > 0).to(x.dtype)
    if grad is None:
        return (high + on * low).detach()
    s = 1 / (1 + torch.exp(-slope * v))
    bump = grad * low.detach() * slope * s * (1 - s) * ((s >= 0.5) if sparse else 1)
    total = ((grad + bump) * high).sum() + (grad * on * low).sum()
    gx, gw = torch.autograd.grad(total, (cut, w))
    passes = (x.detach().abs() <= size).to(x.dtype)
    return [gx * passes, gw, -bump.sum([a for a in range(high.dim()) if a != axis])]


def made(kind: str, **options: Any) -> tuple[Any, Tensor]:
    make, shape = MAKE[kind]
    layer = make(gate={"part": "precision_gate", **options}).double()
    layer.gate.threshold.data.normal_(0, 0.3)
    return layer, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("bits", "top"), [(4, 2), (3, 1), (8, 4), (2, 1)])
@pytest.mark.parametrize("kind", MAKE)
def test_values_and_gradients_are_the_formulas(kind: str, bits: int, top: int, sparse: bool) -> None:
    layer, x = made(kind, bits=bits, top=top, sparse_backprop=sparse)
    size = float(x.abs().max()) * 0.8  # a fifth of the range saturates
    bw.calibrate(layer, [x.clamp(-size, size)])
    layer.eval()
    x.requires_grad_()
    y = layer(x)
    rule = (bits, top, size, 5.0, sparse)
    torch.testing.assert_close(y, slow(layer, x, *rule), rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(y)
    y.backward(grad)
    want = slow(layer, x, *rule, grad)
    torch.testing.assert_close([x.grad, layer.weight.grad, layer.gate.threshold.grad], want, rtol=1e-8, atol=1e-8)
    assert (layer.gate.threshold.grad != 0).any()


def test_by_hand() -> None:
    layer: Any = bw.nn.Linear(2, 2, bias=False, gate={"part": "precision_gate", "bits": 2, "top": 1}).eval()
    layer.weight.data.copy_(torch.tensor([[1.0, 1], [1, -1]]))
    layer.gate.threshold.data.copy_(torch.tensor([1.0, 0.0]))
    bw.calibrate(layer, [torch.tensor([[3.0, 0.0]])])
    # levels of 3: itself; the high bit of 3, 2, 1 is worth 2, 2, 0
    x = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    # bases: [2, 2], [0, 0], [2, -2]; above [1, 0]: on, on; off, off; on, off. Rests: [2, 0], [2, 0], [2, 0]
    assert layer(x).tolist() == [[4.0, 2.0], [0.0, 0.0], [4.0, -2.0]]


def test_low_bits_send_no_gradient_to_the_input() -> None:
    layer, x = made("conv", bits=4, top=2)
    bw.calibrate(layer, [x])
    layer.eval()
    layer.gate.threshold.data.fill_(-math.inf)
    x.requires_grad_()
    (on,) = torch.autograd.grad(layer(x).sum(), x)
    layer.gate.threshold.data.fill_(math.inf)
    (off,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(on, off) and on.abs().sum() > 0
    for at, same in ((-math.inf, False), (math.inf, True)):
        layer.gate.threshold.data.fill_(at)
        (w,) = torch.autograd.grad(layer(x).sum(), layer.weight)
        numbers, unit = layer.gate.quantizer.whole(x)
        high, _ = layer.gate.cut(numbers)
        (base,) = torch.autograd.grad(layer.op(high * unit, layer.weight, layer.bias).sum(), layer.weight)
        assert torch.equal(w, base) is same


def test_finite_differences_of_weight_and_bias() -> None:
    layer, x = made("conv", bits=4, top=2, slope=1e-12)
    bw.calibrate(layer, [x])
    part = layer.gate.eval()
    values = (layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda w, b: part(layer.op, x, w, b), values, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", MAKE)
def test_all_off_is_the_prediction_and_all_on_the_whole_code(kind: str) -> None:
    make, shape = MAKE[kind]
    x = torch.randn(shape)
    for init in (math.inf, -math.inf):
        layer = make(gate={"part": "precision_gate", "bits": 4, "top": 2, "init": init})
        bw.calibrate(layer, [x])
        layer.eval()
        q, cut = levels(x, 4, 2, float(x.abs().max()))
        want = layer.op(cut if init > 0 else q, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)


def test_an_integer_comparison_decides_the_same() -> None:
    layer, x = made("plain", bits=4, top=2)
    layer.weight.data.copy_(torch.randint(-3, 4, layer.weight.shape))
    x = x.abs()
    bw.calibrate(layer, [x])
    layer.eval()
    unit = float(x.max()) / 15
    layer.gate.threshold.data.copy_(torch.tensor([-2.0, 0.0, 0.3, 1.0, 2.5, 7.0]) * 1.37)
    seen: list[Tensor] = []
    layer.gate.watchers = (lambda gate, on: seen.append(on.detach()),)
    layer(x)
    whole = (x / unit).round().clamp(0, 15) // 4 * 4
    numbers = F.conv2d(whole, layer.weight, stride=2)
    limit = (layer.gate.threshold.detach() / unit).floor()[:, None, None]
    assert torch.equal(seen[0] > 0, numbers > limit) and 0 < seen[0].mean() < 1


@pytest.mark.parametrize(
    "x_part",
    [
        {"part": "pact", "bits": 4},
        {"part": "dorefa_a", "bits": 4},
        {"part": "lsq", "bits": 4},
        {"part": "lsq", "bits": 4, "signed": True},
        {"part": "uniform", "bits": 4},
        {"part": "uniform", "bits": 4, "symmetric": False},
        {"part": "sign_magnitude", "bits": 4},
        {"part": "kbit", "bits": 4},
        [{"part": "norm"}, {"part": "kbit", "bits": 4}],
        [{"part": "dropout"}, {"part": "pact", "bits": 4}],
    ],
    ids=str,
)
def test_it_splits_the_code_of_the_input_part(x_part: Any) -> None:
    gate = {"part": "precision_gate", "bits": 4, "top": 2, "init": -math.inf}
    layer: Any = bw.nn.Conv2d(4, 6, 3, x=x_part, gate=gate)
    x = torch.rand(2, 4, 5, 5) * 1.5 - 0.2
    assert layer.gate.quantizer is None
    for training in (True, False):
        layer.train(training)
        if training and "dropout" in str(x_part):
            state = torch.get_rng_state()
            y = layer(x)
            torch.set_rng_state(state)
        else:
            y = layer(x)
        if not training or "norm" not in str(x_part):
            want = F.conv2d(layer.x(x), layer.weight, layer.bias)
            torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    layer.train()(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_bits_that_differ_and_codes_with_something_behind_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3))
    rule: dict[str, Any] = {"match": "0", "gate": {"part": "precision_gate", "bits": 4, "top": 2}}
    with pytest.raises(InputError) as caught:
        bw.apply(net, [{**rule, "x": {"part": "pact", "bits": 3}}])
    text = str(caught.value)
    assert "0: part precision_gate: bits=4, but the x part pact has 3" in text and "\n" not in text
    for behind in ("dropout", "norm"):
        with pytest.raises(InputError, match="something comes behind the code; put it in front"):
            bw.apply(net, [{**rule, "x": [{"part": "pact", "bits": 4}, behind]}])
    assert type(net[0]) is nn.Conv2d


# -- scales


def test_a_static_scale_follows_training_and_stays_in_evaluation() -> None:
    layer, x = made("conv", bits=4, top=2)
    layer(x)
    layer(x * 2)
    layer.eval()
    high = layer.gate.quantizer.high.item()
    assert x.abs().max().item() < high < 2 * x.abs().max().item()
    layer(x * 100)
    assert layer.gate.quantizer.high.item() == high
    torch.testing.assert_close(torch.cat([layer(x[:1]), layer(x[1:])]), layer(x))


def test_seed_takes_the_scale_of_the_batch_and_no_gradient_at_zero() -> None:
    layer, x = made("plain", bits=4, top=2, compat="seed")
    assert layer.gate.scale == "batch_max"
    layer.eval()
    x[0, 0, 0] = 0
    size = float(x.abs().max()) + 1e-7
    torch.testing.assert_close(layer(x), slow(layer, x, 4, 2, size, 5.0, True), rtol=1e-9, atol=1e-9)
    largest = int(x.abs().flatten(1).amax(1).argmax())
    other = (largest + 1) % 3
    assert not torch.allclose(layer(x)[other], layer(x[other : other + 1])[0])  # a sample depends on its batch
    x.requires_grad_()
    layer(x).sum().backward()
    grad: Any = x.grad
    assert grad[0, 0, 0].eq(0).all() and grad[0, 1, 0].abs().sum() > 0


def test_batch_max_without_the_other_quirks() -> None:
    layer, x = made("plain", bits=3, top=2, scale="batch_max")
    for mode in (True, False):
        want = slow(layer.train(mode), x, 3, 2, float(x.abs().max()), 5.0, True)
        torch.testing.assert_close(layer(x), want, rtol=1e-9, atol=1e-9)
    assert "gate.quantizer.high" not in layer.state_dict()


def test_an_empty_receptive_field_is_off_at_threshold_zero_and_learns() -> None:
    """The one exact tie of the code: all inputs 0, threshold 0."""
    layer: Any = bw.nn.Linear(3, 1, bias=False, gate={"part": "precision_gate", "bits": 2, "top": 1}).double()
    bw.calibrate(layer, [torch.full((1, 3), 3.0, dtype=torch.float64)])
    layer.weight.data.fill_(1.0)
    y = layer.eval()(torch.tensor([[1.0, 1, 1]], dtype=torch.float64))  # levels 1: high bits 0, low bits 3
    assert y.item() == 0.0
    y.backward()
    assert layer.gate.threshold.grad.item() == pytest.approx(-3 * 5.0 / 4)


# -- units and penalties


def test_normalized_units_measure_in_deviations_of_the_prediction() -> None:
    layer, x = made("plain", bits=4, top=2, unit="normalized")
    bw.calibrate(layer, [x])
    seen: list[Tensor] = []
    layer.gate.watchers = (lambda gate, on: seen.append(on.detach()),)
    layer(x)
    size = float(layer.gate.quantizer.high)
    _, cut = levels(x, 4, 2, size)
    high = F.conv2d(cut, layer.weight, stride=2)
    z = (high - high.mean((0, 2, 3), keepdim=True)) / (high.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(seen[0] > 0, z > layer.gate.threshold[:, None, None])


@pytest.mark.parametrize(("form", "value"), [("norm", 0.1 * math.sqrt(6) * 1.5), ("sq", 0.1 * 6 * 1.5**2)])
def test_penalties(form: str, value: float) -> None:
    options = {"part": "precision_gate", "init": 0.5, "target": 2.0, "weight": 0.1, "penalty": form}
    layer: Any = bw.nn.Conv2d(4, 6, 3, gate=options)
    assert bw.penalty(layer).item() == pytest.approx(value)
    bw.penalty(layer).backward()
    want = -0.1 * (2 * 1.5 if form == "sq" else 1 / math.sqrt(6))
    torch.testing.assert_close(layer.gate.threshold.grad, torch.full((6,), want))
    layer.zero_grad()
    layer.gate.threshold.data.fill_(2.0)
    bw.penalty(layer).backward()
    torch.testing.assert_close(
        layer.gate.threshold.grad, torch.zeros(6)
    )  # at the target the norm has no slope, and no NaN


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_shut_gates_skip_cannot_matter(value: float, training: bool, dtype: torch.dtype) -> None:
    gate = {"part": "precision_gate", "bits": 4, "top": 2, "init": math.inf}
    layer: Any = bw.nn.Conv2d(4, 6, 3, gate=gate, x={"part": "pact", "bits": 4}).to(dtype).train(training)
    x = torch.rand(2, 4, 5, 5).to(dtype) * 6

    def output(skipped: float) -> Tensor:
        sums: list[Tensor] = []

        def op(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            sums.append(layer.op(x, w, b))  # base, rest, base, rest: what is skipped is every other one
            return sums[-1] if len(sums) % 2 else torch.full_like(sums[-1], skipped)

        y = layer.gate(GateCall(op, whole=layer.x.whole, seen=x), layer.x(x), layer.weight, layer.bias)
        assert all(rest.ne(0).any() for rest in sums[1::2])
        return y

    assert torch.equal(output(value), output(0.0))


def test_keys_and_decay() -> None:
    net = nn.Sequential(bw.nn.Conv2d(4, 6, 3, gate="precision_gate"))
    keys = {k for k in net.state_dict() if not k.startswith("0.gate.quantizer")}
    assert keys == {"0.weight", "0.bias", "0.gate.threshold", "0.gate.size"}
    gate: Any = net[0].gate
    decayed = {id(p) for g in bw.param_groups(net, 0.1, 1e-4) if g["weight_decay"] for p in g["params"]}
    assert id(gate.threshold) not in decayed


def test_a_float_checkpoint_loads() -> None:
    state = nn.Sequential(nn.Conv2d(4, 6, 3)).state_dict()
    net = nn.Sequential(bw.nn.Conv2d(4, 6, 3, gate="precision_gate"))
    found = net.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and all(".gate." in key for key in found.missing_keys)


def test_a_later_recipe_keeps_thresholds() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3))
    bw.apply(net, [{"match": "0", "gate": {"part": "precision_gate", "bits": 4, "top": 2}}])
    gate: Any = net[0].gate
    gate.threshold.data.normal_()
    kept = gate.threshold.clone()
    bw.calibrate(net, [torch.rand(2, 4, 5, 5) * 7])
    high = gate.quantizer.high.clone()
    bw.apply(net, [{"match": "0", "gate": {"part": "precision_gate", "bits": 4, "top": 1, "target": 1.0}}])
    gate = net[0].gate
    assert torch.equal(gate.threshold, kept) and gate.top == 1 and torch.equal(gate.quantizer.high, high)
