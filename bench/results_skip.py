"""The sections of bench/skip.py and bench/lossless.py in docs/results/README.md."""

from __future__ import annotations

from results_tables import listed, machine, number, percent, read, table

Row = dict[str, str]
DENSE = ("torch", "bytes", "bits")


def best(row: Row) -> str:
    """The fastest dense twin."""
    return min((d for d in DENSE if row[f"{d}_ms"]), key=lambda d: float(row[f"{d}_ms"]))


def findings(rows: list[Row]) -> list[str]:
    """Up to which share of outputs that are on a gate saves time, against the fastest dense twin.

    >>> row = {"gate": "g", "torch_ms": "", "bytes_ms": "1", "bits_ms": "", "bytes_over_skip": "1.5", "on_share": "0.1"}
    >>> findings([row, {**row, "on_share": "0.2", "bytes_over_skip": "0.9"}])
    ['g: faster than its fastest dense twin in every layer up to 10 % on, in some up to 10 %.']
    >>> findings([row, {**row, "bytes_over_skip": "0.9"}])
    ['g: faster than its fastest dense twin in some layers up to 10 % on.']
    >>> findings([{**row, "bytes_over_skip": "0.9"}])
    ['g: slower than its fastest dense twin in every layer, at every share.']
    """
    texts = []
    for gate in dict.fromkeys(r["gate"] for r in rows):
        gains: dict[str, list[float]] = {}
        for r in rows:
            if r["gate"] == gate:
                gains.setdefault(r["on_share"], []).append(float(r[f"{best(r)}_over_skip"]))
        some = [s for s, found in gains.items() if max(found) > 1]
        every = [s for s, found in gains.items() if min(found) > 1]
        if every:
            says = f"faster than its fastest dense twin in every layer up to {share(every[-1])} on, in some up to {share(some[-1])}"
        elif some:
            says = f"faster than its fastest dense twin in some layers up to {share(some[-1])} on"
        else:
            says = "slower than its fastest dense twin in every layer, at every share"
        texts.append(f"{gate}: {says}.")
    return texts


def share(text: str) -> str:
    return f"{100 * float(text):.0f} %"


