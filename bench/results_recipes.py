"""The section of bench/recipes.py and bench/forms.py: is every recipe as fast as the program that its user had before?"""

from __future__ import annotations

from typing import Any

from results_tables import machine, number, read, table


def recipes() -> str:
    """A row per recipe and net, ours beside the best peer of each precision; empty while nothing was measured."""
    found = read("recipes.csv")
    if not found:
        return ""
    rows: list[list[Any]] = [
        [
            r["model"], r["recipe"], f"{number(r['ms'])} ({number(r['ms_q1'])}-{number(r['ms_q3'])})",
            *(_peer(r, precision) for precision in ("int8", "bf16", "fp32")), r["status"],
        ]
        for r in found
    ]  # fmt: skip
    head = ["net", "recipe", "ours, ms (quartiles)", "best int8", "best bf16", "best fp32", "verdict"]
    slower = [r for r in found if float(r["ratio_fp32"] or 1) < 1]
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(r["recipe"] for r in slower)) or "none"
    return f"""### Every recipe

    python bench/recipes.py

Random weights, one image, one thread; the peers run the float net of the same topology. Ratios are peer / ours: above 1 we are
faster than the peer. {len(found) - len(slower)} of {len(found)} rows are faster than the best fp32 program; slower somewhere: {names}.
{machine("recipes.csv")}.

{table(head, rows)}

Whether a layer counts bits or multiplies bytes is decided by limits that `python bench/forms.py` measured (`forms.csv`).

"""


def _peer(r: dict[str, str], precision: str) -> str:
    return (
        f"{number(r[f'{precision}_ms'])} {r[f'best_{precision}']}, {float(r[f'ratio_{precision}']):.2f}x"
        if r.get(f"{precision}_ms")
        else "-"
    )
