"""What a model costs on paper: MACs, bit operations, bytes, energy. Time is measured, never computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bitwright.analysis.energy import EnergyTable, load_energy
from bitwright.analysis.versus import REFERENCES, as_binary, bias_bytes, outside_bytes, without_parts
from bitwright.numbers import factor, in_one_unit, kb, kb_unit, significant
from bitwright.tabular import Tabular
from bitwright.transforms.unwrap import unwrap
from bitwright.transforms.walk import batch_of, walk
from bitwright.types import LayerInfo


@dataclass(frozen=True)
class CostRow:
    """One layer, for ONE sample. Bits None = unknown, counted as float.

    macs               all of them, also those that a mask or gate skips; `density` is the share really needed
    bops               macs * planes of the weight * planes of the input; float counts 32
    weight_bytes       codes on disk;   float_bytes   scales, bias, parameters of input parts
    activation_bytes   input at its bits plus output as float
    energy_pj          compute_pj + memory_pj, by the table's rules
    """

    name: str
    kind: str
    w: str
    x: str
    w_bits: int | None
    x_bits: int | None
    calls: int
    macs: int
    bops: int
    weights: int
    weight_bytes: float
    float_bytes: float
    activation_bytes: float
    compute_pj: float
    memory_pj: float
    energy_pj: float
    density: float
    note: str


SUMS = (
    "macs", "bops", "weights", "weight_bytes", "float_bytes", "activation_bytes",
    "compute_pj", "memory_pj", "energy_pj",
)  # fmt: skip


@dataclass(frozen=True)
class CostTable(Tabular):
    """Rows in execution order and their totals; prints as text.

    `.rows`, `.totals`, `.to_markdown()`, `.to_csv()`, `.to_dict()`

    outside_bytes   floats outside the layers, norms with their statistics: part of the storage
    references      "float": the rows of the same net without parts; "binary": with one bit wherever it has few
    """

    text = (0, 1, 2, 3, 10)

    rows: tuple[CostRow, ...]
    energy: EnergyTable
    outside_bytes: float = 0.0
    references: dict[str, tuple[CostRow, ...]] = field(default_factory=dict)

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over the layers; density is the share of all MACs that masks and gates leave.

        storage_bytes       all that is stored: weights at their bits, scales, biases, thresholds, masks, norms
        energy_efficiency   energy of the float net / energy of this one; compression: the same of storage_bytes;
                            with binary_ in front: of the all-binary net, to compare with
        """
        totals: dict[str, Any] = {key: sum(getattr(r, key) for r in self.rows) for key in SUMS}
        left = sum(r.macs * r.density for r in self.rows)
        totals["density"] = left / totals["macs"] if totals["macs"] else 1.0
        totals["layers"] = len(self.rows)
        totals["storage_bytes"] = self._storage(self.rows)
        for name in REFERENCES if self.references else ():
            totals[f"{name}_energy_pj"] = sum(r.energy_pj for r in self.references[name])
            totals[f"{name}_storage_bytes"] = self._storage(self.references[name])
        for name in ("", "binary_") if self.references else ():
            energy, size = totals[f"{name}energy_pj"], totals[f"{name}storage_bytes"]
            totals[f"{name}energy_efficiency"] = totals["float_energy_pj"] / energy if energy else 1.0
            totals[f"{name}compression"] = totals["float_storage_bytes"] / size if size else 1.0
        totals["unknown"] = [r.name for r in self.rows if r.w_bits is None or r.x_bits is None]
        return totals

    def _storage(self, rows: tuple[CostRow, ...]) -> float:
        return sum(r.weight_bytes + r.float_bytes for r in rows) + self.outside_bytes

    def to_dict(self) -> dict[str, Any]:
        """Raw values in base units."""
        return {
            "rows": [asdict(r) for r in self.rows],
            "totals": self.totals,
            "energy": {"name": self.energy.name, "source": self.energy.source},
        }

    def records(self) -> list[dict[str, Any]]:
        return [asdict(r) | {"w_bits": _bits(r.w_bits), "x_bits": _bits(r.x_bits)} for r in self.rows]

    def cells(self) -> list[list[str]]:
        """Head, layers, total."""
        totals = {**self.totals, "name": "total", "kind": f"{len(self.rows)} layers", "note": ""}
        lines: list[dict[str, Any]] = [*(asdict(r) for r in self.rows), totals]

        def column(name: str, key: str) -> list[str]:
            unit, counts = in_one_unit([line[key] for line in lines])
            return [f"{name}, {unit}" if unit else name, *counts]

        joules = self.energy.unit == "pJ"
        columns = [
            ["layer", *(line["name"] or "(model)" for line in lines)],
            ["kind", *(line["kind"] for line in lines)],
            ["w/x", *(f"{r.w}/{r.x}" for r in self.rows), ""],
            ["bits", *(f"{_bits(r.w_bits)}/{_bits(r.x_bits)}" for r in self.rows), ""],
            column("MACs", "macs"),
            column("BOPs", "bops"),
            ["weights, kB", *(kb(line["weight_bytes"]) for line in lines)],
            ["activations, kB", *(kb(line["activation_bytes"]) for line in lines)],
            ["energy, uJ", *(significant(line["energy_pj"] / 1e6) for line in lines)]
            if joules
            else column("energy", "energy_pj"),
            ["density", *(f"{line['density']:.3g}" for line in lines)],
            ["note", *(line["note"] for line in lines)],
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self.notes()])

    def notes(self) -> Iterator[str]:
        """What stands below the table."""
        yield f"one sample; computed, not measured; energy: {self.energy.name} ({self.energy.source})"
        t = self.totals
        if self.references and any(r.w_bits != 32 or r.x_bits != 32 for r in self.rows):
            what = "energy" if self.energy.unit == "pJ" else self.energy.unit
            text = (
                f"float / this net: {what} {factor(t['energy_efficiency'])}, counted bytes {factor(t['compression'])} "
                f"({kb_unit(t['storage_bytes'])} with scales, norms, masks)"
            )
            if t["binary_energy_pj"] != t["energy_pj"] or t["binary_storage_bytes"] != t["storage_bytes"]:
                text += (
                    f"; float / this net with 1 bit in all its low-bit layers: {what} "
                    f"{factor(t['binary_energy_efficiency'])}, counted bytes {factor(t['binary_compression'])}"
                )
            yield text
        if unknown := t["unknown"]:
            yield f"unknown bits, counted as float: {', '.join(unknown)}"


