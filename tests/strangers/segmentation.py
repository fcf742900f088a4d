"""Nets that answer per pixel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strangers.stranger import Stranger, image


class DoubleConv(nn.Module):
    def __init__(self, fan_in: int, out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(fan_in, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Up(nn.Module):
    """Upsampling by a transposed or by a bilinear step, padded to the size of what comes from the other side."""

    def __init__(self, fan_in: int, out: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(fan_in + fan_in // 2, out)
        else:
            self.up = nn.ConvTranspose2d(fan_in, fan_in // 2, kernel_size=2, stride=2)
            self.conv = DoubleConv(fan_in, out)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        x1 = self.up(x1)
        dy, dx = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    def __init__(self, bilinear: bool = False) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 16))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 32))
        self.up1, self.up2 = Up(32, 16, bilinear), Up(16, 8, bilinear)
        self.outc = nn.Conv2d(8, 2, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        return self.outc(self.up2(self.up1(x3, x2), x1))


class SplitShuffle(nn.Module):
    """LEDNet's unit: two halves, each with rows and columns apart and then dilated; concatenated, added, shuffled."""

    def __init__(self, width: int, dilated: int) -> None:
        super().__init__()
        half = width // 2

        def rows(rate: int, bias: bool) -> nn.Conv2d:
            return nn.Conv2d(half, half, (3, 1), 1, (rate, 0), (rate, 1), bias=bias)

        def columns(rate: int, bias: bool) -> nn.Conv2d:
            return nn.Conv2d(half, half, (1, 3), 1, (0, rate), (1, rate), bias=bias)

        for side, first, second in (("l", rows, columns), ("r", columns, rows)):
            setattr(self, f"conv1_{side}", first(1, True))
            setattr(self, f"conv2_{side}", second(1, False))
            setattr(self, f"bn1_{side}", nn.BatchNorm2d(half, eps=1e-3))
            setattr(self, f"conv3_{side}", first(dilated, True))
            setattr(self, f"conv4_{side}", second(dilated, False))
            setattr(self, f"bn2_{side}", nn.BatchNorm2d(half, eps=1e-3))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout2d(0.1)

    def _side(self, x: Tensor, side: str) -> Tensor:
        out = self.relu(getattr(self, f"conv1_{side}")(x))
        out = self.relu(getattr(self, f"bn1_{side}")(getattr(self, f"conv2_{side}")(out)))
        out = self.relu(getattr(self, f"conv3_{side}")(out))
        return getattr(self, f"bn2_{side}")(getattr(self, f"conv4_{side}")(out))

    def forward(self, input: Tensor) -> Tensor:
        x1, x2 = torch.chunk(input, 2, 1)
        out1, out2 = self._side(x1, "l"), self._side(x2, "r")
        if self.dropout.p != 0:
            out1, out2 = self.dropout(out1), self.dropout(out2)
        out = F.relu(input + torch.cat([out1, out2], 1), inplace=True)
        n, c, h, w = out.data.size()
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Downsampler(nn.Module):
    """A convolution and a pooling side by side."""

    def __init__(self, fan_in: int, out: int) -> None:
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(fan_in, out - fan_in, 3, 2, 1, bias=True), nn.MaxPool2d(2, stride=2)
        self.bn, self.relu = nn.BatchNorm2d(out, eps=1e-3), nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return self.relu(self.bn(torch.cat([self.conv1(input), self.pool(input)], 1)))


class LEDNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.initial_block, self.layers = Downsampler(3, 16), nn.ModuleList()
        self.layers.append(SplitShuffle(16, 1))
        self.layers.append(Downsampler(16, 32))
        for rate in (2, 5):
            self.layers.append(SplitShuffle(32, rate))
        self.branch, self.mid = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 4, 1)
        self.down, self.conv = nn.Conv2d(32, 1, 7, 2, 3), nn.Conv2d(1, 1, 7, 1, 3)

    def forward(self, input: Tensor) -> Tensor:
        out = self.initial_block(input)
        for layer in self.layers:
            out = layer(out)
        h, w = out.size()[2:]
        pooled = F.interpolate(
            self.branch(F.adaptive_avg_pool2d(out, 1)), size=(h, w), mode="bilinear", align_corners=True
        )
        weight = F.interpolate(self.conv(self.down(out)), size=(h, w), mode="bilinear", align_corners=True)
        x = torch.mul(weight, self.mid(out)) + pooled
        return F.interpolate(x, size=input.shape[2:], mode="bilinear", align_corners=True)


