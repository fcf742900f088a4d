"""The section on two threads beside one."""

from __future__ import annotations

from results_tables import machine, number, read, table


def threads() -> str:
    """Nothing where it was not measured."""
    found = read("threads.csv")
    if not found:
        return ""
    several, other, more = found[0]["threads"], read("threads_avx2.csv"), ""
    if other:
        more = f"""

The same on a CPU without AVX-512 (`--out ../docs/results/threads_avx2.csv`), {machine("threads_avx2.csv")}:

{table_of(other)}"""
    return f"""## {several} threads

    python bench/threads.py

One image, eight equal layers in one native call, wall time, in turn; "limit": the same layer in {several} threads of Python at once, one thread each. Layers with less work
than 30 us run on one thread whatever is asked. {machine("threads.csv")}.

{table_of(found)}{more}

"""


def table_of(found: list[dict[str, str]]) -> str:
    rows = [
        [r["layer"], r["form"], *(number(r[k]) for k in ("one_us", "several_us")), f"{number(r['gain'])}x",
         f"{number(r['gain_q1'])} to {number(r['gain_q3'])}", f"{number(r['limit'])}x"]
        for r in found
    ]  # fmt: skip
    head = ["layer, 3x3", "form", "one thread, us", f"{found[0]['threads']} threads, us", "gain", "quartiles", "limit"]
    return table(head, rows)
