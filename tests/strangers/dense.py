"""Nets with concatenations and branches, and the convolutional nets of today."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalikes import BasicConv, DenseNet, DropPath, Inception
from strangers.stranger import Stranger, image


class AuxHead(nn.Module):
    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = BasicConv(fan_in, 8, 1), nn.Linear(8 * 16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, (4, 4))
        x = torch.flatten(self.conv(x), 1)
        x = F.dropout(F.relu(self.fc1(x), inplace=True), 0.7, training=self.training)
        return self.fc2(x)


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits2: Tensor | None
    aux_logits1: Tensor | None


class GoogLeNetAux(nn.Module):
    """Two heads that only train: a named tuple in training, the logits alone in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.aux_logits = True
        self.conv1, self.maxpool1 = BasicConv(3, 8, 7), nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a, self.inception4a, self.inception5a = Inception(8), Inception(20), Inception(20)
        self.aux1, self.aux2 = AuxHead(20), AuxHead(20)
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(0.2), nn.Linear(20, 5)

    def _transform_input(self, x: Tensor) -> Tensor:
        """From one normalization of the pixels to another, channel by channel."""
        channels = []
        for i, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
            channels.append(torch.unsqueeze(x[:, i], 1) * (std / 0.5) + (mean - 0.5) / 0.5)
        return torch.cat(channels, 1)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        x = self.inception3a(self.maxpool1(self.conv1(self._transform_input(x))))
        aux1 = self.aux1(x) if self.training and self.aux_logits else None
        x = self.inception4a(x)
        aux2 = self.aux2(x) if self.training and self.aux_logits else None
        x = torch.flatten(self.avgpool(self.inception5a(x)), 1)
        x = self.fc(self.dropout(x))
        if self.training and self.aux_logits:
            return Outputs(x, aux2, aux1)
        return x


class FaceConv(nn.Module):
    def __init__(self, fan_in: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(fan_in, out, kernel_size=kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001, momentum=0.1, affine=True)
        self.relu = nn.ReLU(inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class FaceBlock(nn.Module):
    """An inception residual: branches, a 1x1 with bias, scaled, added; rows and columns as (1, 7) and (7, 1) kernels."""

    def __init__(self, width: int, scale: float, no_relu: bool = False) -> None:
        super().__init__()
        self.scale, self.no_relu = scale, no_relu
        self.branch0 = FaceConv(width, 8, 1)
        self.branch1 = nn.Sequential(
            FaceConv(width, 8, 1), FaceConv(8, 8, (1, 7), padding=(0, 3)), FaceConv(8, 8, (7, 1), padding=(3, 0))
        )
        self.conv2d = nn.Conv2d(16, width, kernel_size=1, stride=1)
        if not no_relu:
            self.relu = nn.ReLU(inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat((self.branch0(x), self.branch1(x)), 1)
        out = self.conv2d(out)
        out = out * self.scale + x
        if not self.no_relu:
            out = self.relu(out)
        return out


class FaceReduction(nn.Module):
    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.branch0, self.branch1 = FaceConv(fan_in, 16, 3, 2), nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x)), 1)


class FaceNet(nn.Module):
    """Embeddings of length 1 in evaluation and training alike, or logits where `classify` was asked for."""

    def __init__(self, classify: bool = False) -> None:
        super().__init__()
        self.classify = classify
        self.conv2d_1a, self.conv2d_2a = FaceConv(3, 8, 3, 2), FaceConv(8, 16, 3, padding=1)
        self.repeat_1 = nn.Sequential(FaceBlock(16, 0.17), FaceBlock(16, 0.17))
        self.mixed_6a = FaceReduction(16)
        self.block8 = FaceBlock(32, 1.0, no_relu=True)
        self.avgpool_1a, self.dropout = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.6)
        self.last_linear, self.last_bn = nn.Linear(32, 16, bias=False), nn.BatchNorm1d(16, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.repeat_1(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.block8(self.mixed_6a(x))
        x = self.dropout(self.avgpool_1a(x))
        x = self.last_bn(self.last_linear(x.view(x.shape[0], -1)))
        return x if self.classify else F.normalize(x, p=2, dim=1)


class LayerNormFirst(nn.Module):
    """LayerNorm over the channels of [N, C, H, W], written out."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then Linears on [N, H, W, C], scaled by a learned gamma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma, self.drop_path = nn.Parameter(0.1 * torch.ones(width), requires_grad=True), DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        input = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)  # [N, C, H, W] -> [N, H, W, C]
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        if self.gamma is not None:
            x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return input + self.drop_path(x)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32)
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 16, 4, 4), LayerNormFirst(16))])
        self.downsample_layers.append(nn.Sequential(LayerNormFirst(16), nn.Conv2d(16, 32, 2, 2)))
        self.stages = nn.ModuleList(nn.Sequential(ConvNeXtBlock(width)) for width in widths)
        self.norm, self.head = nn.LayerNorm(widths[-1], eps=1e-6), nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.downsample_layers[i](x)
            x = self.stages[i](x)
        return self.head(self.norm(x.mean([-2, -1])))


class PoolBlock(nn.Module):
    """Pooling minus the input in the place of attention; GroupNorm with one group; layer scales unsqueezed twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.fc1, self.act, self.fc2 = nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)
        self.drop_path = DropPath(0.1)
        self.layer_scale_1 = nn.Parameter(0.1 * torch.ones(width), requires_grad=True)
        self.layer_scale_2 = nn.Parameter(0.1 * torch.ones(width), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.layer_scale_1.unsqueeze(-1).unsqueeze(-1) * (self.pool(y) - y))
        y = self.fc2(self.act(self.fc1(self.norm2(x))))
        return x + self.drop_path(self.layer_scale_2.unsqueeze(-1).unsqueeze(-1) * y)


class PoolFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 7, 4, 2)
        self.network = nn.ModuleList([PoolBlock(16), nn.Conv2d(16, 32, 3, 2, 1), PoolBlock(32)])
        self.norm, self.head = nn.GroupNorm(1, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.network:
            x = block(x)
        return self.head(self.norm(x).mean([-2, -1]))


STRANGERS = [
    Stranger("densenet", DenseNet, image()),
    Stranger("googlenet_aux", GoogLeNetAux, image(), ("w1a1", "twn")),
    Stranger("facenet", FaceNet, image()),
    Stranger("convnext", ConvNeXt, image()),
    Stranger("poolformer", PoolFormer, image(), ("w1a1", "w8a8")),
]
