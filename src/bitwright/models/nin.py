"""Network in Network for CIFAR-10."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def nin(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.5,
    norm_last: bool = False,
) -> nn.Sequential:
    """192-160-96, 192-192-192, 192-192-classes: each stage a 5x5 (the last a 3x3) conv and two 1x1.

    order     conv (no bias), BatchNorm, activation; conv9 has a bias and neither; dropout after pool1, pool2
    names     conv1, bn1, act1, ..., pool1 (maximum) after act3, pool2 (average) after act6, ..., conv9, pool3
    source    Lin et al. 2014, arXiv 1312.4400, with BatchNorm; dropout 0.5 as published
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; any size, the last pooling is global
    norm_last the form of the XNOR-Net port: a norm (bn9) before conv9, an activation (act9) behind it

    >>> nin(10).conv9.weight.shape
    torch.Size([10, 192, 1, 1])
    >>> [name for name, _ in nin(10, norm_last=True).named_children()][-5:]
    ['bn9', 'conv9', 'act9', 'pool3', 'flatten']
    """
    del size  # global pooling: no weight depends on it
    widths = [scaled(c, width) for c in (192, 160, 96, 192, 192, 192, 192, 192)]
    kernels = [5, 1, 1, 5, 1, 1, 3, 1]
    steps: dict[str, nn.Module | None] = {}
    fan_in = in_channels
    for i, (channels, kernel) in enumerate(zip(widths, kernels, strict=True), start=1):
        steps[f"conv{i}"] = nn.Conv2d(fan_in, channels, kernel, padding=kernel // 2, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm2d(channels)
        steps[f"act{i}"] = make_activation(activation, channels)
        if i == 3:
            steps["pool1"], steps["drop1"] = nn.MaxPool2d(3, stride=2, padding=1), make_dropout(dropout)
        if i == 6:
            steps["pool2"], steps["drop2"] = nn.AvgPool2d(3, stride=2, padding=1), make_dropout(dropout)
        fan_in = channels
    steps["bn9"] = nn.BatchNorm2d(fan_in) if norm_last else None
    steps["conv9"] = nn.Conv2d(fan_in, num_classes, 1)
    steps["act9"] = make_activation(activation, num_classes) if norm_last else None
    steps["pool3"] = nn.AdaptiveAvgPool2d(1)
    steps["flatten"] = nn.Flatten()
    return chain(**steps)
