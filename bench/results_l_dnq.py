"""The section of bench/l_dnq.py in docs/results/README.md."""

from __future__ import annotations

from results_tables import listed, machine, percent, read, table


def l_dnq() -> str:
    """Empty while there are no rows."""
    found = read("l_dnq.csv")
    if not found:
        return ""
    rows = [
        [
            r["row"], f"`{r['options']}`" if r["options"] else "", percent(r["accuracy"]), r["worst_layer"],
            f"{int(r['file_bytes']) / 1000:,.1f}" if r["file_bytes"] else "", r["verdict"], r["seconds"],
        ]
        for r in found
    ]  # fmt: skip
    head = ["row", "options", "test %", "worst layer, relative E", "file kB", "verdict", "s"]
    images, tests = found[0]["images"], int(found[0]["test_images"])
    return f"""## A few levels from {images} unlabeled images

    python bench/l_dnq.py --data DIR

The zoo's float ResNet-20 on CIFAR-10 with all layers on the levels, also the first and the last. No label is read, and the net is not
trained afterwards. Accuracy on {tests:,} test images, one seed. "rounded" takes the nearest levels and does nothing else. "without H"
is the whole method, but with rounding that ignores the inputs of a layer; "layers alone" leaves out the cascade, in which layers
that are still float learn the float net's answers. Float nets count four bytes a weight. {machine("l_dnq.csv")}.

{table(head, rows)}

{listed(sentences(found))}"""


def sentences(found: list[dict[str, str]]) -> list[str]:
    """What the rows say, as far as they exist.

    >>> rows = [{"row": "float", "accuracy": "0.91"}, {"row": "ternary", "accuracy": "0.87"}, {"row": "ternary rounded", "accuracy": "0.1"}]
    >>> sentences(rows)
    ['ternary: 4.0 points below the float net; 77.0 points above ternary rounded.']
    """
    share = {r["row"]: 100 * float(r["accuracy"]) for r in found}
    out = []
    for name in ("ternary", "ternary layers alone", "pow2:7", "pow2:7 layers alone"):
        if name not in share or "float" not in share:
            continue
        levels = name.split(" ")[0]
        same = f"{levels} without H" + (", layers alone" if "alone" in name else "")
        against = [
            f"{share[name] - share[other]:.1f} points above {other}"
            for other in (f"{levels} rounded", same)
            if other in share
        ]
        out.append(
            "; ".join([f"{name}: {share['float'] - share[name]:.1f} points below the float net", *against]) + "."
        )
    return out