class ASPPPooling(nn.Sequential):
    """A Sequential with a forward of its own."""

    def __init__(self, fan_in: int, out: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(fan_in, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, input: Tensor) -> Tensor:
        x, size = input, input.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class DeepLab(nn.Module):
    """Dilated branches over a small backbone; the answer and an auxiliary one in a dict, at the size of the input."""

    def __init__(self) -> None:
        super().__init__()

        def block(fan_in: int, out: int, kernel: int, stride: int = 1, rate: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(fan_in, out, kernel, stride, rate * (kernel // 2), rate, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())

        self.backbone = nn.ModuleDict({"layer1": block(3, 16, 3, 2), "layer3": block(16, 24, 3, 2), "layer4": block(24, 32, 3, 1, 2)})  # fmt: skip
        self.convs = nn.ModuleList(
            [block(32, 16, 1), block(32, 16, 3, 1, 2), block(32, 16, 3, 1, 4), ASPPPooling(32, 16)]
        )
        self.project = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.classifier, self.aux_classifier = nn.Conv2d(16, 3, 1), nn.Sequential(block(24, 8, 3), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        input_shape = x.shape[-2:]
        features: dict[str, Tensor] = {}
        for name, module in self.backbone.items():
            x = module(x)
            features[name] = x
        result: dict[str, Tensor] = {}
        x = self.classifier(self.project(torch.cat([conv(features["layer4"]) for conv in self.convs], dim=1)))
        result["out"] = F.interpolate(x, size=input_shape, mode="bilinear", align_corners=False)
        x = self.aux_classifier(features["layer3"])
        result["aux"] = F.interpolate(x, size=input_shape, mode="bilinear", align_corners=False)
        return result


class ReducedAttention(nn.Module):
    """Keys and values from a map made smaller by a strided convolution."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads, self.scale, self.sr_ratio = heads, (width // heads) ** -0.5, reduction
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        if reduction > 1:
            self.sr, self.norm = nn.Conv2d(width, width, reduction, reduction), nn.LayerNorm(width)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, c // self.num_heads).permute(0, 2, 1, 3)
        if self.sr_ratio > 1:
            x = x.permute(0, 2, 1).reshape(b, c, h, w)
            x = self.norm(self.sr(x).reshape(b, c, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(b, -1, 2, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


class SegBlock(nn.Module):
    """Attention, then an MLP with a depthwise convolution inside."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = ReducedAttention(width, heads, reduction)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dwconv, self.act = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=True, groups=2 * width), nn.GELU()

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.attn(self.norm1(x), h, w)
        y = self.fc1(self.norm2(x))
        b, _, c = y.shape
        y = self.dwconv(y.transpose(1, 2).view(b, c, h, w)).flatten(2).transpose(1, 2)
        return x + self.fc2(self.act(y))


class SegFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList([nn.Conv2d(3, 16, 7, 4, 3), nn.Conv2d(16, 32, 3, 2, 1)])
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(32)])
        self.blocks = nn.ModuleList([SegBlock(16, 1, 4), SegBlock(32, 2, 2)])
        self.linear_c = nn.ModuleList([nn.Linear(16, 16), nn.Linear(32, 16)])
        self.linear_fuse = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.dropout, self.linear_pred = nn.Dropout2d(0.1), nn.Conv2d(16, 3, 1)
        for m in self.modules():  # the originals start their convolutions so
            if isinstance(m, nn.Conv2d):
                fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
                m.weight.data.normal_(0, math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        b, outs = x.shape[0], []
        for embed, norm, block in zip(self.embeds, self.norms, self.blocks, strict=True):
            x = embed(x)
            _, _, h, w = x.shape
            x = block(norm(x.flatten(2).transpose(1, 2)), h, w)
            x = x.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
            outs.append(x)
        size, maps = outs[0].shape[2:], []
        for linear, y in zip(self.linear_c, outs, strict=True):
            n, _, h, w = y.shape
            y = linear(y.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(n, -1, h, w)
            maps.append(F.interpolate(y, size=size, mode="bilinear", align_corners=False))
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(maps[::-1], dim=1))))


STRANGERS = [
    Stranger("unet_transposed", UNet, image()),
    Stranger("unet_upsampled", lambda: UNet(bilinear=True), image(3, 30)),  # 30 is odd after one halving: padding
    Stranger("lednet", LEDNet, image()),
    Stranger("deeplab", DeepLab, image(), ("w1a1", "w8a8")),
    Stranger("segformer", SegFormer, image()),
]
