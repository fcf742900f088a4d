"""Slot layers: torch's layers exactly where slots are empty, the parts' values where they are not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.nn import KINDS, SlotLayer, is_slot_layer, replace_layer
from bitwright.parts import Chain
from bitwright.parts.gate_call import GateCall

SETTINGS: list[tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (nn.Linear, {}, (2, 4)),
    (nn.Linear, {"bias": False}, (2, 5, 4)),
    (nn.Conv1d, {"kernel_size": 3, "padding": 1}, (2, 4, 7)),
    (nn.Conv2d, {"kernel_size": 3}, (2, 4, 6, 7)),
    (nn.Conv2d, {"kernel_size": (3, 1), "stride": 2, "padding": (1, 0), "dilation": 2}, (2, 4, 9, 7)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 2, "bias": False}, (2, 4, 6, 6)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 4}, (2, 4, 6, 6)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (2, 4, 6, 6)),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same"}, (2, 4, 6, 6)),
    (nn.Conv2d, {"kernel_size": 3}, (4, 6, 6)),
    (nn.Conv3d, {"kernel_size": 2}, (2, 4, 4, 4, 4)),
    (nn.ConvTranspose2d, {"kernel_size": 3}, (2, 4, 5, 5)),
    (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "output_padding": 1, "groups": 2}, (2, 4, 5, 5)),
    (nn.ConvTranspose2d, {"kernel_size": 3, "dilation": 2, "padding": 1, "bias": False}, (2, 4, 5, 5)),
]
IDS = [f"{cls.__name__}-{'-'.join(map(str, options.values()))}-{len(shape)}d" for cls, options, shape in SETTINGS]
every = pytest.mark.parametrize(("cls", "options", "shape"), SETTINGS, ids=IDS)


def make(cls: type[nn.Module], options: dict[str, Any], **slots: Any) -> SlotLayer:
    return KINDS[cls](4, 8, **options, **slots)


class Halve(nn.Module):
    """A gradient quantizer of sorts: identity forward, half of the gradient back."""

    def forward(self, y: Tensor) -> Tensor:
        return y.detach() * 0.5 + y * 0.5


class TwoPasses(nn.Module):
    """A gate that evaluates the operator on two halves of the input."""

    def forward(self, op: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return op(x / 2, w, b) + op(x / 2, w, None)


class RawGate(nn.Module):
    """A gate that asks for the input before its x part."""

    needs_raw_input = True

    def forward(self, op: GateCall, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        assert op.raw is not None
        return op(x, w, b) * op.raw.abs().mean()


@every
def test_empty_slots_are_exactly_torch(cls: type[nn.Module], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    torchs, x = cls(4, 8, **options), torch.randn(shape)
    ours = make(cls, options)
    ours.load_state_dict(torchs.state_dict())
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    results = []
    for layer in (torchs, ours, replace_layer(torchs)):
        seen = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(seen)
        y.square().sum().backward()
        weight = layer.weight
        assert seen.grad is not None and isinstance(weight, Tensor) and weight.grad is not None
        results.append((y, seen.grad, weight.grad.clone()))
    for ours_too in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], ours_too, strict=True))


def operator(layer: SlotLayer, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The layer's arithmetic with the functional interface, for zero padding."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, w, b)
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(
            x,
            w,
            b,
            layer.stride,
            layer.padding,  # type: ignore[arg-type]
            layer.output_padding,
            layer.groups,
            layer.dilation,
        )
    run: Callable[..., Tensor] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[w.dim()]
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if layer.padding_mode != "zeros":
        x = F.pad(x, [1, 1, 1, 1], mode=layer.padding_mode)
        return run(x, w, b, layer.stride, 0, layer.dilation, layer.groups)
    return run(x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups)


@every
def test_every_slot_of_every_kind(cls: type[nn.Module], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    layer, x = make(cls, options), torch.randn(shape)
    w, b, signs = layer.weight, layer.bias, torch.where(x >= 0, 1.0, -1.0)
    plain = operator(layer, x, w, b)
    flat = w if cls is not nn.ConvTranspose2d else layer.slot_weight()
    scale = flat.abs().flatten(1).mean(1).reshape(-1, *[1] * (flat.dim() - 1))
    binary = layer.from_slot(torch.where(flat >= 0, 1.0, -1.0) * scale)
    half = None if b is None else b.round()

    class Round(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return t.round()

    expected: list[tuple[dict[str, Any], Tensor]] = [
        ({}, plain),
        ({"w": "bwn"}, operator(layer, x, binary, b)),
        ({"x": "sign"}, operator(layer, signs, w, b)),
        ({"w": "bwn", "x": "sign"}, operator(layer, signs, binary, b)),
        ({"b": Round()}, operator(layer, x, w, half)),
        ({"g": Halve()}, plain),
        ({"gate": TwoPasses()}, plain),
        ({"x": "sign", "gate": RawGate()}, operator(layer, signs, w, b) * x.abs().mean()),
        ({"w": "float", "x": "float", "g": "float", "b": "float", "gate": "float"}, plain),
    ]
    for slots, wanted in expected:
        layer.set_slots(w=None, b=None, x=None, g=None, gate=None)
        layer.set_slots(**slots)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


def test_the_g_slot_sees_the_gradient_of_the_output() -> None:
    layer, x = bw.nn.Linear(4, 3), torch.randn(2, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    whole = layer.weight.grad.clone()
    layer.zero_grad()
    layer.set_slots(g=Halve())
    layer(x).sum().backward()
    assert torch.allclose(layer.weight.grad, whole / 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_has_one_scale_per_output_filter(groups: int) -> None:
    layer = bw.nn.ConvTranspose2d(4, 8, 3, groups=groups, w="bwn")
    wide = 8 // groups
    quantized = layer.quantized_weight()
    assert quantized.shape == layer.weight.shape
    for group in range(groups):
        inputs = slice(group * 4 // groups, (group + 1) * 4 // groups)
        for o in range(wide):
            filter_ = layer.weight[inputs, o]
            expected = filter_.abs().mean() * torch.where(filter_ >= 0, 1.0, -1.0)
            assert torch.allclose(quantized[inputs, o], expected)
    assert torch.equal(layer.from_slot(layer.slot_weight()), layer.weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_after_step_of_a_transposed_convolution_reaches_the_parameter(groups: int) -> None:
    # slot_weight may be a copy: who moves latents writes the result back
    layer = bw.nn.ConvTranspose2d(4, 8, 3, groups=groups, w="bwn")
    with torch.no_grad():
        layer.weight.fill_(3.0)
        seen = layer.slot_weight().clone()
        layer.w.after_step(seen)  # type: ignore[operator, union-attr]
        layer.weight.copy_(layer.from_slot(seen))
    assert (layer.weight == 1).all()


def test_keys_of_latents_stay_and_parts_add_theirs() -> None:
    layer = bw.nn.Conv2d(3, 4, 3, w="ttq", x=["norm", {"part": "uniform", "bits": 4}])
    assert set(layer.state_dict()) == {
        "weight",
        "bias",
        "w.p",
        "w.n",
        *(f"x.links.0.{k}" for k in ("weight", "bias", "running_mean", "running_var")),
        *(f"x.links.1.{k}" for k in ("low", "high", "seen")),
    }


def test_a_float_checkpoint_loads_with_only_part_parameters_missing() -> None:
    torchs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    ours = nn.Sequential(bw.nn.Conv2d(3, 4, 3, w="ttq", x="input8"), bw.nn.Linear(4, 2, w="bwn", x="sign"))
    report = ours.load_state_dict(torchs.state_dict(), strict=False)
    assert sorted(report.missing_keys) == ["0.w.n", "0.w.p"] and not report.unexpected_keys
    first, theirs = ours[0].weight, torchs[0].weight
    assert isinstance(first, Tensor) and isinstance(theirs, Tensor) and torch.equal(first, theirs)


@pytest.mark.parametrize("cls", list(KINDS))
def test_replace_layer_shares_parameters_hooks_and_mode(cls: type[nn.Module]) -> None:
    old = cls(4, 4) if cls is nn.Linear else cls(4, 4, 1)
    assert isinstance(old.weight, nn.Parameter)
    optimizer = torch.optim.SGD(old.parameters(), 0.1)
    seen: list[int] = []
    handle = old.register_forward_hook(lambda *_: seen.append(1))
    old.weight.requires_grad_(False)
    old.eval()
    new = replace_layer(old)
    assert new.weight is old.weight and new.bias is old.bias and not new.training and not new.weight.requires_grad
    assert type(new) is KINDS[cls] and is_slot_layer(new) and not is_slot_layer(old)
    x = torch.randn(2, 4, *[3] * (old.weight.dim() - 2))
    new(x).sum().backward()
    before = new.bias.detach().clone() if new.bias is not None else None
    optimizer.step()
    assert before is not None and not torch.equal(before, new.bias)  # type: ignore[arg-type]
    assert seen == [1]
    handle.remove()
    new(x)
    assert seen == [1]


class Own(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize("layer", [Own(2, 2), nn.ReLU(), nn.LazyLinear(3), bw.nn.Linear(2, 2)])
def test_replace_layer_takes_exact_types_only(layer: nn.Module) -> None:
    with pytest.raises(
        InputError, match=f"{type(layer).__name__} cannot be replaced; exact types only: Linear, Conv1d"
    ):
        replace_layer(layer)


def test_parts_of_a_layer_in_evaluation_are_in_evaluation() -> None:
    layer = replace_layer(nn.Linear(4, 3).eval())
    layer.set_slots(x=["norm", "sign", {"part": "dropout", "p": 0.9}])
    assert layer.x is not None and not any(m.training for m in layer.x.modules())
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), layer(x))
    given = nn.Dropout()
    layer.set_slots(x=given)
    assert layer.x is given and given.training  # a module of the user's stays as it came


def test_repr_names_the_parts() -> None:
    assert repr(bw.nn.Conv2d(16, 8, 3, w="xnor", x="sign")) == (
        "Conv2d(16, 8, kernel_size=(3, 3), stride=(1, 1), w=xnor, x=sign)"
    )
    assert repr(bw.nn.Linear(4, 2, w=["mask", "bwn"])) == "Linear(in_features=4, out_features=2, bias=True, w=mask+bwn)"
    assert repr(bw.nn.Linear(4, 2)) == repr(nn.Linear(4, 2))
    assert "g=Halve" in repr(bw.nn.Linear(4, 2, g=Halve()))
    assert "w=bwn" in repr(nn.Sequential(bw.nn.Linear(4, 2, w="bwn")))


def test_slots_may_be_set_emptied_and_set_again() -> None:
    layer, x = bw.nn.Linear(4, 3), torch.randn(2, 4)
    y = layer(x)
    layer.set_slots(w="bwn", x="sign")
    assert not torch.equal(layer(x), y)
    layer.set_slots(w=None, x=None)
    assert torch.equal(layer(x), y)
    layer.x = bw.make_part("sign")
    assert "x" in dict(layer.named_children())


def test_a_part_for_a_missing_bias_leaves_the_slot_empty() -> None:
    assert bw.nn.Linear(4, 3, bias=False, b=nn.Identity()).b is None


def test_forms_of_a_slot_value() -> None:
    made = bw.make_part("sign")
    assert bw.nn.Linear(4, 3, x=made).x is made
    layer = bw.nn.Linear(4, 3, x={"part": "dorefa_a", "bits": 3}, w=("mask", "bwn"))
    assert layer.x is not None and layer.x.bits == 3 and isinstance(layer.w, Chain)


@every
def test_copies_evaluate_alike(cls: type[nn.Module], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    layer, x = make(cls, options, w=["ttq", "mask"], x="sign"), torch.randn(shape)
    layer(x).sum().backward()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x)) and twin.weight is not layer.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_layer_moves_with_its_parts(dtype: torch.dtype) -> None:
    layer = bw.nn.Conv2d(4, 8, 3, w="ttq", x=["norm", "sign"]).to(dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.randn(1, 4, 5, 5, dtype=dtype)).dtype == dtype


def test_layers_build_on_the_meta_device() -> None:
    layer = bw.nn.Conv2d(4, 8, 3, device="meta", w=["xnor", "mask"], x="sign")
    assert layer.weight.is_meta and isinstance(layer.w, Chain)
    assert bw.nn.Linear(4, 8, device="meta", w="ttq").weight.is_meta


@pytest.mark.slow
def test_compiled_layers_with_every_kind_of_slot() -> None:
    net = nn.Sequential(bw.nn.Conv2d(4, 8, 3, w=["mask", "xnor"], x=["norm", "sign"]), nn.Flatten()).eval()
    x = torch.randn(2, 4, 5, 5)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own
        fast = torch.compile(net, fullgraph=True, backend="aot_eager")
        assert torch.equal(fast(x), net(x))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "w", ["bwn", "xnor", "bireal", "dorefa_w", {"part": "uniform", "bits": 8, "granularity": "channel"}]
)
@pytest.mark.parametrize("x", ["sign", {"part": "dorefa_a", "bits": 3}, {"part": "uniform", "bits": 8, "signed": True}])
def test_evaluation_is_the_product_of_whole_numbers_then_one_multiply_and_one_add(w: Any, x: Any) -> None:
    layer = bw.nn.Conv2d(6, 5, 3, padding=1, w=w, x=x).eval()
    t = torch.randn(2, 6, 7, 7)
    with torch.no_grad():
        got = layer(t)
        assert layer.x is not None and layer.w is not None
        codes, weights = layer.x.encode(t), layer.w.encode(layer.weight)  # type: ignore[operator]
        value = torch.nn.functional.conv2d(
            (codes.offset.double() + (codes.coef.double() * codes.bit).sum(0)),
            (weights.offset.double() + (weights.coef.double() * weights.bit).sum(0)),
            None if layer.bias is None else layer.bias.double(),
            padding=1,
        )
    # a float64 sum is all but exact; one multiply and one add leave at most about two ulps of the largest value
    assert (got.double() - value).abs().max() <= 3 * torch.finfo(torch.float32).eps * value.abs().max()


def test_evaluation_keeps_the_gradient_of_training() -> None:
    layer = bw.nn.Linear(8, 3, w="bwn", x="sign")
    t = torch.randn(4, 8)
    grads = []
    for training in (True, False):
        layer.train(training)
        layer.zero_grad()
        layer(t).square().sum().backward()
        grads.append(layer.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