def cost(model: nn.Module, example: Any, energy: str | Path = "horowitz45") -> CostTable:
    """Cost per layer and in total, for one sample of `example`. BatchNorm and activations are not counted.

    >>> import bitwright as bw, torch
    >>> table = cost(nn.Sequential(bw.nn.Linear(64, 10, w="bwn", x="sign")), torch.zeros(1, 64))
    >>> table.totals["macs"], table.totals["bops"], table.totals["weight_bytes"]
    (640, 640, 80.0)
    """
    model = unwrap(model)
    table = load_energy(energy)
    batch = batch_of(model, example)
    infos = walk(model, example)

    def rows(infos: list[LayerInfo]) -> tuple[CostRow, ...]:
        return tuple(_row(info, batch, table) for info in infos)

    biases = bias_bytes(model)
    references = {
        "float": rows([without_parts(info, biases.get(info.name, 0)) for info in infos]),
        "binary": rows([as_binary(info) for info in infos]),
    }
    return CostTable(rows(infos), table, outside_bytes(model), references)


def _row(info: LayerInfo, batch: int, table: EnergyTable) -> CostRow:
    w, x = _planes(info.w_planes, info.w_bits), _planes(info.x_planes, info.x_bits)
    x_bits = 32 if info.x_bits is None else info.x_bits
    w_bits = 32 if info.w_bits is None else info.w_bits
    inputs, outputs = math.prod(info.x_shape), math.prod(info.y_shape)
    moved = (inputs * x_bits / 8 + outputs * 4) * info.calls / batch
    compute = info.macs * table.mac_pj(w_bits, x_bits)
    stored = info.weight_bytes + info.float_bytes
    memory = table.memory_pj(stored + moved, inputs * info.calls / batch + info.weights, w_bits, x_bits)
    return CostRow(
        name=info.name,
        kind=info.kind,
        w=info.w_part,
        x=info.x_part,
        w_bits=info.w_bits,
        x_bits=info.x_bits,
        calls=info.calls,
        macs=info.macs,
        bops=info.macs * w * x,
        weights=info.weights,
        weight_bytes=info.weight_bytes,
        float_bytes=info.float_bytes,
        activation_bytes=moved,
        compute_pj=compute,
        memory_pj=memory,
        energy_pj=compute + memory,
        density=info.density,
        note="; ".join(info.notes),
    )


def _planes(planes: int | None, bits: int | None) -> int:
    """Factor of the bit operations: the planes of the code, else the bits, else float."""
    return planes if planes is not None else bits if bits is not None else 32


def _bits(bits: int | None) -> str:
    return "unknown" if bits is None else str(bits)
