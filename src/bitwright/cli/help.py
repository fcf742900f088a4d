"""`bitwright help TOPIC`: a page about a warning, a symptom or a form, and one line about every error code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.output import Output
from bitwright.errors import InputError, nearest

FOLDER = Path(__file__).with_name("topics")


def topics() -> dict[str, str]:
    """Name -> text, in the order of the alphabet."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}


def codes(text: str) -> dict[str, str]:
    """Error code -> what it means, from the page `errors`.

    >>> codes("Words.\\n\\n- data-missing: the set is not there\\n")
    {'data-missing': 'the set is not there'}
    """
    found = {}
    for line in text.splitlines():
        code, colon, meaning = line.removeprefix("- ").partition(": ")
        if line.startswith("- ") and colon:
            found[code] = meaning
    return found


def help_(
    ctx: typer.Context,
    topic: Annotated[
        str | None, typer.Argument(help="A topic, an error code or a command. [default: list them]")
    ] = None,
) -> None:
    """Explain a topic or an error code, offline."""
    out: Output = ctx.obj
    pages = topics()
    if topic is None:
        out.data["topics"] = {name: _first(text) for name, text in pages.items()}
        out.table(("topic", "about"), [(name, _first(text)) for name, text in pages.items()])
        out.next("bitwright help low-accuracy", "or an error code, as --json has it")
        out.next("bitwright --help", "the commands")
        return
    known = codes(pages["errors"])
    word = topic.lower().removeprefix("bw-").removesuffix(".md")
    if word in pages:
        _page(out, word, pages[word])
    elif word in known:
        out.data["code"] = {"name": word, "text": known[word]}
        out.prose(f"{word}: {known[word]}")
    elif word in _commands(ctx):
        out.data["command"] = word
        out.result(f"{word} is a command: bitwright {word} --help")
    else:
        every = [*pages, *known]
        raise InputError(
            f"help: nothing under {topic!r}.{nearest(word, every)} Topics: {', '.join(pages)}; or an error code",
            code="help-unknown",
            given=topic,
            possible=", ".join(pages),
            remedy="bitwright help",
        )


def _page(out: Output, name: str, text: str) -> None:
    """The text, wrapped where the terminal is narrow; its last line may be a command that can be pasted."""
    body, mark, command = text.rstrip().rpartition("\nnext: ")
    out.data["topic"] = {"name": name, "text": text.rstrip()}
    for line in (body if mark else text).rstrip().splitlines():
        out.prose(line, 2)
    if mark:
        out.next(command.strip())


def _first(text: str) -> str:
    """The first sentence of a page."""
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def _commands(ctx: typer.Context) -> list[str]:
    found = getattr(ctx.parent.command, "commands", {}) if ctx.parent else {}
    return list(found)
