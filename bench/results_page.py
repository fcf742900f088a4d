"""Writes docs/results/README.md from the CSV files beside it; no number on that page is typed by hand.

python bench/results_page.py
"""

from __future__ import annotations

import ast
from typing import Any

import findings
from results_binary_peers import binary_peers
from results_circuits import circuits
from results_claims import index
from results_hybrid import hybrid
from results_kernels import kernels
from results_l_dnq import l_dnq
from results_layerwise import layerwise
from results_metaquant import metaquant
from results_recipes import recipes
from results_runtimes import runtimes
from results_selfprune import selfprune
from results_skip import lossless, skip
from results_strangers import strangers
from results_tables import FOLDER, listed, machine, number, read, table
from results_threads import threads
from results_zoo import zoo


def accuracy() -> str:
    trained = read("cifar10_accuracy.csv")
    packed = {r["row"]: r for r in read("cifar10_packed.csv")}
    rows = []
    for r in trained:
        p = packed.get(r["row"], {})
        size = f"{int(p['file_bytes']) / 1000:.1f}" if p.get("file_bytes") else "-"
        same = f"{int(p['same_class']):,} / {int(p['same_class_folded']):,}" if p.get("same_class_folded") else "-"
        rows.append(
            [
                r["row"],
                r["model"],
                r["recipe"],
                r["epochs"],
                f"{100 * float(r['accuracy']):.2f}",
                f"{100 * float(r['rarer_sign']):.1f}" if r["rarer_sign"] not in ("", "nan") else "-",
                f"{100 * float(p['accuracy_packed']):.2f}" if p.get("accuracy_packed") else "-",
                same,
                size,
                p.get("status", "-"),
            ]
        )
    head = ["row", "model", "recipe", "epochs", "test %", "rarer sign %", "packed test %"]
    return table([*head, "same class (trained / folded)", "file kB", "verdict"], rows)


def speeds() -> str:
    groups: dict[str, list[dict[str, str]]] = {}
    for r in read("speed.csv"):
        groups.setdefault(r["case"], []).append(r)
    rows = []
    for case, found in groups.items():
        ours = found[0]
        cells = [
            case,
            ours.get("kernels", ""),
            f"{number(ours['latency_ms'])} ({number(ours['latency_q1_ms'])}-{number(ours['latency_q3_ms'])})",
        ]
        for precision in ("int8", "bf16", "fp32"):
            best = next(
                (r for r in found[1:] if r["precision"] == precision and r["best_of_precision"] == "True"), None
            )
            cells.append(f"{number(best['latency_ms'])} {best['name']}, {float(best['ratio']):.2f}x" if best else "-")
        rows.append(cells)
    return table(["case", "kernels", "bitwright ms (quartiles)", "best int8", "best bf16", "best fp32"], rows)


def training() -> str:
    found = read("training.csv")
    cells = ["case", "precision", "threads", "name"]
    rows = [
        [
            *[r[c] for c in cells],
            f"{number(r['step_ms'])} ({number(r['step_q1_ms'])}-{number(r['step_q3_ms'])})",
            f"{float(r['ratio']):.2f} ({float(r['ratio_q1']):.2f}-{float(r['ratio_q3']):.2f})",
            f"{r['clock']}, load {r['load']}",
        ]
        for r in found
    ]
    return table([*cells, "step ms (quartiles)", "step / float step (quartiles)", "clock"], rows)


