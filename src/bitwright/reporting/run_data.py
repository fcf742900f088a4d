"""What a page is about: the tables of a run, or of result objects, each read once. None always means unknown, never zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bitwright.numbers import at_chance
from bitwright.runs.cells import Table
from bitwright.runs.folder import Run
from bitwright.runs.result_tables import Bench, Conversion, Layer, NetResult
from bitwright.runs.tables import Classes, Epoch, Prediction, Status

T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Origin:
    """Where the figures are from and how to get them again.

    files   (name, bytes, sha256) of the model files
    """

    name: str
    path: str | None = None
    command: str = ""
    experiment: str = ""
    recipe: str = ""
    seed: int | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    files: tuple[tuple[str, int, str], ...] = ()


class RunData:
    """The tables, the figures of the page's head that follow from them, and what each section read.

    run      its folder;   tables   rows that do not come from it
    found    section -> what it read; `run[KEY]` here, `run.KEY` in a template
    """

    def __init__(self, origin: Origin, run: Run | None = None, tables: Mapping[type[Table], Any] | None = None) -> None:
        self.origin, self.run, self._tables = origin, run, dict(tables or {})
        self.found: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self.found[key]

    def rows(self, table: type[T]) -> tuple[T, ...]:
        """() where the file is not there."""
        if table not in self._tables:
            self._tables[table] = self.run.read(table) if self.run else ()
        return tuple(self._tables[table])

    def one(self, table: type[T]) -> T | None:
        """The object of a JSON file."""
        return next(iter(self.rows(table)), None)

    def path(self, name: str) -> Path | None:
        """A file that is not a table, if it is there."""
        return self.run.file(name) if self.run and self.run.has(name) else None

    @property
    def conversion(self) -> Conversion | None:
        return self.one(Conversion)

    @property
    def speed(self) -> Bench | None:
        return self.one(Bench)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in execution order; as convert saw them where there is no table of them."""
        return self.rows(Layer) or self._proof.rows

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        return self.rows(Epoch)

    def net(self, name: str) -> NetResult:
        """A row of results.csv; with nothing known in it where there is none."""
        return next((n for n in self.rows(NetResult) if n.name == name), NetResult())

    def total(self, column: str) -> float | None:
        """Sum of a column over the layers; None where no layer has a value."""
        values = [v for layer in self.layers if (v := getattr(layer, column)) is not None]
        return sum(values) if values else None

    @property
    def work(self) -> Epoch | None:
        """The last epoch, if a net with gates was counted in it."""
        return self.epochs[-1] if self.epochs and self.epochs[-1].macs else None

    # The four figures of the page's head. Tiles, table, charts and JSON all read these.
    @property
    def accuracy(self) -> float | None:
        """Accuracy of the packed net on the test images."""
        return _first(self._proof.accuracy, self.net("bitwright").accuracy)

    @property
    def trained_accuracy(self) -> float | None:
        return _first(self._proof.trained_accuracy, self.net("trained").accuracy, self._status.test_top1)

    @property
    def float_accuracy(self) -> float | None:
        return _first(self.net("float").accuracy, self._status.float_top1)

    @property
    def float_guesses(self) -> bool:
        """Whether the float net is no better than guessing: no accuracy is worth comparing with that."""
        return self.guesses(self.float_accuracy)

    def guesses(self, accuracy: float | None) -> bool:
        """Whether an accuracy on this run's test images is what guessing gives; unknown without its answers."""
        answers = self.rows(Prediction)
        if accuracy is None or not answers:
            return False
        named = self.one(Classes)
        classes = max(len(named.classes) if named else 0, 1 + max(max(row.true, row.said) for row in answers))
        return at_chance(accuracy, classes, len(answers))

    @property
    def test_images(self) -> int | None:
        return self.net("bitwright").images or self.net("trained").images or self._status.test_images

    @property
    def file_bytes(self) -> float | None:
        """The packed file; None where none was written."""
        return _first(self._proof.file_bytes, self.net("bitwright").bytes)

    @property
    def float_bytes(self) -> float | None:
        """A file with the float net, as convert or training measured it; without one, its layers' weights."""
        return _first(self._proof.float_bytes, self.net("float").bytes, self.total("bytes_before"))

    @property
    def smaller(self) -> float | None:
        return self.float_bytes / self.file_bytes if self.float_bytes and self.file_bytes else None

    @property
    def ms(self) -> float | None:
        """Time of the packed net: bench's median, else that of convert's short check."""
        return self.speed.ours.ms if self.speed and self.speed.ours else self._proof.ms_after

    @property
    def float_ms(self) -> float | None:
        """The best fp32 program; without bench, convert's short check of the float net."""
        if self.speed is None:
            return self._proof.ms_before
        return best.ms if (best := self.speed.best("fp32")) else None

    @property
    def _proof(self) -> Conversion:
        return self.conversion or Conversion()

    @property
    def _status(self) -> Status:
        return self.one(Status) or Status()


def _first(*values: float | None) -> float | None:
    """The first one that is known."""
    return next((value for value in values if value is not None), None)
