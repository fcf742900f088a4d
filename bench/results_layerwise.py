"""The section of bench/layerwise.py in docs/results/README.md."""

from __future__ import annotations

from results_tables import machine, read, table

CASES = {
    "lenet300 mnist": "LeNet-300-100 on MNIST, 10,240 training images",
    "resnet20 cifar10": "ResNet-20 on CIFAR-10, 512 training images",
}


def layerwise() -> str:
    """Empty while there are no rows."""
    found = read("layerwise.csv")
    if not found:
        return ""
    parts = []
    for case, title in CASES.items():
        rows = [
            [r["method"], f"{100 * float(r['kept']):.0f} %", r["dense"], r["after"], r["lost"], r["cpu_seconds"]]
            for r in found
            if r["case"] == case
        ]
        if rows:
            head = [title, "weights kept", "test % before", "test % after", "points lost", "CPU s"]
            parts.append(table(head, rows))
    speed = [
        [r["method"], r["images"], r["seconds"], r["cpu_seconds"], r["peak_mb"]] for r in found if r["case"] == "speed"
    ]
    if speed:
        parts.append(table(["random weights, all layers", "images", "s", "CPU s", "peak MB above the start"], speed))
    tables = "\n\n".join(parts)
    return f"""## Compression without retraining

    python bench/layerwise.py

No label is read and nothing is trained after the procedure; batch norms keep their statistics, unless a row says otherwise. One net each, one seed. CPU seconds are
those of the process, all threads together; wall seconds were measured while other work ran (column `load` of the CSV). {machine("layerwise.csv")}.

{tables}

"""
