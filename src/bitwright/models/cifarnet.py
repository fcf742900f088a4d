"""Two small nets for CIFAR-10 without shortcuts: CIFARNet (Co-Prune) and M-CifarNet (feature boosting)."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def cifarnet(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """3-32-32-64 5x5 convs with biases and no norm, 3x3 pooling of stride 2 behind each, 576-64-classes.

    order     conv, activation, pool (maximum, average, average); fc1, activation, [dropout], fc2
    names     conv1, act1, pool1, conv2, ..., pool3, flatten, fc1, act4, fc2
    source    Chen et al. 2018 (Co-Prune), whose public net it is
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; 32 -> 15 -> 7 -> 3 pixels

    >>> cifarnet(10).fc1.weight.shape
    torch.Size([64, 576])
    """
    steps: dict[str, nn.Module | None] = {}
    fan_in, side = in_channels, size
    for i, base in enumerate((32, 32, 64), start=1):
        channels = scaled(base, width)
        steps[f"conv{i}"] = nn.Conv2d(fan_in, channels, 5, padding=2)
        steps[f"act{i}"] = make_activation(activation, channels)
        steps[f"pool{i}"] = nn.MaxPool2d(3, stride=2) if i == 1 else nn.AvgPool2d(3, stride=2)
        fan_in, side = channels, (side - 3) // 2 + 1
    units = scaled(64, width)
    return chain(
        **steps,
        flatten=nn.Flatten(),
        fc1=nn.Linear(fan_in * side * side, units),
        act4=make_activation(activation, units),
        dropout=make_dropout(dropout),
        fc2=nn.Linear(units, num_classes),
    )


def m_cifarnet(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.5,
) -> nn.Sequential:
    """Eight 3x3 convs and a 1x1 classifier: 64-64-128-128, 128-192-192-192; 174.3 M MACs at 32x32.

    order     conv (no bias), BatchNorm, activation; dropout behind act4 and act7; conv1 has no padding, conv3 and
              conv6 have stride 2; the classifier (conv9, with bias) reads the global average
    names     conv1, bn1, act1, ..., act8, pool, conv9, flatten
    source    Gao et al. 2019 (feature boosting and suppression), arXiv 1810.05331: their net for CIFAR-10
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; 32 -> 30 -> 15 -> 8 pixels; any size from 3 on

    >>> m_cifarnet(10).conv9.weight.shape
    torch.Size([10, 192, 1, 1])
    """
    del size  # global pooling: no weight depends on it
    steps: dict[str, nn.Module | None] = {}
    fan_in = in_channels
    for i, base in enumerate((64, 64, 128, 128, 128, 192, 192, 192), start=1):
        channels = scaled(base, width)
        stride = 2 if i in (3, 6) else 1
        steps[f"conv{i}"] = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=0 if i == 1 else 1, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm2d(channels)
        steps[f"act{i}"] = make_activation(activation, channels)
        steps[f"drop{i}"] = make_dropout(dropout) if i in (4, 7) else None
        fan_in = channels
    return chain(**steps, pool=nn.AdaptiveAvgPool2d(1), conv9=nn.Conv2d(fan_in, num_classes, 1), flatten=nn.Flatten())
