"""Python reference: every public name on one page, with signature and docstring."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from text import block, code, docstring

import bitwright as bw


def pages() -> dict[str, str]:
    """Path of the page -> Markdown."""
    names = sorted(bw.__all__, key=str.lower)
    functions = [n for n in names if _is_function(n)]
    classes = [n for n in names if isinstance(getattr(bw, n), type)]
    modules = [n for n in names if n not in functions and n not in classes]
    lines = [
        "# Python\n",
        "`import bitwright as bw`. Names are imported at first use, so the import itself costs nothing. "
        "Examples of the docstrings are run by the tests.\n",
        "## Functions\n",
        *(_entry(f"bw.{n}", getattr(bw, n), 3) for n in functions),
        "## Modules\n",
        *(_module(n, getattr(bw, n)) for n in modules),
        "## Classes\n",
        *(_entry(f"bw.{n}", getattr(bw, n), 3) for n in classes),
    ]
    return {"reference/python.md": "\n".join(lines)}


def _is_function(name: str) -> bool:
    found = getattr(bw, name)
    return callable(found) and not isinstance(found, type) and (not isinstance(found, ModuleType) or name == "parts")


def _module(name: str, module: ModuleType) -> str:
    public = [n for n in getattr(module, "__all__", []) if callable(getattr(module, n, None))]
    pieces = [f"### bw.{name}\n", docstring(_doc(module))]
    return "\n".join([*pieces, *(_entry(f"bw.{name}.{n}", getattr(module, n), 4) for n in public)])


def _entry(name: str, found: Any, level: int) -> str:
    pieces = [f"{'#' * level} {name}\n", block(_signature(name, found), "python"), docstring(_doc(found))]
    if isinstance(found, type):
        pieces += [_method(n, member) for n, member in vars(found).items() if _is_own(n, member)]
    return "\n".join(pieces)


def _method(name: str, member: Any) -> str:
    member = getattr(member, "__func__", member)
    if isinstance(member, property):
        return f"- {code('.' + name)}: {_first(member)}\n"
    return f"- {code(_signature('.' + name, member))}: {_first(member)}\n"


def _is_own(name: str, member: Any) -> bool:
    is_method = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
    return is_method and not name.startswith("_") and bool(_doc(getattr(member, "__func__", member)))


def _doc(found: Any) -> str:
    own = getattr(found, "__doc__", None)
    text = inspect.cleandoc(own or "")
    return "" if re.match(r"\w+\(.*\)$", text) else text  # the signature that dataclass writes


def _first(found: Any) -> str:
    return " ".join(_doc(found).split("\n\n")[0].split()).replace("<", "&lt;")


def _signature(name: str, found: Any) -> str:
    """As one types it: without annotations of the result's module path, broken where it is long."""
    function = found.__call__ if isinstance(found, ModuleType) else found
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return name
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    text = re.sub(
        r"'|(?:typing|collections\.abc|torch\.nn\.modules\.module|torch|pathlib|os)\.(?=[A-Z])",
        "",
        str(signature.replace(parameters=kept)),
    )
    if len(name + text) <= 88:
        return name + text
    inner = ",\n    ".join(re.sub(r"'", "", str(p)) if p.kind != p.VAR_POSITIONAL else str(p) for p in kept)
    result = text.rpartition(")")[2]
    star = [i for i, p in enumerate(kept) if p.kind == p.KEYWORD_ONLY]
    if star and not any(p.kind == p.VAR_POSITIONAL for p in kept):
        parts = inner.split(",\n    ")
        if len(parts) == len(kept):
            inner = ",\n    ".join([*parts[: star[0]], "*", *parts[star[0] :]])
    return f"{name}(\n    {inner},\n){result}"
