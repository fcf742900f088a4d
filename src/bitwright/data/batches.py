"""One pass over a data set: uint8 stays uint8 until a whole batch is converted on the device."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

from .images import Images


@dataclass(frozen=True, eq=False)
class Batches:
    """What `Images.batches` returns: has a length (from `start` on) and can be iterated any number of times."""

    dataset: Images
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
        shift = torch.randint(0, data.room + 1, (n, 2), generator=random)
        mirror = torch.rand(n, generator=random) < 0.5 if data.flip else torch.zeros(n, dtype=torch.bool)
        places = [self._slice(order, i) for i in range(self.start, self.start + len(self))]
        pixels = data.stream(places, self.augment, self._key(2))
        for index, raw in zip(places, pixels, strict=True):
            x, mean = data.put(
                raw.to(self.device),
                (shift[index].to(self.device), mirror[index].to(self.device)) if self.augment else None,
            )
            x = self._to_float(x, mean)
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            yield x, data.labels[index].to(self.device)

    def _slice(self, order: Tensor, i: int) -> Tensor:
        """The images of batch i that this process gets."""
        index = order[i * self.batch_size : (i + 1) * self.batch_size]
        return index[len(index) * self.rank // self.world : len(index) * (self.rank + 1) // self.world]

    def _key(self, stream: int) -> int:
        """A number for each use; SeedSequence mixes, so that (0, 1) and (1, 0) are unrelated."""
        return int(np.random.SeedSequence([self.seed, self.epoch, stream]).generate_state(1, np.uint64)[0])

    def _random(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._key(stream) >> 1)

    def _to_float(self, x: Tensor, mean: Tensor | None) -> Tensor:
        if not self.normalize:
            return x.to(torch.float32).div_(255)  # a true division: round(255 * result) is k again
        average = torch.tensor(self.dataset.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.dataset.std, dtype=torch.float64).view(-1, 1, 1)
        scale = (1 / (255 * std)).float().to(x.device)
        offset = (average / std).float().to(x.device) if mean is None else mean / std.float().to(x.device)
        return x.to(torch.float32).mul_(scale).sub_(offset)


def make(
    data: Images,
    batch_size: int,
    shuffle: bool,
    augment: bool,
    normalize: bool,
    seed: int,
    epoch: int,
    device: torch.device,
    drop_last: bool,
    channels_last: bool,
    rank: int,
    world: int,
    start: int,
) -> Batches:
    """Errors: `InputError` for sizes and places that are not possible."""
    if batch_size < 1:
        raise InputError(f"data {data.name}: batch_size={batch_size}; possible: at least 1")
    if seed < 0 or epoch < 0:
        raise InputError(f"data {data.name}: seed={seed}, epoch={epoch}; possible: 0 and above")
    if not 0 <= rank < world:
        raise InputError(f"data {data.name}: rank={rank} of world={world}; possible: 0 up to, not including, world")
    if batch_size % world:
        raise InputError(
            f"data {data.name}: a batch of {batch_size} cannot be shared by {world} processes evenly; "
            f"possible: a multiple of {world}, e.g. data.batch={-(-batch_size // world) * world}",
            code="data-batch",
            given=str(batch_size),
        )
    found = Batches(
        data, batch_size, shuffle, augment, normalize, seed, epoch, device, drop_last, channels_last, rank, world
    )
    if not 0 <= start <= len(found):
        raise InputError(f"data {data.name}: start={start}; possible: 0 to {len(found)}, the batches of a pass")
    return replace(found, start=start)
