"""Methods: a page per part, from the registry that `bitwright methods` prints."""

from __future__ import annotations

import re
from typing import Any

from from_recipes import recipes
from picture import picture
from text import block, code, docstring, linked, table

from bitwright.cli.registry import stored
from bitwright.toml import toml_value


def pages() -> dict[str, str]:
    """Path of the page -> Markdown."""
    parts = stored()
    return {"methods/index.md": _index(parts), **{f"methods/{name}.md": _page(info) for name, info in parts.items()}}


def _index(parts: dict[str, dict[str, Any]]) -> str:
    rows = [
        (
            f"[{code(name)}]({name}.md)",
            " ".join(info["slots"]),
            info["bits"] or "-",
            "yes" if info["packs"] else "no",
            linked(info["summary"]),
        )
        for name, info in parts.items()
    ]
    return (
        "# Methods\n\nA part sits in a slot of a layer: `w` weight, `b` bias, `x` input, `g` gradient, `gate`. "
        "*Packs* says whether it has integer codes, so that `convert` can use bit kernels. "
        "On the command line: `bitwright methods`.\n\n"
        + table(("part", "slots", "bits", "packs", "what it does"), rows)
        + "\nA part of your own is one file: [write a part](../guides/own-part.md).\n"
    )


def _page(info: dict[str, Any]) -> str:
    name = info["name"]
    lines = [f"# {name}\n", docstring(info["doc"]), picture(name, info["slots"])]
    lines.append("## Options\n")
    options = [
        (code(key), code(toml_value(value)) if value is not None else "needed, or set by the layer")
        for key, value in info["options"].items()
    ]
    lines.append(table(("option", "default"), options) if options else "None.\n")
    lines.append("## In a recipe\n")
    slot = "x" if "x" in info["slots"] and "w" not in info["slots"] else info["slots"][0]
    lines.append(block(f'[[rule]]\nmatch = "*"\n{slot} = {_value(info)}', "toml"))
    used = [other for other, text in recipes().items() if re.search(rf'"{re.escape(name)}"', text)]
    links = ", ".join(f"[{code(other)}](../recipes/{other}.md)" for other in used)
    facts = [
        ("slots", " ".join(code(s) for s in info["slots"])),
        ("bits", info["bits"] or "set by its options, or not a quantizer"),
        ("packs", "yes: integer codes, bit kernels" if info["packs"] else "no codes of its own"),
        ("recipes", links or "none shipped"),
        ("source", linked(info["source"])),
        ("measured", "accuracy and speed of whole nets: [results](../results/README.md)"),
    ]
    lines += ["## Facts\n", table(("", ""), facts)]
    return "\n".join(lines)


def _value(info: dict[str, Any]) -> str:
    """The shortest form that works: the name, or a table with the options that have no default."""
    needed = [f"{key} = 2" for key, value in info["options"].items() if value is None and key == "bits"]
    return f'{{ part = "{info["name"]}", {", ".join(needed)} }}' if needed else f'"{info["name"]}"'
