"""A data set in memory."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitwright.errors import InputError

from .augment import crop_flip
from .batches import Batches
from .images import Images, Place

__all__ = ["Batches", "Dataset", "loader_rate"]


@dataclass(frozen=True, eq=False)
class Dataset(Images):
    """Images and labels of one split.

    images    uint8 [N, C, H, W]
    labels    int64 [N], the index into `classes`
    mean, std per channel, in units where 255 is 1; of the training split
    pad, flip what augmentation may do: shift by up to `pad` pixels (zeros move in), mirror left-right

    >>> black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    >>> d = Dataset("two", black, torch.tensor([0, 1]), ("a", "b"), mean=(0.5,), std=(0.5,))
    >>> [(x.shape, x.unique().tolist(), y.tolist()) for x, y in d.batches(2)]
    [(torch.Size([2, 1, 4, 4]), [-1.0], [0, 1])]
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise InputError(f"data {self.name}: images are {_say(images)}; possible: uint8 [N, C, H, W]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise InputError(f"data {self.name}: labels are {_say(labels)}; possible: int64 [{len(images)}]")
        if not len(self.mean) == len(self.std) == images.shape[1]:
            raise InputError(f"data {self.name}: mean and std need {images.shape[1]} values, one per channel")

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def room(self) -> int:
        return 2 * self.pad

    @property
    def augmentation(self) -> str:
        return f"shift by up to {self.pad} pixels{', mirror' if self.flip else ''}"

    def pictures(self, index: Tensor) -> Tensor:
        return self.images[index]

    def limit(self, n: int) -> "Dataset":
        if n < 1:
            return super().limit(n)  # which refuses it
        return replace(self, images=self.images[:n], labels=self.labels[:n])  # no copy

    def chosen(self, index: Tensor) -> "Dataset":
        return replace(self, images=self.images[index], labels=self.labels[index])

    def binarized(self) -> "Dataset":
        """Pixels of 128 and above become 255, the others 0; mean 0 and std 1, so batches hold exactly 0.0 and 1.0."""
        images = (self.images >= 128).to(torch.uint8).mul_(255)
        channels = len(self.mean)
        return replace(self, images=images, mean=(0.0,) * channels, std=(1.0,) * channels)

    def stream(self, places: Sequence[Tensor], augment: bool, key: int) -> Iterator[Tensor]:
        return (self.images[index] for index in places)

    def put(self, x: Tensor, place: Place | None) -> tuple[Tensor, Tensor | None]:
        return (x if place is None else crop_flip(x, *place, self.pad)), None


def loader_rate(dataset: Images, batch_size: int = 128, augment: bool = True, seconds: float = 1.0) -> float:
    """Images per second that shuffled batches deliver on this machine with the present number of threads.

    Counts whole batches for about `seconds`, epoch after epoch, after one batch of warm-up.
    """
    next(iter(dataset.batches(batch_size, shuffle=True, augment=augment)))
    images, epoch, start = 0, 0, time.perf_counter()
    while True:
        for x, _ in dataset.batches(batch_size, shuffle=True, augment=augment, epoch=epoch):
            images += len(x)
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return images / elapsed
        epoch += 1


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
