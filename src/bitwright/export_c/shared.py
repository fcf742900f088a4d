"""The C functions of `kernels/`, one a file; where NAME and TYPE stand in a file, one for each row of `TYPED`."""

from __future__ import annotations

import re
from importlib import resources

TYPED = {
    "conv_float": {"conv_float": "NET_PLUS", "conv_fused": "NET_FUSED"},
    "codes_of_sums": {"codes_of_sums16": "int16_t", "codes_of_sums32": "int32_t"},
    "dot_bytes": {"dot_bytes8": "int8_t", "dot_bytes16": "int16_t"},
    "max_values": {"max_bytes": "uint8_t", "max_floats": "net_float"},
}
MACROS = {
    "NET_FLOAT": "float",
    "NET_FUSED": "fused",
    "NET_PLUS": "plus",
    "NET_POPCOUNT": "popcount",
}  # a macro and the file that defines it


def _files() -> dict[str, str]:
    folder = resources.files("bitwright.export_c") / "kernels"
    files = {p.name.removesuffix(".c"): p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".c")}
    for written, forms in TYPED.items():
        text = files.pop(written)
        files |= {name: text.replace("NAME", name).replace("TYPE", number) for name, number in forms.items()}
    return files


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
                take(files[file])
                found[file] = files[file]

    take(text)
    return "\n".join(found.values())
