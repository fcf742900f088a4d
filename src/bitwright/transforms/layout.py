"""Which order of memory a model's images may have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.transforms.copying import copy_model
from bitwright.transforms.forward import evaluating


def takes_channels_last(model: nn.Module, example: Tensor) -> bool:
    """Whether `model` runs with weights and images in channels_last memory: `x.view(...)` on a feature map does not.

    Tried on a copy. False also where `example` is no batch of images, and for nets with a 1x1 convolution in steps from fewer than eight
    channels: on CPUs without AVX-512 its gradient in this order is written beyond its memory (oneDNN in torch 2.13).

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    >>> takes_channels_last(net, torch.zeros(2, 3, 5, 5))
    True
    """
    if example.dim() != 4 or any(_narrow(m) for m in model.modules()):
        return False
    twin = copy_model(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with evaluating(twin):
        try:
            twin(example.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
    return True


def _narrow(m: nn.Module) -> bool:
    return isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8
