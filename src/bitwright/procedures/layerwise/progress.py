"""Which layer a procedure is at, reported to a watcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """layer   the one that comes next, "" at the end;   done, total   layers;   left   seconds, None while unknown"""

    procedure: str
    layer: str
    done: int
    total: int
    left: float | None


_WATCHER: ContextVar[Callable[[Step], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Callable[[Step], None]) -> Iterator[None]:
    """Procedures called inside tell `watcher` a `Step` before each layer; outside they are silent.

    >>> with watching(lambda step: print(step.layer, step.done, step.total)):
    ...     Meter("l_obs", {"fc": 1.0}).begin("fc")
    fc 0 1
    """
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


class Meter:
    """Time left by the cost of the layers, since their sizes differ by orders of magnitude."""

    def __init__(self, procedure: str, costs: dict[str, float]) -> None:
        self.procedure, self.costs = procedure, costs
        self.start, self.spent, self.done = time.perf_counter(), 0.0, 0

    def begin(self, layer: str) -> None:
        self._tell(layer)

    def end(self, layer: str) -> None:
        self.spent += self.costs[layer]
        self.done += 1

    def finish(self) -> None:
        self._tell("")

    def _tell(self, layer: str) -> None:
        watcher = _WATCHER.get()
        if watcher is not None:
            rest = sum(self.costs.values()) - self.spent
            left = (time.perf_counter() - self.start) * rest / self.spent if self.spent else None
            watcher(Step(self.procedure, layer, self.done, len(self.costs), left))
