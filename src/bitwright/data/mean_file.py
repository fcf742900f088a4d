"""The mean file beside a Caffe data set: .binaryproto or .npy, [3, H, W] or [3], in the order B, G, R, of 0 to 255."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

from .datum import read_blob

NAMES = tuple(f"{stem}{end}" for stem in ("imagenet_mean", "mean") for end in (".binaryproto", ".npy"))


def find_mean(folder: Path) -> Path | None:
    """The first of `NAMES` in the folder."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_mean(path: Path, side: int) -> tuple[tuple[float, ...], Tensor | None]:
    """Mean per channel, and of every pixel where the file has the `side` of the pictures: R, G, B, where 255 is 1.

    A mean of another size serves by its channels alone.
    """
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            found = read_blob(path.read_bytes())
        if found.ndim == 4 and len(found) == 1:
            found = found[0]
        whole = found.ndim in (1, 3) and found.shape[0] == 3 and found.dtype.kind in "fiu" and found.size
        if not whole or not ((found >= 0) & (found <= 255)).all():
            raise ValueError(f"{found.dtype} {list(found.shape)}, not [3, H, W] or [3] of 0 to 255")
    except (OSError, ValueError, EOFError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"data: {path} is damaged: {reason}", code="data-damaged", given=str(path)) from None
    rgb = found[::-1].astype(np.float64) / 255
    channels = tuple(float(channel.mean()) for channel in rgb)
    fits = rgb.shape == (3, side, side)
    return channels, torch.from_numpy(rgb.astype(np.float32)) if fits else None
