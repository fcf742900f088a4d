"""The float net that a low-bit net stands for: what the peers run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bitwright.nn.layers import KINDS, SlotLayer, is_slot_layer
from bitwright.parts.registry import SLOTS
from bitwright.parts.traits import traits_of
from bitwright.transforms.copying import copy_model
from bitwright.transforms.twin_trace import sole_readers, trace
from bitwright.transforms.unwrap import unwrap

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {slot: plain for plain, slot in KINDS.items()}
_SINGLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class FloatNet:
    """A float module ready for peers: eval, BatchNorm folded where that is possible.

    single   the one convolution or linear layer if the net is nothing else; its quantized peers then run on
             quantized input without a quantize step
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    note: str = ""

    @property
    def single(self) -> nn.Module | None:
        leaves = [m for m in self.module.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
        if len(leaves) != 1 or not isinstance(leaves[0], _SINGLE):
            return None
        plain = isinstance(self.module, (nn.Sequential, fx.GraphModule, *_SINGLE))
        return leaves[0] if plain else None  # a forward of its own may do more than call its one layer


def float_net(model: nn.Module, inputs: tuple[Tensor, ...]) -> FloatNet:
    """The float twin of `model` with BatchNorm folded; `inputs` become float."""
    twin = float_twin(model).eval()
    inputs = tuple(t.float() / 255 if t.dtype == torch.uint8 else t for t in inputs)
    if isinstance(twin, _SINGLE):  # tracing would look inside it and lose the layer
        return FloatNet(twin, inputs)
    try:
        return FloatNet(fold_batchnorm(twin, inputs), inputs)
    except Exception as error:  # a forward that cannot be traced is measured as it is
        has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in twin.modules())
        return FloatNet(twin, inputs, f"BatchNorm not folded: {one_line(error)}" if has_norm else "")


def float_twin(model: nn.Module) -> nn.Module:
    """A copy with ordinary torch layers: slots emptied, parts outside of layers dropped, the same weights.

    Norm parts in front of a quantizer go with their slot: the twin is never slower than the float net was.

    >>> from bitwright.nn import Conv2d
    >>> float_twin(Conv2d(3, 8, 3, w="bwn", x="sign"))
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    return _plain(copy_model(unwrap(model)))


def _plain(module: nn.Module) -> nn.Module:
    if is_slot_layer(module):
        return _plain_layer(module)
    if traits_of(module).part_name:
        return nn.Identity()
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    return module


def _plain_layer(layer: SlotLayer) -> nn.Module:
    cls = next((_PLAIN[base] for base in type(layer).__mro__ if base in _PLAIN), None)
    if cls is None or type(layer) not in _PLAIN:  # a subclass with a forward of its own keeps it, slots emptied
        for slot in SLOTS:
            setattr(layer, slot, None)
        return layer
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    new.__dict__.update({**layer.__dict__, "_modules": {}})
    return new


def fold_batchnorm(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """A traced copy whose BatchNorms behind a convolution or linear layer are folded into its weights.

    Only where the layer is called once and the norm is its only reader; others stay.
    """
    traced = trace(copy_model(model), inputs)
    modules: dict[str, Any] = dict(traced.named_modules())
    for source, node in sole_readers(traced.graph):
        layer, norm = modules[str(source.target)], modules[str(node.target)]
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        traced.set_submodule(str(source.target), fused)
        modules[str(source.target)] = fused
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def one_line(error: BaseException) -> str:
    """An exception as one short line.

    >>> one_line(ValueError("first\\nsecond"))
    'ValueError: first'
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # some messages are colored
    first = next((line.strip() for line in plain.splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return text if len(text) <= 140 else text[:137] + "..."
