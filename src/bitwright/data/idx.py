"""Reader of the idx files of MNIST and Fashion-MNIST, plain or gzip.

Layout, all integers big-endian: bytes 0, 0, type (8 = uint8), number of dimensions; then one 32-bit count per
dimension; then the bytes, last dimension fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

_LIMIT = 1 << 31  # bytes; the real sets have 47 million, so a header that asks for more is damaged


def read_idx(path: Path, dims: int) -> Tensor:
    """The uint8 array in `path`, which must have `dims` dimensions; `.gz` by the name."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4 + 4 * dims)
            if len(head) < 4 + 4 * dims:
                raise InputError(f"{path} is damaged: it ends inside the header")
            if head[:4] != bytes([0, 0, 8, dims]):
                raise InputError(f"{path} is damaged: it begins with {head[:4].hex()}, not 0000080{dims}")
            shape = struct.unpack(f">{dims}I", head[4:])
            count = math.prod(shape)
            if not 0 < count <= _LIMIT:
                raise InputError(f"{path} is damaged: impossible shape {list(shape)} in the header")
            body = file.read(count + 1)  # one more than there should be, to see that there is none
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged: {_line(error)}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or _line(error)}") from None
    if len(body) != count:
        has = "more" if len(body) > count else f"{len(body):,}"
        raise InputError(f"{path} is damaged: the header promises {count:,} bytes, the file has {has}")
    return torch.from_numpy(np.frombuffer(bytearray(body), np.uint8).reshape(shape))


def read_pair(images: Path, labels: Path, classes: int) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 1, H, W] and int64 labels [N], checked against each other."""
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise InputError(f"{labels} is damaged: {len(y):,} labels for {len(x):,} images")
    if int(y.max()) >= classes:
        raise InputError(f"{labels} is damaged: label {int(y.max())} in a set of {classes} classes")
    return x[:, None], y.long()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
