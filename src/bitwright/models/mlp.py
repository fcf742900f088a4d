"""Fully connected nets for small gray images."""

from torch import nn

from .common import Activation, chain, make_activation, make_dropout, scaled


def mlp(
    num_classes: int,
    *,
    in_channels: int = 1,
    size: int = 28,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
    hidden: int = 4000,
    depth: int = 3,
) -> nn.Sequential:
    """784-4000x3-10: `depth` hidden layers of `hidden * width` units, then the classifier.

    order     Linear (no bias), BatchNorm, activation, [dropout]; the classifier has a bias and no BatchNorm
    names     fc1, bn1, act1, ..., fc{depth + 1}
    shapes    x [N, in_channels, size, size] -> [N, num_classes]

    >>> [m.out_features for m in mlp(10, hidden=64, depth=2).modules() if isinstance(m, nn.Linear)]
    [64, 64, 10]
    """
    units = scaled(hidden, width)
    steps: dict[str, nn.Module | None] = {"flatten": nn.Flatten()}
    fan_in = in_channels * size * size
    for i in range(1, depth + 1):
        steps[f"fc{i}"] = nn.Linear(fan_in, units, bias=False)
        steps[f"bn{i}"] = nn.BatchNorm1d(units)
        steps[f"act{i}"] = make_activation(activation, units)
        steps[f"drop{i}"] = make_dropout(dropout)
        fan_in = units
    steps[f"fc{depth + 1}"] = nn.Linear(fan_in, num_classes)
    return chain(**steps)


def lenet300(
    num_classes: int,
    *,
    in_channels: int = 1,
    size: int = 28,
    activation: Activation = "relu",
    width: float = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """LeNet-300-100: 784-300-100-10 with biases and no BatchNorm, the usual small net of the pruning papers.

    names     fc1, act1, fc2, act2, fc3
    source    LeCun et al. 1998, section III; 266,610 parameters
    shapes    x [N, in_channels, size, size] -> [N, num_classes]

    >>> sum(p.numel() for p in lenet300(10).parameters()) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    True
    """
    first, second = scaled(300, width), scaled(100, width)
    return chain(
        flatten=nn.Flatten(),
        fc1=nn.Linear(in_channels * size * size, first),
        act1=make_activation(activation, first),
        drop1=make_dropout(dropout),
        fc2=nn.Linear(first, second),
        act2=make_activation(activation, second),
        drop2=make_dropout(dropout),
        fc3=nn.Linear(second, num_classes),
    )
