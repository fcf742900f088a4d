"""The section on single layers beside the best peers, and on linear layers by tables."""

from __future__ import annotations

from results_tables import FOLDER, machine, number, read, table


def kernels() -> str:
    """Nothing where it was not measured."""
    found = read("kernels.csv")
    if not found:
        return ""
    return f"""## Single layers

    python bench/kernels.py

One layer, one thread, against the best peer of each precision; in brackets what was asked. "Share": the least time that this CPU's
instructions need for the products, or the time to read the weights, over ours; above 100 % a kernel needs fewer products or look-ups
in place of them. Where a ratio is missed at a share above 90 %, the kernel is at the CPU's limit and the peer is faster than the
one of which the ratio was asked; rows with floats in and out also move those floats through memory. {machine("kernels.csv")}.

{_rows(found)}

{_narrow()}{tables()}"""


def _rows(found: list[dict[str, str]]) -> str:
    precisions = ("fp32", "bf16", "int8")
    rows = [
        [
            r["layer"], f"{float(r['us']):,.0f}",
            *(f"{number(r[f'ratio_{p}'])}x ({r[f'asked_{p}']})" for p in precisions),
            f"{float(r['share']):.0%}",
        ]
        for r in found
    ]  # fmt: skip
    return table(["layer", "us", *(f"best {p}" for p in precisions), "share"], rows)


def _narrow() -> str:
    """The same on a CPU without AVX-512."""
    found = read("kernels_avx2.csv")
    if not found:
        return ""
    return f"""### Single layers on a CPU without AVX-512

    python bench/kernels.py --out ../docs/results/kernels_avx2.csv

What was asked is the same; no instruction counts bits there, and an int8 program has products of bytes all the same. By what registers
allow (`ceilings_avx2.txt`), look-ups do {_bits_over_int8():.1f} times as many products as quads of bytes: no ratio to int8 can be much above
that. bf16 programs compute in float32 there. {machine("kernels_avx2.csv")}, a shared and noisy one.

{_rows(found)}

"""


def _bits_over_int8() -> float:
    bits, int8 = (float(line.split()[-3]) for line in (FOLDER / "ceilings_avx2.txt").read_text().splitlines()[:2])
    return bits / int8


def tables() -> str:
    found = read("tables.csv")
    if not found:
        return ""
    rows = [
        [
            r["kernels"],
            f"{r['inputs']}x{r['outputs']}",
            r["weights"],
            r["batch"],
            f"{float(r['us']):,.0f}",
            f"{number(r['ratio'])}x",
        ]
        for r in found
    ]
    return f"""### Linear layers on floats by tables

    python bench/tables.py

Times as fast as torch's dense product. The engine takes tables where they pay. With AVX-512: from 131,072 weights on, for any batch
with two levels, up to 16 rows with three or four, up to 4 rows with more. With AVX2: up to 4 rows, from 262,144 weights on with two
levels, from four times as many with three or four, from 64 times as many with more. {machine("tables.csv")}.

{table(["kernels", "layer", "weights", "batch", "us", "of torch"], rows)}

"""
