"""The VGGs of the binary and quantized CIFAR literature."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def vgg_small(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """128-128-P-256-256-P-512-512-P and one Linear; all convs 3x3 with padding 1.

    order     conv (no bias), BatchNorm, activation, pool. The pool follows the activation: behind a sign it
              is a maximum of bits: an OR of packed words.
    names     features.conv1, features.bn1, features.act1, ..., features.pool2, pool4, pool6; flatten; fc
    source    Zhang et al. 2018 (LQ-Nets), arXiv 1807.10029: BinaryConnect's VGG with one linear layer
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; fc reads 512 * (size // 8)^2

    >>> vgg_small(10).fc.weight.shape
    torch.Size([10, 8192])
    """
    steps: dict[str, nn.Module | None] = {}
    fan_in = in_channels
    for i, base in enumerate((128, 128, 256, 256, 512, 512), start=1):
        channels = scaled(base, width)
        steps[f"conv{i}"] = nn.Conv2d(fan_in, channels, 3, padding=1, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm2d(channels)
        steps[f"act{i}"] = make_activation(activation, channels)
        steps[f"pool{i}"] = nn.MaxPool2d(2) if i % 2 == 0 else None
        fan_in = channels
    return chain(
        features=chain(**steps),
        flatten=nn.Flatten(),
        dropout=make_dropout(dropout),
        fc=nn.Linear(fan_in * (size // 8) ** 2, num_classes),
    )


def vgg15(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """The 13 3x3 convs of VGG-16 (64-64-P, 128-128-P, 3 x 256-P, 3 x 512-P, 3 x 512-P) and 512-1024-classes.

    order     conv (no bias), BatchNorm, activation, pool; fc1 (no bias), bn14, act14, [dropout], fc2
    names     features.conv1, features.bn1, features.act1, ..., features.pool13; flatten; fc1, bn14, act14, fc2
    source    the VGG-15 of Chakraborty et al. 2020, arXiv 1906.01493 (Hybrid-Net), for CIFAR-100
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; fc1 reads 512 * (size // 32)^2
    differs   a norm behind each conv (the binary net has it before its sign; `x = ["norm", "sign"]` adds that one)

    >>> vgg15(100).fc1.weight.shape
    torch.Size([1024, 512])
    """
    steps: dict[str, nn.Module | None] = {}
    fan_in = in_channels
    pooled = (2, 4, 7, 10, 13)
    for i, base in enumerate((64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), start=1):
        channels = scaled(base, width)
        steps[f"conv{i}"] = nn.Conv2d(fan_in, channels, 3, padding=1, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm2d(channels)
        steps[f"act{i}"] = make_activation(activation, channels)
        steps[f"pool{i}"] = nn.MaxPool2d(2) if i in pooled else None
        fan_in = channels
    units = scaled(1024, width)
    return chain(
        features=chain(**steps),
        flatten=nn.Flatten(),
        fc1=nn.Linear(fan_in * (size // 32) ** 2, units, bias=False),
        bn14=nn.BatchNorm1d(units),
        act14=make_activation(activation, units),
        dropout=make_dropout(dropout),
        fc2=nn.Linear(units, num_classes),
    )
