"""The two nets that a low-bit net is compared with on paper: itself in float, and with one bit wherever it has few."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from bitwright.nn.layers import SlotLayer
from bitwright.transforms.layers import candidates
from bitwright.types import LayerInfo

REFERENCES = ("float", "binary")


def without_parts(info: LayerInfo, bias_bytes: int) -> LayerInfo:
    """The same layer without parts: 32 bits everywhere, nothing stored beside weights and bias."""
    return replace(
        info, w_bits=32, x_bits=32, w_planes=None, x_planes=None, density=1.0,
        weight_bytes=4.0 * info.weights, float_bytes=float(bias_bytes),
    )  # fmt: skip


def as_binary(info: LayerInfo) -> LayerInfo:
    """1/1 where the weights have few bits, or unknown ones; scales stay as they are. Other layers: unchanged."""
    if info.w_bits is not None and info.w_bits >= 32:
        return info
    return replace(info, w_bits=1, x_bits=1, w_planes=1, x_planes=1, weight_bytes=info.weights / 8)


def bias_bytes(model: nn.Module) -> dict[str, int]:
    """Layer -> bytes of its bias.

    >>> bias_bytes(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False)))
    {'0': 12, '1': 0}
    """
    biases = {c.name: getattr(c.module, "bias", None) for c in candidates(model)}
    return {name: 4 * b.numel() if isinstance(b, Tensor) else 0 for name, b in biases.items()}


def outside_bytes(model: nn.Module) -> int:
    """Bytes of the floats that lie outside compute layers: norms with their statistics, learned activations.

    >>> outside_bytes(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    48
    """
    layers = [c.module for c in candidates(model)]
    inside = {id(t) for layer in layers for t in _tensors(layer, deep=isinstance(layer, SlotLayer))}
    found = {id(t): t for t in _tensors(model, deep=True) if id(t) not in inside and t.is_floating_point()}
    return 4 * sum(t.numel() for t in found.values())


def _tensors(module: nn.Module, deep: bool) -> list[Tensor]:
    return [*module.parameters(recurse=deep), *module.buffers(recurse=deep)]
