"""Chains and the small parts: mask, norm, dropout, float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import Chain, make_slot, moment
from bitwright.parts.mask import Mask


def chain(value: list[object], slot: str, layer: nn.Module | None = None) -> Chain:
    made = make_slot(value, slot, layer)
    assert isinstance(made, Chain)
    return made


def prune(made: Chain, mask: list[list[int]]) -> None:
    assert made.mask is not None
    made.mask.mask.copy_(torch.tensor(mask))


def test_links_run_left_to_right() -> None:
    made = chain([{"part": "norm", "features": 2}, "sign"], "x").eval()
    norm = made.links[0]
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, -1.0]))  # type: ignore[operator]
    assert made(torch.tensor([[0.5, -0.5]])).tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("order", [["mask", "bwn"], ["bwn", "mask"]])
def test_a_mask_acts_last_wherever_it_stands_and_hides_what_it_prunes(order: list[object]) -> None:
    made = chain(order, "w", nn.Linear(3, 2))
    prune(made, [[1, 1, 0], [0, 1, 0]])
    w = torch.tensor([[1.0, -3.0, 50.0], [70.0, 0.0, 0.0]])
    # scales over the kept ones: 2 and 0; the kept zero weighs +0
    assert made(w).tolist() == [[2.0, -2.0, 0.0], [0.0, 0.0, 0.0]]
    code = made.encode(w)
    assert torch.equal(code.value(), made(w))
    assert code.planes == 2  # the offset -a needs the mask as one more plane


def test_pruned_latents_get_no_gradient_and_keep_out_of_the_others() -> None:
    made = chain(["bwn", "mask"], "w", nn.Linear(3, 1))
    prune(made, [[1, 0, 1]])
    w = torch.tensor([[0.5, 9.0, -0.5]], requires_grad=True)
    made(w).backward(torch.tensor([[1.0, 1000.0, 1.0]]))
    # scale 0.5; sum of g sign over the kept two is 0
    assert w.grad is not None and w.grad.tolist() == [[0.5, 0.0, 0.5]]


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal", "dorefa_w", "ttq", "uniform"])
def test_infinite_pruned_latents_change_nothing(name: str) -> None:
    made = chain(["mask", name], "w", nn.Linear(3, 2))
    prune(made, [[1, 0, 1], [1, 1, 1]])
    w = torch.tensor([[1.0, 2.0, -0.5], [0.3, 0.1, 0.2]])
    other = w.clone()
    other[0, 1] = torch.inf
    assert torch.equal(made(w), made(other)) and torch.isfinite(made(w)).all()


@pytest.mark.parametrize("name", ["bwn", "xnor", "bireal", "dorefa_w", "ttq", "uniform"])
@pytest.mark.parametrize("options", [{}, {"bits": 4}])
def test_the_code_of_a_masked_chain_is_its_value(name: str, options: dict[str, int]) -> None:
    if options and name not in ("dorefa_w", "uniform"):
        options = {}
    made = chain([{"part": name, **options}, "mask"], "w", nn.Conv2d(4, 8, 3)).eval()
    assert made.mask is not None
    made.mask.mask.copy_((torch.rand(8, 4, 3, 3) < 0.5).to(torch.uint8))
    w = torch.randn(8, 4, 3, 3)
    code, planes = made.encode(w), getattr(made.quantizer, "planes", 0)
    assert code.planes in (planes, planes + 1)
    torch.testing.assert_close(code.value(), made(w).detach(), rtol=0, atol=2.4e-7 * float(w.abs().max()))
    assert (code.value()[made.mask.mask == 0] == 0).all()


def test_after_step_centers_over_the_kept_inputs() -> None:
    made = chain(["xnor", "mask"], "w", nn.Linear(3, 1))
    prune(made, [[1, 1, 0]])
    w = torch.tensor([[0.5, 0.25, -0.75]])
    made.after_step(w)
    assert w.tolist() == [[0.125, -0.125, -0.75]]


@pytest.mark.parametrize("pair", [("bwn", "xnor"), ("ttq", "dorefa_w"), ("uniform", "uniform")])
def test_two_quantizers_are_refused_by_name(pair: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=f"two quantizers in one slot, {pair[0]} and {pair[1]}") as caught:
        make_slot(list(pair), "w")
    assert caught.value.code == "chain-two"


def test_two_masks_are_refused() -> None:
    with pytest.raises(InputError, match="two masks"):
        make_slot(["mask", "mask"], "w", nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("links", "encodes"),
    [
        (["norm", "sign"], True),
        (["sign", "dropout"], True),
        (["norm", "sign", "dropout"], True),
        (["sign", "norm"], False),
        (["norm", "dropout"], False),
    ],
)
def test_a_chain_offers_a_code_only_if_the_code_is_its_value(links: list[object], encodes: bool) -> None:
    made = chain(links, "x", nn.Conv2d(3, 2, 1)).eval()
    assert (moment(made, "encode") is not None) is encodes
    x = torch.randn(4, 3, 2, 2)
    if encodes:
        assert torch.equal(made.encode(x).value(), made(x))
    else:
        with pytest.raises(InputError, match="nothing to encode"):
            made.encode(x)


def test_a_chain_answers_for_its_links() -> None:
    plain = chain(["sign", "dropout"], "x")
    assert [name for name in ("encode", "after_step", "penalty", "observe", "density") if moment(plain, name)] == [
        "encode"
    ]
    masked = chain(["bwn", "mask"], "w", nn.Linear(2, 2))
    prune(masked, [[1, 0], [0, 0]])
    assert masked.density() == 0.25 and moment(masked, "after_step") is not None
    assert masked.bits == 1 and masked.part_name == "bwn+mask"


def test_a_chain_of_a_mask_alone_is_that_mask() -> None:
    assert isinstance(make_slot(["float", "mask"], "w", nn.Linear(2, 2)), Mask)


def test_a_chain_calibrates_what_its_quantizer_will_see() -> None:
    made = chain(["norm", {"part": "uniform", "signed": True}], "x", nn.Conv2d(2, 2, 1)).eval()
    norm, quantizer = made.links[0], made.links[1]
    with torch.no_grad():
        norm.weight.fill_(3.0)  # type: ignore[operator]
    made.observe(torch.tensor([-1.0, 0.5]).reshape(1, 2, 1, 1))
    assert quantizer.low.item() == pytest.approx(-3.0, rel=1e-4)  # type: ignore[operator]


# -- mask


def test_a_mask_zeroes_exactly_and_counts_its_density() -> None:
    part = Mask(torch.tensor([[1, 0], [0, 1]]))
    w = torch.tensor([[1.0, torch.inf], [torch.nan, 2.0]], requires_grad=True)
    value = part(w)
    value.sum().backward()
    assert value.tolist() == [[1.0, 0.0], [0.0, 2.0]] and part.density() == 0.5
    assert w.grad is not None and w.grad.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_mask_of_a_transposed_convolution_has_outputs_first() -> None:
    layer = bw.nn.ConvTranspose2d(4, 6, 3, groups=2, w="mask")
    assert isinstance(layer.w, Mask) and layer.w.mask.shape == (6, 2, 3, 3)
    layer.w.mask[5] = 0
    y = layer(torch.randn(1, 4, 5, 5))
    assert layer.bias is not None and torch.allclose(y[:, 5], layer.bias[5].expand(1, 7, 7))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"mask \(3, 2\) for weights \(2, 3\)"):
        bw.make_part("mask", layer=nn.Linear(3, 2), mask=torch.ones(3, 2))


def test_a_mask_built_without_a_layer_takes_the_shape_of_the_file() -> None:
    saved = Mask(torch.tensor([1, 0, 1])).state_dict()
    part = Mask()
    part.load_state_dict(saved)
    assert part.mask.tolist() == [1, 0, 1]


def test_a_mask_needs_weights() -> None:
    with pytest.raises(InputError, match="ReLU has no weight to mask"):
        bw.make_part("mask", layer=nn.ReLU())


# -- norm, dropout


@pytest.mark.parametrize("mode", [True, False])
def test_norm_is_torchs_batch_norm(mode: bool) -> None:
    part, torchs = bw.make_part("norm", features=3), nn.BatchNorm2d(3)
    for module in (part, torchs):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))  # type: ignore[operator]
            module.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))  # type: ignore[operator]
        module.train(mode)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(part(x), torchs(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(part.running_var, torchs.running_var)  # type: ignore[arg-type]


def test_norm_in_evaluation_is_one_multiply_and_one_add_of_constants_rounded_once() -> None:
    # mean 0.5, variance 4 - eps, gain 3, shift 1: scale 3 / 2, add 1 - 0.5 * 1.5 = 0.25
    part = bw.make_part("norm", features=1, eps=0.25).eval()
    with torch.no_grad():
        for name, value in (("running_mean", 0.5), ("running_var", 3.75), ("weight", 3.0), ("bias", 1.0)):
            getattr(part, name).fill_(value)
    x = torch.randn(5, 1, 2, 2)
    assert torch.equal(part(x), x * 1.5 + 0.25)


def test_norm_before_a_linear_layer_normalizes_the_last_axis() -> None:
    layer = bw.nn.Linear(3, 2, x="norm")
    x = torch.randn(4, 5, 3)
    assert layer.x is not None
    assert torch.allclose(layer.x(x).flatten(0, 1), nn.BatchNorm1d(3)(x.flatten(0, 1)), atol=1e-6)


def test_norm_needs_to_know_its_features() -> None:
    with pytest.raises(InputError, match="part norm: needs features=N"):
        bw.make_part("norm")


def test_norm_follows_the_dtype_of_a_double_layer() -> None:
    layer = bw.nn.replace_layer(nn.Linear(3, 2).double())
    layer.set_slots(x="norm")
    assert layer(torch.randn(4, 3, dtype=torch.float64)).dtype == torch.float64


def test_dropout_scales_in_training_and_vanishes_in_evaluation() -> None:
    part, x = bw.make_part("dropout", p=0.5), torch.ones(1000)
    assert set(part(x).tolist()) == {0.0, 2.0}
    assert torch.equal(part.eval()(x), x)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_dropout_takes_a_share(p: float) -> None:
    with pytest.raises(InputError, match=r"a share lies in 0\.\.1"):
        bw.make_part("dropout", p=p)


def test_float_returns_the_very_same_tensor() -> None:
    t = torch.randn(3)
    assert bw.make_part("float")(t) is t


class Doubling(nn.Module):
    """A part of somebody else, in no register."""

    def forward(self, t: Tensor) -> Tensor:
        return 2 * t


def test_modules_may_be_links() -> None:
    made = chain([Doubling(), "sign"], "x")
    assert made(torch.tensor([-1.0, 3.0])).tolist() == [-1.0, 1.0] and made.part_name == "Doubling+sign"


@pytest.mark.parametrize(
    ("w", "planes", "storage"),
    [
        ("bwn", 1, 1),
        (["mask", "bwn"], 2, 2),
        ([{"part": "xnor", "center": "graph"}, "mask"], 2, 2),
        (["mask", {"part": "dorefa_w", "bits": 2}], 3, 3),
        (["mask", {"part": "kbit", "bits": 2, "clip": False}], None, 33),
        (["mask", "ttq"], 2, 3),
        (["mask", "zero_one"], 1, 2),
        (["mask", {"part": "zero_one", "off": -1.0}], 2, 2),
    ],
    ids=str,
)
def test_a_chain_states_the_planes_of_its_code(w: Any, planes: int | None, storage: int) -> None:
    """And cost counts them: an offset that a mask hides where it prunes is a plane of its own."""
    net = nn.Sequential(bw.nn.Conv2d(4, 6, 3, bias=False, w=w, x="sign")).eval()
    part: Any = net[0].w
    row = bw.cost(net, torch.randn(1, 4, 5, 5)).rows[0]
    assert (part.planes, part.storage_bits) == (planes, storage)
    if planes is not None:
        assert part.encode(net[0].weight).planes == planes and row.bops == row.macs * planes
    with bw.count_macs(net) as count:
        net(torch.randn(1, 4, 5, 5))
    assert count.bops == row.bops
