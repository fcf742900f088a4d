"""What a training shows: one live line on a terminal; a line per epoch, and one each 30 s, everywhere else."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from bitwright.errors import BitwrightWarning
from bitwright.numbers import percent

QUIET_SECONDS = 30.0
REDRAW_SECONDS = 0.1


class Screen:
    """Where messages go.

    echo   takes results (epochs, the end);   note   takes progress;   live   stderr is a terminal
    """

    def __init__(
        self,
        echo: Callable[[str], None] | None = None,
        note: Callable[[str], None] | None = None,
        live: bool = False,
        color: bool = False,
    ) -> None:
        self._echo, self._note = echo or (lambda text: None), note or (lambda text: None)
        self._live, self._color = live, color
        self._bar: Any = None
        self._task: Any = None
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        """Prints a line above the live line."""
        self._above(self._echo, text)

    def note(self, text: str) -> None:
        self._above(self._note, text)

    def epoch(self, row: dict[str, Any], text: str) -> None:
        """After each epoch: its row of metrics.csv, and the same as a line."""
        self.line(text)

    def warn(self, text: str) -> None:
        self._above(lambda t: warnings.warn(t, BitwrightWarning, stacklevel=4), text)

    def step(self, head: str, done: int, total: int, tail: Callable[[], str]) -> None:
        """After each step; `tail` is asked only when something is shown."""
        now = time.monotonic()
        if not self._live:
            if now - self._last >= QUIET_SECONDS:
                self._last = now
                self._note(f"{head}  {percent(done / total)} %  {tail()}")
            return
        if self._bar is not None and now - self._last < REDRAW_SECONDS:
            return
        self._last = now
        bar = self._bar or self._start()
        bar.update(self._task, completed=done, total=total, head=head, tail=tail(), refresh=True)

    def pause(self) -> None:
        """Takes the live line away; the next step brings it back."""
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _above(self, write: Callable[[str], None], text: str) -> None:
        self.pause()
        write(text)

    def _start(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        console = Console(file=sys.stderr, highlight=False, no_color=not self._color)
        self._bar = Progress(
            TextColumn("{task.fields[head]}", markup=False),
            BarColumn(14),
            TaskProgressColumn(),
            TextColumn("{task.fields[tail]}", markup=False),
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=1, head="", tail="")
        self._bar.start()
        return self._bar


class TimeLeft:
    """A smoothed guess from the 20th step on.

    >>> left = TimeLeft()
    >>> for _ in range(20): left.step(0.5)
    >>> left.text(100), left.text(0)
    ('left 0:50', 'left 0:01')
    """

    WARM = 20

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0

    def step(self, seconds: float) -> None:
        """A running mean first, then a moving one: each step weighs 2 %. The very first step warms up and is left out."""
        self.steps += 1
        if self.steps > 1:
            self.seconds += (seconds - self.seconds) * max(1 / (self.steps - 1), 0.02)

    def text(self, steps: int, extra: float = 0.0) -> str:
        """Time left for `steps` more steps and `extra` seconds; "" while it is not known. Never 0:00 while working."""
        return f"left {clock(steps * self.seconds + extra)}" if self.steps >= self.WARM else ""


def clock(seconds: float) -> str:
    """
    >>> clock(0.2), clock(200), clock(3723)
    ('0:01', '3:20', '1:02:03')
    """
    whole = max(1, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
