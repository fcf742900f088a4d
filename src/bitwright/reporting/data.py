"""The page's own data: everything shown, raw and in base units, as one JSON block."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections import SECTIONS

SCHEMA = "bitwright-report/1"


def as_dict(run: RunData) -> dict[str, Any]:
    """The head's figures, the totals of the layer table, and what each section was made of."""
    head = {
        "accuracy": run.accuracy, "trained_accuracy": run.trained_accuracy, "float_accuracy": run.float_accuracy,
        "file_bytes": run.file_bytes, "float_bytes": run.float_bytes, "latency_ms": run.ms, "float_latency_ms": run.float_ms,
    }  # fmt: skip
    totals = {key: run.total(key) for key in ("bytes_before", "bytes_after", "ms_before", "ms_after", "macs")}
    found = {"schema": SCHEMA, "head": head, "layer_totals": totals, "origin": asdict(run.origin)}
    for section in SECTIONS:
        found |= section.json(run) if section.shown(run) else {section.key or section.name: None}
    return found


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
