"""Native training kernels against the plain torch versions: every instruction set, layout, type; and when they step back."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import bitwright as bw
from bitwright.engine import native
from bitwright.fn import fast, kernels, plain

needs_core = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
Function = Callable[[Tensor], Tensor]


def awkward(*shape: int) -> Tensor:
    """Ties, edges of clips, zeros of both signs, not a number, infinite, tiny, large."""
    x = torch.randn(shape) * 1.2
    flat = x.view(-1)
    values = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 0.25, torch.nan, torch.inf, -torch.inf, 1e-40, 3e38, 1 + 2**-23]
    special = torch.tensor(values[: max(0, flat.numel() - 1)])
    flat[torch.randperm(flat.numel())[: len(special)]] = special
    return x


def layouts() -> dict[str, Tensor]:
    x = awkward(3, 5, 7, 9)
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "sliced": awkward(3, 5, 7, 18)[..., ::2],
        "rows": awkward(6, 5, 7, 9)[::2],
        "expanded": awkward(1, 5, 7, 1).expand(3, 5, 7, 9),
        "one": awkward(1),
        "scalar": torch.tensor(0.3),
        "empty": torch.zeros(0, 5, 2, 2),
        "a block": awkward(64),
        "a block and one": awkward(5, 13),
        "several tasks": awkward(2, 16, 40, 40),
        "linear": awkward(33, 70),
    }


def run(function: Function, x: Tensor, on: bool, *others: nn.Parameter) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients, of x and of other parameters, under an uneven gradient."""
    x = x.detach().requires_grad_()
    for other in others:
        other.grad = None
    with kernels.switched(on):
        y = function(x)
        weights = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)
        y.backward(weights)
    grads = [x.grad, *(other.grad for other in others)]
    assert all(isinstance(g, Tensor) for g in grads)
    return y.detach(), [g.clone() for g in grads if g is not None]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def part(name: str, **options: Any) -> Function:
    made = bw.make_part(name, **options)
    return lambda t: made(t)


INPUTS: dict[str, Function] = {
    "clip": part("sign"),
    "open": part("sign", boundary="open"),
    "approx": part("sign", surrogate="approx"),
    "identity": part("sign", surrogate="identity"),
    "swish": part("sign", surrogate="swish"),
    "dorefa_a 1": part("dorefa_a", bits=1),
    "dorefa_a 2": part("dorefa_a", bits=2),
    "dorefa_a 8": part("dorefa_a", bits=8),
    "clip_round": lambda x: fast.clip_round(x, 0.7, 5),
    "lsq": lambda x: fast.lsq(x, torch.tensor(0.3), -2, 1),
    "kbit 1": part("kbit", bits=1, slot="x"),
    "kbit 2": part("kbit", bits=2, slot="x"),
    "kbit 8": part("kbit", bits=8, slot="x"),
    "zero_one": part("zero_one"),
    "zero_one 0.3": part("zero_one", on=0.3, threshold=0.25),
}


@needs_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", INPUTS)
def test_input_parts_equal_plain_torch_bit_for_bit(name: str, dtype: torch.dtype, isa: str) -> None:
    for label, x in layouts().items():
        x = x.to(dtype)
        assert kernels.takes(x), label
        value, (grad,) = run(INPUTS[name], x, True)
        want, (want_grad,) = run(INPUTS[name], x, False)
        assert same(value, want), f"{label}: value"
        assert same(grad, want_grad), f"{label}: gradient"
        assert value.stride() == want.stride() or label in ("one", "scalar", "empty"), f"{label}: memory order"
        with torch.no_grad():
            assert same(INPUTS[name](x), want), f"{label}: without a graph"


