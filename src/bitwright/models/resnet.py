"""ResNet-18 for ImageNet. Parameter names and shapes are torchvision's, so its checkpoints load."""

from torch import Tensor, nn

from .common import Activation, init_convs, make_activation, scaled


class BasicBlock(nn.Module):
    """act(shortcut(x) + BN(conv(act(BN(conv(x))))).

    Both convs are 3x3. Where the shape changes, the shortcut is a 1x1 conv and a norm (downsample.0, .1).
    """

    def __init__(self, fan_in: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = make_activation(activation, channels)
        self.downsample = nn.Identity()
        if stride != 1 or fan_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(fan_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + self.downsample(x))


class ResNet18(nn.Module):
    """7x7 stem with max-pooling, four stages of two blocks, global average, classifier."""

    def __init__(self, num_classes: int, in_channels: int, activation: Activation, width: float, dropout: float):
        super().__init__()
        c1, c2, c3, c4 = (scaled(c, width) for c in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(in_channels, c1, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.act1 = make_activation(activation, c1)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(c1, c1, 1, activation)
        self.layer2 = _stage(c1, c2, 2, activation)
        self.layer3 = _stage(c2, c3, 2, activation)
        self.layer4 = _stage(c3, c4, 2, activation)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(c4, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(self.flatten(self.avgpool(x))))


def _stage(fan_in: int, channels: int, stride: int, activation: Activation) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(fan_in, channels, stride, activation), BasicBlock(channels, channels, 1, activation)
    )


def resnet18(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 224,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> ResNet18:
    """ResNet-18: 1.81 G MACs at 224x224 and 11,689,512 parameters with 1000 classes.

    names     conv1, bn1, layer1.0.conv1, layer1.0.bn1, ..., layer2.0.downsample.0, .1, ..., fc
    source    He et al. 2015, arXiv 1512.03385, table 1
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; any size, the pooling is global
    width     multiplies 64, 128, 256 and 512

    >>> resnet18(1000, width=0.25).layer2[0].downsample[0].weight.shape
    torch.Size([32, 16, 1, 1])
    """
    del size  # global pooling: no weight depends on it
    return ResNet18(num_classes, in_channels, activation, width, dropout)
