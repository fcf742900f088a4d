"""Floor 2: PyTorch's layers plus slots."""

from bitwright.nn.invert import HardInvert, SoftInvert
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
    "HardInvert",
    "Linear",
    "RPReLU",
    "SlotLayer",
    "SoftInvert",
    "is_slot_layer",
    "replace_layer",
]
