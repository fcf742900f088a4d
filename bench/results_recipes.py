"""The section of bench/recipes.py and bench/forms.py: is every recipe as fast as the program that its user had before?"""

from __future__ import annotations

from typing import Any

from results_tables import FOLDER, machine, number, read, table

FLOAT_INPUTS = ("bwn", "ttq", "twn")


def recipes() -> str:
    """A row per recipe and net, ours beside the best peer of each precision; empty while nothing was measured."""
    found = read("recipes.csv")
    if not found:
        return ""
    slower = [r for r in found if float(r["ratio_fp32"] or 1) < 1]
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(r["recipe"] for r in slower)) or "none"
    coded = [r for r in found if r["recipe"] not in FLOAT_INPUTS]
    ahead = sum(float(r["ratio_int8"] or 1) >= 1 for r in coded)
    return f"""### Every recipe

    python bench/recipes.py

Random weights, one image, one thread; the peers run the float net of the same topology. Ratios are peer / ours: above 1 we are
faster than the peer. {len(found) - len(slower)} of {len(found)} rows are faster than the best fp32 program; slower somewhere: {names}.
{ahead} of the {len(coded)} rows whose layers read codes are also at least as fast as the best int8 program. 3x3 layers of 8-bit codes do
so by Winograd's F(4x4, 3x3) in whole numbers, and weights as bits with float inputs (`bwn`, `ttq`, `twn`) by F(2x2, 3x3) in floats: layer by
layer in `python bench/floats.py` (`floats.csv`). {machine("recipes.csv")}.

{_table(found)}

{limits(found)}

Whether a layer counts bits or multiplies bytes is decided by limits that `python bench/forms.py` measured (`forms.csv`).

{_narrow()}"""


def _table(found: list[dict[str, str]]) -> str:
    rows: list[list[Any]] = [
        [
            r["model"], r["recipe"], f"{number(r['ms'])} ({number(r['ms_q1'])}-{number(r['ms_q3'])})",
            *(_peer(r, precision) for precision in ("int8", "bf16", "fp32")), r["status"],
        ]
        for r in found
    ]  # fmt: skip
    return table(["net", "recipe", "ours, ms (quartiles)", "best int8", "best bf16", "best fp32", "verdict"], rows)


def _narrow() -> str:
    """The same on a CPU without AVX-512."""
    found = read("recipes_avx2.csv")
    if not found:
        return ""
    coded = [r for r in found if r["recipe"] not in FLOAT_INPUTS]
    ahead, first = (sum(float(r[key] or 1) >= 1 for r in coded) for key in ("ratio_int8", "ratio_fp32"))
    floats = sum(float(r["ratio_fp32"] or 1) >= 1 for r in found if r not in coded)
    return f"""#### On a CPU without AVX-512

    python bench/recipes.py --out ../docs/results/recipes_avx2.csv

Of the {len(coded)} rows whose layers read codes, {ahead} are at least as fast as the best int8 program and {first} as the best fp32 program.
Bits are looked up there and bytes are multiplied in pairs or quads; of the {len(found) - len(coded)} rows with float inputs (`bwn`, `ttq`, `twn`),
which run as float products, {floats} are at least as fast as the best fp32 program.
{machine("recipes_avx2.csv")}, a shared and noisy one: compare the ratios, not the milliseconds.

{_table(found)}

"""


# millions of products of a net: counted as bits (times the planes of input and weight), as int8, as float32
PRODUCTS = {
    ("vgg_small", "w1a1-8"): (604, 3.5, 0),
    ("vgg_small", "dorefa-w1a2"): (1208, 0, 3.5),
    ("bireal_resnet18", "w1a1-8"): (1676, 137, 0),
    ("bireal_resnet18", "bireal"): (1676, 0, 137),
    ("resnet18", "dorefa-w1a2"): (3391, 0, 118),
}


def limits(found: list[dict[str, str]]) -> str:
    """How near the nets whose time is counting bits come to what registers allow on the same CPU."""
    lines = (FOLDER / "ceilings_amd.txt").read_text().splitlines()
    rates = [float(line.split()[-3]) for line in lines]  # T products/s: bits, int8, float32
    rows = []
    for (model, recipe), products in PRODUCTS.items():
        r = next((r for r in found if (r["model"], r["recipe"]) == (model, recipe)), None)
        if r is None:
            continue
        least = [m / rate * 1e-3 for m, rate in zip(products, rates, strict=True)]
        ours, peer = float(r["ms"]), float(r["int8_ms"])
        rows.append(
            [
                model,
                recipe,
                *(number(str(t)) for t in least),
                number(r["ms"]),
                f"{sum(least) / ours:.0%}",
                f"{peer / sum(least):.1f}x",
            ]
        )
    head = ["net", "recipe", "bits, ms", "int8, ms", "float32, ms", "ours, ms", "of the limit", "best int8 / limit"]
    return f"""The least time that the products of a net take at the rates of `bench/ceilings.cpp` on this CPU, by what they are computed with, and how
near we are. The last column is the ratio at that limit, which direct products on these instructions cannot exceed. A stem that
stays float costs 2 ms of the 224x224 nets alone.

{table(head, rows)}"""


def _peer(r: dict[str, str], precision: str) -> str:
    return (
        f"{number(r[f'{precision}_ms'])} {r[f'best_{precision}']}, {float(r[f'ratio_{precision}']):.2f}x"
        if r.get(f"{precision}_ms")
        else "-"
    )