def weights() -> dict[str, Tensor]:
    w = torch.randn(8, 5, 3, 3) * 0.8
    w.view(-1)[:6] = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.0000001, 1e-40])
    zeros = w.clone()
    zeros[0] = 0
    return {
        "conv": w,
        "channels_last": w.contiguous(memory_format=torch.channels_last),
        "a filter of zeros": zeros,
        "linear": torch.randn(7, 130),
        "filters": torch.randn(5),
        "one filter": torch.randn(1, 3),
        "transposed": torch.randn(9, 4).t(),
        "sliced": torch.randn(6, 9)[:, ::2],
        "rows": torch.randn(6, 9)[::2],
        "many": torch.randn(300, 150),
        "not a number": torch.tensor([[0.3, torch.nan], [1.0, -2.0]]),
        "empty": torch.zeros(0, 3),
    }


WEIGHTS: dict[str, tuple[Function, bool]] = {  # part, and whether its gradient holds a sum
    "bwn": (part("bwn"), True),
    "bwn layer": (part("bwn", granularity="layer"), True),
    "xnor": (part("xnor"), True),
    "xnor graph": (part("xnor", center="graph"), True),
    "bireal": (part("bireal"), False),
    "dorefa_w 1": (part("dorefa_w", bits=1), False),
    "dorefa_w 2": (part("dorefa_w", bits=2), False),
    "dorefa_w 4": (part("dorefa_w", bits=4), False),
    "zero_one": (part("zero_one"), False),
    "zero_one 0.3": (part("zero_one", on=0.1, off=-0.7, threshold=0.3), False),
}


@needs_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_parts_equal_plain_torch(name: str, dtype: torch.dtype, isa: str) -> None:
    """Values bit for bit; gradients too but where they hold a sum: float32 there, and a single rounding in bfloat16."""
    function, summed = WEIGHTS[name]
    for label, w in weights().items():
        w = w.to(dtype)
        value, (grad,) = run(function, w, True)
        want, (want_grad,) = run(function, w, False)
        assert same(value, want), f"{label}: value"
        if summed:
            tolerance = 1e-5 if dtype == torch.float32 else 0.02
            scale = 1 if not want_grad.numel() or not want_grad.isfinite().all() else want_grad.abs().max().item()
            torch.testing.assert_close(
                grad, want_grad, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=label
            )
        else:
            assert same(grad, want_grad), f"{label}: gradient"


@needs_core
def test_bwn_gradient_by_the_formula_in_double() -> None:
    w, g = torch.randn(6, 50), torch.randn(6, 50)
    x = w.clone().requires_grad_()
    bw.make_part("bwn")(x).backward(g)
    sign, wide = torch.where(w >= 0, 1.0, -1.0).double(), g.double()
    scale = w.double().abs().mean(1, keepdim=True)
    want = scale * wide * (w.abs() <= 1) + sign / 50 * (wide * sign).sum(1, keepdim=True)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), want, rtol=1e-6, atol=1e-6)


# -- steps and ranges that learn


def steps() -> list[tuple[Tensor, Tensor, int]]:
    x = torch.randn(6, 5, 4, 3)
    wide = torch.randn(4, 70, 9, 9)
    return [
        (x, torch.tensor(0.4), 0),
        (x, torch.tensor([0.4]), 1),
        (x, torch.rand(6, 1, 1, 1) + 0.1, 0),
        (x, torch.rand(5) + 0.1, 1),
        (x.contiguous(memory_format=torch.channels_last), torch.rand(1, 5, 1, 1) + 0.1, 1),
        (x, torch.rand(3) + 0.1, -1),
        (x.transpose(1, 3), torch.rand(3) + 0.1, 1),
        (wide, torch.rand(70) + 0.1, 1),
        (wide.contiguous(memory_format=torch.channels_last), torch.rand(70) + 0.1, 1),
        (wide.flatten(1)[:, ::2], torch.rand(4) + 0.1, 0),
        (torch.randn(200, 300), torch.tensor(0.1), 0),
        (torch.zeros(0, 5), torch.rand(5) + 0.1, 1),
        (torch.zeros(0, 5), torch.tensor(0.1), 0),
    ]


