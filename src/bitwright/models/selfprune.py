"""The self-pruning nets: layers without bias, tanh and a norm, nothing else; recipes make the weights 0 or 1."""

from typing import Literal

from torch import nn

from bitwright.nn import HardInvert, SoftInvert

from .common import Activation, chain, make_activation, make_dropout, scaled

Norm = Literal["batch_norm", "hard_invert", "soft_invert"]
Head = Literal["block", "counts"]


def _norm(kind: Norm, batch_norm: type[nn.Module], channels: int) -> nn.Module:
    if kind == "batch_norm":
        return batch_norm(channels, eps=1e-4, momentum=0.15)
    return HardInvert() if kind == "hard_invert" else SoftInvert()


def selfprune_mlp(
    num_classes: int,
    *,
    in_channels: int = 1,
    size: int = 28,
    activation: Activation = "tanh",
    width: float = 1,
    dropout: float = 0.0,
    hidden: int = 4000,
    depth: int = 3,
    norm: Norm = "batch_norm",
    head: Head = "block",
    bias: bool = False,
) -> nn.Sequential:
    """784-4000x3-10: `depth` hidden blocks of `hidden * width` units, then the output block, all of one form.

    order     Linear (no bias), activation, norm, [dropout]. The activation stands BEFORE the norm, in the output block too,
              so this is no `mlp`; log_softmax is part of the loss (cross entropy)
    names     fc1, act1, norm1, ..., fcx, actx, normx
    norm      "batch_norm" (eps 1e-4, momentum 0.15), or `bw.nn.HardInvert`, `bw.nn.SoftInvert`
    head      "block" as published; "counts" leaves out actx, so that classes are ranked by their counts of connections: a
              tanh makes large counts equal
    source    Agrawal, Karlupia 2019, arXiv 1909.00052, and its notebook
    differs   the notebook builds a fourth hidden layer that its forward never calls: 16 M weights, left out here
    shapes    x [N, in_channels, size, size] -> [N, num_classes]

    >>> [m.out_features for m in selfprune_mlp(10, hidden=64, depth=2).modules() if isinstance(m, nn.Linear)]
    [64, 64, 10]
    """
    units = scaled(hidden, width)
    steps: dict[str, nn.Module | None] = {"flatten": nn.Flatten()}
    fan_in = in_channels * size * size
    for i in range(1, depth + 1):
        steps[f"fc{i}"] = nn.Linear(fan_in, units, bias=bias)
        steps[f"act{i}"] = make_activation(activation, units)
        steps[f"norm{i}"] = _norm(norm, nn.BatchNorm1d, units)
        steps[f"drop{i}"] = make_dropout(dropout)
        fan_in = units
    return chain(**steps, **_head(fan_in, num_classes, activation, norm, head, bias))


def selfprune_conv(
    num_classes: int,
    *,
    in_channels: int = 1,
    size: int = 28,
    activation: Activation = "tanh",
    width: float = 1,
    dropout: float = 0.0,
    norm: Norm = "batch_norm",
    head: Head = "block",
    bias: bool = False,
) -> nn.Sequential:
    """32-P-64-P-128-P and the output block: the blocks of `selfprune_mlp` with 3x3 convs (padding 1, no bias).

    order     conv, activation, norm, pool; a pool of bits is an OR
    names     conv1, act1, norm1, pool1, ..., pool3, flatten, [dropout], fcx, actx, normx
    source    own work, after Agrawal, Karlupia 2019, arXiv 1909.00052
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; fcx reads 128 * (size // 8)^2

    >>> selfprune_conv(10).fcx.weight.shape
    torch.Size([10, 1152])
    """
    steps: dict[str, nn.Module | None] = {}
    fan_in = in_channels
    for i, base in enumerate((32, 64, 128), start=1):
        channels = scaled(base, width)
        steps[f"conv{i}"] = nn.Conv2d(fan_in, channels, 3, padding=1, bias=bias)
        steps[f"act{i}"] = make_activation(activation, channels)
        steps[f"norm{i}"] = _norm(norm, nn.BatchNorm2d, channels)
        steps[f"pool{i}"] = nn.MaxPool2d(2)
        fan_in = channels
    steps |= {"flatten": nn.Flatten(), "dropout": make_dropout(dropout)}
    return chain(**steps, **_head(fan_in * (size // 8) ** 2, num_classes, activation, norm, head, bias))


def _head(
    fan_in: int, classes: int, activation: Activation, norm: Norm, head: Head, bias: bool
) -> dict[str, nn.Module | None]:
    return {
        "fcx": nn.Linear(fan_in, classes, bias=bias),
        "actx": make_activation(activation, classes) if head == "block" else None,
        "normx": _norm(norm, nn.BatchNorm1d, classes),
    }
