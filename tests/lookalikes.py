"""Small nets built the way well-known libraries build theirs: the patterns, in a few lines each, not their code."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- as torchvision builds them ----


class Residual(nn.Module):
    """A residual block with one ReLU object used everywhere; a bottleneck where `wide` > 1."""

    def __init__(self, fan_in: int, width: int, stride: int = 1, wide: int = 1) -> None:
        super().__init__()
        out = width * wide
        kernels = (1, 3, 1) if wide > 1 else (3, 3)
        widths = [fan_in, *[width] * (len(kernels) - 1), out]
        self.count = len(kernels)
        for i, k in enumerate(kernels):
            step = stride if k == 3 and (wide > 1 or i == 0) else 1
            setattr(self, f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], k, step, k // 2, bias=False))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or fan_in != out:
            self.downsample = nn.Sequential(nn.Conv2d(fan_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        around, y = x, x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = self.relu(y) if i < self.count else y
        if self.downsample is not None:
            around = self.downsample(x)
        y += around
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, wide: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8, 1, wide), Residual(8 * wide, 8, 1, wide))
        self.layer2 = nn.Sequential(Residual(8 * wide, 16, 2, wide))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16 * wide, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class ConvNormRelu6(nn.Sequential):
    """A Sequential subclass: conv, norm, ReLU6 as 0, 1, 2."""

    def __init__(self, fan_in: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(fan_in, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class Inverted(nn.Module):
    """Expand, depthwise, project without an activation; the sum only where the shape stays."""

    def __init__(self, fan_in: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = fan_in * expand
        self.add = stride == 1 and fan_in == out
        layers: list[nn.Module] = [ConvNormRelu6(fan_in, hidden, 1)] if expand != 1 else []
        layers += [ConvNormRelu6(hidden, hidden, 3, stride, groups=hidden)]
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.add else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [Inverted(8, 8, 1, 1), Inverted(8, 12, 2, 4), Inverted(12, 12, 1, 4)]
        self.features = nn.Sequential(ConvNormRelu6(3, 8, 3, 2), *blocks, ConvNormRelu6(12, 32, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), (1, 1)).reshape(x.shape[0], -1))


class Vgg(nn.Module):
    """Numbered Sequentials; convs with bias and without norm; two hidden Linears with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        fan_in = 3
        for out in (8, 0, 16, 16, 0):
            layers += [nn.Conv2d(fan_in, out, 3, padding=1), nn.ReLU(inplace=True)] if out else [nn.MaxPool2d(2, 2)]
            fan_in = out or fan_in
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((4, 4))
        hidden = [nn.Linear(256, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3 on all that came before, concatenated."""

    def __init__(self, fan_in: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(fan_in), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(fan_in, 2 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, before: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(before, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, fan_in: int, growth: int, count: int) -> None:
        super().__init__({f"denselayer{i + 1}": DenseLayer(fan_in + i * growth, growth) for i in range(count)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        steps = [
            ("conv0", nn.Conv2d(3, 8, 3, 2, 1, bias=False)),
            ("norm0", nn.BatchNorm2d(8)),
            ("relu0", nn.ReLU(True)),
        ]
        steps += [("denseblock1", DenseBlock(8, 4, 3)), ("norm5", nn.BatchNorm2d(20))]
        self.features = nn.Sequential(OrderedDict(steps))
        self.classifier = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class BasicConv(nn.Module):
    """Functional ReLU inside a named block."""

    def __init__(self, fan_in: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches, concatenated."""

    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.branch1 = BasicConv(fan_in, 4, 1)
        self.branch2 = nn.Sequential(BasicConv(fan_in, 4, 1), BasicConv(4, 8, 3))
        self.branch3 = nn.Sequential(BasicConv(fan_in, 4, 1), BasicConv(4, 4, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv(fan_in, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)], 1)


class GoogLeNet(nn.Module):
    """With a second head that only trains: its output is left out in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.maxpool1 = BasicConv(3, 8, 7), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception1, self.inception2 = Inception(8), Inception(20)
        self.aux = nn.Linear(20, 5)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inception1(self.maxpool1(self.conv1(x)))
        y = self.fc(self.inception2(x).mean((2, 3)))
        return y + 0.3 * self.aux(x.mean((2, 3))) if self.training else y


# ---- as timm builds them ----


class NormAct(nn.BatchNorm2d):
    """A norm that holds its activation: a subclass with a forward of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class ConvNormAct(nn.Module):
    def __init__(self, fan_in: int, out: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, out, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = NormAct(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.act, self.gate = nn.SiLU(inplace=True), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        s = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * self.gate(s)


class DropPath(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1e-2 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1)


class HeadLinear(nn.Linear):
    """A subclass whose forward casts: it cannot be replaced without losing that."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class Timm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3)
        self.conv1, self.conv2 = ConvNormAct(8, 16), ConvNormAct(16, 16, 3, groups=16)
        self.se, self.conv3 = SqueezeExcite(16), nn.Conv2d(16, 8, 1, bias=False)
        self.bn3, self.scale, self.drop = nn.BatchNorm2d(8), LayerScale(8), DropPath(0.1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), HeadLinear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn3(self.conv3(self.se(self.conv2(self.conv1(x)))))
        x = x + self.drop(self.scale(y))
        return self.head(self.pool(x).flatten(1))


# ---- as transformers builds them ----


class Attention(nn.Module):
    """Query, key and value as Linears of their own, scaled dot product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (
            f(x).view(n, t, self.heads, c // self.heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(c // self.heads)).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).reshape(n, t, c))


class EncoderBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(width, 2), nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Patches(nn.Module):
    """A vision transformer: patches by a strided conv, a class token, learned places."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, 8, 8)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.layer, self.norm = nn.ModuleList(EncoderBlock(width) for _ in range(2)), nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.layer:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0])


class Tied(nn.Module):
    """A language model whose last Linear shares the table of its embedding."""

    def __init__(self, words: int = 11, width: int = 16) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(words, width), EncoderBlock(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.block(self.embed(ids)))


class TorchEncoder(nn.Module):
    """torch's own encoder layers, with their fused path and MultiheadAttention."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 32, activation="gelu", batch_first=True)
        self.embed, self.encoder = nn.Linear(8, width), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def _image() -> Tensor:
    return torch.randn(4, 3, 32, 32)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "resnet": (ResNet, _image, "torchvision"),
    "bottleneck": (lambda: ResNet(2), _image, "torchvision"),
    "mobilenet_v2": (MobileNetV2, _image, "torchvision"),
    "vgg": (Vgg, _image, "torchvision"),
    "densenet": (DenseNet, _image, "torchvision"),
    "googlenet": (GoogLeNet, _image, "torchvision"),
    "timm": (Timm, _image, "timm"),
    "vit": (Patches, _image, "transformers"),
    "tied": (Tied, lambda: torch.randint(11, (4, 6)), "transformers"),
    "torch_encoder": (TorchEncoder, lambda: torch.randn(4, 6, 8), "transformers"),
}
