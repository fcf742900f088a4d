"""What sweeps say, in sentences: what does not depend on the weight value, and what only appears not to."""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.analysis.sweep_result import WeightSweep
from bitwright.numbers import percent

SPAN = (0.5, 4.0)  # weight values over which invariance is claimed; at 0 every net is constant
FLAT = 0.02
FROM = {
    "running": "With the statistics of training",
    "recalibrate": "With statistics estimated again for each value",
    "batch": "With the statistics of each test batch",
}


def spread(sweep: WeightSweep) -> tuple[float, float] | None:
    """(least, largest) accuracy over `SPAN`; None with fewer than two values there.

    >>> from bitwright.analysis.sweep_result import SweepPoint
    >>> spread(WeightSweep("running", 10, (SweepPoint(0, 1, 1, 1), SweepPoint(1, 9, 9, 9), SweepPoint(4, 5, 8, 8))))
    (0.5, 0.9)
    """
    inside = [share for value, share in sweep.accuracy.items() if SPAN[0] <= value <= SPAN[1]]
    return (min(inside), max(inside)) if len(inside) > 1 else None


def findings(sweeps: Sequence[WeightSweep]) -> list[str]:
    """Of one net in one to three norm modes."""
    if not sweeps:
        return []
    first = sweeps[0]
    texts = [_invariance(sweep) for sweep in sweeps]
    apart = {s.norm: b - a for s in sweeps if (found := spread(s)) for a, b in [found]}
    if apart.get("batch", 1.0) + FLAT < apart.get("running", 0.0):
        texts.append(
            "The statistics of the test batch cancel the weight value, so that accuracy looks flatter than the net is: "
            "a class then depends on the other images of its batch."
        )
    return [text for text in (*texts, _ties(first), _circuit(first)) if text]


def _invariance(sweep: WeightSweep) -> str:
    found = spread(sweep)
    if found is None:
        return ""
    low, high = found
    head = f"{FROM[sweep.norm] if sweep.norms else 'Without batch norms'}, accuracy"
    constant = sweep.accuracy.get(0.0)  # with all weights off every image gets one class
    if constant is not None and high <= constant + FLAT:
        return (
            f"{head} is {percent(low)} to {percent(high)} % over {SPAN[0]:g} to {SPAN[1]:g}, no more than the "
            f"{percent(constant)} % of a net whose weights are all off: it guesses, and shows nothing about invariance."
        )
    word = "hardly depends on the weight value" if high - low <= FLAT else "depends on the weight value"
    return f"{head} {word}: {percent(low)} to {percent(high)} % over {SPAN[0]:g} to {SPAN[1]:g}."


def _ties(sweep: WeightSweep) -> str:
    """Where saturated outputs are equal, at the value where most are."""
    ranked = sweep.preactivation
    worst = max((v for v in sweep.tied if v > SPAN[1] and v in ranked), key=lambda v: sweep.tied[v], default=None)
    if worst is None or sweep.tied[worst] <= FLAT / 2:
        return ""
    which = {"largest": "the largest", "smallest": "the smallest", "mixed": "the best"}[sweep.ranking]
    return (
        f"At {worst:g}, classes share the largest output for {percent(sweep.tied[worst])} % of the images: "
        f"{percent(sweep.accuracy[worst])} % right if the first one wins, {percent(ranked[worst])} % ranked by what "
        f"{sweep.output} computes ({which} wins)."
    )


def _circuit(sweep: WeightSweep) -> str:
    if sweep.digital is None:
        return ""
    own = sweep.agreement.get(sweep.trained_on) if sweep.trained_on is not None else None
    same = ""
    if own is not None:
        same = f" {percent(own)} % of the images get that class at the net's own value {sweep.trained_on:g} too."
    if sweep.digital < 1:
        share = percent(min(sweep.digital, 0.999))
        return (
            f"At {sweep.limit:g}, {share} % of the hidden activations take two values: the net is no circuit there."
            + same
        )
    right = sweep.preactivation.get(sweep.limit)
    known = "" if right is None else f", right for {percent(right)} % of the images"
    return f"At {sweep.limit:g}, every hidden activation takes at most two values: the net is a circuit{known}." + same
