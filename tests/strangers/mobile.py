"""Nets for phones, and grouped or gated residual nets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalikes import DropPath, MobileNetV2
from strangers.stranger import Stranger, image


def conv_bn(fan_in: int, out: int, kernel: int, stride: int, act: type[nn.Module] = nn.ReLU6) -> nn.Sequential:
    conv = nn.Conv2d(fan_in, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), act(inplace=True))


class LinearBottleneck(nn.Module):
    """One flat Sequential, with or without the expansion."""

    def __init__(self, fan_in: int, out: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = round(fan_in * ratio)
        self.use_res_connect = stride == 1 and fan_in == out
        expand: list[nn.Module] = []
        if ratio != 1:
            expand = [nn.Conv2d(fan_in, hidden, 1, 1, 0, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(
            *expand,
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, 1, 0, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2Means(nn.Module):
    """A second MobileNetV2: mean over one axis, then the other; the classifier reads a view."""

    def __init__(self) -> None:
        super().__init__()
        features = [conv_bn(3, 8, 3, 2)]
        for out, stride, ratio in ((8, 1, 1), (16, 2, 3), (16, 1, 3)):
            fan_in = 8 if out == 8 or stride == 2 else 16
            features.append(nn.Sequential(LinearBottleneck(fan_in, out, stride, ratio)))
        features.append(conv_bn(16, 32, 1, 1))
        self.features = nn.Sequential(*features)
        self.last_channel = 32
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(self.last_channel, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.mean(3).mean(2)
        return self.classifier(x.view(-1, self.last_channel))


class HardSqueeze(nn.Module):
    """Squeeze and excite with two Linears and views between them."""

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(width, width // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(width // reduction, width, bias=False),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class BneckV3(nn.Module):
    def __init__(self, fan_in: int, hidden: int, out: int, kernel: int, stride: int, squeeze: bool, hard: bool) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        self.expand, self.bn1, self.act1 = nn.Conv2d(fan_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act()
        self.depth = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(hidden), act()
        self.se = HardSqueeze(hidden) if squeeze else nn.Identity()
        self.project, self.bn3 = nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = None
        if stride == 1 and fan_in != out:
            self.skip = nn.Sequential(nn.Conv2d(fan_in, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        out = self.act1(self.bn1(self.expand(x)))
        out = self.se(self.act2(self.bn2(self.depth(out))))
        out = self.bn3(self.project(out))
        if self.skip is not None:
            skip = self.skip(skip)
        if self.residual:
            out += skip
        return out


class MobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.hs1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        self.bneck = nn.Sequential(
            BneckV3(8, 16, 8, 3, 1, True, False), BneckV3(8, 24, 16, 5, 2, False, True), BneckV3(16, 32, 24, 5, 1, True, True)
        )  # fmt: skip
        self.conv2, self.bn2, self.hs2 = nn.Conv2d(24, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear3, self.bn3, self.hs3 = nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.Hardswish()
        self.drop, self.linear4 = nn.Dropout(0.2), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.hs1(self.bn1(self.conv1(x)))
        out = self.hs2(self.bn2(self.conv2(self.bneck(out))))
        out = self.gap(out).flatten(1)
        return self.linear4(self.drop(self.hs3(self.bn3(self.linear3(out)))))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, fan_in: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, out // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(fan_in, fan_in, 3, stride, 1, groups=fan_in, bias=False), nn.BatchNorm2d(fan_in),
                nn.Conv2d(fan_in, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            )  # fmt: skip
        self.branch2 = nn.Sequential(
            nn.Conv2d(fan_in if stride > 1 else half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.maxpool = conv_bn(3, 8, 3, 2, nn.ReLU), nn.MaxPool2d(3, 2, 1)
        self.stage2 = nn.Sequential(ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1))
        self.conv5, self.fc = conv_bn(16, 32, 1, 1, nn.ReLU), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv5(self.stage2(self.maxpool(self.conv1(x))))
        x = x.mean([2, 3])  # global pooling
        return self.fc(x)


class MBConv(nn.Module):
    """Expansion, depthwise, squeeze-excite with SiLU, projection, a path that may be dropped."""

    def __init__(self, fan_in: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden, squeezed = fan_in * expand, max(1, fan_in // 4)
        self.use_res_connect = stride == 1 and fan_in == out
        layers: list[nn.Module] = [conv_bn(fan_in, hidden, 1, 1, nn.SiLU)] if expand != 1 else []
        depth = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        layers += [nn.Sequential(depth, nn.BatchNorm2d(hidden, eps=1e-3), nn.SiLU(inplace=True))]
        self.block, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.activation, self.scale_activation = nn.SiLU(inplace=True), nn.Sigmoid()
        self.project = nn.Sequential(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out, eps=1e-3))
        self.stochastic_depth = DropPath(0.1)

    def forward(self, input: Tensor) -> Tensor:
        x = self.block(input)
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        result = self.project(scale * x)
        if self.use_res_connect:
            result = self.stochastic_depth(result)
            result += input
        return result


class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [MBConv(8, 8, 3, 1, 1), MBConv(8, 16, 5, 2, 3), MBConv(16, 16, 3, 1, 3)]
        self.features = nn.Sequential(
            conv_bn(3, 8, 3, 2, nn.SiLU), nn.Sequential(*blocks), conv_bn(16, 32, 1, 1, nn.SiLU)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class SameConv2d(nn.Conv2d):
    """Padding as another framework does it: so that out = ceil(in / stride), one more on the right if it must be."""

    def forward(self, input: Tensor) -> Tensor:
        size, kernel, stride = input.shape[-2:], self.kernel_size, self.stride
        pad = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride, strict=True)]
        if any(pad):
            input = F.pad(input, [pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2])
        return F.conv2d(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class SameBlock(nn.Module):
    """The other public writing of the block: methods with underscores, functional pooling."""

    def __init__(self, fan_in: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden, squeezed = fan_in * expand, max(1, fan_in // 4)
        self._expand_conv, self._bn0 = nn.Conv2d(fan_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden)
        self._se_reduce, self._se_expand = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self._project_conv, self._bn2 = nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)
        self._swish, self._skip = Swish(), stride == 1 and fan_in == out

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._swish(self._bn0(self._expand_conv(inputs)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        squeezed = F.adaptive_avg_pool2d(x, 1)
        squeezed = self._se_expand(self._swish(self._se_reduce(squeezed)))
        x = torch.sigmoid(squeezed) * x
        x = self._bn2(self._project_conv(x))
        return x + inputs if self._skip else x


class EfficientNetSame(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self._blocks = nn.ModuleList([SameBlock(8, 8, 3, 1, 2), SameBlock(8, 16, 5, 2, 3), SameBlock(16, 16, 3, 1, 3)])
        self._conv_head, self._bn1 = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self._avg_pooling, self._dropout, self._fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(32, 5)
        self._swish = Swish()

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._swish(self._bn0(self._conv_stem(inputs)))
        for block in self._blocks:
            x = block(x)
        x = self._avg_pooling(self._swish(self._bn1(self._conv_head(x))))
        return self._fc(self._dropout(x.flatten(start_dim=1)))


class GhostModule(nn.Module):
    """Half of the maps by a 1x1 convolution, the rest by a cheap one; cut to the width that was asked for."""

    def __init__(self, fan_in: int, out: int, relu: bool = True) -> None:
        super().__init__()
        self.oup, first = out, math.ceil(out / 2)

        def act() -> nn.Module:
            return nn.ReLU(inplace=True) if relu else nn.Sequential()

        self.primary_conv = nn.Sequential(nn.Conv2d(fan_in, first, 1, bias=False), nn.BatchNorm2d(first), act())
        cheap = nn.Conv2d(first, first, 3, 1, 1, groups=first, bias=False)
        self.cheap_operation = nn.Sequential(cheap, nn.BatchNorm2d(first), act())

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        out = torch.cat([x1, self.cheap_operation(x1)], dim=1)
        return out[:, : self.oup, :, :]


class GhostBottleneck(nn.Module):
    def __init__(self, fan_in: int, hidden: int, out: int, stride: int) -> None:
        super().__init__()
        self.ghost1, self.stride = GhostModule(fan_in, hidden), stride
        if stride > 1:
            self.conv_dw = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
            self.bn_dw = nn.BatchNorm2d(hidden)
        self.conv_reduce, self.conv_expand = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.ghost2 = GhostModule(hidden, out, relu=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or fan_in != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(fan_in, fan_in, 3, stride, 1, groups=fan_in, bias=False), nn.BatchNorm2d(fan_in),
                nn.Conv2d(fan_in, out, 1, bias=False), nn.BatchNorm2d(out),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.ghost1(x)
        if self.stride > 1:
            x = self.bn_dw(self.conv_dw(x))
        s = self.conv_expand(F.relu(self.conv_reduce(F.adaptive_avg_pool2d(x, 1)), inplace=True))
        x = x * (F.relu6(s + 3.0) / 6.0)  # a hard sigmoid, written out
        x = self.ghost2(x)
        x += self.shortcut(residual)
        return x


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(GhostBottleneck(8, 15, 8, 1), GhostBottleneck(8, 24, 15, 2))  # an odd width is cut
        self.global_pool, self.conv_head = nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(15, 32, 1)
        self.act2, self.classifier = nn.ReLU(inplace=True), nn.Linear(32, 5)
        self.dropout = 0.2

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        x = self.act2(self.conv_head(self.global_pool(x)))
        x = x.view(x.size(0), -1)
        if self.dropout > 0.0:
            x = F.dropout(x, p=self.dropout, training=self.training)
        return self.classifier(x)


class Fire(nn.Module):
    def __init__(self, fan_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(fan_in, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, expand, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class SqueezeNet(nn.Module):
    """Fully convolutional, without norms; the classifier is a convolution before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(16, 8, 16), Fire(32, 8, 16), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(32, 8, 16),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5), nn.Conv2d(32, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class RegBlock(nn.Module):
    """Grouped bottleneck with squeeze-excite: RegNetY."""

    def __init__(self, fan_in: int, out: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj = None
        if stride != 1 or fan_in != out:
            self.proj = nn.Sequential(nn.Conv2d(fan_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.a, self.b = (
            conv_bn(fan_in, out, 1, 1, nn.ReLU),
            nn.Conv2d(out, out, 3, stride, 1, 1, out // group_width, False),
        )
        self.b_bn, self.b_act = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(out, out // 4, 1), nn.ReLU(inplace=True), nn.Conv2d(out // 4, out, 1), nn.Sigmoid()
        )  # fmt: skip
        self.c, self.activation = (
            nn.Sequential(nn.Conv2d(out, out, 1, bias=False), nn.BatchNorm2d(out)),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.b_act(self.b_bn(self.b(self.a(x))))
        y = self.c(y * self.se(y))
        x = self.proj(x) + y if self.proj is not None else x + y
        return self.activation(x)


class RegNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, nn.ReLU)
        stages = {"block1": [RegBlock(16, 24, 2, 8)], "block2": [RegBlock(24, 48, 2, 8), RegBlock(48, 48, 1, 8)]}
        self.trunk_output = nn.Sequential()
        for name, blocks in stages.items():
            self.trunk_output.add_module(name, nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.trunk_output(self.stem(x)))
        return self.fc(x.flatten(start_dim=1))


class ResNeXtBlock(nn.Module):
    """Functional ReLUs; the cardinality as groups of the middle convolution; an empty Sequential where nothing is to be done."""

    def __init__(self, fan_in: int, out: int, stride: int, cardinality: int) -> None:
        super().__init__()
        self.conv_reduce, self.bn_reduce = nn.Conv2d(fan_in, out, 1, 1, 0, bias=False), nn.BatchNorm2d(out)
        self.conv_conv = nn.Conv2d(out, out, 3, stride, 1, groups=cardinality, bias=False)
        self.bn, self.conv_expand = nn.BatchNorm2d(out), nn.Conv2d(out, out, 1, 1, 0, bias=False)
        self.bn_expand, self.shortcut = nn.BatchNorm2d(out), nn.Sequential()
        if fan_in != out:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(fan_in, out, 1, stride, 0, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        bottleneck = F.relu(self.bn_reduce(self.conv_reduce(x)), inplace=True)
        bottleneck = F.relu(self.bn(self.conv_conv(bottleneck)), inplace=True)
        bottleneck = self.bn_expand(self.conv_expand(bottleneck))
        return F.relu(self.shortcut(x) + bottleneck, inplace=True)


class ResNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_1_3x3, self.bn_1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.stage_1 = nn.Sequential(ResNeXtBlock(16, 32, 2, 8), ResNeXtBlock(32, 32, 1, 8))
        self.stage_2 = nn.Sequential(ResNeXtBlock(32, 64, 2, 8))
        self.classifier = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_1(self.conv_1_3x3(x)), inplace=True)
        x = F.avg_pool2d(self.stage_2(self.stage_1(x)), 8, 1)
        return self.classifier(x.view(-1, 64))


STRANGERS = [
    Stranger("mobilenet_v2", MobileNetV2, image(), ("w1a1", "w8a8")),
    Stranger("mobilenet_v2_means", MobileNetV2Means, image(), ("w1a1", "w8a8")),
    Stranger("mobilenet_v3", MobileNetV3, image(), ("w1a1", "w8a8")),
    Stranger("shufflenet_v2", ShuffleNetV2, image()),
    Stranger("efficientnet", EfficientNet, image(), ("w1a1", "w8a8")),
    Stranger("efficientnet_same", EfficientNetSame, image(), ("w1a1", "bwn")),
    Stranger("ghostnet", GhostNet, image(), ("w1a1", "w8a8")),
    Stranger("squeezenet", SqueezeNet, image()),
    Stranger("regnet", RegNet, image(), ("w1a1", "w8a8")),
    Stranger("resnext", ResNeXt, image(), ("w1a1", "ttq")),
]
