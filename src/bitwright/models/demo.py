"""The small net of `bitwright demo`: it trains in seconds, and is wide enough for bits to save time."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def demo(
    num_classes: int,
    *,
    in_channels: int = 1,
    size: int = 8,
    activation: Activation = "hardtanh",
    width: float = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Four 3x3 convolutions of 64 channels with norm and activation, 2x2 max-pooling behind every second, one Linear.

    names     conv1, bn1, act1 to conv4, bn4, act4; pool2, pool4; flatten, fc
    shapes    x [N, in_channels, size, size] -> [N, num_classes]

    The activation is hardtanh, because its output is signed: where a recipe puts a sign or a 2-bit grid in front of
    the next layer, the hardtanh becomes part of that. `convert` then turns norm, activation and quantizer into one
    integer threshold per channel.

    >>> demo(10).fc.weight.shape
    torch.Size([10, 256])
    """
    channels = scaled(64, width)
    steps: dict[str, nn.Module | None] = {}
    for i in (1, 2, 3, 4):
        steps[f"conv{i}"] = nn.Conv2d(in_channels if i == 1 else channels, channels, 3, padding=1, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm2d(channels)
        steps[f"act{i}"] = make_activation(activation, channels)
        steps[f"pool{i}"] = nn.MaxPool2d(2) if i % 2 == 0 else None
    return chain(
        **steps,
        flatten=nn.Flatten(),
        dropout=make_dropout(dropout),
        fc=nn.Linear(channels * (size // 4) ** 2, num_classes),
    )
