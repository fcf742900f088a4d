"""Where a command's words go: results to stdout, progress, warnings and `next:` to stderr; or all into one JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from bitwright.measure.table import columns

SCHEMA = "bitwright/1"
_STYLES = {"PASS": "32", "WARN": "33", "REFUSE": "31", "error": "31", "warn": "33", "bold": "1", "dim": "2"}


class Output:
    """One per run of the program; commands get it as `ctx.obj`.

    data        what `--json` prints beside schema, command, status, exit_code and warnings
    status      "ok", a verdict, or "error"
    exit_code   0 done (also WARN), 1 the answer is no, 2 use or input, 3 internal error, 130 stopped
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, debug: bool = False, color: bool | None = None
    ) -> None:
        self.as_json, self.quiet, self.debug, self._color = as_json, quiet, debug, color
        self.command = ""
        self.data: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.status, self.exit_code = "ok", 0

    def result(self, text: str = "", *, end: str = "\n") -> None:
        """Part of the answer: stdout. `--quiet` drops it, `--json` has it in `data` instead."""
        if not (self.as_json or self.quiet):
            print(text, end=end, flush=True)

    def verdict(self, text: str) -> None:
        """The line that `--quiet` keeps; its first word is colored on a terminal."""
        if not self.as_json:
            word, _, rest = text.partition(" ")
            print(f"{self.paint(word, word)} {rest}".rstrip(), flush=True)

    def table(self, headers: Sequence[str], rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> None:
        """Columns without lines; numbers to the right."""
        head, *lines = columns(headers, rows, right)
        self.result(self.paint(head, "bold"))
        for line in lines:
            self.result(line)

    def note(self, text: str) -> None:
        """Progress: stderr."""
        if not (self.as_json or self.quiet):
            print(text, file=sys.stderr, flush=True)

    def next(self, command: str, why: str = "") -> None:
        """A command that can be pasted, and what it shows."""
        self.data.setdefault("next", []).append(command)
        self.note(f"next:   {command}" + (f"        {why}" if why else ""))

    def warn(self, text: str) -> None:
        """Something that does not stop the work."""
        self.warnings.append(text)
        if not (self.as_json or self.quiet):
            print(f"{self.paint('warn:', 'warn', sys.stderr)} {text}", file=sys.stderr, flush=True)

    def fail(self, text: str, exit_code: int, error: dict[str, Any]) -> None:
        """One line on stderr, or the error object."""
        self.status, self.exit_code = "error", exit_code
        self.data = {**self.data, "error": error}
        if not self.as_json:
            line = " ".join(text.split())
            print(f"{self.paint('error:', 'error', sys.stderr)} {line}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Prints the JSON object, if that was asked for; returns the exit code."""
        if self.as_json:
            head = {"schema": SCHEMA, "command": self.command, "status": self.status, "exit_code": self.exit_code}
            print(json.dumps(_plain({**head, "warnings": self.warnings, **self.data}), allow_nan=False))
        return self.exit_code

    def paint(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """ANSI color where the stream is a terminal that wants it, 16-color palette only."""
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if code and self.colored(stream or sys.stdout) else text

    def colored(self, stream: TextIO) -> bool:
        """NO_COLOR and --no-color win, then FORCE_COLOR, then whether somebody is looking."""
        if self._color is not None:
            return self._color
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()

    @property
    def live(self) -> bool:
        """Whether progress may redraw a line: a person is looking at stderr."""
        shown = not (self.as_json or self.quiet) and sys.stderr.isatty()
        return shown and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, like everything that was not measured."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def shorten(text: str, width: int) -> str:
    """Long names lose their middle: both ends tell layers apart.

    >>> shorten("features.stage3.block12.conv1", 15)
    'featur....conv1'
    """
    if len(text) <= width:
        return text
    tail = (width - 3) // 2 if width > 4 else 0
    return f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"


def clip(text: str, width: int) -> str:
    """Prose loses its end, at a word.

    >>> clip("binary weights with a scale", 20)
    'binary weights...'
    """
    if len(text) <= width:
        return text
    return text[: width - 3].rsplit(" ", 1)[0].rstrip(" ,;:") + "..."
