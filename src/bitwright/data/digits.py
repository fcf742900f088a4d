"""The 1,797 handwritten digits that come with scikit-learn: 8x8 pixels, no file to fetch."""

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError


def read_digits(split: str) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 1, 8, 8] and int64 labels [N]; 1,437 for "train", 360 for "test".

    Gray levels 0..16 become round(k * 255 / 16). The split is fixed and stratified: the images are sorted by
    class (stored order within a class) and every fifth one, beginning with the first, is a test image; each
    split then has the stored order again. Both splits have the same writers, so it is easier
    than a test on new writers.
    """
    try:
        from sklearn.datasets import load_digits  # slow to import, and only needed here
    except ImportError:
        raise InputError("data digits: needs scikit-learn. Run: pip install scikit-learn") from None
    x, y = load_digits(return_X_y=True)
    levels, labels = np.asarray(x).reshape(-1, 1, 8, 8), np.asarray(y, dtype=np.int64)
    by_class = np.argsort(labels, kind="stable")
    fifth = np.arange(len(labels)) % 5 == 0
    chosen = np.sort(by_class[fifth if split == "test" else ~fifth])
    pixels = np.rint(levels[chosen] * 255 / 16).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(labels[chosen])
