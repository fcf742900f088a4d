"""The training batches of one epoch, from any batch on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from bitwright.data import Images

Pair = tuple[Tensor, Tensor]


class EpochLoader:
    """Pairs (images, labels); order and augmentation are a function of (seed, epoch), never of workers or start.

    epoch     of the whole training, so that no stage repeats the order of another
    start     batches that were already used
    workers   above 0: one thread prepares up to two batches ahead (large sets also decode in that many threads)
    rank      of `world` processes: each gets its slice of every batch of `batch` images

    After an epoch: `waited` seconds that the caller waited for data, `made` seconds that making them took, `images`.
    """

    def __init__(
        self,
        dataset: Images,
        batch: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        **options: Any,
    ) -> None:
        self.dataset, self.batch, self.seed, self.workers = dataset, batch, seed, workers
        self.epoch, self.start, self.rank, self.world, self.options = epoch, start, rank, world, options
        self.drop_last = drops_last(len(dataset), batch, world)
        self.waited, self.made, self.images, self.used = 0.0, 0.0, 0, start

    def __len__(self) -> int:
        """Batches still to come."""
        return steps_per_epoch(len(self.dataset), self.batch, self.world) - self.start

    def __iter__(self) -> Iterator[Pair]:
        source = self._ahead() if self.workers else self._make()
        while True:
            before = time.perf_counter()
            pair = next(source, None)
            self.waited += time.perf_counter() - before
            if pair is None:
                return
            self.used += 1
            yield pair

    def state_dict(self) -> dict[str, int]:
        """Where it stands: batches given out so far."""
        return {"epoch": self.epoch, "start": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.start = state["epoch"], state["start"]
        self.used = self.start

    def _make(self) -> Iterator[Pair]:
        batches = self.dataset.batches(
            self.batch,
            shuffle=True,
            seed=self.seed,
            epoch=self.epoch,
            drop_last=self.drop_last,
            start=self.start,
            rank=self.rank,
            world=self.world,
            **self.options,
        )
        source = iter(batches)
        while True:
            before = time.perf_counter()
            pair = next(source, None)
            self.made += time.perf_counter() - before
            if pair is None:
                return
            self.images += len(pair[1])
            yield pair

    def _ahead(self) -> Iterator[Pair]:
        """The same batches, made by a thread; it ends with the iterator, also when that is left early."""
        ready: queue.Queue[Any] = queue.Queue(min(self.workers, 2))
        left = threading.Event()

        def put(item: Any) -> bool:
            while not left.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for pair in self._make():
                    if not put(pair):
                        return
                put(None)
            except BaseException as error:  # raised where the batches are used
                put(error)

        thread = threading.Thread(target=work, name="bitwright-loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            thread.join()


def drops_last(images: int, batch: int, world: int = 1) -> bool:
    """Whether the rest of an epoch is left out: batch norm needs two images in each process."""
    return images >= batch and 0 < images % batch < 2 * world


def steps_per_epoch(images: int, batch: int, world: int = 1) -> int:
    """
    >>> steps_per_epoch(100, 32), steps_per_epoch(97, 32), steps_per_epoch(10, 32)
    (4, 3, 1)
    """
    full, rest = divmod(images, batch)
    return full + (1 if rest and not drops_last(images, batch, world) else 0)
