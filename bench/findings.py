"""What rows of results say, in sentences. They are computed from the rows, so that no sentence is older than its figures.

python -m doctest bench/findings.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

Rows = list[dict[str, str]]
NET_BITS = 1e6  # bit operations are given in millions


def points(row: dict[str, str]) -> float:
    return 100 * float(row["accuracy"])


def beside(difference: float) -> str:
    """
    >>> beside(1.234), beside(-0.5), beside(0.001)
    ('1.23 points above', '0.50 points below', 'level with')
    """
    if round(abs(difference), 2) == 0:
        return "level with"
    return f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'}"


def line(low: tuple[float, float], high: tuple[float, float], at: float) -> float:
    """The straight line through two points.

    >>> line((1, 80), (3, 90), 2)
    85.0
    """
    return low[1] + (high[1] - low[1]) * (at - low[0]) / (high[0] - low[0])


# -- gates ----------------------------------------------------------------------------------------------------------------
def gating(found: Rows) -> list[str]:
    rows = {r["row"]: r for r in found if r["seed"] == "0"}
    return [*_fbs(rows), *_channel(rows), *_precision(rows)]


def _fbs(rows: dict[str, dict[str, str]]) -> Iterator[str]:
    dense = rows.get("dense")
    for name, r in rows.items():
        if name.startswith("FBS") and dense:
            yield (
                f"{name}: {float(r['mac_reduction']):.2f} times fewer MACs, {beside(points(r) - points(dense))} the dense net "
                "that was trained further in the same way."
            )


def _channel(rows: dict[str, dict[str, str]]) -> Iterator[str]:
    for name, r in rows.items():
        static = rows.get(f"static of {name}")
        dense = rows.get("dense post-activated" if "post" in name else "dense")
        if name.startswith("CG") and static and dense:
            yield (
                f"{name}: {float(r['mac_reduction']):.2f} times fewer MACs, {beside(points(r) - points(dense))} its dense net, "
                f"{beside(points(r) - points(static))} a narrower net of {int(static['macs']) / 1e6:.2f} M MACs "
                f"(it has {int(r['macs']) / 1e6:.2f} M)."
            )


def _precision(rows: dict[str, dict[str, str]]) -> Iterator[str]:
    """Compared with PACT at the same bits, and with the line through the PACT nets of fewer and more bit operations."""
    static = sorted((int(r["bops"]) / NET_BITS, points(r), name) for name, r in rows.items() if name.startswith("PACT"))
    for name, r in rows.items():
        peer = rows.get(f"PACT {name[3]}") if name.startswith("PG") else None
        if peer is None:
            continue
        bops = int(r["bops"]) / NET_BITS
        text = (
            f"{name}: {float(r['bops_reduction']):.2f} times fewer bit operations and {beside(points(r) - points(peer))} "
            f"{peer['row']}"
        )
        plain = rows.get(f"uniform {name[3]}")
        if plain:
            text += (
                f", {beside(points(r) - points(plain))} {plain['row']}, which has {int(plain['bops']) / NET_BITS:,.0f} M "
                "(it has no bit plane for the sign of weights)"
            )
        low = max((s for s in static if s[0] <= bops), default=None)
        high = min((s for s in static if s[0] > bops), default=None)
        if low and high:
            there = line(low[:2], high[:2], bops)
            text += (
                f"; on the line from {low[2]} ({low[1]:.2f} % at {low[0]:,.0f} M) to {high[2]} ({high[1]:.2f} % at "
                f"{high[0]:,.0f} M) a static net of its {bops:,.0f} M would have {there:.2f} %, and it is "
                f"{beside(points(r) - there)} that"
            )
        yield text + "."


# -- which layers get more bits -------------------------------------------------------------------------------------------
def hybrid(found: Rows) -> list[str]:
    rows = {r["row"]: r for r in found if r["seed"] == "0"}
    low, high, chosen = (rows.get(name) for name in ("1/1", "2/2", "hybrid 2/2"))
    if low is None or high is None or chosen is None:
        return []
    gap, texts = points(high) - points(low), []
    bits = [float(r["storage_bytes"]) for r in (low, chosen, high)]
    extra = (bits[1] - bits[0]) / (bits[2] - bits[0])
    if gap > 0:
        share = (points(chosen) - points(low)) / gap
        texts.append(
            f"All layers at two bits are {gap:.2f} points above all at one. The PCA choice recovers {100 * share:.0f} % of that "
            f"with {100 * extra:.0f} % of the extra bits (weights, scales and norms counted)."
        )
    else:
        texts.append(f"All layers at two bits are {beside(gap)} all at one: there is nothing to recover.")
    others = sorted(points(r) for name, r in rows.items() if name.startswith("random"))
    if others:
        texts.append(
            f"{len(others)} random choices with equally many extra bits have {' / '.join(f'{p:.2f}' for p in others)} %, the PCA choice "
            f"{points(chosen):.2f} %: {_against(points(chosen), others)}"
        )
        work = sorted(int(r["bops"]) / NET_BITS for name, r in rows.items() if name.startswith("random"))
        texts.append(
            f"Equal weight bits do not mean equal work: {int(chosen['bops']) / NET_BITS:,.0f} M bit operations for the PCA choice, "
            f"{work[0]:,.0f} to {work[-1]:,.0f} M for the random ones."
        )
        times = sorted(float(r["ms"]) for name, r in rows.items() if name.startswith("random") and r["ms"])
        if times and chosen["ms"]:
            texts[-1] += (
                f" The packed nets take {times[0] / float(chosen['ms']):.2f} to {times[-1] / float(chosen['ms']):.2f} times the time of "
                "the PCA choice, measured."
            )
    return texts


def _against(chosen: float, others: list[float]) -> str:
    """
    >>> _against(55.0, [48.0, 49.0])
    '6.00 points above the best of them.'
    >>> _against(49.5, [48.0, 49.0])
    '0.50 points above the best of them, less than they differ among themselves: random choices match PCA here.'
    >>> _against(48.5, [48.0, 49.0])
    'it lies among them: random choices match PCA here.'
    >>> _against(40.0, [48.0, 49.0])
    '8.00 points below the worst of them: random choices beat PCA here.'
    """
    match, spread = "random choices match PCA here.", others[-1] - others[0]
    close = f", less than they differ among themselves: {match}"
    if others[0] <= chosen <= others[-1]:
        return f"it lies among them: {match}"
    if chosen > others[-1]:
        gap = chosen - others[-1]
        return f"{beside(gap)} the best of them" + ("." if gap >= spread else close)
    gap = others[0] - chosen
    return f"{beside(-gap)} the worst of them" + (": random choices beat PCA here." if gap >= spread else close)


# -- nets that prune themselves -------------------------------------------------------------------------------------------
ASKED = {"mnist": 88.0, "fashion": 76.0}  # test % with over 99 % of the weights off, after 15 epochs


def selfprune(found: Rows, swept: Rows) -> list[str]:
    rows = {r["row"]: r for r in found if r["seed"] == "0"}
    return [_pruned(name, r, rows, swept) for name, r in rows.items() if r["on_share"]]


def _pruned(name: str, r: dict[str, str], rows: dict[str, dict[str, str]], swept: Rows) -> str:
    off = 100 * (1 - float(r["on_share"]))
    text = (
        f"{name}, {r['epochs']} epochs: {points(r):.2f} % with running, {100 * float(r['accuracy_recalibrated']):.2f} % with estimated statistics, "
        f"{off:.2f} % of the weights off"
    )
    if name in ASKED:
        met = points(r) >= ASKED[name] and off > 99
        text += (
            f" ({ASKED[name]:g} % with over 99 % off were asked: {'met' if met else 'not met'} with running statistics)"
        )
    peer = rows.get(f"{name.split()[0]} float")
    if peer:
        text += f"; {beside(points(r) - points(peer))} the float MLP on the same pixels"
        text += "" if peer["epochs"] == r["epochs"] else f" after {peer['epochs']} epochs"
    held = {
        mode: [
            float(s["accuracy"]) for s in swept if s["row"] == name and s["norm"] == mode and 0.5 <= float(s["on"]) <= 4
        ]
        for mode in ("running", "recalibrate", "batch")
    }
    if all(held.values()):
        spans = "; ".join(f"{mode} {100 * min(v):.1f} to {100 * max(v):.1f} %" for mode, v in held.items())
        text += f". Over weight values from 0.5 to 4: {spans}"
    return text + "."


def sparsity(found: Rows) -> list[str]:
    """Where zeros save time: compared with the dense float layer, and with packed bits."""
    kinds = {"csr": "sparse CSR", "bits": "1-bit weights and inputs", "weights": "1-bit weights with float inputs"}
    texts = []
    for batch in dict.fromkeys(r["batch"] for r in found):
        here = [r for r in found if r["batch"] == batch]
        for kind, name in kinds.items():
            gains = [float(r["float_ms"]) / float(r[f"{kind}_ms"]) for r in here if r[f"{kind}_ms"]]
            if gains:
                texts.append(
                    f"Batch {batch}: {name}, {min(gains):.2f} to {max(gains):.2f} times as fast as dense float32, by layer and share."
                )
        both = [float(r["bits_ms"]) / float(r["csr_ms"]) for r in here if r["bits_ms"] and r["csr_ms"]]
        if both:
            texts.append(
                f"Batch {batch}: the connections alone (CSR) take {1 / max(both):.2f} to {1 / min(both):.2f} times as long as bits do."
            )
    return texts


def masks(found: Rows) -> list[str]:
    """From which share of zeros on a list of the weights that are left pays, by kind of layer."""
    texts = []
    for kind in dict.fromkeys(r["kind"] for r in found):
        for form in ("linear", "convolution"):
            here = [r for r in found if r["kind"] == kind and r["layer"].startswith("conv") == (form == "convolution")]
            pays = [
                share
                for share in sorted({r["zeros"] for r in here if ":" not in r["zeros"]}, key=float)
                if all(float(r["dense_over_list"]) > 1 for r in here if r["zeros"] == share)
            ]
            text = (
                f"from {float(pays[0]):.0%} zeros on" if pays else "at none of these shares for every layer and batch"
            )
            halves = [float(r["dense_over_list"]) for r in here if r["zeros"] == "2:4"]
            if halves:
                text += f"; at 2:4 the dense run takes {min(halves):.2f} to {max(halves):.2f} of its time"
                texts.append(f"{kind}, {form}: a list in float32 is faster than the dense run {text}.")
    return texts


# -- learned gradients ------------------------------------------------------------------------------------------------------
def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation, None of a single value.

    >>> mean_and_spread([1.0, 2.0, 3.0]), mean_and_spread([5.0])
    ((2.0, 1.0), (5.0, None))
    """
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def metaquant(found: Rows) -> list[str]:
    """Each learned gradient compared with the straight-through estimator, over the seeds that both have."""
    sentences = []
    for optimizer in dict.fromkeys(r["optimizer"] for r in found):
        own = {(r["gradient"], r["seed"]): points(r) for r in found if r["optimizer"] == optimizer}
        for gradient in dict.fromkeys(g for g, _ in own if g != "STE"):
            gaps = [own[gradient, s] - own["STE", s] for g, s in own if g == "STE" and (gradient, s) in own]
            if gaps:
                mean, _ = mean_and_spread(gaps)
                sentences.append(
                    f"{optimizer.upper() if optimizer == 'sgd' else optimizer.capitalize()}: {gradient} is {beside(mean)} the "
                    f"straight-through estimator ({min(gaps):+.2f} to {max(gaps):+.2f} over {len(gaps)} seed{'s' * (len(gaps) > 1)})."
                )
    return sentences
