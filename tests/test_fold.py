"""fold: float64 constants, rounded once; the graph it was given is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.fold import fold
from bitwright.engine.trace import trace

B = bw.nn
CODED = {"w": "bwn", "x": "sign"}


def normed(channels: int, make: Any = nn.BatchNorm2d) -> Any:
    bn = make(channels)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    bn.weight.data.normal_()
    bn.bias.data.normal_()
    return bn


def constants(bn: Any) -> tuple[np.ndarray, np.ndarray]:
    rate = bn.weight.detach().double().numpy() / np.sqrt(bn.running_var.double().numpy() + bn.eps)
    return rate, bn.bias.detach().double().numpy() - bn.running_mean.double().numpy() * rate


def graph(net: nn.Module, *shape: int) -> Any:
    return trace(net.eval(), torch.randn(2, *shape)).graph


def tensor(g: Any, name: str, role: str) -> np.ndarray:
    return g.tensor(g.node(name), role).numpy()


def test_a_norm_behind_a_coded_layer_goes_into_its_scale_and_add() -> None:
    net = nn.Sequential(B.Conv2d(3, 4, 3, **CODED), normed(4))
    traced = graph(net, 3, 5, 5)
    folded = fold(traced)
    assert [n.op for n in folded.nodes] == ["input", "quantize", "coded_conv", "output"]
    conv: Any = net[0]
    size = conv.weight.detach().abs().flatten(1)
    alpha = (size.sum(1) / size.shape[1]).double().numpy()
    rate, shift = constants(net[1])
    bias = conv.bias.detach().double().numpy()
    assert np.array_equal(tensor(folded, "0", "scale")[0], (alpha * rate).astype(np.float32))
    assert np.array_equal(tensor(folded, "0", "add"), (bias * rate + shift).astype(np.float32))
    assert [n.op for n in traced.nodes][-2] == "affine", "the traced graph was changed"


def test_two_norms_become_one_and_constants_are_rounded_once() -> None:
    a, b = normed(4), normed(4)
    folded = fold(graph(nn.Sequential(nn.ReLU(), a, b, nn.ReLU()), 4, 5, 5))
    assert [n.op for n in folded.nodes] == ["input", "relu", "affine", "relu", "output"]
    (k1, b1), (k2, b2) = constants(a), constants(b)
    assert np.array_equal(tensor(folded, "1", "scale"), (k1 * k2).astype(np.float32))
    assert np.array_equal(tensor(folded, "1", "add"), (b1 * k2 + b2).astype(np.float32))
    assert all(t.dtype in (torch.float32, torch.uint8) for t in folded.tensors.values())


def test_norms_behind_float_layers() -> None:
    for layer, channels, shape in (
        (nn.Conv2d(3, 4, 3, groups=1), 4, (3, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), 6, (4, 5, 5)),
        (nn.Conv2d(4, 6, 3, bias=False, groups=2), 6, (4, 5, 5)),
    ):
        net = nn.Sequential(layer, normed(channels)).eval()
        folded = fold(graph(net, *shape))
        assert [n.op for n in folded.nodes][1:-1] in (["conv"], ["conv_transpose"])
        from bitwright.engine.packed import PackedModel

        x = torch.randn(2, *shape)
        assert torch.allclose(PackedModel(folded, "reference")(x), net(x), rtol=1e-4, atol=1e-5)
    net = nn.Sequential(nn.Linear(5, 4), normed(4, nn.BatchNorm1d))
    assert [n.op for n in fold(graph(net, 5)).nodes] == ["input", "linear", "output"]


def test_a_value_with_another_reader_keeps_its_norm_outside() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn = B.Conv2d(3, 3, 3, padding=1, **CODED), normed(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.bn(y) + y

    assert [n.op for n in fold(graph(Net(), 3, 5, 5)).nodes][2:5] == ["coded_conv", "affine", "add"]


def test_a_norm_part_is_not_merged_with_the_norm_before_it() -> None:
    """Given the layer's own input its codes must be those of the trained layer, bit for bit."""
    net = nn.Sequential(B.Conv2d(3, 4, 3, **CODED), normed(4), B.Conv2d(4, 2, 3, w="bwn", x=["norm", "sign"]))
    folded = fold(graph(net, 3, 7, 7))
    assert [n.op for n in folded.nodes][2:5] == ["coded_conv", "affine", "quantize"]
    assert folded.nodes[3].owner == "2.x"


def test_a_norm_over_another_axis_is_not_merged() -> None:
    net = nn.Sequential(B.Linear(5, 7, **CODED), normed(4, nn.BatchNorm1d))
    assert [n.op for n in fold(graph(net, 4, 5)).nodes][2:4] == ["coded_linear", "affine"]


def test_weight_only_layers_take_the_norm_into_their_scale() -> None:
    net = nn.Sequential(B.Conv2d(3, 4, 3, w="ttq", bias=False), normed(4)).eval()
    folded = fold(graph(net, 3, 5, 5))
    assert [n.op for n in folded.nodes] == ["input", "conv", "output"]
    rate, shift = constants(net[1])
    conv: Any = net[0]
    p, n = conv.w.p.item(), conv.w.n.item()
    want = np.stack([np.float64(p) * rate, -np.float64(n) * rate]).astype(np.float32)
    assert np.array_equal(tensor(folded, "0", "scale"), want)
    assert np.array_equal(tensor(folded, "0", "bias"), shift.astype(np.float32))


def test_dropout_and_identity_leave_nothing() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Identity(), B.Linear(4, 3, **CODED), nn.Dropout(0.3))
    assert [n.op for n in fold(graph(net, 4)).nodes] == ["input", "quantize", "coded_linear", "output"]
