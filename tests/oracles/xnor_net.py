"""The nets of the XNOR-Net PyTorch port, step by step in float64, on the tensors of their own checkpoints.

Block: norm (eps 1e-4), sign, conv or linear with bias, ReLU. Before evaluation the weights of every layer but the
first and the last lose their mean over axis 1 and are clipped to [-1, 1]; a filter is then its mean magnitude
times its signs. LeNet-5 and NIN lift the gain of every affine norm to 0.01.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
FIRST_LAST = {
    "lenet5": ("conv1", "ip2"),
    "nin": ("xnor.0", "xnor.13"),
    "alexnet": ("features.0", "classifier.4"),
}
NIN_KERNELS = {3: (192, 160, 1), 4: (160, 96, 1), 6: (96, 192, 5), 7: (192, 192, 1), 8: (192, 192, 1)}
NIN_KERNELS |= {10: (192, 192, 3), 11: (192, 192, 1)}


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def make_state(net: str, classes: int = 10, width: float = 1, maps: bool = True, seed: int = 0) -> State:
    """Random weights under their keys. maps=False: the earlier LeNet-5 whose second norm has 800 features."""
    g = torch.Generator().manual_seed(seed)
    state: State = {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * 0.3
        state[f"{name}.bias"] = torch.randn(shape[0], generator=g) * 0.1

    def norm(name: str, width: int, affine: bool = True) -> None:
        if affine:
            state[f"{name}.weight"] = torch.rand(width, generator=g) + 0.5
            state[f"{name}.weight"][0] = 0.001  # below what they allow
            state[f"{name}.bias"] = torch.randn(width, generator=g) * 0.3
        state[f"{name}.running_mean"] = torch.randn(width, generator=g) * 0.2
        state[f"{name}.running_var"] = torch.rand(width, generator=g) + 0.2

    if net == "lenet5":
        layer("conv1", 20, 1, 5, 5)
        norm("bn_conv1", 20, False)
        norm("bin_conv2.bn", 20)
        layer("bin_conv2.conv", 50, 20, 5, 5)
        norm("bin_ip1.bn", 50 if maps else 800)
        layer("bin_ip1.linear", 500, 800)
        layer("ip2", classes, 500)
    elif net == "nin":
        layer("xnor.0", scaled(192, width), 3, 5, 5)
        norm("xnor.1", scaled(192, width), False)
        for place, (inputs, outputs, kernel) in NIN_KERNELS.items():
            norm(f"xnor.{place}.bn", scaled(inputs, width))
            layer(f"xnor.{place}.conv", scaled(outputs, width), scaled(inputs, width), kernel, kernel)
        norm("xnor.12", scaled(192, width), False)
        layer("xnor.13", classes, scaled(192, width), 1, 1)
    else:
        c1, c2, c3, c4, c5, units = (scaled(c, width) for c in (96, 256, 384, 384, 256, 4096))
        layer("features.0", c1, 3, 11, 11)
        norm("features.1", c1)
        blocks = ((4, c1, c2, 5), (6, c2, c3, 3), (7, c3, c4, 3), (8, c4, c5, 3))
        for place, inputs, outputs, kernel in blocks:
            norm(f"features.{place}.bn", inputs)
            layer(f"features.{place}.conv", outputs, inputs, kernel, kernel)
        norm("classifier.0.bn", c5 * 36)
        layer("classifier.0.linear", units, c5 * 36)
        norm("classifier.1.bn", units)
        layer("classifier.1.linear", units, units)
        norm("classifier.2", units)
        layer("classifier.4", classes, units)
    return state


def binary_keys(net: str, state: State) -> list[str]:
    ends = {f"{name}.weight" for name in FIRST_LAST[net]}
    return [k for k, v in state.items() if k.endswith("weight") and v.dim() > 1 and k not in ends]


def projected(weight: Tensor) -> Tensor:
    """The latent as an evaluation of theirs leaves it."""
    return (weight - weight.mean(1, keepdim=True)).clamp(-1, 1)


def binarized(net: str, state: State) -> State:
    """What a file saved in the middle of a training step holds."""
    out = dict(state)
    for key in binary_keys(net, state):
        w = projected(state[key])
        scale = w.double().abs().flatten(1).mean(1).float()
        out[key] = torch.sign(w) * scale.reshape(-1, *[1] * (w.dim() - 1))
    return out


class Run:
    """One evaluation. `signs` of the real program may be forced, so that one sign on the edge does not
    change everything behind it; `before` collects what stood before each sign."""

    def __init__(self, net: str, state: State, signs: list[Tensor] | None) -> None:
        self.state = {k: v.double() for k, v in binarized(net, state).items()}
        self.least = 0.01 if net != "alexnet" else -float("inf")
        self.signs, self.before = signs, []

    def norm(self, x: Tensor, name: str, eps: float = 1e-4) -> Tensor:
        axes = [1, -1] + [1] * (x.dim() - 2)
        s, width = self.state, x.shape[1]
        gain = s.get(f"{name}.weight", torch.ones(width)).clamp(min=self.least)
        shift = s.get(f"{name}.bias", torch.zeros(width))
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        out = (x - mean.reshape(axes)) / torch.sqrt(var.reshape(axes) + eps)
        return out * gain.reshape(axes) + shift.reshape(axes)

    def linear(self, x: Tensor, name: str, padding: int = 0, stride: int = 1) -> Tensor:
        w, b = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.linear(x, w, b) if w.dim() == 2 else F.conv2d(x, w, b, stride, padding)

    def block(self, x: Tensor, name: str, padding: int = 0, form: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
        v = form(self.norm(x, f"{name}.bn"))
        signs = torch.where(v >= 0, 1.0, -1.0).double() if self.signs is None else self.signs[len(self.before)].double()
        self.before.append(v)
        kind = "linear" if f"{name}.linear.weight" in self.state else "conv"
        return F.relu(self.linear(signs.reshape(v.shape), f"{name}.{kind}", padding))


def evaluate(net: str, state: State, x: Tensor, signs: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """(answers, values before each sign in order), float64."""
    run = Run(net, state, signs)
    x = x.double()
    if net == "lenet5":
        x = F.max_pool2d(F.relu(run.norm(run.linear(x, "conv1"), "bn_conv1")), 2)
        x = F.max_pool2d(run.block(x, "bin_conv2"), 2)
        by_map = run.state["bin_ip1.bn.running_mean"].numel() == x.shape[1]
        x = run.block(x if by_map else x.flatten(1), "bin_ip1", form=lambda t: t.flatten(1))
        return run.linear(x, "ip2"), run.before
    if net == "nin":
        x = F.relu(run.norm(run.linear(x, "xnor.0", 2), "xnor.1"))
        for place, (_, _, kernel) in NIN_KERNELS.items():
            if place == 6:
                x = F.max_pool2d(x, 3, 2, 1)
            if place == 10:
                x = F.avg_pool2d(x, 3, 2, 1)
            x = run.block(x, f"xnor.{place}", kernel // 2)
        x = F.relu(run.linear(run.norm(x, "xnor.12"), "xnor.13"))
        return F.avg_pool2d(x, 8, 1).flatten(1), run.before
    x = F.max_pool2d(F.relu(run.norm(run.linear(x, "features.0", stride=4), "features.1")), 3, 2)
    x = F.max_pool2d(run.block(x, "features.4", 2), 3, 2)
    for place in (6, 7, 8):
        x = run.block(x, f"features.{place}", 1)
    x = F.max_pool2d(x, 3, 2).flatten(1)
    x = run.block(run.block(x, "classifier.0"), "classifier.1")
    return run.linear(run.norm(x, "classifier.2", 1e-3), "classifier.4"), run.before
