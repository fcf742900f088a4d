"""`bitwright recipes`: the recipes shipped in the package, or the text of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.complete import complete_recipe
from bitwright.cli.output import Output, clip
from bitwright.errors import unknown

# found by place: the module that reads recipes imports torch
FOLDER = Path(__file__).parents[1] / "transforms" / "recipes"


def recipes(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="A recipe, to print its TOML.", autocompletion=complete_recipe)
    ] = None,
) -> None:
    """List the shipped recipes, or print one."""
    out: Output = ctx.obj
    texts = {
        path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.toml"), key=lambda p: p.stem)
    }
    if name is None:
        heads = {key: comment_of(text) for key, text in texts.items()}
        out.data["recipes"] = [{"name": key, "comment": "\n".join(lines)} for key, lines in heads.items()]
        room = min(84, out.width - 2 - max(map(len, heads)))  # each recipe stays on one line
        out.table(
            ("name", "what it does"), [(key, clip(lines[0] if lines else "", room)) for key, lines in heads.items()]
        )
        out.next(f"bitwright recipes {next(iter(texts), 'xnor')}", "its rules, its source, what to expect")
        out.next(f"bitwright plan resnet20 {next(iter(texts), 'xnor')}", "what it would do to a model")
        return
    if name not in texts:
        raise unknown(
            f"recipe {name}: no such recipe", name, texts, code="recipe-unknown", word="All", remedy="bitwright recipes"
        )
    out.data["recipe"] = {"name": name, "comment": "\n".join(comment_of(texts[name])), "toml": texts[name]}
    out.result(texts[name].rstrip())
    out.next(f"bitwright plan resnet20 {name}", "what it would do to a model")


def comment_of(text: str) -> list[str]:
    """The lines of the comment at the head of the file."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines
