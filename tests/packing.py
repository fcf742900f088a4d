"""Nets for the tests of convert: styles of layers, a net put into a trained state, packing it in both backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.fold import fold
from bitwright.engine.packed import PackedModel
from bitwright.engine.trace import trace

B = bw.nn
needs_native = pytest.mark.skipif(not native.available(), reason=native.notice())
BACKEND = "native" if native.available() else "reference"


def part(name: str, **options: Any) -> dict[str, Any]:
    return {"part": name, **options}


WEIGHTS: list[Any] = [
    "bwn",
    part("bwn", granularity="layer"),
    "xnor",
    part("xnor", center="graph"),
    "bireal",
    "ttq",
    *[part("dorefa_w", bits=b) for b in (1, 2, 3, 4, 8)],
    *[part("uniform", bits=b) for b in (2, 4, 8)],
    part("uniform", bits=3, granularity="channel"),
    part("uniform", bits=4, symmetric=False),
    part("uniform", bits=2, signed=False),
    "twn",
    "binaryconnect",
    *[part("lsq", bits=b) for b in (2, 4, 8)],
    part("lsq", bits=3, per_channel=True),
    part("kbit", bits=2),
    part("kbit", bits=3, weight_scale="lsq"),
    part("sign_magnitude", bits=3),
    ["bwn", "mask"],
    ["mask", "ttq"],
    ["mask", "twn"],
    [part("dorefa_w", bits=2), "mask"],
    [part("uniform", bits=8), "mask"],
]
INPUTS: list[Any] = [
    "sign",
    *[part("dorefa_a", bits=b) for b in (1, 2, 3, 4, 8)],
    *[part("uniform", bits=b) for b in (1, 2, 4, 8)],
    part("uniform", bits=3, signed=True),
    part("uniform", bits=4, symmetric=False),
    part("uniform", bits=8, symmetric=False, signed=True),
    *[part("lsq", bits=b) for b in (2, 4, 8)],
    part("lsq", bits=2, signed=True),
    *[part("pact", bits=b, alpha=1.3) for b in (1, 2, 4, 8)],
    *[part("kbit", bits=b) for b in (1, 2, 4)],
    *[part("sign_magnitude", bits=b) for b in (1, 3, 6)],
    "rsign",
    "input8",
    part("input8", mean=[0.1, 0.5, 0.4, 0.2, 0.3, 0.7], std=[0.2, 0.3, 0.4, 0.2, 0.2, 0.2]),
    ["norm", "sign"],
    ["norm", part("dorefa_a", bits=2)],
    ["dropout", "sign"],
    ["sign", "dropout"],
]
ONE_BIT = {"w": "bwn", "x": "sign"}
TWO_BIT = {"w": part("dorefa_w", bits=2), "x": part("dorefa_a", bits=2)}
TERNARY = {"w": "ttq", "x": part("dorefa_a", bits=3)}
STEPS = {"w": part("lsq", bits=3), "x": part("pact", bits=2, alpha=1.5)}
STYLES = {"w1a1": ONE_BIT, "w2a2": TWO_BIT, "ternary": TERNARY, "steps": STEPS}


def modules_of(model: nn.Module) -> list[Any]:
    return list(model.modules())


def settle(model: nn.Module, x: Tensor | None = None) -> Any:
    """Masks, norms (negative and zero gains too) and ranges as after a training."""
    for m in modules_of(model):
        name = getattr(m, "part_name", "")
        if name == "mask":
            m.mask.copy_(torch.rand(m.mask.shape) > 0.4)
        elif name in ("uniform", "lsq", "sign_magnitude") and m.slot == "x" and x is not None:
            m.observe(x)
        elif name == "rsign":
            m.shift.data.normal_(0, 0.5)
        elif isinstance(getattr(m, "running_mean", None), Tensor):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.normal_()
            m.bias.data.normal_()
            m.weight.data[0] = -1.3
            m.weight.data[1:2] = 0.0
    return model.eval()


def pack(model: nn.Module, x: Tensor, backend: str = BACKEND) -> PackedModel:
    """What convert does, without its clock."""
    return PackedModel(fold(trace(model, x).graph), backend)


def pack_both(model: nn.Module, x: Tensor) -> tuple[PackedModel, PackedModel]:
    """One graph on the best backend and on the reference: tracing costs more than all else here."""
    graph = fold(trace(model, x).graph)
    return PackedModel(graph, BACKEND), PackedModel(graph, "reference")


def taps(x: np.ndarray, w: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int) -> np.ndarray:
    """A convolution in float64, one tap at a time: [N, C, H, W] with [O, C/g, kh, kw]."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    o, per, kh, kw = w.shape
    oh, ow = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((x.shape[0], o, oh, ow))
    for out in range(o):
        first = out * groups // o * per
        for i in range(kh):
            for j in range(kw):
                seen = x[:, first : first + per, i * dh : i * dh + sh * oh : sh, j * dw : j * dw + sw * ow : sw]
                y[:, out] += np.einsum("nchw,c->nhw", seen[:, :, :oh, :ow], w[out, :, i, j])
    return y


def value_of(layer: Any, x: Tensor) -> np.ndarray:
    """What the layer's formulas say: parts as trained, the sum of products in float64."""
    a = layer.x(x).detach().double().numpy()
    w = layer.quantized_weight().detach().double().numpy()
    bias = 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
    if isinstance(layer, nn.Linear):
        return a @ w.T + bias
    y = taps(a, w, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y + np.reshape(bias, (1, -1, 1, 1))


class Net(nn.Module):
    """A forward written as a function of (modules, x)."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        self.f = f
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)
