"""Whole processes with an end: whatever a child and its own children do, a test is over after `timeout` seconds.

A training on two processes starts its second process itself, and that one keeps the pipes open. So a session of its own is
signalled as a whole; SIGABRT first, for which Python prints where each thread stands.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


class Child:
    """A program that was started; its lines of both streams in `lines`, once they were read."""

    def __init__(self, words: Sequence[str], cwd: Path | None = None, timeout: float = 300) -> None:
        self.words, self.end, self.lines = words, time.monotonic() + timeout, list[str]()
        environment = os.environ | {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=environment,
        )  # fmt: skip
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._queue.put(line)
        self._queue.put(None)

    def _next(self) -> str | None:
        try:
            line = self._queue.get(timeout=max(0.0, self.end - time.monotonic()))
        except queue.Empty:
            self._stop()
            pytest.fail(f"{' '.join(self.words)}: no end in time. It said:\n{''.join(self.lines)}")
        if line is not None:
            self.lines.append(line)
        return line

    def _stop(self) -> None:
        for number in (signal.SIGABRT, signal.SIGKILL):
            self.signal_all(number)
            time.sleep(1)
        while (line := self._queue.get(timeout=10)) is not None:
            self.lines.append(line)

    def until(self, start: str) -> None:
        """Reads up to the line that begins so."""
        while (line := self._next()) is not None:
            if line.startswith(start):
                return
        pytest.fail(f"{' '.join(self.words)}: no line {start!r}. It said:\n{''.join(self.lines)}")

    def signal(self, number: int) -> None:
        """To the process that was started, as `kill` would."""
        self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def finish(self) -> tuple[int, str]:
        """Exit code and all that was said, once it and its children are gone."""
        while self._next() is not None:
            pass
        return self.process.wait(10), "".join(self.lines)


def finished(words: Sequence[str], cwd: Path | None = None, timeout: float = 300, code: int = 0) -> str:
    """What it said, after it ended with this code."""
    got, said = Child(words, cwd, timeout).finish()
    assert got == code, said
    return said


def spawned(function: Callable[..., None], store: Path, *args: object, timeout: float = 300) -> None:
    """function(rank, *args) in two processes of one gloo group, which meet in a file: no port that another test could take."""
    from torch.multiprocessing.spawn import spawn

    jobs = spawn(_meet, args=(function, str(store), *args), nprocs=2, join=False)
    assert jobs is not None
    end = time.monotonic() + timeout
    while not jobs.join(timeout=5):  # raises what a process raised
        if time.monotonic() > end:
            for process in jobs.processes:
                if process is not None:
                    process.kill()
            pytest.fail(f"{function.__name__}: no end after {timeout:g} s")


def _meet(rank: int, function: Callable[..., None], store: str, *args: object) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    function(rank, *args)
    # a DDP net that outlives its group is the last to hold it, and frees it without letting go of Python's lock, for which
    # a thread of gloo may be waiting: both then wait for ever
    gc.collect()
    dist.destroy_process_group()
