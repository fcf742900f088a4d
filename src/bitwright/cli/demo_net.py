"""The network of `bitwright demo`: small enough to train in seconds, wide enough that bits pay."""

from __future__ import annotations

from torch import Tensor, nn


class DemoNet(nn.Module):
    """8x8 gray digits -> 10 classes. Blocks are conv, norm, hardtanh; pooling comes after the activation.

    hardtanh, because its output is signed: where a recipe puts a sign or a 2-bit grid in front of the next layer, it
    becomes part of that, and `convert` turns norm, activation and quantizer into one integer threshold per channel.

    >>> import torch
    >>> DemoNet()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = _block(1, width)
        self.conv2 = _block(width, width)
        self.conv3 = _block(width, width)
        self.conv4 = _block(width, width)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv2(self.stem(x)))  # [N, width, 4, 4]
        x = self.pool(self.conv4(self.conv3(x)))  # [N, width, 2, 2]
        return self.fc(x.flatten(1))


def _block(fan_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fan_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.Hardtanh())


# The stem reads pixels as the bytes they are, with 8-bit weights; the classifier, 1 % of the work, stays float.
_ENDS = [
    {"match": "first", "w": {"part": "uniform", "bits": 8}, "x": "input8"},
    {"match": "last", "w": "float", "x": "float"},
]
BINARY = [{"match": "*", "w": "bwn", "x": "sign"}, *_ENDS]
TWO_BIT = [{"match": "*", "w": "bwn", "x": {"part": "dorefa_a", "bits": 2}}, *_ENDS]
