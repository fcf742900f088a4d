"""Results that print as their table."""

from __future__ import annotations

import csv
import io
from typing import Any


class Shown:
    """Text, Markdown, CSV and HTML of a result that says its `cells()` (head and rows, as text) and `to_dict()`.

    left   how many columns, from the first one on, are text; the others are numbers, to the right
    """

    left = 1

    def cells(self) -> list[list[str]]:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_markdown(self) -> str:
        head, *body = self.cells()
        rule = ["---" if i < self.left else "---:" for i in range(len(head))]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])

    def to_csv(self) -> str:
        """Raw values: a line per row of `to_dict()["rows"]`."""
        out, table = io.StringIO(), self.to_dict()["rows"]
        writer = csv.DictWriter(out, list(table[0]) if table else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return out.getvalue()

    def __str__(self) -> str:
        rows = self.cells()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for row in rows:
            sized = enumerate(zip(row, widths, strict=True))
            lines.append("  ".join(c.ljust(n) if i < self.left else c.rjust(n) for i, (c, n) in sized).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{str(self).replace('&', '&amp;').replace('<', '&lt;')}</pre>"
