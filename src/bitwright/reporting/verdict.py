"""The head of the page: the verdict's word, one sentence, and at most three findings, each from a rule."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.run_data import RunData
from bitwright.runs.cells import last_epoch
from bitwright.runs.result_tables import Layer
from bitwright.runs.tables import Health, Status

SIGNS = {"PASS": "\u2713", "WARN": "!", "REFUSE": "\u2717"}
NOT_CONVERTED = "NOT CONVERTED"


@dataclass(frozen=True)
class Verdict:
    """`word` with its `sign`, and the sentence beside it."""

    word: str
    sign: str
    sentence: str

    @property
    def style(self) -> str:
        return self.word if self.word in SIGNS else "NONE"


@dataclass(frozen=True)
class Finding:
    """`label: before <a href=link>name</a> after`; name may be empty."""

    label: str
    before: str = ""
    name: str = ""
    link: str = ""
    after: str = ""

    def __str__(self) -> str:
        return f"{self.label}: {self.before}{self.name}{self.after}"


def verdict(run: RunData) -> Verdict:
    name, found = run.origin.name, run.conversion
    if found is None:
        return Verdict(NOT_CONVERTED, "\u25cb", f"{name}{_trained(run)}")
    if found.status == "REFUSE":
        return Verdict("REFUSE", SIGNS["REFUSE"], f"{name} was not packed: {found.verdict or 'no reason was given'}")
    word = found.status if found.status in SIGNS else NOT_CONVERTED
    return Verdict(word, SIGNS.get(word, "\u25cb"), f"{name} is {_claims(run)}")


def _trained(run: RunData) -> str:
    if run.trained_accuracy is not None:
        return f" is trained to {filters.percent_unit(run.trained_accuracy)} and not packed yet"
    if run.layers and run.speed is None:
        return ": counted, neither packed nor measured"
    if run.speed is not None:
        return f": {_speed_word(run) or 'no other program was measured beside it'}, as measured"
    return " is not packed yet"


def _claims(run: RunData) -> str:
    """Size, speed against the fastest program, price in accuracy; what is unknown is said or left out."""
    parts = []
    if run.smaller is not None:
        parts.append(_smaller(run.smaller))
    speed = _speed_word(run)
    if speed:
        parts.append(speed)
    slower = speed.startswith("slower") and len(parts) == 2
    text = (" but " if slower else " and ").join(parts) or "packed"
    text += _price(run)
    if not speed:
        text += "; no other program was measured beside it" if run.speed else "; speed against others is not measured"
    elif run.speed is not None and run.speed.best("int8") is None:
        text += "; no int8 program was measured"
    return text


def _smaller(ratio: float) -> str:
    return f"{ratio:,.1f}x smaller" if ratio >= 0.95 else f"larger than its float net ({ratio:.2f}x)"


def _speed_word(run: RunData) -> str:
    """Against the fastest program of any precision, by its name."""
    best = run.speed.fastest if run.speed else None
    if best is None or best.ratio is None:
        return ""
    ratio = numbers.ratio(best.ratio).removesuffix(" (slower)")
    if best.ratio < 0.95:
        return f"slower than the fastest program here, {best.name} ({ratio})"
    if best.ratio < 1.05:
        return f"as fast as the fastest program here, {best.name} ({ratio})"
    return f"{ratio} faster than the fastest program here, {best.name}"


def _price(run: RunData) -> str:
    if run.accuracy is None or run.float_accuracy is None:
        return ""
    if run.float_guesses:
        return "; its float net only guesses, so there is no accuracy to compare with"
    change = numbers.points(run.accuracy - run.float_accuracy)
    if change == "0.0":
        return ", at the same accuracy"
    size = change.lstrip("+-")
    unit = "point" if size == "1.0" else "points"
    return f", for {size} {unit} of accuracy" if change.startswith("-") else f", with {size} {unit} more accuracy"


def findings(run: RunData) -> list[Finding]:
    """Use it, Next gain, Watch: those for which there is something to say."""
    return [f for f in (_use(run), _gain(run), _watch(run)) if f is not None]


def _use(run: RunData) -> Finding | None:
    found = run.conversion
    if found is None:
        return None
    if found.status == "REFUSE":
        return Finding("Use it", "no: nothing was written, keep the float net. See ", "the layers", "#layers")
    if not found.images:
        return Finding("Use it", "not yet: its answers were not compared with the trained net's")
    answers = (
        f"all {found.same:,} answers equal the trained net's"
        if found.same == found.images
        else f"{found.same:,} of {found.images:,} answers equal the trained net's"
    )
    return Finding("Use it", f"{answers}{_fastest(run)}")


def _fastest(run: RunData) -> str:
    ours = run.speed.ours if run.speed else None
    peers = [r for r in run.speed.rows[1:] if r.ms is not None] if run.speed else []
    if ours is None or ours.ms is None or not peers:
        return ""
    faster = [r.name for r in peers if r.ms is not None and r.ms < ours.ms]
    if faster:
        return f"; for speed alone {faster[0]} is faster here, so use it for its size"
    return ", and no program measured here is faster"


def _gain(run: RunData) -> Finding | None:
    """The layer that takes the most time without bit kernels; if all use them, the slowest."""
    total = run.total("ms_after")
    timed = [(layer.ms_after / total, i, layer) for i, layer in enumerate(run.layers) if layer.ms_after and total]
    if len(timed) < 2:
        return None
    slow = [found for found in timed if found[2].runs_as != "bits" and found[0] >= 0.05]
    share, i, layer = max(slow or timed, key=lambda found: found[0])
    return Finding("Next gain", name=layer.name, link=f"#layer-{i}", after=_gain_text(layer, share))


def _gain_text(layer: Layer, share: float) -> str:
    runs = {"int8": "runs as int8", "float": "runs as float", "bits": "already runs on bits"}
    kind = runs.get(layer.runs_as, f"runs as {layer.runs_as}" if layer.runs_as else "")
    why = f" ({layer.why})" if layer.why else ""
    return f" {kind + ' and ' if kind else ''}takes {numbers.percent(share)} % of the layers' time{why}"


def _watch(run: RunData) -> Finding | None:
    """The first of: different answers, a layer whose signs still flip, a noisy measurement, a training warning."""
    found = run.conversion
    if found is not None and found.disagreements:
        first = found.disagreements[0].first_layer
        where = f", the first differs from {first} on" if first else ""
        return Finding(
            "Watch", f"{found.images - found.same:,} of {found.images:,} ", "answers changed", "#layers", where
        )
    if (flip := restless(run)) is not None:
        layer, share, usual = flip
        text = f": {numbers.percent(share)} % of its signs still flipped per step in the last epoch"
        return Finding("Watch", name=layer, link="#training", after=f"{text}, others {numbers.percent(usual)} %")
    if run.speed is not None and run.speed.quality.startswith("NOISY"):
        return Finding("Watch", "the ", "times", "#speed", f" are {run.speed.quality}")
    status = run.one(Status)
    if status is not None and status.warnings:
        return Finding("Watch", "training warned: ", status.warnings[0], "#training")
    return None


def restless(run: RunData) -> tuple[str, float, float] | None:
    """(layer, its flips, median of the others) where one layer flips over twice as often, and over 0.5 %."""
    rates = {h.layer: h.flips for h in last_epoch(run.rows(Health)) if h.flips is not None}
    if len(rates) < 3:
        return None
    layer = max(rates, key=lambda name: rates[name])
    usual = statistics.median(rate for name, rate in rates.items() if name != layer)
    return (layer, rates[layer], usual) if rates[layer] > max(2 * usual, 0.005) else None
