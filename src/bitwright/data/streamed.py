"""A data set that is too large for the memory: pictures are read and decoded as the batches need them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError

from .augment import crop_flip
from .images import Images, Place
from .pictures import bad_pictures
from .transform import Item, Transform, quiet_pillow

AHEAD = 2  # batches being decoded while one is used
_TASK = 8  # pictures of one task of a worker
LISTED = 20_000  # pictures checked for the list of bad ones, after the first bad one


class Source(Protocol):
    """Where pictures lie; read from several threads at once."""

    def read(self, i: int) -> Item:
        """A picture as it lies there. Errors: `InputError` naming it."""
        ...

    def where(self, i: int) -> str:
        """Its name, for messages."""
        ...


@dataclass(frozen=True, eq=False)
class Streamed(Images):
    """As `Dataset` for everything that training asks; made by `bw.data.load`.

    rows      place of each image in `source`
    workers   threads that decode; Pillow lets the others run meanwhile. 0: none. Batches do not depend on it
    average   mean of every pixel, float32 [3, stage, stage] in units where 255 is 1, instead of one per channel
    """

    name: str
    source: Source
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    transform: Transform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 0
    average: Tensor | None = None
    flip: bool = True
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.transform.size, self.transform.size

    @property
    def room(self) -> int:
        return self.transform.side() - self.transform.size

    @property
    def augmentation(self) -> str:
        return f"{self.transform.name}, mirror"

    def pictures(self, index: Tensor) -> Tensor:
        found = list(self.stream(index.split(64), False, 0))
        return torch.cat([self.put(x, None)[0] for x in found]) if found else torch.empty(0, *self.shape).byte()

    def binarized(self) -> "Streamed":
        raise InputError(
            f"data {self.name}: binarize is for sets in memory (circuits need small pictures); possible: binarize = false",
            code="data-transform",
        )

    def chosen(self, index: Tensor) -> "Streamed":
        return replace(self, rows=self.rows[index], labels=self.labels[index])

    def without_bad(self) -> "Streamed":
        """The same set without the pictures that cannot be read. Each is decoded once to find out."""
        found = self._reasons(len(self))
        good = torch.tensor([not text for text in found])
        kept = replace(self, rows=self.rows[good], labels=self.labels[good], skipped=self._named(found))
        if len(kept.labels.unique()) < len(self.labels.unique()):
            lost = (set(self.labels.tolist()) - set(kept.labels.tolist())).pop()
            raise InputError(f"data {self.name}: no picture of {self.classes[lost]} can be read", code="data-damaged")
        return kept

    def all_bad(self, first: InputError) -> InputError:
        """The error that names all pictures which cannot be read, where reading met the one that `first` names.

        Of a very large set only the beginning is looked through: an error must not take an hour.
        """
        found = self._reasons(LISTED)
        bad = list(self._named(found))
        if first.given not in [name for name, _ in bad]:
            bad.append((str(first.given), str(first).removeprefix("data: ")))
        looked = "" if len(found) == len(self) else f", of {len(found):,} that were looked at"
        return bad_pictures(f"data {self.name}", bad, looked)

    def _reasons(self, most: int) -> list[str]:
        """Why each of the first `most` pictures cannot be read, "" where it can."""

        def why(row: int) -> str:
            try:
                self.transform.pixels(self.source.read(row), self.source.where(row), None, 0)
            except InputError as error:
                text = str(error).removeprefix(f"data: {self.source.where(row)} ")
                return text.removeprefix("is damaged: ").removeprefix("cannot be read: ")
            return ""

        quiet_pillow()
        with ThreadPoolExecutor(max(1, self.workers), "bitwright-decode") as pool:
            return list(pool.map(why, self.rows[:most].tolist()))

    def _named(self, reasons: list[str]) -> tuple[tuple[str, str], ...]:
        return tuple((self.source.where(int(self.rows[i])), text) for i, text in enumerate(reasons) if text)

    def put(self, x: Tensor, place: Place | None) -> tuple[Tensor, Tensor | None]:
        size, edge = self.transform.size, self.room // 2
        average = None if self.average is None else self.average.to(x.device)
        if place is None:
            crop = (..., slice(edge, edge + size), slice(edge, edge + size))
            return x[crop], None if average is None else average[crop]
        cut = crop_flip(x, *place, 0, size)
        if average is None:
            return cut, None
        return cut, crop_flip(average.expand(len(x), -1, -1, -1), *place, 0, size)

    def stream(self, places: Sequence[Tensor], augment: bool, key: int) -> Iterator[Tensor]:
        chance = key if augment else None
        quiet_pillow()

        def fill(out: np.ndarray, index: list[int], rows: list[int]) -> None:
            for k, (place, row) in enumerate(zip(index, rows, strict=True)):
                out[k] = self.transform.pixels(self.source.read(row), self.source.where(row), chance, place)

        try:
            for out in _made(places, self.rows, self.transform.side(), fill, self.workers):
                yield torch.from_numpy(out).permute(0, 3, 1, 2)
        except InputError as error:
            raise self.all_bad(error) if error.code == "data-damaged" else error from None


Fill = Callable[[np.ndarray, list[int], list[int]], None]


def _made(places: Sequence[Tensor], rows: Tensor, side: int, fill: Fill, workers: int) -> Iterator[np.ndarray]:
    """The batches in order; with workers, the next ones are being made while one is used."""
    if not workers:
        for index in places:
            out = np.empty((len(index), side, side, 3), np.uint8)
            fill(out, index.tolist(), rows[index].tolist())
            yield out
        return
    pool = ThreadPoolExecutor(workers, "bitwright-decode")
    waiting: deque[tuple[np.ndarray, list[Future[None]]]] = deque()

    def begin(index: Tensor) -> None:
        out = np.empty((len(index), side, side, 3), np.uint8)
        where, which = index.tolist(), rows[index].tolist()
        cuts = [slice(k, k + _TASK) for k in range(0, len(where), _TASK)]
        waiting.append((out, [pool.submit(fill, out[cut], where[cut], which[cut]) for cut in cuts]))

    try:
        for k in range(len(places) + AHEAD):
            if k < len(places):
                begin(places[k])
            if k >= AHEAD:
                out, tasks = waiting.popleft()
                for task in tasks:
                    task.result()
                yield out
    finally:  # also when a pass is left early
        pool.shutdown(cancel_futures=True)
