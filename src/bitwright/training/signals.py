"""Ctrl-C and SIGTERM: training ends at the next step boundary; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "^C", signal.SIGTERM: "SIGTERM"}


class Stopped(KeyboardInterrupt):
    """Training ended early because somebody asked; `str()` says where and what was saved."""


class StopRequest(Exception):
    """Raised at a boundary after saving; on its way through Lightning it must not look like a KeyboardInterrupt."""


class Signals:
    """A context: handlers while it lasts, the old ones afterwards. Outside the main thread it does nothing.

    wanted   "^C" or "SIGTERM" once asked, else ""
    """

    def __init__(self) -> None:
        self.wanted = ""
        self.twice = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self.listen()
        return self

    def listen(self) -> None:
        """Takes the signals; again after Lightning has put its own handlers in."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in NAMES:
            old = signal.signal(number, self._on_signal)
            self._old.setdefault(number, old)

    def __exit__(self, *error: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        self._old = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            self.twice = True
            raise KeyboardInterrupt
        self.wanted = self.wanted or NAMES[signal.Signals(number)]

    def check(self) -> None:
        """Between two batches of a phase that has nothing to save."""
        if self.wanted:
            raise StopRequest
