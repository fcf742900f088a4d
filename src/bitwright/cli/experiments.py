"""`bitwright experiments`: the experiments shipped in the package, or the text of one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.cli.complete import complete_experiment
from bitwright.cli.output import PIPE, Output, clip
from bitwright.cli.recipes import comment_of
from bitwright.errors import InputError, nearest

# read here as plain TOML: the schema is needed to run an experiment, not to show it
FOLDER = Path(__file__).parents[1] / "experiment" / "shipped"


def experiments(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="An experiment, to print its TOML.", autocompletion=complete_experiment)
    ] = None,
) -> None:
    """List the shipped experiments, or print one."""
    out: Output = ctx.obj
    texts = {p.stem: p.read_text(encoding="utf-8") for p in sorted(FOLDER.glob("*.toml"), key=lambda p: p.stem)}
    if name is None:
        rows = [_facts(key, text) for key, text in texts.items()]
        out.data["experiments"] = rows
        cells = [(r["name"], "+".join(map(str, r["epochs"])), _what(r["comment"])) for r in rows]
        widths = [max(len(row[i]) for row in cells) for i in (0, 1)]
        shown = (0, 1, 2) if out.width >= PIPE else (0, 2)  # each experiment stays on one line
        room = out.width - 4 - sum(widths[i] for i in shown[:-1])
        table = [("name", "epochs", "what it is"), *((a, b, clip(text, room)) for a, b, text in cells)]
        head, *body = [[row[i] for i in shown] for row in table]
        out.table(head, body, right=shown[1:-1])
        first = next(iter(texts), "NAME")
        quick = next((n for n in texts if n.startswith("digits")), first)  # needs no download
        out.next(f"bitwright experiments {first}", "its stages, its source, what to expect")
        out.next(f"bitwright train {quick}", "run it; key=value changes any line: stage.0.epochs=2")
        return
    if name not in texts:
        raise InputError(
            f"experiment {name}: no such experiment.{nearest(name, texts)} All: bitwright experiments",
            code="experiment-unknown",
            given=name,
            possible=", ".join(texts),
            remedy="bitwright experiments",
        )
    out.data["experiment"] = {**_facts(name, texts[name]), "toml": texts[name]}
    out.result(texts[name].rstrip())
    out.next(f"bitwright train {name}", "run it; key=value changes any line: stage.0.epochs=2")


def _facts(name: str, text: str) -> dict[str, Any]:
    """What the list shows of one file."""
    table = tomllib.loads(text)
    return {
        "name": name,
        "data": table["data"]["name"],
        "model": table["model"]["name"],
        "recipes": [stage["recipe"] for stage in table["stage"] if "recipe" in stage],
        "epochs": [stage["epochs"] for stage in table["stage"]],
        "comment": "\n".join(comment_of(text)),
    }


def _what(comment: str) -> str:
    """The first line is "MODEL on DATA: what"; the name already tells the first two."""
    head = comment.split("\n")[0]
    return head.partition(": ")[2] or head
