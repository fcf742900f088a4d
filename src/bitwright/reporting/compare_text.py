"""A comparison as Markdown, LaTeX, and CSV."""

from __future__ import annotations

import re

from bitwright import tabular
from bitwright.reporting.groups import Group, Spread
from bitwright.reporting.matrix import Matrix

_LATEX = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\u00b1": r"$\pm$", "\u2248": r"$\approx$",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def markdown(table: Matrix) -> str:
    """A row per group, so that it stays readable in a terminal; the best of a column is bold."""
    lines = [["run", *(row.name for row in table.rows)]]
    for i, name in enumerate(table.names):
        cells = [row.cells[i] for row in table.rows]
        lines.append([name, *(f"**{c}**" if c.best else str(c) for c in cells)])
    head, *rows = [[_plain(cell) for cell in line] for line in lines]
    return tabular.markdown(head, rows, range(1, len(head))) + "\n"


def _plain(text: str) -> str:
    """Names are text: neither a column nor HTML.

    >>> _plain("a|b <i>")
    'a\\\\|b &lt;i>'
    """
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def latex(table: Matrix) -> str:
    """A `tabular` with the groups as rows, for \\input; needs no package."""
    lines = [
        r"\begin{tabular}{l" + "r" * len(table.rows) + "}",
        r"\hline",
        " & ".join(latex_text(text) for text in ["run", *(row.name for row in table.rows)]) + r" \\",
        r"\hline",
    ]
    for i, name in enumerate(table.names):
        cells = [row.cells[i] for row in table.rows]
        texts = [rf"\textbf{{{latex_text(str(c))}}}" if c.best else latex_text(str(c)) for c in cells]
        lines.append(" & ".join([latex_text(name), *texts]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def latex_text(text: str) -> str:
    """
    >>> latex_text("w1_a1 & 90 %")
    'w1\\\\_a1 \\\\& 90 \\\\%'
    """
    return re.sub(r"[&%$#_{}~^\\<>\u00b1\u2248]", lambda m: _LATEX[m[0]], text)


def csv_text(groups: list[Group]) -> str:
    """A row per group and machine: raw values, base units in the heading, empty where unknown."""
    rows = []
    for g in groups:
        same = g.same or (None, None)
        for place, times in g.places.items() or [("", Spread(()))]:
            rows.append({
                "run": g.name, "runs": len(g.runs), "seeds": g.seeds, "accuracy": g.accuracy.mean,
                "accuracy_std": g.accuracy.std, "bytes": g.size.mean, "macs": g.macs.mean, "bops": g.bops.mean,
                "latency_ms": times.mean, "latency_ms_std": times.std, "latency_runs": len(times.values) or None,
                "measured_on": place, "verdict": g.verdicts, "same": same[0], "images": same[1], "warnings": g.warnings,
            })  # fmt: skip
    return tabular.csv_text(rows)