def slots(recipe: str) -> str:
    """A recipe by name, or what its slots hold, in words.

    >>> slots("bwn"), slots("{'w': {'part': 'kbit', 'bits': 2}, 'x': ['norm', 'sign']}")
    ('bwn', 'w kbit 2, x norm sign')
    """
    if not recipe.startswith("{"):
        return recipe

    def words(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(str(v) if key in ("part", "bits") else f"{key}={v}" for key, v in value.items())
        return " ".join(map(words, value)) if isinstance(value, list) else str(value)

    return ", ".join(f"{slot} {words(value)}" for slot, value in ast.literal_eval(recipe).items())


def methods() -> str:
    """A table per group of bench/methods.py that has rows."""
    parts = []
    for group in ("mnist", "fashion", "cifar10", "short"):
        found = read(f"methods_{group}.csv")
        rows = [
            [r["row"], r["model"], f"`{slots(r['recipe'])}`", r["epochs"], r["images"], r["seed"],
             f"{100 * float(r['accuracy']):.2f}", r["seconds"]]
            for r in found
        ]  # fmt: skip
        if rows:
            head = ["row", "model", "recipe", "epochs", "images", "seed", "test %", "s"]
            facts = machine(f"methods_{group}.csv")
            parts.append(f"    python bench/methods.py {group} --data DIR\n\n{facts}.\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def epoch_text(found: list[dict[str, str]]) -> str:
    """Why so few epochs, from the seconds of the float net.

    >>> row = {"row": "float", "epochs": "6", "images": "all", "seconds": "900"}
    >>> epoch_text([row]).strip()
    'An epoch of the float net takes 150 s here, more than 60. So 6 epochs were run instead of 10.'
    >>> epoch_text([row | {"seconds": "300"}]) + epoch_text([row | {"epochs": "10"}])
    ''
    """
    plain = next((r for r in found if r["row"] == "float" and r["images"] == "all"), None)
    if plain is None or int(plain["epochs"]) >= 10 or (each := float(plain["seconds"]) / int(plain["epochs"])) <= 60:
        return ""
    return f"An epoch of the float net takes {each:.0f} s here, more than 60. So {plain['epochs']} epochs were run instead of 10. "


def gating() -> str:
    """The section of bench/gating.py and bench/sparse_backprop.py; empty while neither has been run."""
    parts = []
    if found := read("gating.csv"):
        rows = [
            [
                r["row"], r["model"], f"{float(r['width']):.3g}", f"`{r['gate']}`" if r["gate"] else "", r["epochs"], r["images"],
                r["seed"], f"{100 * float(r['accuracy']):.2f}", million(r["macs"]), f"{float(r['mac_reduction']):.2f}",
                " / ".join(million(r[key]) for key in ("macs_p5", "macs_p50", "macs_p95")), million(r["bops"], 0),
                f"{float(r['bops_reduction']):.2f}", f"{100 * float(r['gates_on']):.1f}" if r["gates_on"] else "", r["seconds"],
            ]
            for r in found
        ]  # fmt: skip
        head = ["row", "model", "width", "slots", "epochs", "images", "seed", "test %", "M MACs an image", "fewer MACs",
                "p5 / p50 / p95", "M bit operations", "fewer bit operations", "gates on %", "s"]  # fmt: skip
        parts.append(
            f"""    python bench/gating.py --data DIR

"float" rows are nets trained from scratch with {found[0]["epochs"]} epochs of SGD. "static" rows are narrower nets with the MACs
that the gated row they name really spent: trained like a float row, then for as many epochs again like all other rows. Every other
row starts from the float net of its topology and trains it for {found[0]["epochs"]} epochs of Adam, with the parts in the column
"slots"; "dense" rows have no parts. FBS lowers its share of channels in steps within these epochs. {epoch_text(found)}"CG post-activated" has 4 splits
like "CG original"; its public script has 2. No row has the bit operations of a PG row: the static peer at equal bit operations is
a point on the straight line between the PACT rows around it, not a trained net. MACs are counted on every one of the {int(found[0]["counted_images"]):,}
test images, and include the first layer, shortcuts, the classifier and predictors. Reductions compare with the same
net with all gates open, at its own bits. A float counts 32 bits, so the first and last layer, which are float, are a large share of
the bit operations. {machine("gating.csv")}.

{table(head, rows)}

{listed(findings.gating(found))}""".rstrip()
        )
    if found := read("sparse_backprop.csv"):
        rows = [
            [
                r["case"], r["precision"], f"{100 * float(r['gates_on']):.0f}",
                *("{:.0f} ({:.0f}-{:.0f})".format(*(float(r[f"{n}_{k}ms"]) for k in ("", "q1_", "q3_"))) for n in ("sparse", "dense")),
                f"{float(r['ratio']):.2f} ({float(r['ratio_q1']):.2f}-{float(r['ratio_q3']):.2f})",
                f"{r['clock']}, load {r['load']}",
            ]
            for r in found
        ]  # fmt: skip
        head = ["case", "precision", "gates on %", "with, ms (quartiles)", "without, ms", "with / without", "clock"]
        parts.append(
            f"""    python bench/sparse_backprop.py

A training step (batch {found[0]["batch"]}) of a channel-gated ResNet-20 with sparse back-propagation, and the step without it, side
by side. {machine("sparse_backprop.csv")}.

{table(head, rows)}"""
        )
    return "\n\n".join(["## Gates", *parts]) + "\n\n" if parts else ""


def million(text: str, digits: int = 2) -> str:
    return f"{float(text) / 1e6:,.{digits}f}"


def newcomer() -> str:
    rows = [
        [
            r["net"],
            r["precision"],
            f"{100 * float(r['accuracy']):.2f}" if r["accuracy"] else "",
            f"{int(r['bytes']) / 1000:.1f}" if r["bytes"] else "",
            number(r["latency_ms"]) if r["latency_ms"] else "",
            f"{float(r['ratio']):.2f}" if r["ratio"] else "",
            r["note"],
        ]
        for r in read("newcomer_results.csv")
    ]
    return table(["net", "precision", "test %", "kB", "ms", "ms / ours", "note"], rows)


def epochs() -> str:
    rows = [
        [r["stage"], r["epoch"], *[f"{100 * float(r[k]):.1f}" for k in ("top1", "test_top1")], number(r["seconds"])]
        for r in read("newcomer_metrics.csv")
    ]
    return table(["stage", "epoch", "train %", "test %", "s"], rows)


def peers() -> str:
    packed = read("cifar10_packed.csv")
    names = ["bitwright", "ort-int8", "torch-int8", "torch-bf16", "ort-fp32", "torch-fp32"]
    return table(
        ["row", *[f"{n} ms" for n in names]], [[r["row"], *[number(r.get(f"{n}_ms")) for n in names]] for r in packed]
    )


def ceilings() -> str:
    machines = (("Intel with AMX", "ceilings.txt"), ("AMD EPYC, Zen 4", "ceilings_amd.txt"))
    lines = [line for name, file in machines for line in (f"{name}:", *(FOLDER / file).read_text().splitlines())]
    return "\n".join(f"    {line}" for line in lines)


def disagreements() -> str:
    rows = read("cifar10_disagreements.csv")
    if not rows:
        return "None."
    return table(list(rows[0]), [list(r.values()) for r in rows])


def page() -> str:
    trained = read("cifar10_accuracy.csv")
    cpu = trained[0]["cpu"] if trained else ""
    return f"""# Results

Written by `python bench/results_page.py` from the CSV files in this folder; no number here is typed by hand.

{index()}{zoo()}## Short trainings: CIFAR-10, all 50,000 training images

    python bench/cifar10.py train --data DIR      # DIR holds cifar-10-batches-py
    python bench/cifar10.py measure --data DIR

Test accuracy of the last epoch, one seed, few epochs: this checks that the cycle works; it does not show what the methods can reach.
Students start from the float net of their topology. "Rarer sign" is the share of the rarer sign among a binary layer's
inputs, at the layer where it is smallest. "Same class" counts images out of 10,000 on which the packed net gives the class of
the trained net as it runs in float32, and of the folded net (BatchNorm merged), whose arithmetic the packed net follows bit
for bit. Trained on {cpu}, one thread, bf16 autocast; torch {trained[0]["torch"] if trained else ""}.

{accuracy()}

Batch 1, one thread, medians of one interleaved run per row; the peers are the float net of the same topology:

{peers()}

Images whose class differs from the trained net's, with the margin between its two best outputs:

{disagreements()}

## Quantizers from one float net

Rows of one topology start from the same float net of their seed; accuracy of the last epoch on all test images.

{methods()}

{hybrid()}{gating()}{selfprune()}{layerwise()}{l_dnq()}{metaquant()}## A shipped experiment, as README tells it

    python bench/newcomer.py --data DIR

`cifar10-bireal_resnet20-bireal` with six epochs a stage, one seed, one thread, on a machine shared with other work, so the
times of the epochs vary. The training was killed once from outside and resumed. Speeds: batch 1, medians of one interleaved run.

{newcomer()}

{epochs()}

## Speed

    python bench/speed.py

Batch 1 and one thread unless stated otherwise; median (quartiles) of interleaved rounds. Ratios are peer / ours: above 1 we are
faster than the peer, below 1 slower. {machine()}.

{speeds()}

{recipes()}{strangers()}{binary_peers()}{runtimes()}{kernels()}{threads()}{skip()}{lossless()}{circuits()}## Training steps

    python bench/training.py

Forward, loss, backward and optimizer at batch 128, channels_last, of a low-bit net and of the float net of the same topology
with its activations (the low-bit net keeps the hardtanh). w1a1 adds a norm before each sign: "float + norms" has them too.
"plain torch" is the low-bit net without the native training kernels. The nets take turns; the ratio is the median over rounds.
{machine("training.csv")}.

{training()}

## What this CPU allows

    g++ -O2 -march=native bench/ceilings.cpp -o ceilings && ./ceilings

{ceilings()}

Products per second of one thread on registers, median of 9. Where int8 has matrix tiles (AMX), its peak throughput lies above that
of counting bits, so no 1-bit kernel can be four times as fast as a good int8 convolution there; ours then runs on the tiles too.
Without AMX, compare the first line with the second.
"""


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
