"""Reader of STL-10: bytes of 96x96 color images, column by column, labels 1 to 10, ten folds of 1,000 images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

SIDE = 96
FOLDS = tuple(f"fold{i}" for i in range(10))
SPLITS = ("train", "test", "unlabeled", *FOLDS)


def files_of(split: str) -> tuple[str, ...]:
    """The files that a split needs, images first."""
    if split == "unlabeled":
        return ("unlabeled_X.bin",)
    stem = "test" if split == "test" else "train"
    return (f"{stem}_X.bin", f"{stem}_y.bin", *(("fold_indices.txt",) if split in FOLDS else ()))


def read_stl10(paths: list[Path], split: str) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 96, 96] and int64 labels [N], 0 to 9; -1 for all of "unlabeled".

    paths   of `files_of(split)`, in that order
    """
    images = _images(paths[0])
    if split == "unlabeled":
        return images, torch.full((len(images),), -1)
    labels = np.frombuffer(_bytes(paths[1]), np.uint8)
    if len(labels) != len(images):
        raise InputError(f"{paths[1]} is damaged: {len(labels):,} labels for {len(images):,} images")
    if not ((labels >= 1) & (labels <= 10)).all():
        raise InputError(f"{paths[1]} is damaged: it holds other labels than 1 to 10")
    found = torch.from_numpy(labels.astype(np.int64) - 1)
    if split in FOLDS:
        index = _fold(paths[2], FOLDS.index(split), len(images))
        return images[index], found[index]
    return images, found


def _images(path: Path) -> Tensor:
    content = _bytes(path)
    size = 3 * SIDE * SIDE
    if not content or len(content) % size:
        raise InputError(f"{path} is damaged: {len(content):,} bytes, not a multiple of {size:,}")
    # the bytes of a channel run down the columns, as MATLAB stores them
    columns = np.frombuffer(content, np.uint8).reshape(-1, 3, SIDE, SIDE)
    return torch.from_numpy(np.ascontiguousarray(columns.transpose(0, 1, 3, 2)))


def _fold(path: Path, number: int, count: int) -> Tensor:
    """Places of the training images of one fold, from the line of that number."""
    lines = _bytes(path).split(b"\n")
    try:
        index = [int(word) for word in lines[number].split()]
    except (ValueError, IndexError):
        index = []
    if not index or min(index) < 0 or max(index) >= count:
        raise InputError(f"{path} is damaged: line {number + 1} holds no places from 0 to {count - 1:,}")
    return torch.tensor(index)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
