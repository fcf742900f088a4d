"""The nets of the pca-hybrid code, step by step in float64, on the tensors of their own checkpoints.

A low-bit layer is a norm (eps 1e-4), a quantizer and a conv or linear with bias. Evaluation centers the weights over the
inputs, clips them to [-1, 1], and replaces them by mean|w| of the filter times the sign, or times the 2-bit grid, which is not
clipped for inputs. Residual nets: relu(norm(conv)) + shortcut around every conv.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def make_state(net: str, convs: int = 19, classes: int = 100, base: int = 4, seed: int = 0) -> State:
    """Random weights under their keys; net: resnet, plain or vgg (then `convs` is 13)."""
    g = torch.Generator().manual_seed(seed)
    state: State = {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * 0.4
        state[f"{name}.bias"] = torch.randn(shape[0], generator=g) * 0.1

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = torch.rand(width, generator=g) + 0.5
        state[f"{name}.bias"] = torch.randn(width, generator=g) * 0.3
        state[f"{name}.running_mean"] = torch.randn(width, generator=g) * 0.2
        state[f"{name}.running_var"] = torch.rand(width, generator=g) + 0.2

    def low(name: str, out: int, inputs: int, kernel: int) -> None:
        norm(f"{name}.bn", inputs)
        layer(f"{name}.conv", out, inputs, kernel, kernel)

    widths = [base * w for w in (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)]
    if net != "vgg":
        per = (convs - 1) // 3
        widths = [base] + [base] * per + [2 * base] * per + [4 * base] * per
    layer("conv1", widths[0], 3, 3, 3)
    norm("bn1", widths[0])
    for i in range(2, convs + 1):
        low(f"conv{i}", widths[i - 1], widths[i - 2], 3)
        if net == "resnet" or (net == "vgg" and i == 2):
            norm(f"bn{i}", widths[i - 1])
        if net == "resnet" and widths[i - 1] != widths[i - 2]:
            side = f"resconv{1 if widths[i - 1] == 2 * base else 2}"
            low(f"{side}.0", widths[i - 1], widths[i - 2], 1)
            norm(f"{side}.1", widths[i - 1])
    if net == "vgg":
        norm("fc1.bn", widths[-1])
        layer("fc1.linear", 16 * base, widths[-1])
        norm("bn3", 16 * base)
        layer("fc3", classes, 16 * base)
        return state
    head = 2 if net == "plain" else convs + 1
    norm(f"bn{head}", widths[-1])
    layer("fc", classes, widths[-1])
    norm(f"bn{head + 1}", classes)
    return state


def grid(x: Tensor) -> Tensor:
    """Their four-level rounding without an end."""
    return 2 * (torch.floor((x + 1) / 2 * 3 + 0.5) / 3 - 0.5)


def quantized(weight: Tensor, two_bits: bool) -> Tensor:
    w = weight - weight.mean(1, keepdim=True)
    w = w.clamp(-1, 1).double()
    scale = w.abs().flatten(1).mean(1).reshape(-1, *[1] * (w.dim() - 1))
    return scale * (grid(w) if two_bits else torch.where(w >= 0, 1.0, -1.0))


def evaluate(net: str, state: State, x: Tensor, two_bits: set[int]) -> Tensor:
    """Outputs before the log-softmax; `two_bits`: numbers of the convs with 2 bits."""
    s = {k: v.double() for k, v in state.items()}
    x = x.double()

    def norm(name: str, t: Tensor, eps: float = 1e-5) -> Tensor:
        mean, var, gain, shift = (s[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(t, mean, var, gain, shift, eps=eps)

    def low(name: str, t: Tensor, deep: bool, **options: int) -> Tensor:
        t = norm(f"{name}.bn", t, 1e-4)
        t = grid(t) if deep else torch.where(t >= 0, 1.0, -1.0).double()
        kind = "linear" if f"{name}.linear.weight" in s else "conv"
        w, b = quantized(state[f"{name}.{kind}.weight"], deep), s[f"{name}.{kind}.bias"]
        return F.linear(t, w, b) if kind == "linear" else F.conv2d(t, w, b, **options)

    x = F.relu(norm("bn1", F.conv2d(x, s["conv1.weight"], s["conv1.bias"], padding=1)))
    convs = sum(key.startswith("conv") and key.endswith("conv.weight") for key in s) + 1
    turn = 0
    for i in range(2, convs + 1):
        deep = i in two_bits
        wider = s[f"conv{i}.conv.weight"].shape[0] != s[f"conv{i}.conv.weight"].shape[1]
        stride = 2 if wider and net != "vgg" else 1
        y = low(f"conv{i}", x, deep, padding=1, stride=stride)
        if net == "resnet":
            beside = x
            if wider:
                turn += 1
                beside = F.relu(norm(f"resconv{turn}.1", low(f"resconv{turn}.0", x, deep, stride=2)))
            x = F.relu(norm(f"bn{i}", y)) + beside
        else:
            x = F.relu(norm("bn2", y) if net == "vgg" and i == 2 else y)
        if net == "vgg" and i in (2, 4, 7, 10, 13):
            x = F.max_pool2d(x, 2)
    if net == "vgg":
        x = norm("bn3", F.relu(low("fc1", x.flatten(1), False)))
        return F.linear(x, s["fc3.weight"], s["fc3.bias"])
    head = 2 if net == "plain" else convs + 1
    x = norm(f"bn{head}", x.mean((2, 3)))
    return norm(f"bn{head + 1}", F.linear(x, s["fc.weight"], s["fc.bias"]))
