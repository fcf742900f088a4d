"""A procedure for tests: all weights times one number. Nothing but this file and one entry in the list makes it known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from bitwright.procedures.registry import procedure
from bitwright.procedures.report import Report


@dataclass(frozen=True)
class Row:
    layer: str
    weights: int


@dataclass(frozen=True)
class Scaled(Report):
    rows: tuple[Row, ...] = field(default=())

    def cells(self) -> list[list[str]]:
        return [["layer", "weights"], *([row.layer, str(row.weights)] for row in self.rows)]


@procedure("scaling")
def scaling(
    model: nn.Module, batches: Iterable[Any], *, by: Annotated[float, Field(gt=0)], layers: list[str] | None = None
) -> Report:
    """All weights times one number."""
    seen, rows = sum(len(inputs) for inputs, _ in batches), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (layers is None or name in layers):
            module.weight.data.mul_(by)
            rows.append(Row(name, module.weight.numel()))
    return Scaled("scaling", seen, tuple(rows))
