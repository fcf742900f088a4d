"""What every model file shares: the activation choice, channel widths, the initialization."""

from collections import OrderedDict
from typing import Literal, get_args

from torch import nn

Activation = Literal["relu", "identity", "hardtanh", "prelu", "tanh"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def make_activation(kind: Activation, channels: int) -> nn.Module:
    """A new activation module. `prelu` has a slope per channel (dimension 1), the others no parameters.

    >>> make_activation("prelu", 16).weight.shape
    torch.Size([16])
    """
    if kind == "prelu":
        return nn.PReLU(channels)
    return {"relu": nn.ReLU, "identity": nn.Identity, "hardtanh": nn.Hardtanh, "tanh": nn.Tanh}[kind]()


def scaled(channels: int, width: float) -> int:
    """Channels times width, rounded to the nearest count of at least 1.

    >>> scaled(16, 1), scaled(16, 0.3), scaled(16, 0.01)
    (16, 5, 1)
    """
    return max(1, round(channels * width))


def chain(**modules: nn.Module | None) -> nn.Sequential:
    """A Sequential with named steps, in the order written; a step that is None is left out.

    >>> [name for name, _ in chain(fc1=nn.Linear(4, 3), dropout=None, fc2=nn.Linear(3, 2)).named_children()]
    ['fc1', 'fc2']
    """
    return nn.Sequential(OrderedDict((name, step) for name, step in modules.items() if step is not None))


def make_dropout(p: float) -> nn.Dropout | None:
    """A Dropout step for `chain`, or None when nothing would be dropped."""
    return nn.Dropout(p) if p else None


def init_convs(model: nn.Module) -> None:
    """Conv weights normal with std sqrt(2 / fan_out), the rest is PyTorch's. arXiv 1502.01852."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
