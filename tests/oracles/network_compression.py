"""The ResNets of the network-compression re-implementations, in float64, on the tensors of their checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
SHAPES = {1: (1, 1), 2: (1, 2), 3: (2, 4)}  # stage -> widths of its input and output, in units of the stem's


def make_state(
    method: str, blocks: int = 3, classes: int = 10, stem: int = 16, seed: int = 0, gated: set[str] | None = None
) -> State:
    """Random tensors under the keys that their main programs save. gated: layers with a predictor (fbs); None: all."""
    g = torch.Generator().manual_seed(seed)
    state: State = {}

    def layer(name: str, *shape: int, bias: bool = False) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * (2 / shape[0]) ** 0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=g) * 0.1
        if method.startswith("fbs") and (gated is None or name in gated):
            state[f"{name}.saliency_predictor.weight"] = torch.randn(shape[:2], generator=g) * 0.1 / shape[1]
            state[f"{name}.saliency_predictor.bias"] = torch.randn(shape[0], generator=g) * 0.3
        if method == "ttq":
            state[f"{name}.pos"] = torch.rand((), generator=g)
            state[f"{name}.neg"] = -torch.rand((), generator=g)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = torch.rand(width, generator=g) + 0.5
        state[f"{name}.bias"] = torch.randn(width, generator=g) * 0.3
        state[f"{name}.running_mean"] = torch.randn(width, generator=g) * 0.2
        state[f"{name}.running_var"] = torch.rand(width, generator=g) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    layer("conv1", stem, 3, 3, 3)
    norm("bn1", stem)
    for stage, (before, after) in SHAPES.items():
        fan_in, width = before * stem, after * stem
        for b in range(blocks):
            name = f"layer{stage}.{b}"
            layer(f"{name}.conv1", width, fan_in, 3, 3)
            norm(f"{name}.bn1", width)
            layer(f"{name}.conv2", width, width, 3, 3)
            norm(f"{name}.bn2", width)
            if fan_in != width:
                layer(f"{name}.downsample.0", width, fan_in, 1, 1)
                norm(f"{name}.downsample.1", width)
            fan_in = width
    layer("fc", classes, 4 * stem, bias=True)
    return state


def quantized(method: str, name: str, state: State) -> Tensor:
    """The weight that their forward uses."""
    raw = state[f"{name}.weight"]
    w = raw.double()
    if method == "bwn":
        return w.abs().mean() * torch.sign(w)
    if method == "bwn-f":
        axes = tuple(range(1, w.dim()))
        return (w.abs().mean(axes, keepdim=True) if w.dim() == 4 else w.abs().mean()) * torch.sign(w)
    if method == "ttq":
        limit = 0.05 * raw.abs().max()
        return state[f"{name}.pos"].double() * (raw > limit) + state[f"{name}.neg"].double() * (raw < -limit)
    if method == "float" or method.startswith("fbs"):
        return w
    top = 2 ** int(method.removeprefix("dorefa-")) - 1
    t = torch.tanh(w)
    return 2 * torch.round((t / t.abs().max() / 2 + 0.5) * top) / top - 1


def boosted(method: str, y: Tensor, x: Tensor, name: str, state: State) -> Tensor:
    """FBS: outputs times the saliency of channels above the k-th largest, so that k - 1 are left; k half to even."""
    if f"{name}.saliency_predictor.weight" not in state:
        return y
    size = x.abs().mean((2, 3)) if x.dim() == 4 else x.abs()
    weight, bias = (state[f"{name}.saliency_predictor.{key}"].double() for key in ("weight", "bias"))
    saliency = (size @ weight.T + bias).abs()
    k = round(saliency.shape[1] * float(method.removeprefix("fbs-")))
    smallest = saliency.sort(1, descending=True).values[:, k - 1 : k]
    scale = torch.where(saliency > smallest, saliency, torch.zeros_like(saliency))
    return y * (scale[:, :, None, None] if y.dim() == 4 else scale)


def evaluate(method: str, state: State, x: Tensor, stem_stride: int = 1) -> Tensor:
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        w = quantized(method, name, state)
        return boosted(method, F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2), x, name, state)

    def norm(x: Tensor, name: str) -> Tensor:
        gain, shift, mean, var = (
            state[f"{name}.{key}"].double().reshape(1, -1, 1, 1)
            for key in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * gain + shift

    x = norm(conv(x.double(), "conv1", stem_stride), "bn1").relu()
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    for name in (f"layer{stage}.{b}" for stage in SHAPES for b in range(blocks)):
        stride = 2 if name in ("layer2.0", "layer3.0") else 1
        y = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in state:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = (x + y).relu()
    x = F.avg_pool2d(x, 8, 1).flatten(1)
    return boosted(method, x @ quantized(method, "fc", state).T + state["fc.bias"].double(), x, "fc", state)
