"""Tables of plain text that fit a terminal: no lines, two blanks between columns, numbers to the right. And results that
print as one."""

from __future__ import annotations

import csv
import io
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

NAME, NOTE = 24, 13  # columns that the first and the last one keep as long as others can go
Row = Sequence[str | None] | str


def columns(headers: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> list[str]:
    """Plain text columns, two blanks apart, the given ones right-aligned; no trailing blanks.

    >>> columns(("net", "kB"), [("a", "1.0"), ("bb", "12.0")], right=(1,))
    ['net    kB', 'a     1.0', 'bb   12.0']
    """
    return fit(list(headers), [list(row) for row in rows], right=right)


def fit(
    headers: Sequence[str],
    rows: Iterable[Row],
    width: int | None = None,
    *,
    right: Iterable[int] = (),
    drop: Sequence[str] = (),
) -> list[str]:
    """The lines of a table of at most `width` characters, if that is possible.

    rows    cells as text; None: the cell to the left may run into this one; a plain text is a line of its own
    drop    headers of the columns that go when the room is short, the first one first
    Then the first column's names are shortened in the middle; the last column is wrapped onto lines of its own.

    >>> fit(("layer", "ms", "why"), [("features.block1.conv", "1.5", "three input channels only")], 36, right=(1,))
    ['layer              ms  why', 'feature...1.conv  1.5  three input', '                       channels only']
    """
    body = [row if isinstance(row, str) else list(row) for row in rows]
    table = [list(headers), *(row for row in body if not isinstance(row, str))]
    keep = list(range(len(headers)))
    gone = [headers.index(name) for name in drop if name in headers]
    sizes = _sizes(table, keep)
    while width is not None and gone and _least(sizes, keep) > width:
        keep.remove(gone.pop(0))
        sizes = _sizes(table, keep)
    if width is not None:
        _squeeze(sizes, keep, width)
    flush = set(right)
    lines: list[str] = []
    for row in (list(headers), *body):
        lines += [row] if isinstance(row, str) else _lines(row, keep, sizes, flush)
    return lines


def _sizes(table: list[list[str | None]], keep: list[int]) -> dict[int, int]:
    """Characters of each column; a cell that runs over needs the room of both."""
    sizes = dict.fromkeys(keep, 0)
    over: list[tuple[int, int, int]] = []
    for row in table:
        for place, i in enumerate(keep):
            text, following = row[i], keep[place + 1] if place + 1 < len(keep) else None
            if text is not None and following is not None and row[following] is None:
                over.append((i, following, len(text)))
            elif text is not None:
                sizes[i] = max(sizes[i], len(text))
    for i, following, size in over:
        sizes[i] = max(sizes[i], size - 2 - sizes[following])
    return sizes


def _least(sizes: dict[int, int], keep: list[int]) -> int:
    first, last = keep[0], keep[-1]
    inner = sum(sizes[i] for i in keep[1:-1])
    return min(sizes[first], NAME) + inner + min(sizes[last], NOTE) + 2 * (len(keep) - 1)


def _squeeze(sizes: dict[int, int], keep: list[int], width: int) -> None:
    """The last column takes what is left; where that is too little, the first gives way."""
    first, last = keep[0], keep[-1]
    rest = width - sum(sizes[i] for i in keep[1:-1]) - 2 * (len(keep) - 1)
    if len(keep) > 1:
        sizes[first] = min(sizes[first], max(8, rest - min(sizes[last], NOTE)))
        sizes[last] = min(sizes[last], max(8, rest - sizes[first]))


def _lines(row: Sequence[str | None], keep: list[int], sizes: dict[int, int], flush: set[int]) -> list[str]:
    """One row; what does not fit into the last column follows below it."""
    cells: list[str] = []
    last = row[keep[-1]] or ""
    wrapped = (
        textwrap.wrap(last, sizes[keep[-1]], break_on_hyphens=False)
        if len(last) > sizes[keep[-1]] and len(keep) > 1
        else [last]
    )
    skip = False
    for place, i in enumerate(keep):
        text, room = row[i], sizes[i]
        if skip:
            skip = False
            continue
        following = keep[place + 1] if place + 1 < len(keep) else None
        if following is not None and text is not None and row[following] is None:
            room, skip = room + 2 + sizes[following], True
        text = wrapped[0] if place == len(keep) - 1 else shorten(text or "", room) if place == 0 else text or ""
        cells.append(text.rjust(room) if i in flush else text.ljust(room))
    indent = " " * (sum(sizes[i] for i in keep[:-1]) + 2 * (len(keep) - 1))
    return ["  ".join(cells).rstrip(), *(indent + more for more in wrapped[1:])]


def wrap(text: str, width: int | None, indent: int = 0) -> list[str]:
    """Prose on lines of at most `width`, those after the first indented; None leaves it whole.

    >>> wrap("verify  one two three", 15, 8)
    ['verify  one two', '        three']
    """
    if width is None or len(text) <= width:
        return [text]
    blanks = len(text) - len(text.lstrip())
    return textwrap.wrap(
        text.strip(), width, initial_indent=" " * blanks, subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False, replace_whitespace=False, drop_whitespace=True,
    )  # fmt: skip


def shorten(text: str, width: int) -> str:
    """Long names lose their middle: both ends tell layers apart.

    >>> shorten("features.stage3.block12.conv1", 15)
    'featur....conv1'
    """
    if len(text) <= width:
        return text
    tail = (width - 3) // 2 if width > 4 else 0
    return f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """
    >>> print(markdown(("net", "kB"), [("a", "1.0")], right=(1,)))
    | net | kB |
    | --- | ---: |
    | a | 1.0 |
    """
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def csv_text(records: Sequence[Mapping[str, Any]], names: Iterable[str] = ()) -> str:
    """A row per record; the columns are `names`, then those of all records in order of appearance; None is an empty cell.

    >>> csv_text([{"net": "a", "kB": None}])
    'net,kB\\na,\\n'
    """
    out = io.StringIO()
    found = list(dict.fromkeys([*names, *(key for record in records for key in record)]))
    writer = csv.DictWriter(out, found, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


class Tabular(ABC):
    """Text, Markdown, CSV and HTML of a result that has `cells()` (head and rows, as text) and its `to_dict()`.

    text   which columns are words, to the left; the others are numbers, to the right
    """

    text: ClassVar[Collection[int]] = (0,)

    @abstractmethod
    def cells(self) -> list[list[str]]: ...

    @abstractmethod
    def to_dict(self) -> dict[str, Any]: ...

    def records(self) -> list[dict[str, Any]]:
        """Raw values, a dict per row of the table."""
        return self.to_dict()["rows"]

    def to_markdown(self) -> str:
        head, *body = self.cells()
        return markdown(head, body, set(range(len(head))) - set(self.text))

    def to_csv(self) -> str:
        """`records` as CSV text."""
        return csv_text(self.records())

    def __str__(self) -> str:
        head, *rows = self.cells()
        return "\n".join(columns(head, rows, set(range(len(head))) - set(self.text)))

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{str(self).replace('&', '&amp;').replace('<', '&lt;')}</pre>"
