"""Small images as PNG data URIs, written by hand: 8 bit, gray or RGB, no other library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

LARGEST = 64  # pixels a side; larger images are reduced by whole factors


def png(image: np.ndarray) -> bytes:
    """A PNG file from uint8 [C, H, W]; C = 3 is RGB, of anything else the first channel is shown.

    >>> data = png(np.zeros((1, 2, 3), np.uint8))
    >>> data[:4], struct.unpack(">II", data[16:24])
    (b'\\x89PNG', (3, 2))
    """
    image = image if image.shape[0] == 3 else image[:1]
    channels, height, width = image.shape
    lines = np.ascontiguousarray(image.transpose(1, 2, 0)).reshape(height, width * channels)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)  # each line starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(raw, 9)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def shrunk(image: np.ndarray) -> np.ndarray:
    """At most `LARGEST` pixels a side, by the mean of whole blocks."""
    factor = -(-max(image.shape[1:]) // LARGEST)
    if factor == 1:
        return image
    height, width = (side // factor * factor for side in image.shape[1:])
    blocks = image[:, :height, :width].reshape(image.shape[0], height // factor, factor, width // factor, factor)
    return blocks.mean((2, 4)).round().astype(np.uint8)


def data_uri(image: np.ndarray) -> str:
    """For the `src` of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(shrunk(image))).decode()
