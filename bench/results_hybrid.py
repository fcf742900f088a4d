"""The section of bench/hybrid.py in docs/results/README.md."""

from __future__ import annotations

import findings
from results_tables import listed, machine, number, percent, read, table


def spread(r: dict[str, str]) -> str:
    return f"{number(r['ms'])} ({number(r['ms_q1'])}-{number(r['ms_q3'])})" if r["ms"] else "-"


def hybrid() -> str:
    """Empty while there are no rows."""
    found = read("hybrid.csv")
    if not found:
        return ""
    binary = next((r for r in found if r["row"] == "1/1"), None)

    def against(r: dict[str, str], key: str) -> str:
        """As a ratio to the all-binary net of the same topology."""
        same = binary is not None and r["model"] == binary["model"]
        return f"{float(r[key]) / float(binary[key]):.2f}" if binary and same else "-"

    rows = [
        [
            r["row"], r["model"], r["seed"], percent(r["accuracy"]), f"{int(r['bytes']) / 1000:.1f}" if r["bytes"] else "-",
            r["compression"], against(r, "compression"), r["energy_efficiency"], against(r, "energy_efficiency"),
            spread(r), r["runs_as"], f"{r['verdict']}, {r['same']}", r["epoch_seconds"],
        ]
        for r in found
    ]  # fmt: skip
    head = ["row", "model", "seed", "test %", "file kB", "counted bytes: float / it", "counted bytes: 1/1 / it", "energy: float / it",
            "energy: 1/1 / it", "ms (quartiles)", "layers run as", "verdict, same class", "s an epoch"]  # fmt: skip
    chosen = "\n".join(
        f"- {r['row']}: {', '.join(f'`{name}`' for name in r['layers'].split())}"
        for r in found
        if r["layers"] and r["row"] != "2/2"
    )
    epochs, images = found[0]["epochs"], found[0]["images"]
    kernels = ", ".join(dict.fromkeys(r["kernels"] for r in found))
    return f"""## Which layers get two bits? CIFAR-100

    python bench/hybrid.py --data DIR --epochs {epochs}

All rows are trained from scratch on one schedule of {epochs} epochs ({images} training images) with one seed; accuracy is that of
the last epoch on all test images. Where an epoch takes more than a minute, as here, 8 epochs are run instead of 15. Random rows have
as many extra weight bits as the PCA choice, as far as whole layers allow. Energy is computed by the formula of the hybrid-net papers
(`hybrid45`); ms is one image on one thread, kernels {kernels}, all rows side by side in one
run of 31 rounds. Bytes are counted as in those papers; a file also holds names and its graph. Bytes and energy against 1/1 are those of the all-binary net divided by those of the row. {machine("hybrid.csv")}.

{table(head, rows)}

{listed(findings.hybrid(found))}Layers with two bits:

{chosen}

"""
