"""The section of bench/metaquant.py in docs/results/README.md."""

from __future__ import annotations

import findings
from results_tables import listed, machine, number, percent, read, table


def metaquant() -> str:
    """Empty while there are no rows."""
    found = read("metaquant.csv")
    if not found:
        return ""
    seeds = sorted({r["seed"] for r in found}, key=int)
    rows = []
    for optimizer in dict.fromkeys(r["optimizer"] for r in found):
        for gradient in dict.fromkeys(r["gradient"] for r in found if r["optimizer"] == optimizer):
            own = {r["seed"]: r for r in found if (r["gradient"], r["optimizer"]) == (gradient, optimizer)}
            mean, spread = findings.mean_and_spread([100 * float(r["accuracy"]) for r in own.values()])
            cells = [percent(own[s]["accuracy"]) if s in own else "" for s in seeds]
            seconds = min(float(r["seconds"]) for r in own.values())
            factors = ", ".join(number(r["factor"]) for r in own.values() if r["factor"])
            deviation = "" if spread is None else f"{spread:.2f}"
            rows.append([optimizer, gradient, *cells, f"{mean:.2f}", deviation, factors, number(str(seconds))])
    first, ours = found[0], ", MLP ours" if any(r["gradient"] == "MLP" for r in found) else ""
    head = [
        "optimizer",
        "gradient",
        *(f"seed {s}, test %" for s in seeds),
        "mean",
        "deviation",
        "learned factor",
        "least s",
    ]
    return f"""## Learned gradients

    python bench/metaquant.py --data DIR

MetaQuant beside the straight-through estimator (STE), ResNet-20, every layer 1 bit, from the float net of the zoo:
{first["epochs"]} epochs on {int(first["images"]):,} images of CIFAR-10, rate {float(first["lr"]):g}, no decay, the same for all rows. Accuracy of the last
epoch on all {int(first["test_images"]):,} test images: far from what the published 100 epochs reach. FC-Grad is the net of the paper{ours}. It
multiplies every gradient by one number, which begins at 1, so it can make up for a learning rate that is too small. The
machine had other work, so the seconds are not reliable. {machine("metaquant.csv")}.

{table(head, rows)}

{listed(findings.metaquant(found))}"""
