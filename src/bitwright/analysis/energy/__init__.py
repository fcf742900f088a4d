"""Energy tables: data files with their citation, and the rules that use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, nearest
from bitwright.toml import read_toml, toml_text

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class EnergyTable:
    """Picojoules per operation. The derivation for k bits is written at the head of the data file.

    formula   constants of a table that is a formula in the bits, not a list of operations:
              mac + mac_per_bit * k + mac_per_product * w_bits * x_bits a multiply-add, access_per_bit * k an access of a
              weight or an input, k = the larger of both bits; what is not named is 0
    unit      "pJ", or what the numbers are instead

    >>> table = load_energy("horowitz45")
    >>> round(table.mac_pj(32, 32), 3), round(table.mac_pj(8, 8), 3), round(table.mac_pj(1, 32), 3)
    (4.6, 0.25, 0.9)
    """

    name: str
    source: str
    multiply_pj: dict[str, float]
    add_pj: dict[str, float]
    byte_pj: float
    formula: dict[str, float] = field(default_factory=dict)
    unit: str = "pJ"

    def mac_pj(self, w_bits: int, x_bits: int) -> float:
        """One multiply-accumulate of a weight and an input; 32 = float."""
        low, high = sorted((w_bits, x_bits))
        if self.formula:
            of = self.formula.get
            return of("mac", 0.0) + of("mac_per_bit", 0.0) * high + of("mac_per_product", 0.0) * low * high
        if high >= 32:
            free = low <= 2  # {-a, 0, +a} times a float is a sign flip or a skip
            return self.add_pj["float32"] + (0.0 if free else self.multiply_pj["float32"])
        return self.multiply_pj["int8"] * w_bits * x_bits / 64 + self.add_pj["int32"] * (w_bits + x_bits) / 32

    def memory_pj(self, moved_bytes: float, accesses: float, w_bits: int, x_bits: int) -> float:
        """A layer's memory: all bytes at one price, or in a formula each weight and input once at k bits."""
        if self.formula:
            return accesses * self.formula.get("access_per_bit", 0.0) * max(w_bits, x_bits)
        return moved_bytes * self.byte_pj


FORMULA = ("mac", "mac_per_bit", "mac_per_product", "access_per_bit")


def load_energy(name_or_path: str | Path) -> EnergyTable:
    """A table of this package by name, or a file of the same form."""
    known = sorted(p.stem for p in FOLDER.glob("*.toml"))
    path = FOLDER / f"{name_or_path}.toml" if str(name_or_path) in known else Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"energy {name_or_path}: no such table or file.{nearest(str(name_or_path), known)} "
            f"Known: {', '.join(known)}",
            code="energy-unknown",
            given=str(name_or_path),
            possible=", ".join(known),
        )
    try:
        data: dict[str, Any] = read_toml(toml_text(path))
        if "formula" in data:
            constants = {str(k): float(v) for k, v in data["formula"].items()}
            if wrong := [k for k in constants if k not in FORMULA]:
                raise KeyError(f"formula.{wrong[0]}; possible: {', '.join(FORMULA)}")
            return EnergyTable(data["name"], data["source"], {}, {}, 0.0, constants, data.get("unit", "pJ"))
        memory = data["memory"]
        byte_pj = memory["read_64bit_pj"][memory["level"]] / 8
        return EnergyTable(data["name"], data["source"], data["multiply_pj"], data["add_pj"], byte_pj)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"energy {name_or_path}: not an energy table: {error}", code="energy-form") from None
