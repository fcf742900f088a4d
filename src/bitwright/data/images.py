"""What training asks of a data set, wherever its pixels are: in memory (`Dataset`) or read as they are needed (`Streamed`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

if TYPE_CHECKING:
    from .batches import Batches

Place = tuple[Tensor, Tensor]  # per image: shift [B, 2] and mirror [B]


class Images(ABC):
    """Labels are in memory in any case.

    labels    int64 [N], the index into `classes`
    mean, std per channel, in units where 255 is 1; of the training split
    flip      whether augmentation may mirror left-right
    skipped   (name, why) of pictures that could not be read and were left out, where that was asked for
    """

    name: str
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what `batches` gives."""

    @property
    @abstractmethod
    def room(self) -> int:
        """Pixels by which augmentation may shift, beyond none."""

    @property
    @abstractmethod
    def augmentation(self) -> str:
        """What augmentation does, in words."""

    @abstractmethod
    def pictures(self, index: Tensor) -> Tensor:
        """uint8 [n, C, H, W] of chosen images, not augmented."""

    @abstractmethod
    def binarized(self) -> Self:
        """Pixels of 128 and above become 255, the others 0."""

    @abstractmethod
    def chosen(self, index: Tensor) -> Self:
        """The images at these places, in this order."""

    @abstractmethod
    def stream(self, places: Sequence[Tensor], augment: bool, key: int) -> Iterator[Tensor]:
        """uint8 [B, C, h, w] for each of `places`, before shift and mirror; `key` stands for seed and epoch."""

    @abstractmethod
    def put(self, x: Tensor, place: Place | None) -> tuple[Tensor, Tensor | None]:
        """Shifted and mirrored, on the device of `x`; and the mean of each pixel, where the set has one."""

    def limit(self, n: int) -> Self:
        """The first n images in stored order (all, if there are fewer)."""
        if n < 1:
            raise InputError(f"data {self.name}: limit={n}; possible: at least 1")
        return self if n >= len(self) else self.chosen(torch.arange(n))

    def part(self, which: str, n: int) -> Self:
        """ "val" is n images chosen by their places alone, the same for every seed; "train" is all others.

        Both keep the stored order. n = 0 leaves "train" whole; "val" needs at least one image.

        >>> from bitwright.data import Dataset
        >>> d = Dataset("x", torch.zeros(9, 1, 1, 1, dtype=torch.uint8), torch.arange(9), (), (0.0,), (1.0,))
        >>> sorted(d.part("train", 3).labels.tolist() + d.part("val", 3).labels.tolist()) == list(range(9))
        True
        """
        if which not in ("train", "val"):
            raise InputError(f"data {self.name}: unknown part {which!r}; possible: train, val")
        if not (which == "val") <= n < len(self):
            least = "1" if which == "val" else "0"
            raise InputError(
                f"data {self.name}: val={n} of {len(self):,} training images; possible: {least} to {len(self) - 1}",
                code="data-val",
                given=str(n),
            )
        held = np.zeros(len(self), bool)
        held[np.argsort(mixed(len(self)), kind="stable")[:n]] = True
        return self.chosen(torch.from_numpy(np.flatnonzero(held if which == "val" else ~held)))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        normalize: bool = True,
        seed: int = 0,
        epoch: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        channels_last: bool = False,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> Batches:
        """Pairs of float images [B, C, H, W] and labels [B] on `device`; iterating again gives the same.

        order, augmentation   functions of (seed, epoch) alone, not of the device or of earlier calls;
                              an image's shift not even of the batch size
        normalize             True gives (k/255 - mean) / std, False k/255 (what 8-bit input layers read)
        rank, world           this process gets slice `rank` of `world` of each batch, which `batch_size` counts whole;
                              slices of an incomplete last batch differ by one image at most, and may be empty
        start                 batches of the pass that were seen before: the others come as in an unbroken pass
        """
        from .batches import make

        return make(
            self, batch_size, shuffle, augment, normalize, seed, epoch, torch.device(device), drop_last, channels_last,
            rank, world, start,
        )  # fmt: skip


def mixed(n: int) -> np.ndarray:
    """A fixed pseudo-random uint64 for each of 0..n-1 (the finalizer of splitmix64): no library's stream, so that
    the choice never changes with a version."""
    with np.errstate(over="ignore"):
        x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
