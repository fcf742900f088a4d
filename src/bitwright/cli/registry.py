"""The parts as a JSON file in the package, so that `bitwright methods` needs no torch.

`python -m bitwright.cli.registry` writes it again after a part was added or changed; a test compares the two.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("registry.json")


def stored() -> dict[str, dict[str, Any]]:
    """What the file says: name -> the fields of `PartInfo`, and the docstring."""
    parts: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return parts


def current() -> dict[str, dict[str, Any]]:
    """What the code says; imports torch."""
    import inspect

    from bitwright.parts.registry import part_class, parts

    table = {
        name: {**asdict(info), "doc": inspect.cleandoc(part_class(name).__doc__ or "")}
        for name, info in parts().items()
    }
    return json.loads(json.dumps(table))  # tuples become lists, as in the file


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(stored())} parts")