def twins(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of layers."""
    shares = list(dict.fromkeys(r["on_share"] for r in found))
    rows: list[list[str]] = []
    for gate, layer in dict.fromkeys((r["gate"], r["layer"]) for r in found):
        mine = {r["on_share"]: r for r in found if (r["gate"], r["layer"]) == (gate, layer)}
        first = next(iter(mine.values()))
        twin = best(first)
        bits = f"{number(mine['0.3']['bits_over_skip'])}x" if first["bits_ms"] else "-"
        rows.append([gate, layer, f"{twin} {number(first[f'{twin}_ms'])}", number(first["high bits_ms"]),
                     *(f"{number(mine[s][f'{twin}_over_skip'])}x" for s in shares), bits])  # fmt: skip
    head = ["gate", "layer, 3x3", "fastest dense twin, ms", "high bits as planes, ms", *(f"{share(s)} on" for s in shares),
            "over bits, 30 % on"]  # fmt: skip
    return head, rows


def skip() -> str:
    """Nothing where it was not measured."""
    found = read("skip.csv")
    if not found:
        return ""
    head, rows = twins(found)
    return f"""## Gates that skip, layer by layer

    python bench/skip.py

One image, CPU time, in turn: dense time over the time of the layer that skips, by the share of outputs that get the rest (independent
decisions, the worst case). Channel gates have four splits; in "8/4" the 4 high bits of 8 decide. Dense twins are the same layer without
a gate: "torch" float32 in channels_last, "bytes" and "bits" our kernels for codes. {machine("skip.csv")}.

{table(head, rows)}

{listed(findings(found))}

Why precision gates of codes hardly gain: one instruction multiplies 64 codes with 64 weights and adds them, whatever the number of bits. So the
base, all products with the high bits, costs as much as the whole layer, and the rest comes on top. Two things make the base cheaper.
Winograd's form takes high bits and weights of few bits with 16 products for 36: the layers of 128 and 256 channels with "w2" and "w1" above. Bit
planes cost one pass per pair of planes: 2 high bits with 1-bit weights are 2 pairs and cheaper than the bytes, 4 with 2-bit weights are 8 and
dearer ("high bits as planes"). Even so the base and its list take three quarters of the dense time, and the rest, dot products for single outputs,
runs at about two thirds of the rate of the dense kernel: at 30 % on that is nearly another half. A packed layer has to compute the gate's own
values, so its dense way is both sums, about twice the time of the twin above; against that, skipping pays up to about half of the outputs on, a quarter where Winograd's form
takes the whole code.{avx2()}

"""


def avx2() -> str:
    """The same on a CPU without AVX-512, and gates of whole nets there; nothing where it was not measured."""
    found, nets = read("skip_avx2.csv"), read("gates_avx2.csv")
    if not found or not nets:
        return ""
    head, rows = twins(found)
    made = [
        [r["row"] + (f", in blocks of {r['block']}" if r["block"] == "16" else ""), r["keep"],
         *(f"{r[f'over_{k}']} ({r[f'over_{k}_q1']}-{r[f'over_{k}_q3']})" if r[f"over_{k}"] else "" for k in ("dense", "torch"))]
        for r in sorted(nets, key=lambda r: not r["row"].startswith("conv"))
        if r["live"] in ("", "0.5")
    ]  # fmt: skip
    return f"""

#### Gates on a CPU without AVX-512

    python bench/skip.py --out ../docs/results/skip_avx2.csv
    python bench/gates.py --out ../docs/results/gates_avx2.csv

The same by the kernels for AVX2 ({machine("skip_avx2.csv")}; a shared and noisy machine: compare the ratios):

{table(head, rows)}

{listed(findings(found))}Layers against their own dense way (`fbs`: the same kernel, everything on, behind a layer with such a gate; else both sums of every output, of which
the gate takes one; a packed net runs the way that is predicted, or measured by `explain(measure=True)`, to be faster) and nets against the same
nets without gates, packed; both also against torch in float32, channels_last. Median and quartiles:

{table(["layer or net", "share on", "dense / gated", "torch / gated"], made)}

{why(found)}"""


def why(found: list[Row]) -> str:
    """What bounds gates of codes there, from the rows themselves."""

    def parts(gate: str, layer: str, share: str) -> tuple[float, float, float]:
        """(share of the fastest dense twin's time for what does not depend on the outputs that are on, for each that is, at this share)."""
        mine = {r["on_share"]: r for r in found if (r["gate"], r["layer"]) == (gate, layer)}
        low, high = mine["0.1"], mine["0.7"]
        twin = float(low[f"{best(low)}_ms"])
        slope = (float(high["skip_ms"]) - float(low["skip_ms"])) / (float(high["on_really"]) - float(low["on_really"]))
        fixed = float(low["skip_ms"]) - slope * float(low["on_really"])
        return fixed / twin, slope / twin, float(share)

    texts = []
    for gate, share in (("channel gate, w8a8", "0.2"), ("precision gate 8/4, w2", "0.3")):
        fixed, slope, at = parts(gate, "128x28x28", share)
        texts.append(
            f"{gate}, 128x28x28: base, decisions and lists take {fixed:.2f} of the dense twin's time, all of the rest would take {slope:.2f}; "
            f"with {at:.0%} on that is {fixed + at * slope:.2f}, so {1 / (fixed + at * slope):.2f} times as fast."
        )
    return f"""Why gates of codes do not win against a layer without a gate: it runs by Winograd's F(4x4, 3x3), 2.25 products for 9, which a product of
single outputs cannot have, and a base that reads all inputs is no cheaper than the whole layer. From the table, lines through 10 and 70 % on:

{listed(texts)}""".rstrip()


def lossless() -> str:
    """Nothing where it was not measured."""
    found = read("lossless.csv")
    if not found:
        return ""
    keys = ("read_mean", "read_p5", "read_p50", "decided_at_half")
    rows = [[r["net"], r["layer"], r["inputs"], r["chunk"], *(percent(r[k], 1) for k in keys)] for r in found]
    head = [
        "net",
        "layer",
        "inputs",
        "chunk",
        "read %, mean",
        "read %, 5th percentile",
        "read %, median",
        "decided after half %",
    ]
    return f"""### A gate that never changes an answer

    python bench/lossless.py

A bit, sum >= threshold, is decided as soon as what is left cannot move the sum across the threshold. How much of its inputs an output
reads until then, looked at after every chunk of inputs (a word of bits holds 32):

{table(head, rows)}

Signs are decided at the very end: a sum of K signs is about the square root of K large, and what is left must be smaller than that. So
there is no such gate here. Steps over 0/1 weights are decided earlier, because few weights are on: there the lists of connections, which
packed layers use, save more.

"""
