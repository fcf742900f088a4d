"""AlexNet in the layout of XNOR-Net: one group, and the norm before each conv that may become binary."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def alexnet(
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 227,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.5,
) -> nn.Sequential:
    """96-256-384-384-256 convs (11, 5, 3, 3, 3 wide), 4096-4096-classes.

    order     conv1, bn1, act1, pool1; then norm, conv, activation, pool for each later layer: B-A-C-P in
              the paper, whose A, a sign, goes into the layer's `x` slot, where values have both signs
    names     conv1, bn1, act1, pool1, bn2, conv2, act2, pool2, ..., bn6, flatten, fc6, act6, bn7, fc7, act7,
              bn8, fc8
    source    Rastegari et al. 2016, arXiv 1603.05279, section 4; no groups
    shapes    x [N, in_channels, size, size] -> [N, num_classes]; 227 -> 55 -> 27 -> 13 -> 6 pixels
    differs   bn6 has one scale per map, not one per feature; the dropout of fc7 is before bn7, so that a sign
              in fc7 never reads the zeros of dropout

    >>> alexnet(1000, width=0.125).fc6.weight.shape
    torch.Size([512, 1152])
    """
    c1, c2, c3, c4, c5, units = (scaled(c, width) for c in (96, 256, 384, 384, 256, 4096))
    side = (size - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return chain(
        conv1=nn.Conv2d(in_channels, c1, 11, stride=4, bias=False),
        bn1=nn.BatchNorm2d(c1),
        act1=make_activation(activation, c1),
        pool1=nn.MaxPool2d(3, stride=2),
        bn2=nn.BatchNorm2d(c1),
        conv2=nn.Conv2d(c1, c2, 5, padding=2),
        act2=make_activation(activation, c2),
        pool2=nn.MaxPool2d(3, stride=2),
        bn3=nn.BatchNorm2d(c2),
        conv3=nn.Conv2d(c2, c3, 3, padding=1),
        act3=make_activation(activation, c3),
        bn4=nn.BatchNorm2d(c3),
        conv4=nn.Conv2d(c3, c4, 3, padding=1),
        act4=make_activation(activation, c4),
        bn5=nn.BatchNorm2d(c4),
        conv5=nn.Conv2d(c4, c5, 3, padding=1),
        act5=make_activation(activation, c5),
        pool5=nn.MaxPool2d(3, stride=2),
        bn6=nn.BatchNorm2d(c5),
        flatten=nn.Flatten(),
        fc6=nn.Linear(c5 * side * side, units),
        act6=make_activation(activation, units),
        drop7=make_dropout(dropout),
        bn7=nn.BatchNorm1d(units),
        fc7=nn.Linear(units, units),
        act7=make_activation(activation, units),
        bn8=nn.BatchNorm1d(units),
        drop8=make_dropout(dropout),
        fc8=nn.Linear(units, num_classes),
    )
