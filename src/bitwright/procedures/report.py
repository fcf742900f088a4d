"""What a procedure did: a row per layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitwright.tabular import Tabular


@dataclass(frozen=True)
class Report(Tabular):
    """Rows in the order of the model; prints as its table. Each procedure adds its own columns.

    procedure   its name;   samples   of the data that it saw
    """

    procedure: str
    samples: int
    rows: tuple[Any, ...]

    @property
    def layers(self) -> list[str]:
        return [row.layer for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = [asdict(row) for row in self.rows]
        return {"procedure": self.procedure, "samples": self.samples, "rows": rows}
