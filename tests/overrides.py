"""What typed overrides make of a shipped experiment."""

from __future__ import annotations

from typing import Any

from bitwright.experiment import load


def value_at(name: str, overrides: list[str], where: str) -> Any:
    """The value at the dotted keys `where`; numbers count the items of a list."""
    found: Any = load(name, overrides)
    for key in where.split("."):
        at: Any = int(key) if key.isdecimal() else key
        found = found[at] if isinstance(found, (list, dict)) else getattr(found, key)
    return found
