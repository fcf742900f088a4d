"""Gates of the zoo's nets whose values are all bits, beside their accuracy.

    python bench/circuits.py     # writes docs/results/circuits.csv, prints the table of docs/guides/circuits.md

Every form is written and compared with the packed net on all test images; nothing here depends on the machine. `ands` is the number of
ANDs of the AIGER file, which has no XOR.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import bitwright as bw
from methods import ROOT, write
from results_circuits import rows_of, table_of

NETS = ("digits-mlp-zero_one",)
FORMS = ("v", "aig", "aag", "blif", "c", "json")
FILE = ROOT / "docs" / "results" / "circuits.csv"


def measured(name: str) -> list[dict[str, Any]]:
    """A row for the class alone, and one with the counts."""
    card, net = bw.zoo.card(name), bw.zoo.load(name)
    data = bw.zoo.data(card)
    x, labels = next(iter(data.batches(len(data), normalize=card.normalize)))
    with torch.no_grad():
        right = int((net(x).argmax(1) == labels).sum())
    rows = []
    for outputs in ("class", "counts"):
        with tempfile.TemporaryDirectory() as folder:
            files = {form: bw.export.circuit(net, x, Path(folder) / f"net.{form}", outputs=outputs) for form in FORMS}
            ands = int((Path(folder) / "net.aig").read_bytes().split(b"\n", 1)[0].split()[-1])
        report = files["v"]
        row = {"net": name, "outputs": outputs, "images": len(x), "right": right, "accuracy": right / len(x)}
        row |= {"inputs": report.inputs, "gates": sum(report.gates.values()), **report.gates, "depth": report.depth}
        row |= {"ands": ands, "patterns": report.patterns}
        row |= {"layers": " ".join(f"{layer}:{gates}" for layer, gates in report.layers.items())}
        rows.append(row | {f"{form}_bytes": found.bytes for form, found in files.items()})
    return rows


if __name__ == "__main__":
    write(FILE, [row for name in NETS for row in measured(name)])
    print(table_of(rows_of()))
