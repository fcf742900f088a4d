"""The first section of the results page: nets trained to stand beside the published figures (bench/zoo.py)."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from results_tables import machine, number, read, table

BENCH = Path(__file__).resolve().parent
CARDS = BENCH.parent / "src" / "bitwright" / "zoo" / "nets"


def zoo() -> str:
    """Rows of the queue that are done, each beside the published figure; and the names of those that are left."""
    found = read("zoo.csv")
    if not found:
        return ""
    rows = tomllib.loads((BENCH / "zoo.toml").read_text(encoding="utf-8"))["row"]
    done = [_row(row, [r for r in found if r["row"] == row["name"]]) for row in rows]
    left = [row["name"] for row, line in zip(rows, done, strict=True) if line is None]
    head = [
        "net",
        "epochs",
        "test %",
        "seeds",
        "published %",
        "its epochs",
        "asked %",
        "file kB",
        "verdict",
        "ms",
        "fastest other, ms",
    ]
    return f"""## Nets of the zoo

    python bench/zoo.py run --data DIR       # continues where it stopped; status, next, measure
    bitwright zoo NAME --check               # measures a kept net again

Nets are trained on all training images. Accuracy is that of the last epoch on all test images, of the packed file where there is one,
else of the trained net. Epochs of the float parent come first. Settings were fixed before a row
was trained; test accuracy is logged after each epoch, and that of the last one counts, never the best.
Rows of several seeds have mean and standard deviation; the kept net is that of the first seed, and its card has its own accuracy.
Published figures: {_sources(rows)}. {machine("zoo.csv")}.

{table(head, [line for line in done if line])}

{_left(left)}

"""


def _row(row: dict[str, Any], found: list[dict[str, str]]) -> list[Any] | None:
    """One line, or None while seeds are missing."""
    if row.get("script") or len(found) < len(row.get("seeds", [0])):
        return None
    shares = [100 * float(r["accuracy"]) for r in found]
    accuracy = f"{mean(shares):.2f}" + (f" ± {stdev(shares):.2f}" if len(shares) > 1 else "")
    published = row.get("published", {})
    path = CARDS / f"{row['name']}.json"
    card = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    peers = [(time, peer) for peer, time in card.get("peers", {}).items()]
    return [
        f"`{row['name']}`", found[0]["epochs"], accuracy, len(shares), published.get("top1", ""), published.get("epochs", ""),
        row.get("asked", ""), f"{int(found[0]['bytes']) / 1000:.1f}", found[0]["verdict"],
        number(str(card["latency_ms"])) if card.get("latency_ms") else "", f"{number(str(min(peers)[0]))} {min(peers)[1]}" if peers else "",
    ]  # fmt: skip


def _sources(rows: list[dict[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(row["published"]["source"] for row in rows if "published" in row))


def _left(names: list[str]) -> str:
    return f"Not trained yet: {', '.join(names)}." if names else "All rows are trained."
