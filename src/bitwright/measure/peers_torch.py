"""PyTorch as a peer: float32, bfloat16 and static int8 by oneDNN, each with its data in the layout it likes best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.transforms.copying import copy_model
from bitwright.transforms.twin import FloatNet

Call = Callable[[], object]
QUINT8_ZERO = 128  # inputs of single operators are centered: half of uint8 is negative


def fp32(net: FloatNet, threads: int) -> dict[str, Call]:
    """As PyTorch lays images out by default, and channels_last where there are images."""
    calls = {"plain": _forward(net.module, net.inputs)}
    if _has_images(net.inputs):
        calls["channels_last"] = _forward(_last(net.module), last_inputs(net.inputs))
    return calls


def bf16(net: FloatNet, threads: int) -> dict[str, Call]:
    """bfloat16 weights and inputs, channels_last where the net runs so."""
    module = copy_model(net.module).bfloat16()
    inputs = tuple(t.bfloat16() if t.is_floating_point() else t for t in net.inputs)
    if _has_images(inputs):
        last = _forward(_last(module), last_inputs(inputs))
        if _runs(last):
            return {"channels_last": last}
    return {"plain": _forward(module, inputs)}


def int8(net: FloatNet, threads: int) -> dict[str, Call]:
    """Static post-training quantization: uint8 inputs, int8 weights per channel, engine onednn.

    The input is quantized before the clock runs. onednn, because fbgemm is slower for few channels.
    """
    last = _has_images(net.inputs)
    with _engine("onednn"):
        op = net.single
        if isinstance(op, (nn.Conv2d, nn.Linear)):
            return {"channels_last" if last else "plain": _quantized_op(op, net.inputs[0])}
        if last and _runs(call := _quantized_net(net)):
            return {"channels_last": call}
        return {"plain": _quantized_net(net, last=False)}


def _runs(call: Call) -> bool:
    """`x.view(x.size(0), -1)` fails on a map in channels_last memory."""
    try:
        with torch.inference_mode():
            call()
    except RuntimeError:
        return False
    return True


def _forward(module: nn.Module, inputs: tuple[Any, ...]) -> Call:
    return lambda: module(*inputs)


def _has_images(inputs: tuple[Tensor, ...]) -> bool:
    return any(t.dim() == 4 for t in inputs)


def _last(module: nn.Module) -> nn.Module:
    return copy_model(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def last_inputs(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images in channels_last memory, the rest as it is."""
    return tuple(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in inputs)


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Packed weights remember the engine they were made with, so it matters only while building."""
    before = torch.backends.quantized.engine
    if name not in torch.backends.quantized.supported_engines:
        raise RuntimeError(f"this torch has no quantized engine {name}")
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def quantize_input(x: Tensor, last: bool = True) -> Tensor:
    """A quint8 tensor over the range of `x`; images in channels_last, if `last`."""
    if x.dim() == 4 and last:
        x = x.contiguous(memory_format=torch.channels_last)
    scale = max(float(x.abs().max()), 1e-6) / 127
    return torch.quantize_per_tensor(x, scale, QUINT8_ZERO, torch.quint8)


def _quantized_op(op: nn.Conv2d | nn.Linear, x: Tensor) -> Call:
    """The bare operator on quantized input, with quantized output."""
    weight = op.weight.detach()
    scales = weight.abs().flatten(1).amax(1).clamp_min(1e-8) / 127
    zeros = torch.zeros(len(scales), dtype=torch.long)
    q_weight = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
    bias = torch.zeros(weight.shape[0]) if op.bias is None else op.bias.detach()
    with torch.inference_mode():
        scale = max(float(op(x).abs().max()), 1e-6) / 127
    q_x = quantize_input(x)
    if isinstance(op, nn.Linear):
        packed = torch.ops.quantized.linear_prepack(q_weight, bias)
        return lambda: torch.ops.quantized.linear(q_x, packed, scale, QUINT8_ZERO)
    if op.padding_mode != "zeros" or isinstance(op.padding, str):
        raise NotImplementedError(f"padding {op.padding!r}, mode {op.padding_mode}")
    q_weight = q_weight.contiguous(memory_format=torch.channels_last)
    packed = torch.ops.quantized.conv2d_prepack(
        q_weight, bias, list(op.stride), list(op.padding), list(op.dilation), op.groups
    )
    return lambda: torch.ops.quantized.conv2d(q_x, packed, scale, QUINT8_ZERO)


def _quantized_net(net: FloatNet, last: bool = True) -> Call:
    """FX graph mode: the part of torch's quantization that needs neither a compiler nor changes to the net."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    module = _flatten_as_function(copy_model(net.module))
    config = PrepareCustomConfig().set_input_quantized_indexes(list(range(len(net.inputs))))
    prepared = prepare_fx(module, get_default_qconfig_mapping("onednn"), net.inputs, config)
    with torch.inference_mode():
        prepared(*net.inputs)
    return _forward(convert_fx(prepared), tuple(quantize_input(t, last) for t in net.inputs))


class _Flatten(nn.Module):
    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x, self.start, self.end)


def _flatten_as_function(module: nn.Module) -> nn.Module:
    """nn.Flatten leaves the quantized domain, torch.flatten does not: do not let the peer pay for the difference."""
    for name, child in module.named_children():
        if isinstance(child, nn.Flatten):
            setattr(module, name, _Flatten(child.start_dim, child.end_dim))
        else:
            _flatten_as_function(child)
    return module
