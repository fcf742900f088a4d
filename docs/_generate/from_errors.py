"""Errors: the help topics of the command line, and the codes with their messages as the source has them."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from text import block, code, linked, table

import bitwright
from bitwright.cli.help import codes, topics

ROOT = Path(bitwright.__file__).parent


def pages() -> dict[str, str]:
    """Path of the page -> Markdown."""
    texts = topics()
    meanings = codes(texts.pop("errors", ""))
    listed = [(f"[{code(name)}]({name}.md)", linked(_first(text))) for name, text in texts.items()]
    found: dict[str, list[str]] = {name: [] for name in meanings}
    for name, message in sorted(_messages()):
        found.setdefault(name, []).append(message)
    rows = [
        (f"{code(name)}{{ #{name} }}", "<br>".join([linked(meanings.get(name, "")), *(code(m) for m in messages)]))
        for name, messages in sorted((name, list(dict.fromkeys(messages))) for name, messages in found.items())
    ]
    index = [
        "# Errors\n",
        "An error is one line: what was called, on what, what was given, what is possible, what to type. "
        "With `--json` it is an object `error` with the keys `code`, `message`, `layer`, `given`, `possible`, `try`. "
        "In Python it is a `bw.InputError` (a `ValueError`) with the same text and the same fields.\n",
        "## Topics\n",
        "Longer answers. The same offline: `bitwright help TOPIC`.\n",
        table(("topic", "about"), listed),
        "## Codes\n",
        "The code of an error is stable; its words are not. Words in angle brackets stand for what was given.\n",
        table(("code", "meaning, and the lines it has"), rows),
    ]
    return {"errors/index.md": "\n".join(index), **{f"errors/{n}.md": _page(n, text) for n, text in texts.items()}}


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.:]) ", " ".join(text.split("\n\n")[0].split()))[0]


def _page(name: str, text: str) -> str:
    """A topic is text for a terminal: its columns and commands become blocks, its lists get their blank line."""
    text = re.sub(r"(?m)^(?!- )(\S.*)\n(?=- )", r"\1\n\n", text)
    text = re.sub(r"(?m)^next: *(.*)$", lambda m: block(f"$ {m[1]}", "console"), text)
    text = re.sub(r"(?m)(?<=\n\n)(?: {2,}.*\n|\n(?= {2}))+", lambda m: block(textwrap.dedent(m[0])) + "\n", text)
    return f"# {name}\n\n{text}"


def _messages() -> Iterator[tuple[str, str]]:
    """(code, message) of every InputError and Negative that is made with a code."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("InputError", "Negative") and node.args:
                given = next((k.value for k in node.keywords if k.arg == "code"), None)
                message = _words(node.args[0])
                if isinstance(given, ast.Constant) and any(c.isalpha() for c in message.replace("<...>", "")):
                    yield str(given.value), message


def _words(node: ast.expr) -> str:
    """A message with its fields as words: `{name}` becomes <name>."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "<...>"
    if isinstance(node, ast.JoinedStr):
        return re.sub(r"(<\.\.\.>)+", "<...>", "".join(_words(value) for value in node.values))
    if isinstance(node, ast.FormattedValue):
        return _words(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _words(node.left) + _words(node.right)
    if isinstance(node, ast.Attribute):
        return f"<{node.attr.strip('_')}>"
    return f"<{node.id.lower()}>" if isinstance(node, ast.Name) else "<...>"
