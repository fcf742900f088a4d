"""The ResNet-20 of dnn-gating in evaluation, in float64, on the tensors of its checkpoints; written from the formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
BLOCKS = [f"layer{stage}.{b}" for stage in (1, 2, 3) for b in range(3)]


def make_state(
    kind: str, *, stem: int = 16, classes: int = 10, splits: int = 4, group: bool = True, postact: bool = False,
    pact: bool = False, seed: int = 0,
) -> State:  # fmt: skip
    """Random tensors under the keys that their main programs save. kind: "cg", "pg" or "plain"."""
    g = torch.Generator().manual_seed(seed)
    state: State = {}

    def norm(name: str, width: int, affine: bool = True) -> None:
        if affine:
            state[f"{name}.weight"] = torch.rand(width, generator=g) + 0.5
            state[f"{name}.bias"] = torch.randn(width, generator=g) * 0.3
        state[f"{name}.running_mean"] = torch.randn(width, generator=g) * 0.2
        state[f"{name}.running_var"] = torch.rand(width, generator=g) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(name: str, fan: int, width: int, gated: bool) -> None:
        state[f"{name}.weight"] = torch.randn(width, fan, 3, 3, generator=g) * (2 / (9 * fan)) ** 0.5
        if gated:
            state[f"{name}.threshold"] = torch.randn(1, width, 1, 1, generator=g) * 0.5
        if gated and kind == "cg":
            mask = torch.zeros(width, fan, 3, 3)
            c, q = fan // splits, width // splits
            for j in range(splits):
                mask[j * q : (j + 1) * q, (j if group else 0) * c : (j if group else 0) * c + c] = 1
            state[f"{name}.mask"] = mask
            norm(f"{name}.bn", width, affine=False)

    conv("conv1", 3, stem, False)
    norm("bn1", stem)
    fan = stem
    for block in BLOCKS:
        width = stem * 2 ** (int(block[5]) - 1)
        conv(f"{block}.conv1", fan, width, kind != "plain")
        norm(f"{block}.bn1", width)
        conv(f"{block}.conv2", width, width, kind == "cg" and postact)
        norm(f"{block}.bn2", width)
        if pact:
            state[f"{block}.relu.upper_bound"] = torch.rand((), generator=g) + 1
        fan = width
    state["linear.weight"] = torch.randn(classes, fan, generator=g) * 0.2
    state["linear.bias"] = torch.randn(classes, generator=g) * 0.1
    if pact:
        state["relu.upper_bound"] = torch.rand((), generator=g) + 1
    return state


def levels(t: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(whole magnitudes 0 to 2^bits - 1 of the tensor's own largest one, size of one)."""
    top = 2**bits - 1
    largest = t.abs().max() + 1e-7
    return torch.round((t.abs() / largest).clamp(0, 1) * top), largest / top


def quantized(t: Tensor, bits: int, weight: bool = False) -> Tensor:
    if bits == 0:
        return t
    if bits == 1:
        signs = torch.round((t.clamp(-1, 1) + 1) / 2) * 2 - 1
        return signs * (1 / t[0].numel()) ** 0.5 if weight else signs
    level, one = levels(t, bits)
    return torch.sign(t) * level * one


def evaluate(state: State, x: Tensor, *, w: int = 0, a: int = 0, top: int = 0, shuffle: bool = False) -> Tensor:
    """Logits. w, a, top: the flags -w, -a, -pb; shuffle: -shuffle."""
    s = {key: value.double() for key, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        affine = f"{name}.weight" in s
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        gain, shift = (s[f"{name}.weight"], s[f"{name}.bias"]) if affine else (torch.ones_like(mean), 0 * mean)
        rate = gain / torch.sqrt(var + 1e-5)
        return x * rate.reshape(1, -1, 1, 1) + (shift - mean * rate).reshape(1, -1, 1, 1)

    def clip(x: Tensor, name: str) -> Tensor:
        bound = s.get(f"{name}upper_bound")
        return x.relu() if bound is None else torch.minimum(x.relu(), bound)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = s[f"{name}.weight"]
        if f"{name}.mask" in s:
            if shuffle:
                p = int(1 / s[f"{name}.mask"][:, :, 0, 0].mean(1)[0])
                x = x.unflatten(1, (p, x.shape[1] // p)).transpose(1, 2).flatten(1, 2)
            base = F.conv2d(x, weight * s[f"{name}.mask"], stride=stride, padding=1)
            full = F.conv2d(x, weight, stride=stride, padding=1)
            return torch.where(norm(base, f"{name}.bn") > s[f"{name}.threshold"], full, base)
        weight = quantized(weight, w, weight=True)
        if f"{name}.threshold" not in s:
            return F.conv2d(quantized(x, a), weight, stride=stride, padding=1)
        level, one = levels(x, a)
        cut = torch.floor(level / 2 ** (a - top)) * 2 ** (a - top)
        high = F.conv2d(torch.sign(x) * cut * one, weight, stride=stride, padding=1)
        low = F.conv2d(torch.sign(x) * (level - cut) * one, weight, stride=stride, padding=1)
        return high + (high > s[f"{name}.threshold"]) * low

    postact = "layer1.0.conv2.threshold" in s
    y = clip(norm(F.conv2d(x.double(), s["conv1.weight"], padding=1), "bn1"), "relu.")
    for block in BLOCKS:
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        inner = clip(norm(conv(y, f"{block}.conv1", stride), f"{block}.bn1"), f"{block}.relu.")
        inner = norm(conv(inner, f"{block}.conv2"), f"{block}.bn2")
        around = y[:, :, ::stride, ::stride]
        more = (inner.shape[1] - around.shape[1]) // 2
        around = F.pad(around, (0, 0, 0, 0, more, more))
        y = inner.relu() + around if postact else clip(inner + around, f"{block}.relu.")
    return y.mean((2, 3)) @ s["linear.weight"].T + s["linear.bias"]
