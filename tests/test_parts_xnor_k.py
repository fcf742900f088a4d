"""xnor_k: K equals the paper's convolution, for every geometry; what it reads behind a norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw


def paper_map(raw: torch.Tensor, layer: Any) -> torch.Tensor:
    """Equation 11, one output place at a time: the mean of |raw| over channels, then over the window; outside is 0."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    per = layer.in_channels // layer.groups
    n, _, h, w = raw.shape
    oh, ow = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    k = torch.zeros(n, layer.groups, oh, ow, dtype=raw.dtype)
    for group in range(layer.groups):
        a = raw[:, group * per : (group + 1) * per].abs().mean(1)
        for i in range(oh):
            for j in range(ow):
                for di in range(kh):
                    for dj in range(kw):
                        y, x = i * sh - ph + di * dh, j * sw - pw + dj * dw
                        if 0 <= y < h and 0 <= x < w:
                            k[:, group, i, j] += a[:, y, x] / (kh * kw)
    return k.repeat_interleave(layer.out_channels // layer.groups, 1)


GEOMETRY: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 1, "groups": 4},
]


@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
def test_the_map_follows_stride_padding_dilation_and_groups(geometry: dict[str, Any]) -> None:
    layer = bw.nn.Conv2d(4, 8, **geometry, w="xnor", x="sign", gate="xnor_k").double()
    raw = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    plain = layer.op(raw.sign(), layer.quantized_weight(), None)
    expected = plain * paper_map(raw, layer)
    if layer.bias is not None:
        expected = expected + layer.bias.reshape(-1, 1, 1)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(raw), expected, rtol=0, atol=1e-14)


def test_a_linear_layer_scales_by_the_row_mean() -> None:
    layer = bw.nn.Linear(2, 1, w="xnor", x="sign", gate="xnor_k")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.5]]))
        layer.bias.fill_(10.0)  # type: ignore[union-attr]
    # (1 + 1) 0.5 (3 + 1) / 2 + 10
    assert layer(torch.tensor([[3.0, -1.0]])).tolist() == [[12.0]]


def test_1d_3d_and_transposed_layers_average_a_constant_to_itself() -> None:
    for kind, shape in (
        (bw.nn.Conv1d, (1, 4, 5)),
        (bw.nn.Conv3d, (1, 4, 3, 3, 3)),
        (bw.nn.ConvTranspose2d, (1, 4, 3, 3)),
    ):
        layer = kind(4, 4, 1, groups=2, bias=False, gate="xnor_k")
        x = torch.full(shape, -3.0)
        torch.testing.assert_close(layer(x), 3 * layer.op(x, layer.weight, None))


def test_behind_a_norm_the_map_is_of_what_the_sign_reads_and_the_norm_runs_once() -> None:
    layer = bw.nn.Conv2d(3, 2, 1, bias=False, w="bwn", x=["norm", "sign"], gate="xnor_k").train()
    norm: Any = layer.x.links[0]  # type: ignore[union-attr]
    x = torch.randn(4, 3, 2, 2) * 5 + 1
    seen = nn.functional.batch_norm(x, None, None, training=True)
    expected = layer.op(torch.where(seen >= 0, 1.0, -1.0), layer.quantized_weight(), None) * seen.abs().mean(1, True)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))


def test_the_gradient_of_the_map_is_detached_unless_asked_for() -> None:
    grads = []
    for detach in (True, False):
        torch.manual_seed(0)
        layer = bw.nn.Linear(3, 2, bias=False, w="bwn", x="sign", gate={"part": "xnor_k", "detach": detach}).double()
        x = torch.tensor([[0.5, 2.0, -3.0]], dtype=torch.float64, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad[0].tolist())
        total = (layer.op(torch.tensor([[1.0, 1.0, -1.0]]).double(), layer.quantized_weight(), None)).sum().item()
    assert grads[0][0] != 0 and grads[0][1:] == [0.0, 0.0]  # the clip stops beyond 1
    # |x| / 3 adds sign(x) / 3 times the product without its scale
    assert grads[1][1:] == pytest.approx([total / 3, -total / 3])


def test_a_layer_with_it_is_not_packed_and_says_why() -> None:
    layer = bw.nn.Conv2d(3, 4, 3, w="xnor", x="sign", gate="xnor_k").eval()
    report = bw.convert(nn.Sequential(layer), torch.randn(2, 3, 5, 5)).report
    assert report.status == "REFUSE" and "slot gate holds xnor_k" in str(report)
