"""Bits on disk: one dense string per tensor, least significant bit first, padded only at its end."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError


def pack_bits(bit: Tensor) -> Tensor:
    """uint8 0/1 of any shape -> uint8 bytes; bit i of the flattened tensor is bit i % 8 of byte i // 8.

    >>> pack_bits(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1])).tolist()
    [129, 1]
    """
    flat = bit.detach().to(torch.uint8).cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_bits(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Back to 0/1 of `shape`.

    >>> unpack_bits(torch.tensor([129, 1], dtype=torch.uint8), (3, 3)).tolist()
    [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    """
    count = 1
    for s in shape:
        count *= s
    if data.dtype != torch.uint8 or data.numel() != (count + 7) // 8:
        text = f"packed file: {data.numel()} bytes of {data.dtype} where {count} bits need {(count + 7) // 8}"
        raise InputError(text, code="file-graph")
    flat = np.unpackbits(data.numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat).reshape(shape)
