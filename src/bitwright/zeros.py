"""Masks, and tensors with many zeros, in fewer bytes: a bit for each number, and the numbers that are not 0."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEY = "compressed"  # of the metadata of a file
LEAST = 64  # numbers; below that the words in the header cost more than they save
GAIN = 0.9  # of the bytes, at most, that a compressed tensor may take
MAX_RANK = 8
WORDS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def bits_of(flags: Tensor) -> Tensor:
    """One bit for each flag, in row order; bit i is bit i % 8, the least significant first, of byte i // 8.

    >>> bits_of(torch.tensor([[1, 0], [1, 1]])).tolist()
    [13]
    """
    return torch.from_numpy(np.packbits(flags.flatten().numpy().astype(bool), bitorder="little"))


def compressed(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as a file holds them, and the metadata that brings them back, bit for bit.

    0/1 of uint8   its bits
    floats         the numbers whose bits are not all 0, in row order, and where they stand: the bits of a mask in the same
                   file, where they are the same, else a tensor NAME#bits. Only where that takes fewer bytes

    >>> kept, metadata = compressed({"w": torch.arange(128.0) * (torch.arange(128) % 4 == 1)})
    >>> kept["w"].shape, kept["w#bits"].shape, metadata
    (torch.Size([32]), torch.Size([16]), {'compressed': '{"w":{"shape":[128],"bits":"w#bits"}}'})
    """
    out, table, masks = dict(tensors), {}, {}
    for key, value in tensors.items():
        if value.dtype == torch.uint8 and value.numel() >= LEAST and int(value.max()) <= 1:
            out[key] = bits_of(value)
            table[key] = {"shape": list(value.shape)}
            masks.setdefault(out[key].numpy().tobytes(), key)
    for key, value in tensors.items():
        own, flags = f"{key}#bits", _pays(value)
        if flags is None or own in tensors:
            continue
        bits = bits_of(flags)
        name = masks.pop(
            bits.numpy().tobytes(), own
        )  # the bits of a mask serve one tensor, so that a file cannot grow without end
        if name == own:
            out[own] = bits
        out[key] = value.flatten()[flags.flatten()]
        table[key] = {"shape": list(value.shape), "bits": name}
    return out, {KEY: json.dumps(table, separators=(",", ":"))} if table else {}


def _pays(value: Tensor) -> Tensor | None:
    """Where a float tensor holds anything but zeros, if it is smaller without them."""
    if value.dtype not in WORDS or value.numel() < LEAST:
        return None
    flags = value.contiguous().view(WORDS[value.dtype]) != 0  # -0 is kept
    return flags if _bytes(value, flags) <= GAIN * value.nbytes else None


def _bytes(value: Tensor, flags: Tensor) -> int:
    return int(flags.sum()) * value.element_size() + -(-value.numel() // 8)


def stored_bytes(value: Tensor) -> int:
    """Of a tensor in a file, without its words in the header.

    >>> stored_bytes(torch.ones(128)), stored_bytes(torch.zeros(128))
    (512, 16)
    """
    value = value.detach()
    flags = _pays(value)
    return value.nbytes if flags is None else _bytes(value, flags)


def expanded(tensors: dict[str, Tensor], text: str) -> dict[str, Tensor]:
    """What `compressed` was given. Errors: `ValueError` for a table that does not fit the tensors; memory is then at most 72
    times that of the file, because each stored bit stands for one number of one mask and one float tensor."""
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError("no table")
    out, used = dict(tensors), set()
    for key, entry in table.items():
        shape, name = _entry(entry)
        if name is None:
            out[key] = _flags(tensors[key], shape).to(torch.uint8).reshape(shape)
            continue
        if name in used or name == key or (name in table and "bits" in table[name]):
            raise ValueError("bits of two tensors")
        used.add(name)
        values, flags = tensors[key], _flags(tensors[name], shape)
        if values.dtype not in WORDS or values.dim() != 1 or len(values) != int(flags.sum()):
            raise ValueError("not as many values as bits")
        full = values.new_zeros(len(flags))
        full[flags] = values
        out[key] = full.reshape(shape)
    for name in used - set(table):
        del out[name]
    return out


def _entry(entry: Any) -> tuple[list[int], str | None]:
    if not isinstance(entry, dict) or not set(entry) <= {"shape", "bits"}:
        raise ValueError("no entry")
    shape, name = entry["shape"], entry.get("bits")
    whole = isinstance(shape, list) and len(shape) <= MAX_RANK and all(type(n) is int and 0 < n < 2**40 for n in shape)
    if not whole or not (name is None or isinstance(name, str)):
        raise ValueError("no shape")
    return shape, name


def _flags(bits: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != -(-count // 8):
        raise ValueError("not as many bits as numbers")
    flags = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little").astype(bool))
    if bool(flags[count:].any()):
        raise ValueError("bits beyond the end")
    return flags[:count]
