"""`bitwright methods`: which parts exist, where they fit, where they come from."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from bitwright.cli.complete import complete_part
from bitwright.cli.output import PIPE, Output, clip
from bitwright.cli.registry import stored
from bitwright.errors import InputError, unknown
from bitwright.tabular import wrap

ENTRY = 10  # columns of an entry's name in a part's docstring


def methods(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A part, for its formula, options and recipe line.", autocompletion=complete_part),
    ] = None,
    slot: Annotated[str | None, typer.Option(help="Only parts for this slot: w, b, x, g or gate.")] = None,
) -> None:
    """List the parts that can sit in a layer's slots, or explain one."""
    out: Output = ctx.obj
    parts = stored()
    if name is not None:
        return _one(out, name, parts)
    slots = sorted({s for info in parts.values() for s in info["slots"]})
    if slot is not None and slot not in slots:
        raise InputError(
            f"methods: no slot {slot!r}. Slots: {', '.join(slots)}", code="slot-unknown", possible=", ".join(slots)
        )
    rows = [info for info in parts.values() if slot is None or slot in info["slots"]]
    out.data["parts"] = rows
    head = ("name", "bits", "packs", "slots", "what it does", "source")
    cells = [_cells(info) for info in rows]
    shown = range(6) if out.width >= PIPE else (0, 1, 2, 4)  # each part stays on one line
    rest = sum(max(len(row[i]) for row in (head, *cells)) for i in shown if i != 4) + 2 * (len(shown) - 1)
    room = min(60, out.width - rest)
    table = [[clip(row[i], room) if i == 4 else row[i] for i in shown] for row in cells]
    out.table([head[i] for i in shown], table, right=(1,))
    out.result(f"{len(rows)} of {len(parts)} parts. packs = has integer codes, so convert can use bit kernels.")
    out.next(f"bitwright methods {rows[0]['name']}", "formula, options with defaults, recipe line")


def _one(out: Output, name: str, parts: dict[str, dict[str, Any]]) -> None:
    if name not in parts:
        raise unknown(f"methods: unknown part {name!r}", name, parts, code="part-unknown", remedy="bitwright methods")
    info = parts[name]
    out.data["part"] = info
    for line in _fitting(info["doc"], out.width):
        out.result(line)
    out.result()
    options = ", ".join(f"{key}={value!r}" for key, value in info["options"].items()) or "none"
    out.result(f"slots     {' '.join(info['slots'])}")
    out.result(f"bits      {info['bits'] or 'set by its options'}")
    out.result(f"packs     {'yes' if info['packs'] else 'no'}")
    out.result(f"options   {options}")
    out.result(f"recipe    {info['slots'][0]} = {_recipe_value(name, info['options'])}")


def _fitting(doc: str, width: int) -> list[str]:
    """The lines of a docstring; an entry with a line that is too long is filled anew.

    >>> _fitting("value     a\\n          b\\nshape     any shape that a weight\\n          may have", 30)
    ['value     a', '          b', 'shape     any shape that a', '          weight may have']
    """
    entries: list[list[str]] = []
    for line in doc.splitlines():
        if line.startswith(" " * ENTRY) and entries:
            entries[-1].append(line)
        else:
            entries.append([line])
    lines: list[str] = []
    for entry in entries:
        whole = " ".join([entry[0], *(line.strip() for line in entry[1:])])
        lines += entry if all(len(line) <= width for line in entry) else wrap(whole, width, ENTRY)
    return lines


def _cells(info: dict[str, Any]) -> list[str]:
    packs = "yes" if info["packs"] else "no"
    return [info["name"], info["bits"] or "-", packs, " ".join(info["slots"]), info["summary"], _cite(info)]


def _cite(info: dict[str, Any]) -> str:
    """The paper's number, else what stands before the first comma."""
    found = re.search(r"arXiv \d{4}\.\d{4,5}", info["source"])
    return found[0] if found else clip(info["source"].split(",")[0].split(";")[0], 24)


def _recipe_value(name: str, options: dict[str, Any]) -> str:
    """`"bwn"`, or a table with the options that have no default."""
    needed = [f"{key} = 2" for key, value in options.items() if value is None and key == "bits"]
    return f'{{ part = "{name}", {", ".join(needed)} }}' if needed else f'"{name}"'
