"""ResNet-20/32/44/56 for CIFAR with parameter-free shortcuts (option A)."""

from torch import Tensor, nn
from torch.nn import functional as F

from .common import Activation, init_convs, make_activation, scaled


def option_a(x: Tensor, channels: int, stride: int) -> Tensor:
    """Every stride-th pixel, then zero channels on both sides: [N, C, H, W] -> [N, channels, H/s, W/s].

    >>> import torch
    >>> option_a(torch.ones(1, 2, 4, 4), 4, 2)[0, :, 0, 0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    if stride != 1:
        x = x[:, :, ::stride, ::stride]
    extra = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2)) if extra else x


class BasicBlock(nn.Module):
    """act(shortcut(x) + BN(conv(act(BN(conv(x)))))), two 3x3 convs; the shortcut has no parameters."""

    def __init__(self, fan_in: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + option_a(x, self.channels, self.stride))


class ResNetCifar(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, global average, classifier.

    >>> import torch
    >>> resnet_cifar(20, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, blocks: int, num_classes: int, in_channels: int, activation: Activation, width: float,
        dropout: float,
    ):  # fmt: skip
        super().__init__()
        c1, c2, c3 = (scaled(c, width) for c in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, c1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.act1 = make_activation(activation, c1)
        self.layer1 = _stage(c1, c1, blocks, 1, activation)
        self.layer2 = _stage(c1, c2, blocks, 2, activation)
        self.layer3 = _stage(c2, c3, blocks, 2, activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(c3, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(self.flatten(self.pool(x))))


def _stage(fan_in: int, channels: int, blocks: int, stride: int, activation: Activation) -> nn.Sequential:
    first = BasicBlock(fan_in, channels, stride, activation)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, activation) for _ in range(blocks - 1)))


def resnet_cifar(
    depth: int,
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> ResNetCifar:
    """ResNet of depth 6n + 2 for CIFAR. Depth 20 has 40,551,040 MACs at 32x32 and 269,722 parameters.

    names     conv1, bn1, layer1.0.conv1, layer1.0.bn1, layer1.0.conv2, layer1.0.bn2, ..., layer3.2.bn2, fc
    source    He et al. 2015, arXiv 1512.03385, section 4.2
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; any size, the pooling is global
    width     multiplies 16, 32 and 64
    """
    del size  # global pooling: no weight depends on it
    return ResNetCifar((depth - 2) // 6, num_classes, in_channels, activation, width, dropout)
