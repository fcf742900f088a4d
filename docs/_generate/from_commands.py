"""Commands: the --help of each, as printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from text import block, code, escaped, table

from bitwright.cli.app import EPILOG, command


def pages() -> dict[str, str]:
    """Path of the page -> Markdown."""
    found = dict(_commands())
    rows = [
        (f"[{code(f'bitwright {name}')}]({name.replace(' ', '-')}.md)", escaped(_first(cmd)))
        for name, (cmd, _) in found.items()
    ]
    index = (
        "# Commands\n\n" + table(("command", "what it does"), rows) + f"\n{escaped(EPILOG)}\n\n"
        "Results go to stdout; progress, warnings and `next:` lines go to stderr. Colors appear on a terminal only, and never "
        "with `NO_COLOR`. `bitwright --install-completion` sets up completion for your shell.\n"
    )
    return {
        "commands/index.md": index,
        **{f"commands/{name.replace(' ', '-')}.md": _page(name, text) for name, (_, text) in found.items()},
    }


def _commands() -> Iterator[tuple[str, tuple[Any, str]]]:
    """(name, (command, help)) of every command and subcommand."""
    root = command()
    yield from _below(
        root, root.context_class(root, info_name="bitwright", max_content_width=96, terminal_width=96), ""
    )


def _below(group: Any, context: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, cmd in group.commands.items():
        inner = cmd.context_class(cmd, info_name=name, parent=context, max_content_width=96, terminal_width=96)
        full = f"{prefix}{name}"
        if not cmd.hidden:
            yield full, (cmd, cmd.get_help(inner))
        if hasattr(cmd, "commands"):
            yield from _below(cmd, inner, f"{full} ")


def _first(cmd: Any) -> str:
    return " ".join((cmd.help or "").split("\n\n")[0].split())


def _page(name: str, text: str) -> str:
    if (end := text.find("Every command also takes")) > 0:  # on the index page, once
        text = text[:end].rstrip()
    return "\n".join([f"# {name}\n", block(text), "What all commands share: [commands](index.md).\n"])
