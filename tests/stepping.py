"""Something done at a given step of a training that runs in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bitwright.training import callback


def on_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[Any], None]) -> None:
    """Calls `do(callback)` once, after the given step of the process."""
    original, count = callback.TrainingCallback._clock, [0]

    def clock(self: Any) -> None:
        original(self)
        count[0] += 1
        if count[0] == number:
            do(self)

    monkeypatch.setattr(callback.TrainingCallback, "_clock", clock)


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Asks for a stop, as Ctrl-C would, after the given step of the process."""

    def ask(callback: Any) -> None:
        callback.job.signals.wanted = "^C"

    on_step(monkeypatch, number, ask)
