"""Reader of SVHN, cropped digits: MATLAB files with X [32, 32, 3, N] and y [N, 1], where label 10 is the digit 0."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

FILES = {"train": ("train",), "test": ("test",), "extra": ("extra",), "train+extra": ("train", "extra")}
PIXELS = 32 * 32 * 3
LIMIT, SHRUNK = 1 << 28, 20  # a file inflates to at most this many bytes, or to this many times its size
_NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "single", "double")


def read_svhn(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 32, 32] and int64 labels [N], the digits 0 to 9, of the files in order."""
    images, labels = zip(*(_read(path) for path in paths), strict=True)
    return torch.cat(images), torch.cat(labels)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    from scipy.io import loadmat, whosmat  # slow to import, and only needed here

    try:
        with open(path, "rb") as file:
            shapes = {name: (shape, kind) for name, shape, kind in whosmat(file)}
            count = _count(shapes)
            size = os.fstat(file.fileno()).st_size
            if count * PIXELS > max(LIMIT, SHRUNK * size):
                raise InputError(f"its header promises {count * PIXELS:,} bytes of pixels in a file of {size:,}")
            file.seek(0)
            found: dict[str, Any] = loadmat(file, variable_names=("X", "y"))
            pixels, digits = np.asarray(found["X"]), np.asarray(found["y"]).reshape(-1)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or _line(error)}") from None
    except (Exception, MemoryError) as error:  # a damaged file can raise almost any error; nothing in it is run
        raise InputError(f"{path} is damaged: {_line(error)}") from None
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, count) or digits.shape != (count,):
        raise InputError(f"{path} is damaged: its arrays are not those that its header promises")
    if not np.isin(digits, np.arange(1, 11)).all():
        raise InputError(f"{path} is damaged: y holds other values than 1 to 10")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return images, torch.from_numpy(digits.astype(np.int64) % 10)


def _count(shapes: dict[str, tuple[tuple[int, ...], str]]) -> int:
    """Images in the file, by its header: checked before anything large is read."""
    if "X" not in shapes or "y" not in shapes:
        raise InputError(f"it holds {', '.join(shapes) or 'nothing'}, not X and y")
    (x, kind), (y, numbers) = shapes["X"], shapes["y"]
    if len(x) != 4 or x[:3] != (32, 32, 3) or kind != "uint8":
        raise InputError(f"X is {kind} {list(x)}, not uint8 [32, 32, 3, N]")
    if y not in ((x[3], 1), (1, x[3])) or numbers not in _NUMBERS or x[3] < 1:
        raise InputError(f"y is {numbers} {list(y)} for {x[3]:,} images")
    return x[3]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
