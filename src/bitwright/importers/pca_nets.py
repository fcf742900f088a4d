"""The nets of the pca-hybrid code as float models, in its form and by its names; recipes make them low-bit.

Block: [norm, quantizer] in the slot of the conv, conv with bias, norm, ReLU, then the shortcut is added. There is one
shortcut around every conv; where the width doubles it is a 1x1 conv of its own slot, norm, ReLU. The plain net has
neither shortcuts nor norms between its convs.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F


class UnrolledResNet(nn.Module):
    """conv1 to convN in three stages of equal length, mean over pixels, norm, fc, norm.

    >>> [name for name, _ in UnrolledResNet(19).named_children()][-4:]
    ['resconv2', 'bn20', 'fc', 'bn21']
    """

    def __init__(self, convs: int, num_classes: int = 100, width: float = 1, plain: bool = False) -> None:
        super().__init__()
        self.convs, self.plain = convs, plain
        per, base = (convs - 1) // 3, max(1, round(16 * width))
        self.turns = {2 + per: 1, 2 + 2 * per: 2}  # number of the conv at a wider stage -> number of its shortcut
        channels, beside = base, []
        for i in range(1, convs + 1):
            wide = 2 * channels if i in self.turns else channels
            stride = 2 if i in self.turns else 1
            setattr(self, f"conv{i}", nn.Conv2d(3 if i == 1 else channels, wide, 3, stride=stride, padding=1))
            if not plain or i == 1:
                setattr(self, f"bn{i}", nn.BatchNorm2d(wide))
            if i in self.turns and not plain:
                beside.append(nn.Sequential(nn.Conv2d(channels, wide, 1, stride=2), nn.BatchNorm2d(wide), nn.ReLU()))
            channels = wide
        for i, shortcut in enumerate(beside, 1):
            setattr(self, f"resconv{i}", shortcut)
        head = 2 if plain else convs + 1
        self.heads = f"bn{head}", f"bn{head + 1}"
        setattr(self, self.heads[0], nn.BatchNorm1d(channels))
        self.fc = nn.Linear(channels, num_classes)
        setattr(self, self.heads[1], nn.BatchNorm1d(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.get_submodule("bn1")(self.get_submodule("conv1")(x)))
        for i in range(2, self.convs + 1):
            y = getattr(self, f"conv{i}")(x)
            if self.plain:
                x = F.relu(y)
                continue
            beside = getattr(self, f"resconv{self.turns[i]}")(x) if i in self.turns else x
            x = F.relu(getattr(self, f"bn{i}")(y)) + beside
        before, behind = (getattr(self, name) for name in self.heads)
        return behind(self.fc(before(F.adaptive_avg_pool2d(x, 1).flatten(1))))


class Vgg(nn.Module):
    """13 convs with ReLU, a max-pool behind 2, 4, 7, 10 and 13; fc1, ReLU, norm, fc3.

    >>> Vgg(width=0.125).fc1.weight.shape
    torch.Size([128, 64])
    """

    POOLED = (2, 4, 7, 10, 13)

    def __init__(self, num_classes: int = 100, width: float = 1) -> None:
        super().__init__()
        channels = 3
        for i, base in enumerate((64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), 1):
            wide = max(1, round(base * width))
            setattr(self, f"conv{i}", nn.Conv2d(channels, wide, 3, padding=1))
            if i <= 2:
                setattr(self, f"bn{i}", nn.BatchNorm2d(wide))
            channels = wide
        units = max(1, round(1024 * width))
        self.fc1 = nn.Linear(channels, units)
        self.bn3 = nn.BatchNorm1d(units)
        self.fc3 = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 14):
            x = getattr(self, f"conv{i}")(x)
            x = F.relu(getattr(self, f"bn{i}")(x) if i <= 2 else x)
            x = F.max_pool2d(x, 2) if i in self.POOLED else x
        return self.fc3(self.bn3(F.relu(self.fc1(x.flatten(1)))))


# for commands that take a model without arguments
resnet19, resnet31 = partial(UnrolledResNet, 19), partial(UnrolledResNet, 31)
plain19, plain31 = partial(UnrolledResNet, 19, plain=True), partial(UnrolledResNet, 31, plain=True)
vgg = Vgg
