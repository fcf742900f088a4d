"""The run directory: names of its files, and how they are read and written. Nothing in it knows where it lies."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bitwright import experiment as experiments
from bitwright import trust
from bitwright.atomic import replacing
from bitwright.errors import InputError
from bitwright.runs.cells import Table, parsed
from bitwright.runs.result_tables import NetResult
from bitwright.tabular import csv_text
from bitwright.usercode import KEPT, with_imports

if TYPE_CHECKING:
    from torch import nn

    from bitwright.experiment import Experiment

T = TypeVar("T", bound=Table)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a run directory: a folder with experiment.toml."""
    return (Path(path) / "experiment.toml").is_file()


class Run:
    """A folder with the files that `file_list.FILES` lists; commands take it where they take a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], command: str) -> Run:
        """An existing run; anything else is one line."""
        if not is_run(path):
            what = (
                "no experiment.toml in it, so it is not a run" if Path(path).is_dir()
                else "a file, not a run directory" if Path(path).exists() else "no such folder"
            )  # fmt: skip
            raise InputError(
                f"{command} {path}: {what}. Runs are made by: bitwright train", code="run-missing", given=str(path)
            )
        return cls(path)

    def file(self, name: str) -> Path:
        """Where a file of the run lies, or would lie."""
        return self.path / name

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def experiment(self) -> Experiment:
        return experiments.load(self.path)

    def keep_code(self, experiment: Experiment) -> None:
        """experiment.toml, and in `code/` the Python files that it names and those they import from beside them, so that the
        run needs nothing from outside; from now on they are trusted here."""
        copies: dict[str, bytes] = {}
        homes = []
        for spec, what in experiment.own_code().items():
            folder, file = experiment.home.place(spec, what)
            homes.append(folder)
            copies |= {name: path.read_bytes() for name, path in with_imports(folder, file).items()}
        for name, content in copies.items():
            target = self.file(f"{KEPT}/{name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as beside:
                beside.write_bytes(content)
        self.write_text("experiment.toml", experiments.to_toml(experiment))
        if copies:
            trust.remember(self.path, tuple(dict.fromkeys(homes)))

    def model(self, weights: str = "model.safetensors") -> nn.Module:
        """The trained model in eval mode, from the run's experiment and weights."""
        from bitwright.engine.files import load
        from bitwright.runs.build import build_model

        if not self.has(weights):
            raise InputError(
                f"run {self.path}: no {weights}; its training is not finished. Go on with: "
                f"bitwright train {self.file('experiment.toml')} --out {self.path} --resume",
                code="run-unfinished",
                given=weights,
            )
        return load(self.file(weights), build_model(self.experiment, weights=False)).eval()

    def read_text(self, name: str) -> str:
        """Empty where the file is not there."""
        try:
            return self.file(name).read_text(encoding="utf-8") if self.has(name) else ""
        except UnicodeDecodeError:
            raise self.damaged(name, "not UTF-8 text") from None

    def write_text(self, name: str, text: str) -> Path:
        """Writes beside the target, flushes, then renames."""
        target = self.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as beside:
            beside.write_text(text, encoding="utf-8", newline="")
        return target

    def read_json(self, name: str) -> dict[str, Any]:
        """{} where the file is not there."""
        text = self.read_text(name)
        try:
            found = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.damaged(name, "not a JSON object")
        return found

    def damaged(self, name: str, what: str) -> InputError:
        """The error for a file of the run that says what it cannot say."""
        return InputError(f"run {self.path}: {name} is damaged: {what}", code="run-damaged", given=name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        return self.write_text(name, json.dumps(value, indent=1, default=str) + "\n")

    def read_csv(self, name: str, needed: Iterable[str] = ()) -> list[dict[str, str]]:
        """Rows as text; [] where the file is not there. Errors: `InputError` where the `needed` columns or cells are missing."""
        reader = csv.DictReader(io.StringIO(self.read_text(name)), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise self.damaged(name, f"line {reader.line_num}: {error}") from None
        columns = reader.fieldnames or ()
        missing = [column for column in needed if column not in columns]
        if rows and missing:
            raise self.damaged(name, f"it has no column {missing[0]}")
        for i, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise self.damaged(name, f"row {i} has not {len(columns)} cells")
        return rows

    def read(self, table: type[T]) -> tuple[T, ...]:
        """The rows of a table, a JSON file being one; () where the file is not there. Errors: `InputError` naming the cell."""
        name = table.file
        if name.endswith(".json"):
            found = {name: value} if (value := self.read_json(name)) else {}
        else:
            found = {f"{name} row {i}": row for i, row in enumerate(self.read_csv(name), 1)}
        try:
            return tuple(parsed(table, values, where) for where, values in found.items())
        except ValueError as error:
            raise InputError(f"run {self.path}: {error}", code="run-damaged", given=name) from None

    def write(self, table: type[Table], rows: Iterable[Mapping[str, Any]]) -> Path:
        """The whole table, each row by the names of its columns; a JSON file is its one row."""
        if table.file.endswith(".json"):
            (row,) = rows
            return self.write_json(table.file, row)
        return self.write_csv(table.file, rows, () if table.open else table.columns())

    def write_csv(self, name: str, rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> Path:
        """All rows; the columns are `columns`, then those of all rows in order of appearance. None is an empty cell."""
        return self.write_text(name, csv_text(list(rows), columns))

    def put_results(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Into results.csv: a row with the same `net` and `batch` is replaced, cell by cell.

        A row without `batch` says something of the net (its accuracy), not of a measurement: into all rows of the net.
        """
        kept: list[dict[str, Any]] = [dict(r) for r in self.read_csv(NetResult.file, ("net",))]
        for row in rows:
            batch = str(row.get("batch") or "")
            new = {key: str(value) if key == "batch" else value for key, value in row.items()}
            same = [r for r in kept if r["net"] == row["net"]]
            found = [r for r in same if not batch or r.get("batch") in (batch, "", None)]
            for old in found:
                old.update(new)
            if not found:
                kept.append(new)
        return self.write(NetResult, kept)
