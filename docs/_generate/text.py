"""Text of the code as Markdown: what must be escaped is, what is laid out in columns stays so."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = re.compile(r"([\\`*_{}\[\]#~])")


def escaped(text: str) -> str:
    """Prose from a docstring: code in backticks stays code, nothing else is taken for Markdown.

    >>> escaped("a * b, see `f(x)`")
    'a \\\\* b, see `f(x)`'
    """
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if i % 2 else _plain(p) for i, p in enumerate(pieces))


def _plain(text: str) -> str:
    text = _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;"))
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def code(text: str) -> str:
    """A code span, also of text with backticks, also inside a table."""
    text = text.replace("\n", " ").replace("|", "&#124;") if "|" in text else text.replace("\n", " ")
    if "&#124;" in text:  # a code span shows an entity as it is written; an element does not
        return f"<code>{text.replace('<', '&lt;').replace('>', '&gt;')}</code>"
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """A fenced block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([" ".join(cell.split()) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_ROW = re.compile(r"(\S+(?:,? \S+){0,2}) {2,}(\S.*)")


def docstring(text: str) -> str:
    """A docstring: prose as prose, its columns as a table, examples as an interpreter session."""
    pieces = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.lstrip().startswith(">>>"):
            pieces.append(block(paragraph, "pycon"))
        elif paragraph.startswith(" "):
            pieces.append(block(paragraph))
        else:
            prose, rows = columns(paragraph)
            pieces += [escaped(prose) + "\n"] if prose else []
            pieces += [table(("", ""), [(escaped(key), linked(value)) for key, value in rows])] if rows else []
    return "\n".join(pieces)


def columns(paragraph: str) -> tuple[str, list[tuple[str, str]]]:
    """A paragraph as its prose and its `name   what it means` rows; an indented line continues the row above it.

    >>> columns("How.\\na    one\\n     more\\nbcd  two;   e   three")
    ('How.', [('a', 'one more'), ('bcd', 'two'), ('e', 'three')])
    """
    prose: list[str] = []
    rows: list[tuple[str, str]] = []
    for line in paragraph.splitlines():
        found = _ROW.fullmatch(line)
        if found:
            rows.append((found[1], found[2]))
            while again := re.fullmatch(r"(.*?);? {3,}(\w+)(?: {2,}(\S.*))", rows[-1][1]):  # two rows on one line
                rows[-1] = (rows[-1][0], again[1])
                rows.append((again[2], again[3]))
        elif rows and line.startswith(" "):
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
        else:
            prose.append(line)
    return "\n".join(prose), rows


def linked(text: str) -> str:
    """Escaped text whose arXiv numbers are links."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", escaped(text))
