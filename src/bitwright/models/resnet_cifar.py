"""ResNet-20/32/44/56 for CIFAR with parameter-free shortcuts (option A), and three relatives of the same layers."""

from typing import Literal

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


Form = Literal["basic", "postact", "plain"]
Shortcut = Literal["zeros", "conv"]


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut.

    form      "basic"    act(shortcut(x) + BN(conv(act(BN(conv(x)))))
              "postact"  shortcut(x) + act(BN(conv(act(BN(conv(x))))): each conv is followed by an activation
              "plain"    act(BN(conv(act(BN(conv(x)))))
    shortcut  "zeros": without parameters, see `option_a`; "conv": where the shape changes, a 1x1 conv and a norm
              (downsample.0, .1)
    """

    def __init__(self, fan_in: int, channels: int, stride: int, activation: Activation, form: Form, shortcut: Shortcut):
        super().__init__()
        self.stride, self.form = stride, form
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)
        self.downsample: nn.Module | None = None
        if shortcut == "conv" and form != "plain" and (stride != 1 or fan_in != channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(fan_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.form == "plain":
            return self.act2(y)
        around = option_a(x, y.shape[1], self.stride) if self.downsample is None else self.downsample(x)
        return self.act2(y) + around if self.form == "postact" else self.act2(y + around)


class ResNetCifar(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, global average, classifier.

    >>> import torch
    >>> resnet_cifar(20, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, blocks: int, num_classes: int, in_channels: int, activation: Activation, width: float,
        dropout: float, form: Form = "basic", shortcut: Shortcut = "zeros", stem_stride: int = 1,
    ):  # fmt: skip
        super().__init__()
        c1, c2, c3 = (scaled(c, width) for c in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, c1, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.act1 = make_activation(activation, c1)
        kind = (activation, form, shortcut)
        self.layer1 = stage(c1, c1, blocks, 1, *kind)
        self.layer2 = stage(c1, c2, blocks, 2, *kind)
        self.layer3 = stage(c2, c3, blocks, 2, *kind)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(c3, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(self.flatten(self.pool(x))))


def stage(
    fan_in: int, channels: int, blocks: int, stride: int, activation: Activation, form: Form, shortcut: Shortcut
) -> nn.Sequential:
    first = BasicBlock(fan_in, channels, stride, activation, form, shortcut)
    rest = (BasicBlock(channels, channels, 1, activation, form, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def resnet_cifar(
    depth: int,
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
    shortcut: Shortcut = "zeros",
    stem_stride: int = 1,
) -> ResNetCifar:
    """ResNet of depth 6n + 2 for CIFAR. Depth 20 has 40,551,040 MACs at 32x32 and 269,722 parameters.

    names     conv1, bn1, layer1.0.conv1, layer1.0.bn1, layer1.0.conv2, layer1.0.bn2, ..., layer3.2.bn2, fc
    source    He et al. 2015, arXiv 1512.03385, section 4.2
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; any size, the pooling is global
    width     multiplies 16, 32 and 64
    shortcut  "zeros" (option A) or "conv": 1x1 convs where the shape changes (option B)
    stem_stride   3 brings the 96 pixels of STL-10 to 32
    """
    del size  # global pooling: no weight depends on it
    kind = (shortcut, stem_stride)
    return ResNetCifar((depth - 2) // 6, num_classes, in_channels, activation, width, dropout, "basic", *kind)


def resnet20_postact(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> ResNetCifar:
    """ResNet-20 whose second activation stands before the addition: a ReLU follows every conv of a block.

    So a gate that skips what the ReLU would clip can sit on both convs; block outputs are sums of non-negative maps.
    names     as `resnet20`, with the same MACs and parameters
    source    Hua et al. 2019, arXiv 1805.12549 (channel gating), its public CIFAR net

    >>> import torch
    >>> bool((resnet20_postact(10).layer1(torch.rand(1, 16, 4, 4)) >= 0).all())
    True
    """
    del size
    return ResNetCifar(3, num_classes, in_channels, activation, width, dropout, "postact")


def resnet20_plain(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> ResNetCifar:
    """ResNet-20 without shortcuts, for PCA: the width of a layer's outputs is then its own.

    names     as `resnet20`, so a recipe found on this net fits that one; with the same MACs and parameters
    source    Chakraborty et al. 2020, arXiv 1906.01493 (Hybrid-Net), which measures on nets without shortcuts
    differs   their classifier has a norm before and behind it

    >>> sum(p.numel() for p in resnet20_plain(10).parameters())
    269722
    """
    del size
    return ResNetCifar(3, num_classes, in_channels, activation, width, dropout, "plain")
