"""Recipes: the shipped TOML, with its comment as the text of the page."""

from __future__ import annotations

import functools
from pathlib import Path

from text import block, code, linked, table

import bitwright

FOLDER = Path(bitwright.__file__).parent / "transforms" / "recipes"


@functools.cache
def recipes() -> dict[str, str]:
    """Name -> TOML."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.toml"))}


def comment(text: str) -> list[str]:
    """The lines of the comment at the head of a TOML text."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines


def rest(text: str) -> str:
    """The text below that comment."""
    return "\n".join(text.splitlines()[len(comment(text)) :]).strip("\n")


def pages() -> dict[str, str]:
    """Path of the page -> Markdown."""
    found = recipes()
    rows = [(f"[{code(name)}]({name}.md)", linked(_what(comment(text)))) for name, text in found.items()]
    index = (
        "# Recipes\n\nA recipe is a list of rules: which layers get which parts "
        "([slots and recipes](../concepts/slots-recipes.md)). These are in the package; copy one to a file to change "
        "it. On the command line: `bitwright recipes`.\n\n" + table(("recipe", "what it does"), rows)
    )
    return {"recipes/index.md": index, **{f"recipes/{name}.md": _page(name, text) for name, text in found.items()}}


def _what(lines: list[str]) -> str:
    """The sentences before `source:`, `data:`, `expected:`."""
    return " ".join(line for line in lines if line.partition(":")[0] not in ("source", "data", "expected"))


def _page(name: str, text: str) -> str:
    lines = comment(text)
    facts = [
        (key, linked(value.strip()))
        for key, _, value in (line.partition(":") for line in lines)
        if key in ("source", "data", "expected")
    ]
    return "\n".join(
        [
            f"# {name}\n",
            linked(_what(lines)) + "\n",
            table(("", ""), facts),
            block(rest(text), "toml"),
            "What it would do to a model, before it does:\n",
            block(f"$ bitwright plan resnet20 {name}", "console"),
        ]
    )
