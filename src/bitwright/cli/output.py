"""Where a command's words go: results to stdout, progress, warnings and `next:` to stderr; or all into one JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from bitwright.tabular import Row, fit, shorten, wrap

__all__ = ["Output", "clip", "in_ascii", "shorten"]

SCHEMA = "bitwright/1"
PIPE, NARROW, WIDE = 100, 40, 120  # characters a line: into a file or pipe, at least, at most
_STYLES = {"PASS": "32", "WARN": "33", "REFUSE": "31", "error": "31", "warn": "33", "bold": "1", "dim": "2"}


class Output:
    """One per run of the program; commands get it as `ctx.obj`.

    data        what `--json` prints beside schema, command, status, exit_code and warnings
    status      "ok", a verdict, or "error"
    exit_code   0 done (also WARN), 1 the answer is no, 2 use or input, 3 internal error, 130 stopped
    folder      the run directory that the command works on: details of an internal error go there
    plain       as without a terminal: no color, no moving line, 100 columns
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        debug: bool = False,
        plain: bool = False,
        verbose: bool = False,
        color: bool | None = None,
    ) -> None:
        self.as_json, self.quiet, self.debug, self.plain, self.verbose = as_json, quiet, debug, plain, verbose
        self._color = color
        self.command = ""
        self.data: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.status, self.exit_code = "ok", 0
        self.folder: Path | None = None
        self._heading = ""

    def head(self, text: str) -> None:
        """What the command is about to do: stderr. It stays once work has begun; an error before that removes it."""
        if self.as_json or self.quiet:
            return
        self.settle()
        self._heading = text
        if self.live:  # a terminal shows it at once, on a line that can still be removed
            _put(text[: self.width - 1], sys.stderr, "")

    def settle(self, stands: bool = True) -> None:
        """Before anything else is written: the heading becomes a line of its own, or is taken back."""
        text, self._heading = self._heading, ""
        if text and self.live:
            _put("\r\x1b[K", sys.stderr, "")
        if text and stands:
            _put(text, sys.stderr)

    def result(self, text: str = "", *, end: str = "\n") -> None:
        """Part of the answer: stdout. `--quiet` drops it, `--json` has it in `data` instead."""
        self.settle()
        if not (self.as_json or self.quiet):
            _put(text, sys.stdout, end)

    def verdict(self, text: str) -> None:
        """The line that `--quiet` keeps; its first word is colored on a terminal."""
        self.settle()
        if self.as_json:
            return
        looking = sys.stdout.isatty() and not self.plain  # a script gets it as one line
        first, *more = wrap(text, self.width, 6) if looking else [text]
        word, _, rest = first.partition(" ")
        for line in (f"{self.paint(word, word)} {rest}".rstrip(), *more):
            _put(line, sys.stdout)

    def table(
        self, headers: Sequence[str], rows: Iterable[Row], right: Iterable[int] = (), drop: Sequence[str] = ()
    ) -> None:
        """Columns without lines; numbers to the right. Columns of `drop` go on a narrow terminal, see `layout.fit`."""
        self.lines(fit(headers, rows, self.width, right=right, drop=drop))

    def lines(self, lines: Iterable[str]) -> None:
        """A table that is laid out already: its head is bold on a terminal."""
        for i, line in enumerate(lines):
            self.result(line if i else self.paint(line, "bold"))

    def prose(self, text: str, indent: int = 0) -> None:
        """A sentence of the answer, wrapped."""
        for line in wrap(text, self.width, indent):
            self.result(line)

    def begin(self, text: str) -> None:
        """What is being loaded, before the slow imports: only on a terminal."""
        if self.live or self.verbose:
            self.head(text)

    def detail(self, text: str) -> None:
        """What only `-v` shows: stderr."""
        if self.verbose:
            self.note(text)

    def note(self, text: str) -> None:
        """Progress: stderr."""
        self.settle()
        if not (self.as_json or self.quiet):
            _put(text, sys.stderr)

    def next(self, command: str, why: str = "") -> None:
        """A command that can be pasted, and what it shows where there is room for it."""
        self.data.setdefault("next", []).append(command)
        line = f"next:   {command}        {why}"
        self.note(line if why and len(line) <= self.width else f"next:   {command}")

    def warn(self, text: str) -> None:
        """Something that does not stop the work."""
        self.settle()
        self.warnings.append(text)
        if not (self.as_json or self.quiet):
            _put(f"{self.paint('warn:', 'warn', sys.stderr)} {text}", sys.stderr)

    def fail(self, text: str, exit_code: int, error: dict[str, Any]) -> None:
        """One line on stderr, or the error object."""
        self.settle(stands=False)
        self.status, self.exit_code = "error", exit_code
        self.data = {**self.data, "error": error}
        if not self.as_json:
            line = " ".join(text.split())
            _put(f"{self.paint('error:', 'error', sys.stderr)} {line}", sys.stderr)

    def finish(self) -> int:
        """Prints the JSON object, if that was asked for; returns the exit code."""
        if self.as_json:
            head = {"schema": SCHEMA, "command": self.command, "status": self.status, "exit_code": self.exit_code}
            print(json.dumps(_plain({**head, "warnings": self.warnings, **self.data}), allow_nan=False), flush=True)
        return self.exit_code

    def paint(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """ANSI color where the stream is a terminal that wants it, 16-color palette only."""
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if code and self.colored(stream or sys.stdout) else text

    def colored(self, stream: TextIO) -> bool:
        """NO_COLOR, --no-color and --plain win, then FORCE_COLOR, then whether the stream is a terminal."""
        if self._color is not None or self.plain:
            return bool(self._color)
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()

    @property
    def live(self) -> bool:
        """Whether progress may redraw a line: stderr is a terminal."""
        shown = not (self.as_json or self.quiet or self.plain) and sys.stderr.isatty()
        return shown and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")

    @property
    def width(self) -> int:
        """Characters of a line: the terminal's, `COLUMNS` where that is set, 100 in a pipe and with --plain."""
        if self.plain:
            return PIPE
        return min(WIDE, max(NARROW, shutil.get_terminal_size((PIPE, 24)).columns))

    @property
    def unicode(self) -> bool:
        """Whether stderr takes signs like the blocks of a bar."""
        return _takes_unicode(sys.stderr)


def _put(text: str, stream: TextIO, end: str = "\n") -> None:
    text = text.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
    print(text if _takes_unicode(stream) else in_ascii(text), end=end, file=stream, flush=True)


def _takes_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


_SIGNS = str.maketrans(
    {
        "\u00b1": "+-", "\u00d7": "x", "\u00b7": "*", "\u2026": "...", "\u2013": "-", "\u2014": "-", "\u2018": "'",
        "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2248": "~", "\u2265": ">=", "\u2264": "<=", "\u2192": "->",
        "\u2501": "=", "\u2578": ">", "\u2588": "#", "\u2713": "ok", "\u2717": "x", "\u00b5": "u", "\u03bc": "u",
    }
)  # fmt: skip


def in_ascii(text: str) -> str:
    """For terminals with ASCII only: signs become their usual ASCII forms, all others `?`.

    >>> in_ascii("90.1 \u00b1 0.2 \u2192 \u2501\u2501")
    '90.1 +- 0.2 -> =='
    """
    return text.translate(_SIGNS).encode("ascii", "replace").decode("ascii")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, like everything that was not measured."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def clip(text: str, width: int) -> str:
    """Prose loses its end, at a word.

    >>> clip("binary weights with a scale", 20)
    'binary weights...'
    """
    if len(text) <= width:
        return text
    return text[: width - 3].rsplit(" ", 1)[0].rstrip(" ,;:") + "..."
