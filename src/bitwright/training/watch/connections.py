"""connections.csv: which weights of nets with 0/1 weights are on after each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.analysis.zero_one_nets import zero_one_layers
from bitwright.runs.tables import Connected
from bitwright.training.watch.watcher import Ended, Lesson, Past, Rows, Watcher


class ConnectionWatcher(Watcher):
    table = Connected

    def rows(self, ended: Ended) -> Rows:
        if not zero_one_layers(ended.job.net):
            return []
        from bitwright.analysis.connections import connections

        device = next(ended.job.net.parameters()).device
        found = connections(ended.job.net, ended.job.example().to(device))
        return [{**ended.at, **row.to_dict()} for row in found.rows]

    def scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
        yield f"on_share/{row['layer']}", row["share"]
        yield f"live_units/{row['layer']}", row["live"]

    def lessons(self, past: Past) -> Iterator[Lesson]:
        for name in (row["layer"] for row in past.now(Connected) if not row["on"]):
            yield (
                f"off {name}",
                f"{name}: none of its connections is on at the end of epoch {past.epoch}, so its output, and that "
                "of a norm behind it, is a constant; usually too few at the start, or steps that switch all off at once. "
                f'try: init = "fan_in:8" in the recipe, or {past.rate(0.3)}',
            )

    def words(self, rows: Rows) -> str:
        """Share of the weights that are on, over all 0/1 layers."""
        from bitwright.analysis.connections import share_text

        weights = sum(row["weights"] for row in rows)
        return f"  on {share_text(sum(row['on'] for row in rows) / weights)} %" if weights else ""
