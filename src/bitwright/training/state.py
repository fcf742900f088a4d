"""Where a training stands: what the checkpoint holds beside weights and optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from bitwright.runs.cells import Table
from bitwright.runs.tables import Epoch
from bitwright.training.schedules import Plateau


@dataclass
class Sums:
    """Running sums of the epoch at hand; seconds by the wall clock, over interruptions."""

    loss: float = 0.0
    top1: float = 0.0
    top5: float = 0.0
    images: float = 0.0
    steps: int = 0
    data_seconds: float = 0.0
    step_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class State:
    """Plain numbers, text, lists and tables: torch loads it with weights_only=True.

    stage, epoch   being trained, counted from 0; epoch equals the stage's `epochs` once all are done
    step, batch    steps done in the stage, in the epoch; batch equals the epoch's steps while its evaluation is due
    tables         rows of all epochs by the name of their file; `rows` gives them
    skipped        pictures left out because they cannot be read
    told           lessons that were given;   warnings   their texts
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    batch: int = 0
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sums: Sums = field(default_factory=Sums)
    health: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    plateau: Plateau = field(default_factory=Plateau)
    told: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    float_top1: float | None = None
    float_stage: int | None = None
    best: float | None = None
    seconds: float = 0.0
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> State:
        """Errors: `ValueError` where a value has not the type of its field, or counts below zero."""
        known = {f.name for f in fields(cls)}
        state = TypeAdapter(cls).validate_python({k: v for k, v in saved.items() if k in known})
        if min(state.stage, state.epoch, state.step, state.batch) < 0:
            raise ValueError("a place below zero")
        if any(not {"stage", "epoch", "test_top1"} <= row.keys() for row in state.rows(Epoch)):
            raise ValueError("a row without its place")
        return state

    def rows(self, table: type[Table]) -> list[dict[str, Any]]:
        """The rows of all epochs so far, by the names of the table's columns."""
        return self.tables.setdefault(table.file, [])

    def begin_stage(self, index: int) -> None:
        self.stage, self.epoch, self.step = index, 0, 0
        self.plateau, self.scale = Plateau(), {}
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.batch, self.sums, self.health = 0, Sums(), {}

    def to_json(self, status: str, stages: int, images: int) -> dict[str, Any]:
        """state.json of the run directory."""
        return {
            "status": status, "stage": self.stage, "epoch": self.epoch, "step": self.step, "stages": stages,
            "test_top1": rows[-1]["test_top1"] if (rows := self.rows(Epoch)) else None, "test_images": images,
            "warnings": self.warnings, "seconds": round(self.seconds, 3), "float_top1": self.float_top1,
            "skipped_pictures": self.skipped,
        }  # fmt: skip
