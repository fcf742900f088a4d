"""Functions that all sections of docs/results/README.md share: CSV files in, Markdown out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

COLORS = {"blue": "#1f6feb", "orange": "#d97706", "green": "#1a7f37"}
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"


def read(name: str) -> list[dict[str, str]]:
    path = FOLDER / name
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join("-" if c in ("", None) else str(c) for c in r) + " |" for r in rows])


def listed(sentences: list[str]) -> str:
    """One sentence a line; nothing without sentences."""
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n\n" if sentences else ""


def number(text: str | None, digits: int = 3) -> str:
    return f"{float(text):.{digits}g}" if text else "-"


def machine(file: str = "speed.csv") -> str:
    found = read(file)
    if not found:
        return ""
    r = found[0]
    keys = ("cpu", "cores", "threads", "os", "python", "torch", "onnxruntime", "bitwright", "date", "rounds", "clock")
    same = [k for k in keys if r.get(k) and (k != "threads" or len({row[k] for row in found}) == 1)]
    return "; ".join(f"{k} {r[k]}" for k in same)


def percent(text: str, digits: int = 2) -> str:
    return f"{100 * float(text):.{digits}f}" if text else "-"
