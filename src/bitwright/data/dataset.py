"""A data set in memory, and its batches: uint8 stays uint8 until a whole batch is converted on the device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

from .augment import crop_flip


@dataclass(frozen=True, eq=False)
class Dataset:
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

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise InputError(f"data {self.name}: images are {_say(images)}; possible: uint8 [N, C, H, W]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise InputError(f"data {self.name}: labels are {_say(labels)}; possible: int64 [{len(images)}]")
        if not len(self.mean) == len(self.std) == images.shape[1]:
            raise InputError(f"data {self.name}: mean and std need {images.shape[1]} values, one per channel")

    def __len__(self) -> int:
        return len(self.labels)

    def limit(self, n: int) -> "Dataset":
        """The first n images in stored order (all, if there are fewer)."""
        if n < 1:
            raise InputError(f"data {self.name}: limit={n}; possible: at least 1")
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def part(self, which: str, n: int) -> "Dataset":
        """ "val" is n images chosen by their places alone, the same for every seed; "train" is all others.

        Both keep the stored order. n = 0 leaves "train" whole; "val" needs at least one image.

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
        held[np.argsort(_mixed(len(self)), kind="stable")[:n]] = True
        index = torch.from_numpy(np.flatnonzero(held if which == "val" else ~held))
        return replace(self, images=self.images[index], labels=self.labels[index])

    def binarized(self) -> "Dataset":
        """Pixels of 128 and above become 255, the others 0; mean 0 and std 1, so batches hold exactly 0.0 and 1.0."""
        images = (self.images >= 128).to(torch.uint8).mul_(255)
        channels = len(self.mean)
        return replace(self, images=images, mean=(0.0,) * channels, std=(1.0,) * channels)

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
    ) -> "Batches":
        """Pairs of float images [B, C, H, W] and labels [B] on `device`; iterating again gives the same.

        order, augmentation   functions of (seed, epoch) alone, not of the device or of earlier calls;
                              an image's shift not even of the batch size
        normalize             True gives (k/255 - mean) / std, False k/255 (what 8-bit input layers read)
        rank, world           this process gets slice `rank` of `world` of each batch, which `batch_size` counts whole;
                              slices of an incomplete last batch differ by one image at most, and may be empty
        start                 batches of the pass that were seen before: the others come as in an unbroken pass
        """
        if batch_size < 1:
            raise InputError(f"data {self.name}: batch_size={batch_size}; possible: at least 1")
        if seed < 0 or epoch < 0:
            raise InputError(f"data {self.name}: seed={seed}, epoch={epoch}; possible: 0 and above")
        if not 0 <= rank < world:
            raise InputError(f"data {self.name}: rank={rank} of world={world}; possible: 0 up to, not including, world")
        if batch_size % world:
            raise InputError(
                f"data {self.name}: a batch of {batch_size} cannot be shared by {world} processes evenly; "
                f"possible: a multiple of {world}, e.g. data.batch={-(-batch_size // world) * world}",
                code="data-batch",
                given=str(batch_size),
            )
        device = torch.device(device)
        found = Batches(
            self, batch_size, shuffle, augment, normalize, seed, epoch, device, drop_last, channels_last, rank, world
        )
        if not 0 <= start <= len(found):
            raise InputError(f"data {self.name}: start={start}; possible: 0 to {len(found)}, the batches of a pass")
        return replace(found, start=start)


@dataclass(frozen=True, eq=False)
class Batches:
    """What `Dataset.batches` returns: has a length (from `start` on) and can be iterated any number of times."""

    dataset: Dataset
    batch_size: int
    shuffle: bool
    augment: bool
    normalize: bool
    seed: int
    epoch: int
    device: torch.device
    drop_last: bool
    channels_last: bool
    rank: int = 0
    world: int = 1
    start: int = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0) - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        data, n = self.dataset, len(self.dataset)
        order = torch.randperm(n, generator=self._random(0)) if self.shuffle else torch.arange(n)
        # Drawn for the whole epoch and indexed by image: the same image gets the same shift in any batch.
        random = self._random(1)
        shift = torch.randint(0, 2 * data.pad + 1, (n, 2), generator=random)
        mirror = torch.rand(n, generator=random) < 0.5 if data.flip else torch.zeros(n, dtype=torch.bool)
        for i in range(self.start, self.start + len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            index = index[len(index) * self.rank // self.world : len(index) * (self.rank + 1) // self.world]
            x = data.images[index].to(self.device)
            if self.augment:
                x = crop_flip(x, shift[index].to(self.device), mirror[index].to(self.device), data.pad)
            x = self._to_float(x)
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            yield x, data.labels[index].to(self.device)

    def _random(self, stream: int) -> torch.Generator:
        """A generator for each use; SeedSequence mixes, so that (0, 1) and (1, 0) are unrelated."""
        state = np.random.SeedSequence([self.seed, self.epoch, stream]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def _to_float(self, x: Tensor) -> Tensor:
        if not self.normalize:
            return x.to(torch.float32).div_(255)  # a true division: round(255 * result) is k again
        mean = torch.tensor(self.dataset.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.dataset.std, dtype=torch.float64).view(-1, 1, 1)
        scale, offset = (1 / (255 * std)).float(), (mean / std).float()
        return x.to(torch.float32).mul_(scale.to(x.device)).sub_(offset.to(x.device))


def loader_rate(dataset: Dataset, batch_size: int = 128, augment: bool = True, seconds: float = 1.0) -> float:
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


def _mixed(n: int) -> np.ndarray:
    """A fixed pseudo-random uint64 for each of 0..n-1 (the finalizer of splitmix64): no library's stream, so that
    the choice never changes with a version."""
    with np.errstate(over="ignore"):
        x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
