"""Experiments: the shipped TOML, and every key of the schema with type and default."""

from __future__ import annotations

import inspect
import re
from typing import Any

from from_recipes import comment, rest
from pydantic import BaseModel
from text import block, code, columns, escaped, linked, table

from bitwright.experiment import read, schema
from bitwright.toml import toml_value

TABLES = {
    "at the top": schema.Experiment,
    "[data]": schema.Data,
    "[model]": schema.Model,
    "[[stage]]": schema.Stage,
    "optimizer": schema.Optimizer,
    "schedule": schema.Schedule,
    "teacher": schema.Teacher,
    "[train]": schema.Train,
    "[log]": schema.Log,
    "[expected]": schema.Expected,
}


def pages() -> dict[str, str]:
    """Path of the page -> Markdown."""
    texts = {name: (read.FOLDER / f"{name}.toml").read_text(encoding="utf-8") for name in read.names()}
    rows = [(f"[{code(name)}]({name}.md)", linked(" ".join(comment(text)[:1]))) for name, text in texts.items()]
    index = (
        "# Experiments\n\nAn experiment is one file: data, model, stages. A name says what it is: DATA-MODEL-RECIPE. "
        "How to run, change and write them: [the guide](../guides/experiments.md); every key: [the keys](schema.md).\n\n"
        + table(("experiment", "what it is"), rows)
    )
    return {
        "experiments/index.md": index,
        "experiments/schema.md": _schema(),
        **{f"experiments/{name}.md": _page(name, text) for name, text in texts.items()},
    }


def _page(name: str, text: str) -> str:
    notes = [linked(line) for line in comment(text)]
    return "\n".join(
        [
            f"# {name}\n",
            "  \n".join(notes) + "\n",
            block(rest(text), "toml"),
            block(f"$ bitwright train {name}", "console"),
        ]
    )


def _schema() -> str:
    lines = [
        "# Keys of an experiment\n",
        "A key that is not here is an error that names its line. Every key can be overridden on the command line, dotted, "
        "stages counted from 0: `stage.0.optimizer.lr=0.01`.\n",
    ]
    for title, model in TABLES.items():
        pieces, said = _said(model)
        properties = model.model_json_schema()["properties"]
        rows = [(*_row(key, properties[key]), linked(said.get(key, ""))) for key in model.model_fields]
        head = ("key", "takes", "default", "meaning") if any(row[3] for row in rows) else ("key", "takes", "default")
        lines += [f"## {title}\n", *pieces, table(head, [row[: len(head)] for row in rows])]
    return "\n".join(lines)


def _said(model: type[BaseModel]) -> tuple[list[str], dict[str, str]]:
    """What the docstring says: its prose and other rows as Markdown, and the rows that explain a key."""
    text = re.split(r"\n\s*>>>", inspect.cleandoc(model.__doc__ or ""))[0]
    pieces: list[str] = []
    said: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        prose, rows = columns(paragraph)
        pieces += [escaped(prose) + "\n"] if prose else []
        if all(key in model.model_fields for key, _ in rows):
            said.update(rows)
        elif rows:
            pieces.append(table(("", ""), [(code(key), linked(value)) for key, value in rows]))
    return pieces, said


def _row(key: str, field: dict[str, Any]) -> tuple[str, str, str]:
    """Name, type and default of one key, from its JSON schema."""
    inner = next((title for title in TABLES if title.strip("[]") == key), None)
    if inner is not None:
        return code(key), f"a table, see [{escaped(inner)}](#{key})", ""
    if "default" not in field:
        shown = "must be given"
    else:
        shown = "not set" if field["default"] is None else code(toml_value(field["default"]))
    return code(key), code(_type(field)), shown


def _type(field: dict[str, Any]) -> str:
    """A JSON schema in words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    if len(kinds) > 1:
        return " or ".join(_type(kind) for kind in kinds)
    (field,) = kinds
    if "enum" in field:
        return " or ".join(toml_value(value) for value in field["enum"])
    if field.get("type") == "array":
        inner = field.get("prefixItems", [field.get("items", {})])[0]
        return f"[{_type(inner)}, ...]"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "object": "table"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return " ".join([names.get(field.get("type", ""), "table"), " and ".join(limits)]).strip()
