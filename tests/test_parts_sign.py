"""sign: never zero, four surrogates; input8: exact bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from oracles import inputs
from oracles.compare import check_inputs, close, special


def slopes(x: list[float], **options: Any) -> list[float]:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    bw.make_part("sign", **options)(t).sum().backward()
    assert t.grad is not None
    return t.grad.tolist()


def test_zero_of_either_sign_is_plus_one() -> None:
    assert bw.make_part("sign")(torch.tensor([0.0, -0.0, 1e-45, -1e-45])).tolist() == [1.0, 1.0, 1.0, -1.0]


def test_clip_is_closed_unless_open_is_asked_for() -> None:
    x = [-1.5, -1.0, 0.0, 1.0, 1.5]
    assert slopes(x) == [0, 1, 1, 1, 0]
    assert slopes(x, boundary="open") == [0, 0, 1, 0, 0]


def test_approx_by_hand() -> None:
    assert slopes([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0], surrogate="approx") == [0, 0, 1, 2, 1.5, 0, 0]


def test_identity_passes_everything() -> None:
    assert slopes([-9.0, 0.0, 9.0], surrogate="identity") == [1, 1, 1]


def test_swish_by_hand_at_zero() -> None:
    # 5 (2 - 0) / (1 + cosh 0) = 5
    assert slopes([0.0], surrogate="swish") == [5.0]


@pytest.mark.parametrize("surrogate", ["clip", "approx", "identity", "swish"])
@pytest.mark.parametrize("boundary", ["closed", "open"])
def test_surrogates_equal_the_oracle(surrogate: str, boundary: str) -> None:
    part = bw.make_part("sign", surrogate=surrogate, boundary=boundary)
    tolerance = 1e-7 if surrogate == "swish" else 1e-12  # the oracle differentiates numerically
    check_inputs(part, lambda v: inputs.sign(v, surrogate, boundary), special(3, 4, 2, 2), tolerance)


def test_swish_stays_finite_far_out_in_half_precision() -> None:
    x = torch.tensor([-6e4, -20.0, 20.0, 6e4], dtype=torch.float16, requires_grad=True)
    bw.make_part("sign", surrogate="swish")(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("options", [{"surrogate": "tanh"}, {"boundary": "half"}])
def test_unknown_words_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="part sign: "):
        bw.make_part("sign", **options)


# -- input8


@pytest.mark.parametrize("means", [0.0, 0.5, [0.4914, 0.4822, 0.4465]])
@pytest.mark.parametrize("stds", [1.0, [0.2470, 0.2435, 0.2616]])
def test_every_byte_equals_the_oracle(means: float | list[float], stds: float | list[float]) -> None:
    part = bw.make_part("input8", mean=means, std=stds).double()
    k = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    listed, spread = (
        means if isinstance(means, list) else [means] * 3,
        stds if isinstance(stds, list) else [stds],
    )
    expected = [[inputs.pixel(float(v), m, spread, byte=True)[0] for v in range(256)] for m in listed]
    for x in (k, k.double() / 255):
        got = part(x)
        assert got.dtype == torch.float64
        close("value", got.reshape(3, 256), expected)


def test_input8_gradient_is_one_over_std_inside() -> None:
    part = bw.make_part("input8", mean=0.5, std=0.25).double()
    check_inputs(part, lambda v: inputs.pixel(v, 0.5, [0.25]), special(2, 3, 2, 2))


def test_input8_code_is_the_byte_itself() -> None:
    k = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    code = bw.make_part("input8", mean=0.5, std=0.25).encode(k)  # type: ignore[operator]
    assert torch.equal((code.bit.int() << torch.arange(8).reshape(8, 1, 1, 1, 1)).sum(0), k.int())
    # mean 0.5 is the byte 127.5, rounded to even 128; step 1 / (255 / 4)
    assert code.offset.item() == pytest.approx(-128 * 4 / 255)


def test_input8_mean_is_a_whole_code_so_zero_is_on_the_grid() -> None:
    part = bw.make_part("input8", mean=0.4914, std=0.247)
    k = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert (part(k) == 0).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_net_of_another_dtype_reads_bytes(dtype: torch.dtype) -> None:
    layer = bw.nn.Conv2d(3, 4, 3, x="input8").to(dtype)
    assert layer(torch.zeros(1, 3, 5, 5, dtype=torch.uint8)).dtype == dtype


@pytest.mark.parametrize("options", [{"mean": 1.5}, {"mean": -0.1}, {"std": 0.0}, {"std": [0.2, -0.2, 0.2]}])
def test_input8_refuses_what_no_pixel_has(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"mean lies in 0\.\.1, std above 0"):
        bw.make_part("input8", **options)


def test_input8_by_the_name_of_a_data_set() -> None:
    named, listed = bw.make_part("input8", mean="svhn"), bw.make_part("input8", mean=SVHN[0], std=SVHN[1])
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(named(x), listed(x)) and named.state_dict() == {}
    with pytest.raises(InputError, match=r"mean='cifar'. Nearest: cifar10.*Possible: numbers, or .*measured"):
        bw.make_part("input8", mean="cifar")
    with pytest.raises(InputError, match="names the std too"):
        bw.make_part("input8", mean="cifar10", std=0.2)


SVHN = [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(12, 2)])
def test_values_of_other_channels_are_measured(layer: nn.Module) -> None:
    with pytest.warns(bw.BitwrightWarning, match="mean and std of cifar10 are for 3 channels, not for "):
        part: Any = bw.make_part("input8", layer=layer, mean="cifar10")
    channels = getattr(layer, "in_channels", 1)
    torch.manual_seed(0)
    k = torch.randint(0, 200, (5, 12) if isinstance(layer, nn.Linear) else (5, channels, 6, 6), dtype=torch.uint8)
    assert torch.equal(part(k), k.float() * (torch.ones(()) / 255))  # neutral until it is measured
    for piece in k.split(2):
        part.observe(piece)
        part.observe(piece.float() / 255)  # the same pixels, as floats
    rows = k.double().movedim(1, -1).reshape(-1, channels)
    assert part.zero.tolist() == rows.mean(0).round().tolist()
    std = rows.std(0, correction=0).mean() / 255
    torch.testing.assert_close(part.width.double(), std, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        part(k).double(),
        (k.double() - rows.mean(0).round().reshape(-1, *[1] * (k.dim() - 2))) / (255 * std),
        rtol=1e-6,
        atol=0,
    )
    code = part.encode(k)
    torch.testing.assert_close(code.value(), part(k), rtol=0, atol=1e-6)
    whole, unit = part.whole(k)
    assert torch.equal(whole * unit, part(k))
    again: Any = bw.make_part("input8", layer=layer, mean="measured")
    again.load_state_dict(part.state_dict())
    assert torch.equal(again(k), part(k))


def test_calibrate_measures_only_where_asked() -> None:
    net: Any = nn.Sequential(
        bw.nn.Conv2d(2, 4, 1, x={"part": "input8", "mean": "measured"}), bw.nn.Conv2d(4, 4, 1, x="input8")
    )
    x = torch.tensor([[[[0.0, 1.0]], [[0.5, 0.5]]]])
    bw.calibrate(net, [x, x])
    assert net[0].x.zero.tolist() == [128, 128] and net[0].x.width.item() == 0.75  # stds 0.5, and 1 where constant
    assert net[1].x.zero.tolist() == [0] and net[1].x.step == 1 / 255


def test_one_image_without_a_batch_axis() -> None:
    x = torch.rand(3, 5, 5)
    for spec in ({"part": "input8", "mean": "cifar10"}, ["norm", "sign"], "rsign", {"part": "lsq", "bits": 4}):
        layer = bw.nn.Conv2d(3, 4, 3, w="bwn", x=spec).eval()
        for part in layer.x.modules() if layer.x is not None else ():
            for value in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if value.is_floating_point() and value.numel() == 3:
                    value.data.copy_(torch.tensor([0.1, 0.2, 0.7]))
        assert torch.equal(layer(x), layer(x[None])[0])


def test_input8_refuses_another_number_of_channels() -> None:
    with pytest.raises(InputError, match="2 means for 3 channels"):
        bw.make_part("input8", layer=nn.Conv2d(3, 4, 3), mean=[0.1, 0.2])
