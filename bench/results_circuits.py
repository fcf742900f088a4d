"""The results page's section of bench/circuits.py, and its table, which docs/guides/circuits.md shows."""

from __future__ import annotations

from results_tables import read, table


def rows_of() -> list[dict[str, str]]:
    return read("circuits.csv")


def table_of(rows: list[dict[str, str]]) -> str:
    lines = []
    for r in rows:
        layers = ", ".join(f"{name} {int(n):,}" for name, n in (part.rsplit(":", 1) for part in r["layers"].split()))
        kinds = [f"{int(r[kind]):,}" for kind in ("gates", "and", "nor", "xor")]
        lines.append(
            [
                r["net"],
                f"{100 * float(r['accuracy']):.2f}",
                r["outputs"],
                *kinds,
                r["depth"],
                f"{int(r['ands']):,}",
                layers,
            ]
        )
    return table(
        ["net", "test %", "outputs", "gates", "and", "nor", "xor", "depth", "ANDs of AIGER", "gates of layers"], lines
    )


def circuits() -> str:
    """Empty while bench/circuits.py has not been run."""
    rows = rows_of()
    if not rows:
        return ""
    forms = ("v", "aig", "aag", "blif", "c", "json")
    sizes = [[r["net"], r["outputs"], *(f"{int(r[f'{form}_bytes']) / 1000:.1f}" for form in forms)] for r in rows]
    return f"""## Nets as gates

    python bench/circuits.py

Nets of the zoo whose values are all bits, as gates of two inputs (inverters are not counted). Every file was read back, the C file compiled,
and simulated on all {int(rows[0]["images"]):,} test images and {int(rows[0]["patterns"]):,} other inputs: every output bit equals the packed
net's, so the accuracy is the packed net's too. Nothing here depends on the machine.

{table_of(rows)}

Sizes of the files, kB:

{table(["net", "outputs", *(f".{form}" for form in forms)], sizes)}

"""
