"""Bi-Real nets: one shortcut around every conv, so that real values pass even where the conv is binary.

There is no ReLU. Where the binary net has its sign, the float net has a hardtanh: without it two convs in a
row would be one linear map. The global average needs none before it: the classifier reads real values.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from bitwright.nn import RPReLU

from .common import Activation, init_convs, make_activation, scaled


class BiRealBlock(nn.Module):
    """x <- shortcut(x) + BN(conv1(act1(x))), then x <- x + BN(conv2(act2(x))); both convs 3x3.

    Where the shape changes, the first shortcut is 2x2 average pooling, a float 1x1 conv and a norm
    (shortcut.0, .1, .2). The second shortcut is always x itself.
    rprelu   behind each addition the activation of ReActNet (rprelu1, rprelu2)
    """

    def __init__(self, fan_in: int, channels: int, stride: int, activation: Activation, rprelu: bool = False):
        super().__init__()
        self.act1 = make_activation(activation, fan_in)
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride != 1 or fan_in != channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(fan_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
            )
        self.rprelu1 = RPReLU(channels) if rprelu else nn.Identity()
        self.rprelu2 = RPReLU(channels) if rprelu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.rprelu1(self.shortcut(x) + self.bn1(self.conv1(self.act1(x))))
        return self.rprelu2(x + self.bn2(self.conv2(self.act2(x))))


class BiRealResNet(nn.Module):
    """Stem, stages (layer1, layer2, ...; all but the first halve the image), global average, classifier."""

    def __init__(
        self, stem: Sequence[nn.Module], channels: Sequence[int], blocks: int, num_classes: int,
        activation: Activation, dropout: float, rprelu: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.conv1, self.bn1, self.maxpool = stem
        self.stages = len(channels)
        fan_in = channels[0]
        for i, count in enumerate(channels, start=1):
            first = BiRealBlock(fan_in, count, 1 if i == 1 else 2, activation, rprelu)
            rest = (BiRealBlock(count, count, 1, activation, rprelu) for _ in range(blocks - 1))
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
            fan_in = count
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(fan_in, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(self.dropout(self.flatten(self.pool(x))))


def bireal_cifar(
    depth: int,
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "hardtanh",
    width: float = 1,
    dropout: float = 0.0,
    rprelu: bool = False,
) -> BiRealResNet:
    """Bi-Real ResNet of depth 6n + 2 for CIFAR: 3x3 stem and norm (no activation), stages of 16, 32, 64 maps.

    names     conv1, bn1, layer1.0.act1, layer1.0.conv1, layer1.0.bn1, ..., layer2.0.shortcut.0 to .2, ..., fc
    source    block of Liu et al. 2018, arXiv 1808.00278, in the layout of He et al. 2015, arXiv 1512.03385
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; size is a multiple of 4 (two halvings)
    rprelu    RPReLU behind each addition: the block of Liu et al. 2020 (ReActNet), arXiv 2003.03488

    >>> bireal_cifar(20, 10).layer2[0].shortcut[1].weight.shape
    torch.Size([32, 16, 1, 1])
    """
    del size  # global pooling: no weight depends on it
    channels = [scaled(c, width) for c in (16, 32, 64)]
    conv = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
    stem = [conv, nn.BatchNorm2d(channels[0]), nn.Identity()]
    return BiRealResNet(stem, channels, (depth - 2) // 6, num_classes, activation, dropout, rprelu)


def bireal_resnet18(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 224,
    activation: Activation = "hardtanh",
    width: float = 1,
    dropout: float = 0.0,
    rprelu: bool = False,
) -> BiRealResNet:
    """Bi-Real ResNet-18: 7x7 stem, norm, max-pooling without a ReLU, two blocks per 64, 128, 256, 512 maps.

    names     as `bireal_resnet20`, with maxpool and layer4
    source    Liu et al. 2018, arXiv 1808.00278
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; size is a multiple of 32
    rprelu    as in `bireal_resnet20`: with it, ReActNet's ResNet-18

    >>> bireal_resnet18(1000, width=0.25).layer4[1].conv2.weight.shape
    torch.Size([128, 128, 3, 3])
    """
    del size  # global pooling: no weight depends on it
    channels = [scaled(c, width) for c in (64, 128, 256, 512)]
    conv = nn.Conv2d(in_channels, channels[0], 7, stride=2, padding=3, bias=False)
    stem = [conv, nn.BatchNorm2d(channels[0]), nn.MaxPool2d(3, stride=2, padding=1)]
    return BiRealResNet(stem, channels, 2, num_classes, activation, dropout, rprelu)
