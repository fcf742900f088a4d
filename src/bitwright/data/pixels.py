"""What a set of images says about itself: its mean and deviation, its size in memory."""

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

from .dataset import Dataset

LIMIT = 4_000_000_000  # bytes of pixels that own data may take in memory


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [N, C, H, W], where 255 is 1; exact, from counts.

    A constant channel has deviation 1, so that normalizing divides by no zero.

    >>> moments(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    means, stds = [], []
    levels = np.arange(256) / 255
    for channel in images.unbind(1):
        counts = sum((torch.bincount(part.flatten(), minlength=256) for part in channel.split(4096)), torch.zeros(256))
        share = counts.double().numpy() / channel.numel()
        mean = float(share @ levels)
        std = float(share @ (levels - mean) ** 2) ** 0.5
        means.append(round(mean, 6))
        stds.append(round(std, 6) or 1.0)
    return tuple(means), tuple(stds)


def own(
    name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    """A `Dataset` of the user's images: augmentation shifts by an eighth of the side, and mirrors color images.

    A mirrored letter is not a letter: where mirroring is wrong, `data.augment = false`, or a function that returns
    a `Dataset` with the `pad` and `flip` it wants.
    """
    return Dataset(name, images, labels, classes, mean, std, pad=images.shape[-1] // 8, flip=images.shape[1] == 3)


def check_memory(where: str, count: int, shape: tuple[int, ...], remedy: str) -> None:
    """One line instead of a full memory; `shape` of one image, a byte per pixel and channel."""
    need = count * int(np.prod(shape))
    if need > LIMIT:
        sides = "x".join(map(str, shape))
        raise InputError(
            f"{where}: {count:,} images of {sides} need {need / 1e9:.1f} GB of memory; "
            f"possible: {LIMIT / 1e9:g} GB. {remedy}",
            code="data-large",
            given=str(need),
            possible=str(LIMIT),
        )
