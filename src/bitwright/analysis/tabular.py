"""Results that print as their table."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar


class Tabular(ABC):
    """Text, Markdown, CSV and HTML of a result that says its `cells()` (head and rows, as text) and its `to_dict()`.

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
        rule = ["---" if i in self.text else "---:" for i in range(len(head))]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])

    def to_csv(self) -> str:
        """`records` as CSV text."""
        out, table = io.StringIO(), self.records()
        writer = csv.DictWriter(out, list(table[0]) if table else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return out.getvalue()

    def __str__(self) -> str:
        return "\n".join(columns(self.cells(), self.text))

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{str(self).replace('&', '&amp;').replace('<', '&lt;')}</pre>"


def columns(rows: list[list[str]], text: Collection[int] = (0,)) -> list[str]:
    """Lines with the columns below each other.

    >>> columns([["a", "n"], ["bc", "10"]])
    ['a    n', 'bc  10']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        sized = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(c.ljust(n) if i in text else c.rjust(n) for i, (c, n) in sized).rstrip())
    return lines
