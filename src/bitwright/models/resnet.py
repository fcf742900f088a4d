"""ResNet-18 for ImageNet. Parameter names and shapes are torchvision's, so its checkpoints load."""

from torch import Tensor, nn

from .common import Activation, init_convs, make_activation, scaled
from .resnet_cifar import stage


class ResNet18(nn.Module):
    """7x7 stem with max-pooling, four stages of two blocks, global average, classifier."""

    def __init__(self, num_classes: int, in_channels: int, activation: Activation, width: float, dropout: float):
        super().__init__()
        c1, c2, c3, c4 = (scaled(c, width) for c in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(in_channels, c1, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.act1 = make_activation(activation, c1)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(c1, c1, 2, 1, activation, "basic", "conv")
        self.layer2 = stage(c1, c2, 2, 2, activation, "basic", "conv")
        self.layer3 = stage(c2, c3, 2, 2, activation, "basic", "conv")
        self.layer4 = stage(c3, c4, 2, 2, activation, "basic", "conv")
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(c4, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(self.flatten(self.avgpool(x))))


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
