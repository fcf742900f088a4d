"""The page's own data: everything shown, raw and in base units, as one JSON block."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bitwright.reporting.gates import Gates
from bitwright.reporting.sections import Health, RunData
from bitwright.reporting.selfprune import SelfPrune

SCHEMA = "bitwright-report/1"


def as_dict(run: RunData) -> dict[str, Any]:
    """Sections as they were read, the head's figures, and the totals of the layer table."""
    sections = asdict(run)
    if run.errors is not None:
        sections["errors"] = {
            "classes": run.errors.classes,
            "counts": [[true, said, n] for (true, said), n in sorted(run.errors.counts.items())],
            "right": run.errors.right,
            "images": run.errors.images,
        }
    sections["layers"] = columns(sections["layers"])
    if run.training is not None:
        sections["training"]["epochs"] = columns(sections["training"]["epochs"])
        sections["training"]["health"] = _by_layer(run.training.health)
    if run.gates is not None:
        sections["gates"] = _gates(run.gates)
    if run.selfprune is not None:
        sections["selfprune"] = _selfprune(run.selfprune)
    head = {
        "accuracy": run.accuracy,
        "trained_accuracy": run.trained_accuracy,
        "float_accuracy": run.float_accuracy,
        "file_bytes": run.file_bytes,
        "float_bytes": run.float_bytes,
        "latency_ms": run.ms,
        "float_latency_ms": run.float_ms,
    }
    totals = {key: run.total(key) for key in ("bytes_before", "bytes_after", "ms_before", "ms_after", "macs")}
    return {"schema": SCHEMA, "head": head, "layer_totals": totals, **sections}


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Many equal rows without repeating their keys.

    >>> columns([{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    {'columns': ['a', 'b'], 'rows': [[1, 2], [3, 4]]}
    """
    return {"columns": list(rows[0]) if rows else [], "rows": [list(row.values()) for row in rows]}


KEPT_ROWS = 1500
MEASURES = ("stage", "epoch", "flips", "dead", "scale", "saturation", "positive")


def _by_layer(health: Sequence[Health]) -> dict[str, Any]:
    """{"columns": ..., "layers": {name: rows}}; six digits, as nothing here is known better."""
    layers: dict[str, list[list[Any]]] = {}
    last = max(((h.stage, h.epoch) for h in health), default=(0, 0))
    whole = len(health) <= KEPT_ROWS
    for h in health if whole else (h for h in health if (h.stage, h.epoch) == last):
        layers.setdefault(h.layer, []).append([_rounded(getattr(h, key)) for key in MEASURES])
    return {"columns": MEASURES, "epochs": "all" if whole else "last; all are in health.csv", "layers": layers}


def _gates(gates: Gates) -> dict[str, Any]:
    """Every epoch where that is not too much; of the images their cost at a few percentiles."""
    whole = len(gates.rows) <= KEPT_ROWS // 4  # they are wide
    found = columns([asdict(g) for g in (gates.rows if whole else gates.last)])
    found["rows"] = [[_rounded(value) for value in row] for row in found["rows"]]
    few = len(gates.classes) * len(gates.by_class or {}) <= KEPT_ROWS
    by_class = {n: [_rounded(v) for v in rates] for n, rates in (gates.by_class or {}).items()} if few else None
    at = {"min": 0.0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}

    def spread(values: Sequence[int]) -> dict[str, int]:
        return {name: values[round(share * (len(values) - 1))] for name, share in at.items()} if values else {}

    kept = "all" if whole else "last; all are in gates.csv"
    counted = None if gates.counted is None else asdict(gates.counted)
    return {
        **found, "epochs": kept, "by_class": by_class, "macs": spread(gates.macs), "bops": spread(gates.bops),
        "counted": counted,
    }  # fmt: skip


def _selfprune(found: SelfPrune) -> dict[str, Any]:
    """Every epoch where that is not too much; sweeps as in sweep.json, but without repeated keys."""
    whole = len(found.rows) <= KEPT_ROWS // 4
    table = columns([asdict(r) for r in (found.rows if whole else found.last)])
    table["rows"] = [[_rounded(value) for value in row] for row in table["rows"]]
    sweeps = []
    for sweep in found.sweeps:
        plain = sweep.to_dict()
        sweeps.append({**plain, **columns([{k: _rounded(v) for k, v in row.items()} for row in plain["rows"]])})
    kept = "all" if whole else "last; all are in connections.csv"
    return {**table, "epochs": kept, "batch": found.batch, "sweeps": sweeps}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def block(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever the names hold.

    >>> block({"layer": "</script><b>"})
    '{"layer":"\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e"}'
    """
    text = json.dumps(_finite(value), separators=(",", ":"), default=str, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """JSON has no nan: null, like everything unknown."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
