"""LeNet-5 in the shape of the XNOR-Net MNIST experiments."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def lenet5(
    num_classes: int,
    *,
    in_channels: int = 1,
    size: int = 28,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """1-20-50-500-10: two unpadded 5x5 convs, each with norm, activation and 2x2 max-pooling; two Linears.

    names     conv1, bn1, act1, pool1, conv2, bn2, act2, pool2, flatten, fc1, bn3, act3, fc2
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; 28 -> 24 -> 12 -> 8 -> 4 pixels
    differs   norm after each conv (the XNOR block puts it before; `x = ["norm", "sign"]` adds that one)

    >>> lenet5(10).fc1.weight.shape
    torch.Size([500, 800])
    """
    c1, c2, units = scaled(20, width), scaled(50, width), scaled(500, width)
    side = ((size - 4) // 2 - 4) // 2
    return chain(
        conv1=nn.Conv2d(in_channels, c1, 5, bias=False),
        bn1=nn.BatchNorm2d(c1),
        act1=make_activation(activation, c1),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(c1, c2, 5, bias=False),
        bn2=nn.BatchNorm2d(c2),
        act2=make_activation(activation, c2),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(c2 * side * side, units, bias=False),
        bn3=nn.BatchNorm1d(units),
        act3=make_activation(activation, units),
        dropout=make_dropout(dropout),
        fc2=nn.Linear(units, num_classes),
    )
