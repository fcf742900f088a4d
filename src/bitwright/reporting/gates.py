"""gates.csv, gate_classes.csv, compute.csv and work.json -> the Gates section."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bitwright.errors import InputError
from bitwright.reporting.images import data_uri
from bitwright.reporting.tables import Cells, rows
from bitwright.reporting.weights import opened
from bitwright.runs.folder import Run

PICTURES = 6  # of the cheapest images, and of the dearest


@dataclass(frozen=True)
class Gate:
    """A row of gates.csv: one gate after one epoch."""

    stage: int
    epoch: int
    layer: str
    gate: str = ""
    rate: float | None = None
    threshold_mean: float | None = None
    threshold_min: float | None = None
    threshold_max: float | None = None
    target: float | None = None
    keep: float | None = None
    saliency: float | None = None
    mean_bits: float | None = None


@dataclass(frozen=True)
class Counted:
    """work.json: what the count is made of, per test image; None where the run does not say.

    quadratic_macs        as papers of fbs count, every map taken for as sparse as the sparsest map in it
    unweighted_sparsity   decisions off / decisions, as the public codes print it
    gated_bits, net_bits  mean bits of inputs, over the products of layers gated by precision and of the net
    """

    overhead_macs: float | None = None
    comparisons: float | None = None
    quadratic_macs: float | None = None
    quadratic_reduction: float | None = None
    unweighted_sparsity: float | None = None
    gated_bits: float | None = None
    net_bits: float | None = None


@dataclass(frozen=True)
class Priced:
    """A test image and what the net computed for it; `picture` is a PNG data URI."""

    index: int
    true: str
    said: str
    macs: int
    bops: int
    picture: str


@dataclass(frozen=True)
class Gates:
    """rows of every epoch; by_class: layer -> rate per class; macs, bops: per test image, in rising order."""

    rows: tuple[Gate, ...]
    classes: tuple[str, ...] = ()
    by_class: dict[str, tuple[float | None, ...]] | None = None
    macs: tuple[int, ...] = ()
    bops: tuple[int, ...] = ()
    cheapest: tuple[Priced, ...] = ()
    dearest: tuple[Priced, ...] = ()
    counted: Counted | None = None

    @property
    def last(self) -> tuple[Gate, ...]:
        """Of the last epoch."""
        end = max(((g.stage, g.epoch) for g in self.rows), default=(0, 0))
        return tuple(g for g in self.rows if (g.stage, g.epoch) == end)

    @property
    def key(self) -> str:
        """What differs between images: "macs", or "bops" where only the bits of a product do."""
        return "bops" if self.macs and self.macs[0] == self.macs[-1] and self.bops[0] != self.bops[-1] else "macs"


def gates_of(run: Run) -> Gates | None:
    """None where the run has no gates."""
    table = rows(run.read_csv("gates.csv"), "gates.csv")
    if not table:
        return None
    names = Cells(run.read_json("classes.json"), "classes.json").texts("classes")
    images = {_whole(row, "index"): row for row in rows(run.read_csv("compute.csv"), "compute.csv")}
    classes, by_class = _classes(run, names)
    cheapest, dearest = _pictures(run, names, images)
    macs, bops = (tuple(sorted(_whole(row, key) for row in images.values())) for key in ("macs", "bops"))
    gates = tuple(_gate(row) for row in table)
    return Gates(gates, classes, by_class, macs, bops, cheapest, dearest, _counted(run.read_json("work.json")))


def _counted(values: dict[str, Any]) -> Counted | None:
    row = Cells(values, "work.json")
    return Counted(**{f.name: row.number(f.name) for f in fields(Counted)}) if values else None


def _gate(row: Cells) -> Gate:
    keys = ("rate", "threshold_mean", "threshold_min", "threshold_max", "target", "keep", "saliency", "mean_bits")
    numbers = {key: row.number(key) for key in keys}
    return Gate(_whole(row, "stage"), _whole(row, "epoch"), row.text("layer"), row.text("gate"), **numbers)


def _whole(row: Cells, key: str) -> int:
    value = row.integer(key)
    if value is None or value < 0:
        raise InputError(f"report: {row.where}: {key} is missing or negative", code="run-damaged")
    return value


def _named(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _classes(run: Run, names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, tuple[float | None, ...]] | None]:
    table = rows(run.read_csv("gate_classes.csv"), "gate_classes.csv")
    if not table:
        return (), None
    numbers = sorted({_whole(row, "class") for row in table})
    found = {(row.text("layer"), _whole(row, "class")): row.number("rate") for row in table}
    layers = dict.fromkeys(row.text("layer") for row in table)
    return (
        tuple(_named(names, k) for k in numbers),
        {name: tuple(found.get((name, k)) for k in numbers) for name in layers},
    )


def _pictures(
    run: Run, names: tuple[str, ...], by_index: dict[int, Cells]
) -> tuple[tuple[Priced, ...], tuple[Priced, ...]]:
    path = run.file("compute.safetensors")
    if not path.is_file():
        return (), ()
    with opened(path) as f:
        if not {"images", "index"} <= set(f.keys()):
            raise InputError(f"report: {path} has no images and index", code="run-damaged", given=str(path))
        images, index = f.get_tensor("images"), f.get_tensor("index").tolist()
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(index):
        raise InputError(f"report: {path}: images are not uint8 [n, C, H, W]", code="run-damaged", given=str(path))

    def chosen(places: range) -> tuple[Priced, ...]:
        found = []
        for at in places:
            row = by_index.get(index[at])
            if row is not None:  # else of an earlier evaluation
                true, said = (_named(names, _whole(row, key)) for key in ("true", "said"))
                found.append(
                    Priced(index[at], true, said, _whole(row, "macs"), _whole(row, "bops"), data_uri(images[at]))
                )
        return tuple(found)

    half = len(index) // 2
    return chosen(range(min(half, PICTURES))), chosen(range(half, half + min(half, PICTURES)))
