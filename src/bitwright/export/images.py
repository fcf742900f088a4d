"""Images of floats between layers as operators of the domain `bitwright`: pooling, the mean of an image, and shortcuts that step over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.engine.fuse_pools import float_window
from bitwright.engine.fuse_shortcuts import subsampled
from bitwright.engine.graph import Node, ints

if TYPE_CHECKING:
    from bitwright.export.net import FusedNet

Values = dict[str, Tensor]


def pool_window(node: Node) -> tuple[str, dict[str, Any]] | None:
    """The operator and attributes of a pooling of images that ours can do with the channels last, else None."""
    found = float_window(node)
    return (
        None
        if found is None
        else ("AveragePoolFloats" if found.average else "MaxPoolFloats", window_attributes(*found.window))
    )


def window_attributes(
    kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool
) -> dict[str, Any]:
    pads = ints(padding, 2)
    return {
        "kernel_shape": ints(kernel, 2), "strides": ints(stride or kernel, 2), "pads": [*pads, *pads],
        "dilations": ints(dilation, 2), "ceil_mode": int(ceil),
    }  # fmt: skip


def pooled_sides(size: Sequence[Any], window: dict[str, Any]) -> list[Any]:
    """The sides of a pooled image: numbers, or symbols of free sizes."""
    sides = []
    for axis, s in enumerate(size):
        kernel, stride, pad, dilation = (window[k][axis] for k in ("kernel_shape", "strides", "pads", "dilations"))
        room = s + 2 * pad - dilation * (kernel - 1) - 1
        whole = room // stride + 1
        if window["ceil_mode"]:  # a last window that starts inside the image, or the padding before it, counts too
            whole = torch.sym_min((room + stride - 1) // stride, (s + pad - 1) // stride) + 1
        sides.append(whole)
    return sides


def pool_floats(
    net: FusedNet, node: Node, op: str, window: dict[str, Any], torch_pool: Callable[[Tensor], Tensor]
) -> Callable[[Values], None]:
    """Where the floats have their channels last already; torch's operator elsewhere. No window: the mean of an image."""
    name, source = node.name, node.inputs[0]

    def run(values: Values) -> None:
        x = net.channels_last.get(source)
        if x is None:
            values[name] = torch_pool(values[source])
            return
        sides = pooled_sides(x.shape[1:3], window) if window else (1, 1)
        y = net.call(op, [x], window, (torch.float32, (x.shape[0], *sides, x.shape[3])))
        net.channels_last[name], values[name] = y, y.permute(0, 3, 1, 2)

    return run


def subsample(net: FusedNet, node: Node) -> Callable[[Values], None]:
    """Where the floats have their channels last already; torch's operators elsewhere."""
    (down, across), (low, high) = node.attrs["strides"], node.attrs["channel_pads"]
    name, source = node.name, node.inputs[0]
    attrs: dict[str, Any] = {"strides": [down, across], "channel_pads": [low, high]}

    def run(values: Values) -> None:
        x = net.channels_last.get(source)
        if x is None:
            values[name] = subsampled(values[source], node.attrs)
            return
        n, h, w, c = x.shape
        shape = (n, (h + down - 1) // down, (w + across - 1) // across, low + c + high)
        y = net.call("SubsampleFloats", [x], attrs, (torch.float32, shape))
        net.channels_last[name], values[name] = y, y.permute(0, 3, 1, 2)

    return run
