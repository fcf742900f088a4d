"""The section of bench/selfprune.py and bench/sparsity.py in docs/results/README.md."""

from __future__ import annotations

import findings
from results_chart import chart
from results_tables import listed, machine, number, percent, read, table

LINEAR = [i / 2 for i in range(9)]  # weight values of a picture: at equal distances
RANKED = (1.0, 4.0, 10.0, 100.0)
MODES = ("running", "recalibrate", "batch")


def selfprune() -> str:
    """Empty while there are no rows."""
    parts = [part for part in (trained(), speed()) if part]
    return "\n\n".join(["## Nets that prune themselves", *parts]) + "\n\n" if parts else ""


def trained() -> str:
    found = read("selfprune.csv")
    if not found:
        return ""
    rows = [
        [
            r["row"], f"`{r['experiment']}`", r["epochs"], r["images"], r["seed"], percent(r["accuracy"]),
            percent(r["accuracy_recalibrated"]), f"{int(r['weights']) / 1e6:.2f}" if r["weights"] else "-",
            percent(r["on_share"]), f"{int(r['live_units']):,} of {int(r['hidden_units']):,}" if r["live_units"] else "-",
            f"{int(r['file_bytes']) / 1000:,.0f}" if r["file_bytes"] else "-", r["verdict"], r["seconds"],
        ]
        for r in found
    ]  # fmt: skip
    head = ["row", "experiment", "epochs", "images", "seed", "test %", "recalibrated %", "M weights", "on %", "live hidden units",
            "file kB", "verdict", "s"]  # fmt: skip
    epochs, swept = read("selfprune_epochs.csv"), read("selfprune_sweep.csv")
    return f"""    python bench/selfprune.py --data DIR

784-4000x3-10 on 1-bit pixels (`--epochs` and `--rows` for rows with another number of epochs). Accuracy of the last epoch on all test images with running statistics, and with
statistics estimated anew from 10,000 training images. Float nets count four bytes a weight. {machine("selfprune.csv")}.

{table(head, rows)}

{listed(findings.selfprune(found, swept))}{by_epoch(epochs)}

{over_values(swept)}"""


def by_epoch(found: list[dict[str, str]]) -> str:
    """Accuracy and the share of weights on: a table, and a curve for each net that has shares."""
    cells: dict[str, dict[int, str]] = {}
    curves: dict[str, list[tuple[float, str]]] = {}
    for r in found:
        share = percent(r["on_share"]) if r["on_share"] else ""
        cells.setdefault(r["row"], {})[int(r["epoch"])] = percent(r["accuracy"], 1) + (f" ({share})" if share else "")
        if share:
            curves.setdefault(r["row"], []).append((100 * float(r["on_share"]), percent(r["accuracy"], 1)))
    last = max(max(points) for points in cells.values())
    rows = [[n, *(points.get(n, "") for points in cells.values())] for n in range(1, last + 1)]
    pictures = [
        f"{name}, one point per epoch, the first on the left:\n\n"
        + chart(
            f"selfprune-epochs-{name.replace(' ', '-')}",
            f"{name}: test accuracy after each epoch",
            "weights on, %",
            apart([share for share, _ in points]),
            {name: [float(y) for _, y in points]},
        )
        for name, points in curves.items()
    ]
    text = f"After each epoch, test % (share of weights on, %):\n\n{table(['epoch', *cells], rows)}"
    return "\n\n".join([text, *pictures])


def apart(values: list[float]) -> list[str]:
    """As texts with enough decimals, 2 to 6, to be different: a chart treats equal labels as one place.

    >>> apart([0.5, 0.25]), apart([0.4811, 0.4842])
    (['0.50', '0.25'], ['0.481', '0.484'])
    """
    for decimals in range(2, 6):
        texts = [f"{v:.{decimals}f}" for v in values]
        if len(set(texts)) == len(values):
            return texts
    return [f"{v:.6f}" for v in values]


def over_values(found: list[dict[str, str]]) -> str:
    """The sweep: a table of all values, a picture per net, and what ranking and the circuit say."""
    swept: dict[str, dict[str, dict[float, dict[str, str]]]] = {}
    for r in found:
        swept.setdefault(r["row"], {}).setdefault(r["norm"], {})[float(r["on"])] = r
    values = sorted({float(r["on"]) for r in found})
    right = table(
        ["row", "statistics", *(f"{v:g}" for v in values)],
        [
            [name, mode, *(percent(points[v]["accuracy"], 1) if v in points else "" for v in values)]
            for name, modes in swept.items()
            for mode, points in modes.items()
        ],
    )
    pictures = [
        f"{name}, by statistics of the norms:\n\n"
        + chart(
            f"selfprune-sweep-{name.replace(' ', '-')}", f"{name}: test accuracy over the value of the weights",
            "value of all weights that are on", [f"{v:g}" for v in LINEAR],
            {m: [100 * float(modes[m][v]["accuracy"]) for v in LINEAR] for m in MODES if m in modes},
        )
        for name, modes in swept.items()
        if all(v in points for points in modes.values() for v in LINEAR)
    ]  # fmt: skip
    ranked = table(
        ["row", "statistics", *(f"ranked, {v:g}" for v in RANKED), *(f"circuit, {v:g}" for v in RANKED), "two-valued %"],
        [
            [
                name, mode, *(percent(points[v]["preactivation"], 1) for v in RANKED),
                *(percent(points[v]["agreement"], 1) for v in RANKED), percent(points[RANKED[-1]]["digital"], 1),
            ]
            for name, modes in swept.items()
            for mode, points in modes.items()
        ],
    )  # fmt: skip
    return "\n\n".join(
        [
            f"Test % when all weights that are on take one value; the net was trained at 1:\n\n{right}",
            *pictures,
            'The same ranked by what the last layer computes, before tanh and norm ("ranked"), and the share of images that get the '
            f'class of the circuit at 100 ("circuit"); "two-valued": hidden activations that take at most two values there.\n\n{ranked}',
        ]
    )


