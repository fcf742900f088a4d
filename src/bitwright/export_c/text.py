"""C text: identifiers, numbers, constant arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from torch import Tensor

WIDTH = 110  # characters of a line of numbers


def identifier(name: str) -> str:
    """A node's name as a C identifier.

    >>> identifier("layer1.0.conv1#2")
    'layer1_0_conv1_2'
    >>> identifier("0.weight")
    'layer_0_weight'
    """
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"layer_{found}" if found[0].isdigit() else found


def comment(text: str) -> str:
    """Text of a comment; names of layers may be anything, and must not end it.

    >>> comment("a*/ b")
    'a* / b'
    """
    plain = re.sub(r"[^ -~]", "?", text).replace("\\", "/")
    return plain.replace("*/", "* /").replace("/*", "/ *").rstrip("/")


def number(x: float) -> str:
    """A float32 literal that reads back as the same number; infinities as the largest finite ones.

    >>> number(0.1), number(float("-inf"))
    ('0.100000001F', '-3.40282347e+38F')
    """
    value = float(np.clip(np.float32(x), -np.finfo(np.float32).max, np.finfo(np.float32).max))
    text = f"{value:.9g}"
    return text + ("F" if "." in text or "e" in text else ".0F")


def lines(items: Iterable[str], indent: str = "    ") -> str:
    """Items with commas between them, in lines of one width."""
    out, line = [], indent
    for item in items:
        if len(line) + len(item) + 2 > WIDTH and line.strip():
            out.append(line.rstrip())
            line = indent
        line += f"{item}, "
    return "\n".join([*out, line.rstrip().removesuffix(",")])


def literals(values: Tensor | np.ndarray, ctype: str) -> list[str]:
    """The elements as literals of a C type."""
    flat = np.asarray(values).reshape(-1)
    if ctype == "float":
        return [number(v) for v in flat.tolist()]
    if ctype == "uint32_t":
        return [f"0x{v:08X}u" for v in flat.tolist()]
    return [str(v) if v > -(2**31) else "(-2147483647 - 1)" for v in flat.tolist()]


def words(bits: np.ndarray) -> np.ndarray:
    """0/1 [rows, n] -> uint32 [rows, ceil(n / 32)]: bit i of a row is bit i % 32 of word i // 32.

    >>> words(np.array([[1, 0, 1] + [0] * 29 + [1]])).tolist()
    [[5, 1]]
    """
    rows, n = bits.shape
    padded = np.zeros((rows, -(-n // 32) * 32), np.uint8)
    padded[:, :n] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def flags(bits: Tensor) -> np.ndarray:
    """One bit a number, the least significant first: uint8."""
    return np.packbits(bits.numpy().astype(np.uint8), bitorder="little")
