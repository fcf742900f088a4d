"""The C functions of `kernels/`, one a file."""

from __future__ import annotations

import re
from importlib import resources

MACROS = {"NET_FLOAT": "float", "NET_POPCOUNT": "popcount"}  # a macro and the file that defines it


def _files() -> dict[str, str]:
    folder = resources.files("bitwright.export_c") / "kernels"
    return {p.name.removesuffix(".c"): p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".c")}


def names() -> set[str]:
    """Every name that begins with `net_` here or in the calls: constants of layers have others."""
    own = ("arena", "in", "run", "run_float", "layers", "self_check", "check_in", "check_out")
    return {f"net_{name}" for name in own}.union(*(re.findall(r"\bnet_\w+", text) for text in _files().values()))


def used(text: str) -> str:
    """The C functions that a text calls, and those that they call, each before its first use."""
    files = _files()
    found: dict[str, str] = {"base": files["base"]}
    seen: set[str] = set()

    def take(source: str) -> None:
        for name in re.findall(r"\b(?:net_)?(\w+)\(", source):
            file = MACROS.get(name, name)
            if file in files and file not in seen:
                seen.add(file)
                take("" if file in MACROS.values() else files[file])
                found[file] = files[file]

    take(text)
    return "\n".join(found.values())