def speed() -> str:
    """bench/sparsity.py: how much time the zeros of 0/1 weights save."""
    found = read("sparsity.csv")
    if not found:
        return ""
    columns = {
        "float": "float",
        "csr": "sparse CSR",
        "bits": "1-bit weights and inputs",
        "weights": "1-bit weights, float inputs",
    }
    rows = [
        [
            r["layer"], percent(r["on_share"]), r["batch"],
            *(f"{number(r[f'{k}_ms'])} ({number(r[f'{k}_q1_ms'])}-{number(r[f'{k}_q3_ms'])})" if r[f"{k}_ms"] else "-" for k in columns),
            *(f"{float(r['float_ms']) / float(r[f'{k}_ms']):.2f}" if r[f"{k}_ms"] else "-" for k in ("csr", "bits", "weights")),
        ]
        for r in found
    ]  # fmt: skip
    head = ["layer", "on %", "batch", *(f"{name}, ms (quartiles)" for name in columns.values()), "float / CSR", "float / bits",
            "float / 1-bit weights"]  # fmt: skip
    return f"""    python bench/sparsity.py

A layer of 0/1 weights with a share of them on, side by side on {found[0]["threads"]} thread: dense in float32, the connections alone
as torch's sparse CSR, and packed. {machine("sparsity.csv")}.

{table(head, rows)}

{listed(findings.sparsity(found))}{nets()}{masks()}""".rstrip()


def nets() -> str:
    """Whole nets, where they were measured."""
    found, other = read("sparsity_nets.csv"), read("sparsity_avx2_nets.csv")
    if not found:
        return ""
    more = f"""

The same on a CPU without AVX-512 (`--out ../docs/results/sparsity_avx2.csv`), {machine("sparsity_avx2_nets.csv")}:

{net_table(other)}"""
    return f"""Whole nets 784-4000x3-10, with as many live units and weights on as the net trained on MNIST above, which ones at random. Packed nets
leave out units that nothing reads or that never change; layers of one bit count many images at once by lists of their
connections, float layers multiply theirs alone (from one weight in 5 down). "No zero skipped": `BITWRIGHT_ZEROS=0`, the same answers.
{machine("sparsity_nets.csv")}.

{net_table(found)}{more if other else ""}"""


def masks() -> str:
    """bench/sparsity_masks.py: layers behind masks."""
    found = read("sparsity_masks.csv")
    if not found:
        return ""
    shares = list(dict.fromkeys(r["zeros"] for r in found))
    places = dict.fromkeys((r["layer"], r["batch"], r["kind"]) for r in found)
    of = {(r["layer"], r["batch"], r["kind"], r["zeros"]): r for r in found}
    rows = []
    for place in places:
        here = {s: of[*place, s] for s in shares if (*place, s) in of}
        cells = [
            f"{r['dense_over_packed']}{' list' if is_list(r) else ''} ({r['dense_over_list']})"
            if (r := here.get(s))
            else "-"
            for s in shares
        ]
        rows.append([place[0], place[2], place[1], number(next(iter(here.values()))["dense_ms"]), *cells])
    head = ["layer", "kind", "batch", "dense, ms", *(s if ":" in s else f"{float(s):.0%} zeros" for s in shares)]
    return f"""

    python bench/sparsity_masks.py

Layers pruned by `magnitude`: how many times as fast as the same layer run densely. "list": the layer runs on the weights that are left.
In brackets: a list in float32, whether it pays or not. {machine("sparsity_masks.csv")}.

{table(head, rows)}

{listed(findings.masks(found))}"""


def is_list(r: dict[str, str]) -> bool:
    dense_at_few_rows = r["batch"] == "1" and float(r["zero_share"]) < 0.875
    few = "rows on" in r["way"] and int(r["batch"]) < 16  # of codes
    return "the others" in r["way"] and not (few or dense_at_few_rows)


def net_table(found: list[dict[str, str]]) -> str:
    kinds = {"float": "float", "csr": "sparse CSR", "dense": "packed, no zero skipped", "packed": "packed"}
    rows = [
        [
            {"step": "steps, all layers at one bit", "tanh": "tanh, hidden values are floats"}[r["net"]], r["batch"],
            *(f"{number(r[f'{k}_ms'])} ({number(r[f'{k}_q1_ms'])}-{number(r[f'{k}_q3_ms'])})" for k in kinds),
            *(f"{float(r[f'{k}_ms']) / float(r['packed_ms']):.1f}" for k in ("float", "csr", "dense")),
        ]
        for r in found
    ]  # fmt: skip
    head = [
        "net",
        "batch",
        *(f"{name}, ms (quartiles)" for name in kinds.values()),
        "float / packed",
        "CSR / packed",
        "dense / packed",
    ]
    return table(head, rows)