@needs_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_steps_equal_plain_torch(dtype: torch.dtype, isa: str) -> None:
    for number, (x, start, axis) in enumerate(steps()):
        step = nn.Parameter(start)
        function = lambda t, s=step, a=axis: fast.lsq(t, s, -4, 3, a, factor=0.01)  # noqa: E731
        value, (grad, to_step) = run(function, x.to(dtype), True, step)
        want, (want_grad, want_step) = run(function, x.to(dtype), False, step)
        assert same(value, want) and same(grad, want_grad), f"case {number}"
        assert to_step.shape == step.shape
        scale = want_step.abs().max().item() if want_step.numel() else 1
        torch.testing.assert_close(to_step, want_step, rtol=1e-5, atol=1e-5 * scale, msg=f"case {number}")


def test_learned_step_by_hand() -> None:
    x = torch.tensor([-9.0, -1.0, 0.3, 0.5, 9.0]).requires_grad_()  # v = -18, -2, 0.6, 1, 18; low = -2, high = 1
    for on in (True, False):
        step = nn.Parameter(torch.tensor(0.5))
        value, (grad, to_step) = run(lambda t, s=step: fast.lsq(t, s, -2, 1), x, on, step)
        assert value.tolist() == [-1.0, -1.0, 0.5, 0.5, 0.5]
        g = torch.linspace(-1, 2, 5)
        assert grad.tolist() == (g * torch.tensor([0.0, 1, 1, 1, 0])).tolist()
        assert to_step.item() == pytest.approx(-2 * g[0] - 2 * g[1] + (1 - 0.6) * g[2] + g[3] + g[4])


@needs_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learned_range_equals_plain_torch(dtype: torch.dtype, isa: str) -> None:
    for x in (torch.randn(40) * 3, torch.randn(4, 3, 50, 90), torch.zeros(0)):
        for shape in ((), (1,)):
            high = nn.Parameter(torch.full(shape, 1.7))
            function = lambda t, h=high: fast.clip_round(t, h, 3)  # noqa: E731
            value, (grad, to_high) = run(function, x.to(dtype), True, high)
            want, (want_grad, want_high) = run(function, x.to(dtype), False, high)
            assert same(value, want) and same(grad, want_grad)
            assert to_high.shape == high.shape
            torch.testing.assert_close(to_high, want_high, rtol=1e-5, atol=1e-4)


def test_a_learned_range_by_hand() -> None:
    x = torch.tensor([-1.0, 0.6, 2.0, 5.0])
    for on in (True, False):
        high = nn.Parameter(torch.tensor(2.0))
        value, (grad, to_high) = run(lambda t, h=high: fast.clip_round(t, h, 4), x, on, high)
        assert value.tolist() == [0.0, 0.5, 2.0, 2.0]
        assert grad.tolist() == [0.0, 0.0, 1.0, 0.0]
        assert to_high.item() == 3.0


# -- threads, sharing, stepping back


@needs_core
def test_a_threshold_is_compared_in_the_type_of_the_weight() -> None:
    """The bfloat16 next to 0.35 lies below it, and is on the threshold all the same: in both versions, and when packed."""
    edge = torch.tensor([0.35, 0.347, 0.353], dtype=torch.bfloat16)
    assert edge[0].item() < 0.35
    zero_one: Any = bw.make_part("zero_one", threshold=0.35)
    on = zero_one(edge)
    assert on[0] == 1 and torch.equal(on, plain.step_composed(edge, 0.35, 1.0, 0.0))
    assert torch.equal(on.to(torch.uint8), zero_one.encode(edge).bit[0])


@pytest.mark.slow
@needs_core
def test_two_threads_give_what_one_gives() -> None:
    x = torch.randn(8, 16, 40, 40)
    w = torch.randn(300, 200)
    step = nn.Parameter(torch.rand(16) + 0.1)
    cases = [*((f, x) for f in INPUTS.values()), *((f, w) for f, _ in WEIGHTS.values())]
    cases.append((lambda t: fast.lsq(t, step, -4, 3, 1), x))
    one = [run(f, t, True) for f, t in cases]
    torch.set_num_threads(2)
    try:
        two = [run(f, t, True) for f, t in cases]
    finally:
        torch.set_num_threads(1)
    for (value, grads), (again, more) in zip(one, two, strict=True):
        assert torch.equal(value, again)
        assert all(torch.equal(a, b) for a, b in zip(grads, more, strict=True))


