"""Edge cases and required behavior: the rows of quantizers.md section 14 that concern parts."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import BitwrightWarning
from bitwright.parts import moment, part_class
from bitwright.testing.codes import exact

WEIGHTS = [name for name, info in bw.parts().items() if "w" in info.slots and info.packs]
SIGNS = [n for n in WEIGHTS if getattr(part_class(n), "bits", 0) == 1 and n != "zero_one"]  # off or on, no sign
INPUTS = [name for name, info in bw.parts().items() if "x" in info.slots and info.packs]


def build(name: str, slot: str, layer: nn.Module | None = None) -> nn.Module:
    return bw.make_part(name, slot=slot, layer=layer).eval()


@pytest.mark.parametrize("name", SIGNS)
def test_exact_zeros_in_weights_count_as_plus_and_the_code_has_no_third_level(name: str) -> None:
    w = torch.tensor([[0.0, -0.0, 1.0, -1.0]])
    value = build(name, "w")(w)
    assert value.sign().tolist() == [[1.0, 1.0, 1.0, -1.0]]
    code = build(name, "w").encode(w)  # type: ignore[operator]
    assert code.bit.flatten().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("part", [build("sign", "x"), build("rsign", "x"), bw.make_part("kbit", slot="x", bits=1)])
def test_exact_zeros_in_inputs_count_as_plus_and_the_code_has_no_third_level(part: nn.Module) -> None:
    x = torch.zeros(2, 3)
    assert (part(x) == 1).all() and (part.encode(-x).value() == 1).all()  # type: ignore[operator]


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_all_zero_filter_gives_exactly_zero_and_a_finite_gradient(name: str) -> None:
    w = torch.randn(2, 3, 2, 2)
    w[0] = 0
    part = build(name, "w")
    for t in (w, torch.zeros_like(w)):
        t = t.clone().requires_grad_()
        value = part(t)
        # dorefa_w: its scale or grid belongs to the layer, not the filter; the other two have no scale at all
        scaleless = part.part_name in ("binaryconnect", "metaquant")
        if not scaleless and (part.part_name != "dorefa_w" or not t.any()):
            assert (value[0] == 0).all()
        value.sum().backward()
        assert t.grad is not None and torch.isfinite(t.grad).all() and torch.isfinite(value).all()


def test_an_all_zero_filter_of_metaquant_is_zero_where_filters_have_a_scale() -> None:
    w = torch.randn(2, 3, 2, 2)
    w[0] = 0
    value = bw.make_part("metaquant", slot="w", quantizer="bwn", granularity="filter").eval()(w)
    assert (value[0] == 0).all() and (value[1] != 0).all()


@pytest.mark.parametrize("name", ["bwn", "xnor"])
def test_an_all_zero_filter_recovers(name: str) -> None:
    w = torch.zeros(1, 3, requires_grad=True)
    # value 0; sum of g sign(0) = -3 over n = 3: every weight is pushed by -1
    build(name, "w")(w).backward(-torch.ones(1, 3))
    assert w.grad is not None and w.grad.tolist() == [[-1.0, -1.0, -1.0]]


@pytest.mark.parametrize("name", ["bwn", "xnor"])
@pytest.mark.parametrize("kind", [nn.Linear, bw.nn.ConvTranspose2d])
def test_an_all_zero_filter_warns_at_init(name: str, kind: type[nn.Module]) -> None:
    layer = kind(4, 3) if kind is nn.Linear else kind(4, 3, 2)
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight[(slice(None), 2) if kind is not nn.Linear else 2] = 0
    with pytest.warns(BitwrightWarning, match=f"part {name}: 1 of 3 filters"):
        bw.make_part(name, layer=layer)


def test_an_all_equal_filter_becomes_zero_by_centering_and_warns() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0.3
    with pytest.warns(BitwrightWarning, match="after centering"):
        part = bw.make_part("xnor", layer=layer)
    with torch.no_grad():
        part.after_step(layer.weight)  # type: ignore[operator]
        assert part(layer.weight)[0].abs().max() < 1e-7


@pytest.mark.parametrize("center", ["project", "graph"])
def test_centering_is_off_for_one_input_channel_and_depthwise(center: str) -> None:
    part = bw.make_part("xnor", center=center)
    w = torch.tensor([0.5, -0.25]).reshape(2, 1, 1, 1)
    before = w.clone()
    part.after_step(w)  # type: ignore[operator]
    assert torch.equal(w, before) and part(w).flatten().tolist() == [0.5, -0.25]
    depthwise = bw.nn.Conv2d(4, 4, 3, groups=4, w={"part": "xnor", "center": center})
    assert depthwise.quantized_weight().abs().min() > 0


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal"])
def test_groups_count_the_weights_of_one_filter(name: str) -> None:
    conv = bw.nn.Conv2d(8, 4, 3, groups=2, w=name)
    expected = conv.weight.abs().sum((1, 2, 3)) / (4 * 9)
    assert torch.allclose(conv.quantized_weight()[:, 0, 0, 0].abs(), expected)


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 2, 2), (3, 4, 2, 2, 2)])
def test_scales_reduce_over_all_axes_but_the_output(name: str, shape: tuple[int, ...]) -> None:
    w = torch.randn(shape)
    magnitudes = build(name, "w")(w).abs().flatten(1)
    assert torch.allclose(magnitudes, w.abs().flatten(1).mean(1, keepdim=True).expand_as(magnitudes))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", [bw.nn.Conv1d, bw.nn.Conv2d, bw.nn.Conv3d, bw.nn.ConvTranspose2d])
def test_every_filter_of_a_grouped_layer_of_any_rank_is_quantized_as_alone(
    name: str, kind: type[bw.nn.SlotLayer]
) -> None:
    layer = kind(4, 6, 2, groups=2, w=name).eval()
    part, rows = layer.w, layer.slot_weight().detach()
    assert part is not None and rows.shape[0] == 6 and rows[0].numel() == 2 * 2 ** (rows.dim() - 2)
    value = part(rows)
    assert torch.equal(layer.from_slot(value), layer.quantized_weight())
    if name in ("bwn", "xnor", "bireal", "twn", "kbit", "binaryconnect"):  # the others have one grid for the tensor
        for o in range(6):
            assert torch.allclose(part(rows[o : o + 1]), value[o : o + 1])


@pytest.mark.parametrize("kind", [bw.nn.Linear, bw.nn.Conv1d, bw.nn.Conv2d, bw.nn.Conv3d, bw.nn.ConvTranspose2d])
def test_a_bias_stays_float_and_may_be_none(kind: type[bw.nn.SlotLayer]) -> None:
    for bias in (True, False):
        layer = kind(4, 4, bias=bias) if kind is bw.nn.Linear else kind(4, 4, 1, bias=bias)
        layer.set_slots(w="bwn", x="sign", b="float")
        shape = (2, 4) if kind is bw.nn.Linear else (2, 4, *[3] * (layer.weight.dim() - 2))
        assert layer(torch.randn(shape)).shape == shape
        assert layer.b is None and (layer.bias is not None) is bias


@pytest.mark.parametrize("name", WEIGHTS)
def test_channels_last_weights_keep_their_memory_format(name: str) -> None:
    w = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    assert build(name, "w")(w).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal"])
def test_weights_beyond_one_get_no_gradient_through_the_sign_and_are_clipped_after_the_step(
    name: str,
) -> None:
    w = torch.tensor([[1.5, -0.5]], requires_grad=True)
    part = build(name, "w")
    # g orthogonal to the signs: the term through the scale is 0, what is left is the sign's
    part(w).backward(torch.tensor([[1.0, 1.0]]))
    assert w.grad is not None and w.grad[0, 0] == 0 and w.grad[0, 1] != 0
    latent = torch.tensor([[1.5, -1.5]])
    part.after_step(latent)  # type: ignore[operator]
    assert latent.abs().max() <= 1


@pytest.mark.parametrize("name", INPUTS)
def test_nan_inputs_stay_nan_in_training_code_and_become_the_lowest_level_in_the_packed_code(
    name: str,
) -> None:
    part = build(name, "x")
    x = torch.tensor([[torch.nan, 0.3, -0.2, 1.0]])
    assert part(x).isnan().tolist() == [[True, False, False, False]]
    code = part.encode(x)  # type: ignore[operator]
    assert not code.bit[:, 0, 0].any() and not exact(code).isnan().any()


@pytest.mark.parametrize("name", INPUTS)
def test_infinite_inputs_take_the_ends_of_the_grid(name: str) -> None:
    part = build(name, "x")
    low, high = part(torch.tensor([[-torch.inf, torch.inf, 0.1, -0.1]]))[0, :2].tolist()
    least, most = part(torch.tensor([[-1e9, 1e9, 0.1, -0.1]]))[0, :2].tolist()
    assert (low, high) == (least, most)


@pytest.mark.parametrize("name", WEIGHTS + INPUTS)
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_of_one_and_an_empty_batch_return_their_shape(name: str, batch: int) -> None:
    slot = "w" if name in WEIGHTS and name not in INPUTS else "x"
    for mode in (True, False):
        x = torch.randn(batch, 3, 2, 2)
        assert build(name, slot).train(mode)(x).shape == x.shape


@pytest.mark.parametrize("name", sorted(bw.parts()))
def test_no_part_calls_item_in_forward_or_encode(name: str) -> None:
    cls = part_class(name)
    for word in ("forward", "encode"):
        if hasattr(cls, word):
            source = inspect.getsource(getattr(cls, word))
            assert ".item()" not in source and ".tolist()" not in source


def test_double_backward_is_refused_in_words() -> None:
    x = torch.randn(3, requires_grad=True)
    (first,) = torch.autograd.grad(bw.make_part("sign")(x * 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, on first use
def test_forward_mode_derivatives_are_refused_in_words() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(3), torch.ones(3))
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            bw.make_part("sign")(x)


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal", "lsq", "twn", "kbit", "binaryconnect"])
def test_gradient_accumulation_edits_no_gradient_in_place(name: str) -> None:
    layer = bw.nn.Linear(4, 3, w=name)
    x = torch.randn(2, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    once = layer.weight.grad.clone()
    layer(x).sum().backward()
    assert torch.allclose(layer.weight.grad, 2 * once)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_tied_weight_is_quantized_alike_and_no_forward_changes_it(name: str) -> None:
    one, two = bw.nn.Linear(4, 3, w=name), bw.nn.Linear(4, 3, w=name)
    two.weight = one.weight
    before = one.weight.detach().clone()
    for layer in (one, two):
        layer(torch.randn(2, 4)).sum().backward()
    assert torch.equal(one.weight, before)
    for layer in (one, two):  # what a part read off a weight when it was built, as its first scale
        observe = moment(layer.w, "observe")
        if observe is not None:
            observe(layer.weight.detach())
    assert torch.equal(one.quantized_weight(), two.quantized_weight())


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_average_of_latents_is_quantized_like_any_latent(name: str) -> None:
    layer = bw.nn.Linear(4, 3, w=name)
    average = torch.optim.swa_utils.AveragedModel(layer)
    average.update_parameters(layer)
    assert torch.equal(average.module(torch.ones(1, 4)), layer(torch.ones(1, 4)))


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_warning_for_ordinary_weights(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bw.make_part(name, layer=nn.Conv2d(4, 4, 3))
        bw.make_part(name, layer=nn.Conv2d(4, 4, 3, groups=4))


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal", "dorefa_w", "twn"])
def test_half_precision_sums_are_taken_in_float32(name: str) -> None:
    # 70000 weights of 0.5: the sum overflows float16, 1/n is subnormal there
    w = torch.full((1, 70000), 0.5, dtype=torch.float16, requires_grad=True)
    value = build(name, "w")(w)
    assert value[0, 0].item() == pytest.approx(0.5, rel=1e-3)
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_forward_value_is_exact_not_a_rounded_difference(name: str) -> None:
    # hard - soft + soft rounds: 5 % of the weights came out off the grid in the public codes
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        w = torch.randn(1, 4000).to(dtype)
        assert build(name, "w")(w).unique().numel() <= 2 ** build(name, "w").storage_bits  # type: ignore[operator]
