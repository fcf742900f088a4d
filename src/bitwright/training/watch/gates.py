"""gates.csv: what each gate does after an epoch, and where its thresholds stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.parts.traits import traits_of
from bitwright.runs.tables import Gate
from bitwright.training.watch.watcher import Ended, Lesson, Past, Rows, Watcher, more
from bitwright.training.work import gates_of

SILENT = 0.001  # share of a gate's decisions: it never fires, or always


class GateWatcher(Watcher):
    table = Gate

    def rows(self, ended: Ended) -> Rows:
        work = ended.test.work
        if work is None:
            return []
        gates, rows = gates_of(ended.job.net), []
        for name, rate in work.rates.items():
            gate = gates[name]
            row: dict[str, Any] = dict.fromkeys(Gate.columns())
            row |= {**ended.at, "layer": name, "gate": traits_of(gate).part_name, "rate": rate}
            if traits_of(gate).governed is not None:
                t = gate.threshold.detach().double()
                row |= {
                    "threshold_mean": float(t.mean()),
                    "threshold_min": float(t.min()),
                    "threshold_max": float(t.max()),
                }
                row["target"] = None if gate.governed else gate.target
            if traits_of(gate).keep is not None:
                row |= {"keep": gate.keep, "saliency": work.saliency.get(name)}
            row["mean_bits"] = work.mean_bits.get(name)
            rows.append(row)
        return rows

    def scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
        for key in ("rate", "threshold_mean"):
            yield f"gate_{key}/{row['layer']}", row[key]

    def lessons(self, past: Past) -> Iterator[Lesson]:
        """A gate that decides nothing; several layers of one kind are one line."""
        rows = [row for row in past.now(Gate) if row["keep"] != 1]
        for word, silent in (("never", lambda r: r < SILENT), ("always", lambda r: r > 1 - SILENT)):
            for part in dict.fromkeys(row["gate"] for row in rows):
                found = {row["layer"]: row for row in rows if row["gate"] == part and silent(row["rate"])}
                if fresh := past.fresh(word, found):
                    yield (
                        f"{word} {fresh[0]}",
                        f"{more(fresh)}: the gate {part} {word} fires on the test images in epoch {past.epoch}, "
                        f"{_silent(found[fresh[0]], word)}. help: bitwright methods {part}",
                    )


def _silent(row: dict[str, Any], word: str) -> str:
    """What that means, and what to try."""
    if row["gate"] == "fbs":
        if word == "never":
            return "so its output is zero; no channel has a positive saliency left. try: l1 = 0, or a smaller learning rate"
        return f'although keep is {row["keep"]:g}; too few channels to choose from. try: gate = "float" for it'
    effect = "only the cheap part is computed" if word == "never" else "nothing is saved"
    side = "lower" if word == "never" else "higher"
    if row["target"] is None:  # the thresholds follow a budget
        return f"so {effect} there. try: a {'larger' if word == 'never' else 'smaller'} stage.{row['stage']}.budget"
    at = f"target = {row['target']:g}, thresholds {row['threshold_mean']:.3g} in the mean"
    return (
        f'so {effect} there ({at}). try: a {side} target or init; unit = "normalized" makes one target fit all layers'
    )