@needs_core
def test_a_clipped_slope_costs_one_bit_per_element() -> None:
    saved: list[int] = []
    x = torch.randn(64, 64, requires_grad=True)
    pack = lambda t: saved.append(t.numel() * t.element_size()) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bw.make_part("sign")(x)
        bw.make_part("dorefa_a")(x)
    assert saved == [x.numel() // 8] * 2


@needs_core
@pytest.mark.filterwarnings("ignore")  # of the tracers, about themselves
def test_kernels_step_back() -> None:
    x = torch.randn(3)
    assert kernels.takes(x) and kernels.takes(nn.Parameter(x)) and kernels.takes(x.bfloat16())
    for other in (x.double(), x.half(), x.to("meta"), x.to_sparse(), torch.ones(3, dtype=torch.int32)):
        assert not kernels.takes(other), other
    seen: list[bool] = []

    def look(t: Tensor) -> Tensor:
        seen.append(kernels.takes(t) or kernels.takes(x))
        return t * 2

    torch.func.vmap(look)(x)
    torch.func.jvp(look, (x,), (x,))
    torch.func.grad(lambda t: look(t).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        look(x)
    make_fx(look)(x)
    torch.jit.trace(look, x, check_trace=False)
    with kernels.switched(False):
        look(x)
    torch.export.export(_Looks(look), (x,))
    assert seen and not any(seen)
    assert kernels.takes(x)


class _Looks(nn.Module):
    def __init__(self, look: Function) -> None:
        super().__init__()
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        return self.look(x)


@needs_core
def test_batched_gradients_take_the_plain_formula() -> None:
    step, high = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(1.1))
    functions = [*INPUTS.values(), *(f for f, _ in WEIGHTS.values())]
    functions += [lambda t: fast.lsq(t, step, -4, 3), lambda t: fast.clip_round(t, high, 3)]
    for function in functions:
        x = torch.randn(3, 70, requires_grad=True)
        y = function(x)
        g = torch.randn(2, 3, 70)
        (both,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
        one = torch.stack([torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in g])
        torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-5)


@needs_core
def test_the_output_may_be_changed_in_place_and_the_net_copied() -> None:
    layer = bw.nn.Conv2d(4, 8, 3, w="bwn", x="sign")
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    assert layer.x is not None
    layer.x(x).mul_(2).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, 2 * (x.abs() <= 1).float())
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))


@pytest.mark.slow
@needs_core
@pytest.mark.filterwarnings("ignore")  # of the tracers, about themselves
def test_compiled_code_equals_eager_code() -> None:
    layer = bw.nn.Conv2d(4, 8, 3, w="bireal", x="sign")
    x = torch.randn(2, 4, 5, 5)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "word"), [("0", "False"), pytest.param("1", str(native.available()), marks=pytest.mark.slow)]
)
def test_the_environment_switches_the_kernels_off(value: str, word: str) -> None:
    code = "import torch; from bitwright.fn import kernels; print(kernels.takes(torch.zeros(1)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BITWRIGHT_FUSED": value}, capture_output=True, text=True
    )
    assert done.stdout.strip() == word, done.stderr


@needs_core
def test_wrong_arguments_are_refused_by_the_core() -> None:
    x = torch.zeros(4)
    with pytest.raises(RuntimeError, match="native core: unknown dtype 7"):
        kernels.call_core("bw_sign_forward", x.data_ptr(), x.data_ptr(), None, 4, 7, 0, 1)
    with pytest.raises(RuntimeError, match="native core: a tensor is null"):
        kernels.call_core("bw_mask_backward", x.data_ptr(), None, x.data_ptr(), 4, 0, 1)
    with pytest.raises(RuntimeError, match="native core: n = -1 is not a size"):
        kernels.call_core(
            "bw_binary_forward", x.data_ptr(), x.data_ptr(), x.data_ptr(), None, 1 << 40, 1 << 40, 0, 0, 1
        )
