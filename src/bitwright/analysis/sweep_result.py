"""What a sweep of the weight value found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitwright.numbers import percent
from bitwright.tabular import Tabular

NORMS = ("running", "recalibrate", "batch")


@dataclass(frozen=True)
class SweepPoint:
    """One weight value; counts of images.

    right          the largest output is the true class
    preactivation  the class with the best pre-activation is the true one; None where outputs and classes are not one to one
    agree          the class is the one of the net at `limit`; ties of outputs are broken by the pre-activation in both nets
    tied           several classes share the largest output
    """

    on: float
    right: int
    preactivation: int | None
    agree: int
    tied: int = 0


@dataclass(frozen=True)
class WeightSweep(Tabular):
    """Result of `bw.analyze.weight_sweep`; prints as its table.

    norm, images   what was asked; train_images: from which statistics were estimated again
    norms          batch norms of the net; with 0 all norm modes are one
    trained_on     the weight value of the net itself; None where its layers differ
    output         the layer that names the class;   ranking   "largest", "smallest" or "mixed" pre-activation does
    limit          weight value of the circuit that `agreement` compares with
    digital        share of hidden activations that take at most two values at `limit`: at 1 the net is a circuit there
    """

    norm: str
    images: int
    points: tuple[SweepPoint, ...]
    trained_on: float | None = None
    output: str = ""
    ranking: str = ""
    limit: float = 100.0
    digital: float | None = None
    train_images: int | None = None
    norms: int = 0

    @property
    def accuracy(self) -> dict[float, float]:
        """Weight value -> share of images whose largest output is the true class."""
        return {p.on: p.right / self.images for p in self.points}

    @property
    def preactivation(self) -> dict[float, float]:
        """The same with classes ranked by what the last layer computes, before tanh and norm: saturated outputs tie.

        {} where outputs and classes are not one to one. A norm behind the last layer that is not the same for all classes
        is left out of this ranking
        """
        return {p.on: p.preactivation / self.images for p in self.points if p.preactivation is not None}

    @property
    def agreement(self) -> dict[float, float]:
        """Weight value -> share of images with the class that the circuit gives."""
        return {p.on: p.agree / self.images for p in self.points}

    @property
    def tied(self) -> dict[float, float]:
        """Weight value -> share of images for which several classes share the largest output; the first one wins."""
        return {p.on: p.tied / self.images for p in self.points}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Plain shares, as in the tables of a run."""
        before = self.preactivation
        return [
            {"on": v, "accuracy": a, "preactivation": before.get(v), "agreement": g, "tied": t}
            for (v, a), g, t in zip(self.accuracy.items(), self.agreement.values(), self.tied.values(), strict=True)
        ]

    def cells(self) -> list[list[str]]:
        keys = ("accuracy", "preactivation", "agreement")
        head = ["on", *(f"{key} %" for key in keys)]
        return [head, *([f"{row['on']:g}", *(percent(row[key]) for key in keys)] for row in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: facts, and `rows` of counts and shares."""
        plain = asdict(self)
        points = plain.pop("points")
        names = {k: f"{k}_images" for k in ("right", "preactivation", "agree", "tied")}
        counts = [{names[k]: v for k, v in point.items() if k != "on"} for point in points]
        return plain | {"rows": [row | count for row, count in zip(self.rows, counts, strict=True)]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> WeightSweep:
        """What `to_dict` gave, also after JSON."""
        keys = ("right_images", "preactivation_images", "agree_images", "tied_images")
        points = tuple(SweepPoint(row["on"], *(row[key] for key in keys)) for row in value["rows"])
        return cls(**{k: v for k, v in value.items() if k != "rows"}, points=points)


def side_by_side(sweeps: Sequence[WeightSweep], values: Sequence[float] | None = None) -> list[list[str]]:
    """Head and rows, as text: the weight value, then accuracy, ranked accuracy and agreement of each norm mode."""
    short = {"accuracy": "accuracy", "preactivation": "ranked", "agreement": "as circuit"}
    head = ["on", *(f"{s.norm}: {word}" if i == 0 else word for s in sweeps for i, word in enumerate(short.values()))]
    body = []
    for v in values if values is not None else [p.on for p in sweeps[0].points]:
        body.append([f"{v:g}", *(percent(getattr(s, key).get(v)) for s in sweeps for key in short)])
    return [head, *body]
