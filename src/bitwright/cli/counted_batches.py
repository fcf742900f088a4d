"""Batches that say how far they are: one live line on a terminal, a note each 30 s elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Protocol

from bitwright.cli.output import Output

if TYPE_CHECKING:
    from torch import Tensor


class _Batches(Sized, Iterable["tuple[Tensor, Tensor]"], Protocol):
    """What `Dataset.batches` returns."""


class CountedBatches:
    """The same batches, with progress while they are iterated. For work of unknown speed."""

    def __init__(self, out: Output, head: str, batches: _Batches) -> None:
        self.out, self.head, self.batches = out, head, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        from bitwright.training.display import Screen, TimeLeft

        self.out.settle()
        screen = Screen(note=self.out.note, live=self.out.live)
        left, total, last = TimeLeft(), len(self.batches), time.perf_counter()
        try:
            for done, batch in enumerate(self.batches):
                now = time.perf_counter()
                if done:
                    left.step(now - last)
                last = now
                screen.step(self.head, done, total, lambda done=done: left.text(total - done))
                yield batch
        finally:
            screen.pause()
