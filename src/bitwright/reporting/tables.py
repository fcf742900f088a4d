"""Cells of a run's CSV and JSON files -> typed values; a damaged one is one line that names the place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitwright.errors import InputError

LARGEST = 1e30


class Cells:
    """One row or object, and where it is from.

    >>> row = Cells({"loss": "0.5", "lr": "", "layer": "a"}, "metrics.csv row 1")
    >>> row.number("loss"), row.number("lr"), row.text("layer"), row.integer("epoch")
    (0.5, None, 'a', None)
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def text(self, key: str) -> str:
        value = self.values.get(key)
        return "" if value is None else str(value)

    def number(self, key: str) -> float | None:
        """None where the cell is empty; also for nan, inf and what is as good as that, which no chart can show."""
        value = self.values.get(key)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"report: {self.where}: {key} is {str(value)[:40]!r}; possible: a number or an empty cell",
                code="run-damaged",
                given=str(value)[:80],
            ) from None
        return number if abs(number) < LARGEST else None  # nan is not

    def integer(self, key: str) -> int | None:
        number = self.number(key)
        return None if number is None else round(number)

    def flag(self, key: str) -> bool:
        return str(self.values.get(key)).lower() in ("true", "1")

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key)
        return tuple(str(v) for v in value) if isinstance(value, (list, tuple)) else ()

    def items(self, key: str) -> list[Cells]:
        """The objects of a list; anything else in it is damage."""
        value = self.values.get(key) or []
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, Mapping) for v in value):
            raise InputError(f"report: {self.where}: {key} is not a list of objects", code="run-damaged")
        return [Cells(v, f"{self.where}, {key} {i}") for i, v in enumerate(value)]

    def table(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        return dict(value) if isinstance(value, Mapping) else {}


def rows(given: list[dict[str, str]], name: str) -> list[Cells]:
    """The rows of a CSV file, counted from 1 below the heading."""
    return [Cells(row, f"{name} row {i}") for i, row in enumerate(given, 1)]
