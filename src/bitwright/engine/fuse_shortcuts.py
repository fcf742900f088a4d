"""Shortcuts without weights, as the residual nets for CIFAR have them: every second pixel, and channels of zeros around the others."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bitwright.engine.graph import Graph, Node

END = 2**31  # of a slice that goes on to the end


def subsample_at_once(graph: Graph) -> Graph:
    """A copy in which slices that step over an image, and a padding of channels with zeros behind them, are one node `subsample`."""
    graph = graph.copy()
    for last in [n for n in graph.nodes if _pads(n) or _steps(n)]:
        chain = [last] if last in graph.nodes else []
        while chain and _steps(before := graph.node(chain[0].inputs[0])) and len(graph.users()[before.name]) == 1:
            chain.insert(0, before)
        slices, after = [n for n in chain if _steps(n)], graph.users()[last.name]
        if not slices or (_steps(last) and len(after) == 1 and (_pads(after[0]) or _steps(after[0]))):
            continue  # what follows takes it along
        strides, pads = [1, 1], _pads(last) or (0, 0)
        for node in slices:
            strides[int(node.attrs["dim"]) - 2] *= int(node.attrs["step"])
        for node in chain[:-1]:
            graph.nodes.remove(node)
        last.op, last.inputs = "subsample", list(chain[0].inputs)
        last.attrs = {"shape": last.attrs["shape"], "strides": strides, "channel_pads": list(pads)}
    return graph


def subsampled(x: Tensor, attrs: dict[str, Any]) -> Tensor:
    """The value of a node `subsample`, x [N, C, H, W]."""
    (down, across), (low, high) = attrs["strides"], attrs["channel_pads"]
    return F.pad(x[:, :, ::down, ::across], (0, 0, 0, 0, low, high))


def _pads(node: Node) -> tuple[int, int] | None:
    """Channels of zeros in front of and behind those of an image, where a node does just that."""
    if node.op != "pad" or len(node.shape) != 3 or node.attrs["mode"] != "constant" or node.attrs["value"]:
        return None
    sides = [int(p) for p in node.attrs["pads"]]
    return (sides[4], sides[5]) if len(sides) == 6 and not any(sides[:4]) and min(sides) >= 0 else None


def _steps(node: Node) -> bool:
    """Whether it takes every so many rows or columns of an image, from the first to the last."""
    a = node.attrs
    return (
        node.op == "slice" and len(node.shape) == 3 and int(a["dim"]) in (2, 3) and not a["start"] and a["end"] >= END
    )
