"""Backbones and heads of detectors: several outputs, shared heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strangers.stranger import Stranger, image


def block(fan_in: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fan_in, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Pyramid(nn.Module):
    """Lateral 1x1 convolutions, top-down sums, one more level by pooling; a dict of maps."""

    def __init__(self, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv2d(width, out, 1) for width in widths)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in widths)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        names, maps = list(x.keys()), list(x.values())
        last_inner = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](last_inner)]
        for i in range(len(maps) - 2, -1, -1):
            inner_lateral = self.inner_blocks[i](maps[i])
            inner_top_down = F.interpolate(last_inner, size=inner_lateral.shape[-2:], mode="nearest")
            last_inner = inner_lateral + inner_top_down
            results.insert(0, self.layer_blocks[i](last_inner))
        names.append("pool")
        results.append(F.max_pool2d(results[-1], kernel_size=1, stride=2, padding=0))
        return dict(zip(names, results, strict=True))


class BackboneWithFPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"stem": block(3, 8, 2), "layer1": block(8, 16, 2), "layer2": block(16, 32, 2)})
        self.return_layers = {"layer1": "0", "layer2": "1"}
        self.fpn = Pyramid((16, 32), 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, module in self.body.items():
            x = module(x)
            if name in self.return_layers:
                out[self.return_layers[name]] = x
        return self.fpn(out)


class RetinaNet(nn.Module):
    """Two heads that every level of the pyramid runs through: one module, several calls; scores and boxes as a tuple."""

    def __init__(self, classes: int = 3, anchors: int = 2) -> None:
        super().__init__()
        self.backbone, self.classes = BackboneWithFPN(), classes
        self.cls_subnet = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.bbox_subnet = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.cls_score = nn.Conv2d(16, anchors * classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(16, anchors * 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = [], []
        for feature in self.backbone(x).values():
            for head, width, kept in (
                (self.cls_score(self.cls_subnet(feature)), self.classes, scores),
                (self.bbox_pred(self.bbox_subnet(feature)), 4, boxes),
            ):
                n, _, h, w = head.shape
                head = head.view(n, -1, width, h, w).permute(0, 3, 4, 1, 2)
                kept.append(head.reshape(n, -1, width))
        return torch.cat(scores, dim=1), torch.cat(boxes, dim=1)


class ConvAct(nn.Module):
    """Convolution, norm, activation; `act` says which."""

    def __init__(self, fan_in: int, out: int, k: int = 1, s: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(fan_in, out, k, s, k // 2, bias=False), nn.BatchNorm2d(out, 1e-3, 0.03)
        self.act = act if act is not None else nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class C3(nn.Module):
    """Cross-stage: one half through bottlenecks, the other past them."""

    def __init__(self, fan_in: int, out: int, shortcut: bool = True) -> None:
        super().__init__()
        half = out // 2
        self.cv1, self.cv2, self.cv3 = ConvAct(fan_in, half), ConvAct(fan_in, half), ConvAct(2 * half, out)
        self.m1, self.m2, self.add = ConvAct(half, half), ConvAct(half, half, 3, act=nn.Mish(inplace=True)), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        y = y + self.m2(self.m1(y)) if self.add else self.m2(self.m1(y))
        return self.cv3(torch.cat((y, self.cv2(x)), 1))


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = ConvAct(width, width // 2), ConvAct(2 * width, width), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat([x, y1, y2, self.m(y2)], 1))


class Detect(nn.Module):
    """Raw maps in training; with boxes decoded on a grid in evaluation: a tuple of a tensor and a list."""

    anchors: Tensor

    def __init__(self, classes: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.no, self.na, self.strides = classes + 5, 2, strides
        self.register_buffer("anchors", torch.tensor([[[10.0, 13], [16, 30]], [[30, 61], [62, 45]]]))
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * self.na, 1) for width in widths)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        z = []
        for i in range(len(self.m)):
            x[i] = self.m[i](x[i])
            bs, _, ny, nx = x[i].shape
            x[i] = x[i].view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            if not self.training:
                yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
                grid = torch.stack((xv, yv), 2).view(1, 1, ny, nx, 2).float()
                xy, wh, conf = x[i].sigmoid().split((2, 2, self.no - 4), 4)
                xy = (xy * 2 - 0.5 + grid) * self.strides[i]
                wh = (wh * 2) ** 2 * self.anchors[i].view(1, self.na, 1, 1, 2)
                z.append(torch.cat((xy, wh, conf), 4).view(bs, -1, self.no))
        return x if self.training else (torch.cat(z, 1), x)


class Yolo(nn.Module):
    """Layers in a list, each told where its inputs come from, as configuration files of such nets do."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[tuple[int | tuple[int, ...], nn.Module]] = [
            (-1, ConvAct(12, 8, 3)),
            (-1, ConvAct(8, 16, 3, 2)),
            (-1, C3(16, 16)),
            (-1, ConvAct(16, 32, 3, 2)),
            (-1, SPPF(32)),
            (-1, ConvAct(32, 16, 1)),
            (-1, nn.Upsample(None, 2, "nearest")),
            ((-1, 2), nn.Identity()),
            (-1, C3(32, 16, False)),
            ((8, 4), Detect(3, (16, 32), (4, 8))),
        ]
        self.model, self.sources = nn.ModuleList(layer for _, layer in layers), [source for source, _ in layers]

    def forward(self, x: Tensor) -> Any:
        # every second row and column as channels
        y: Any = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        kept: list[Any] = []
        for source, layer in zip(self.sources, self.model, strict=True):
            if not isinstance(source, int):  # from earlier layers
                y = [y if i == -1 else kept[i] for i in source]
            y = torch.cat(y, 1) if isinstance(layer, nn.Identity) else layer(y)
            kept.append(y)
        return y


STRANGERS = [
    Stranger("fpn", BackboneWithFPN, image()),
    Stranger("retinanet", RetinaNet, image()),
    Stranger("yolo", Yolo, image(), ("w1a1", "w8a8")),
]
