"""Floor 2: PyTorch's layers plus slots."""

from bitwright.nn.layers import (
    KINDS,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    Linear,
    SlotLayer,
    is_slot_layer,
    replace_layer,
)
from bitwright.nn.rprelu import RPReLU

__all__ = [
    "KINDS",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Linear",
    "RPReLU",
    "SlotLayer",
    "is_slot_layer",
    "replace_layer",
]
