"""Where each key of a TOML text stands: tomllib reads values but gives no line numbers."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence

Path = tuple[str | int, ...]
_KEY = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+')
_BLANK = re.compile(r"(?:[\s]|#[^\n]*)*")
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL)
_BARE = re.compile(r"[^,\]}\n#]*")


def index(text: str) -> dict[Path, int]:
    """Lines, from 1, of tables and keys by their path, arrays counted from 0. `text` must be valid TOML.

    >>> index('seed = 1\\n[[stage]]\\nepochs = 2\\n[[stage]]\\noptimizer = { lr = 1 }')[("stage", 1, "optimizer", "lr")]
    5
    """
    return _Index(text).lines


def nearest_line(lines: dict[Path, int], path: Sequence[str | int]) -> int | None:
    """The line of `path`, else of the innermost table around it; None where nothing of it is in the text."""
    return next((lines[tuple(path[:n])] for n in range(len(path), 0, -1) if tuple(path[:n]) in lines), None)


class _Index:
    """One pass over the text; `at` is the place reached."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.line, self.counted = 1, 0  # the line of the place up to which line ends were counted
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # tables seen of each [[array]]
        table: Path = ()
        while self.blank():
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)

    def blank(self) -> bool:
        """Steps over white space and comments; False at the end of the text."""
        self.take(_BLANK)
        return self.at < len(self.text)

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        assert found is not None, "the text is not valid TOML"
        self.at = found.end()
        return found[0]

    def note(self, path: Path) -> None:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        self.lines.setdefault(path, self.line)

    def keys(self) -> Path:
        """A key, dotted or not."""
        path: Path = ()
        while True:
            self.blank()
            raw = self.take(_KEY)
            path += (tomllib.loads(f"k = {raw}")["k"] if raw[0] in "\"'" else raw,)
            self.blank()
            if self.text[self.at] != ".":
                return path
            self.at += 1

    def header(self) -> Path:
        """[table] or [[array]]; the last table of an array of tables is meant where one is named on the way."""
        double = self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        *above, last = self.keys()
        path: Path = ()
        for key in above:
            path = self.inside((*path, key))
        path = (*path, last)
        if double:
            self.counts[path] = self.counts.get(path, -1) + 1
            self.note(path)
        path = self.inside(path)
        self.note(path)
        self.at += 2 if double else 1
        return path

    def inside(self, path: Path) -> Path:
        return (*path, self.counts[path]) if path in self.counts else path

    def pair(self, table: Path) -> None:
        """key = value"""
        keys = self.keys()
        for n in range(1, len(keys) + 1):
            self.note((*table, *keys[:n]))
        self.at += 1  # the equals sign
        self.value((*table, *keys))

    def value(self, path: Path) -> None:
        self.blank()
        first = self.text[self.at]
        if first in "\"'":
            self.take(_STRING)
        elif first not in "[{":
            self.take(_BARE)
        else:
            self.at += 1
            count = 0
            while self.blank() and self.text[self.at] not in "]}":
                if first == "{":
                    self.pair(path)
                else:
                    self.note((*path, count))
                    self.value((*path, count))
                    count += 1
                self.blank()
                if self.text[self.at] == ",":
                    self.at += 1
            self.at += 1
